//! What changed between two configurations, in words.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use crate::background::give_way;
use crate::config::{self, Config, effective};
use crate::document::tree::{self, Node};

/// A line for each setting: `upstreams.stripe.retry.max_attempts: 3 → 5`. Values come from the effective
/// configuration, where secrets are hidden; that a hidden value or a file's content changed is told without it.
pub(super) fn between(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    let top = |config| Value::Object(effective::top(config));
    compare("", &top(old), &top(new), &mut changes);
    Upstreams { old, new, blocks: HashMap::new() }.compare(&mut changes);
    let mut content = |what: String, changed: bool| {
        if changed && !changes.iter().any(|line| line.starts_with(&format!("{what}:"))) {
            changes.push(format!("{what}: changed"));
        }
    };
    content("admin_token".to_owned(), old.listeners.admin_token != new.listeners.admin_token);
    content("defaults.tls (content of its files)".to_owned(), old.unmatched.tls != new.unmatched.tls);
    let before: HashMap<&str, &config::Upstream> = old.upstreams.iter().map(|one| (&*one.name, &**one)).collect();
    for upstream in &new.upstreams {
        let changed = before.get(&*upstream.name).is_some_and(|before| {
            before.tls.roots != upstream.tls.roots || before.tls.identity != upstream.tls.identity
        });
        if changed {
            content(format!("upstreams.{}.tls (content of its files)", upstream.name), true);
        }
    }
    changes
}

/// Compares upstreams block by block. What they inherit is one block for all of them, and is compared once: the effective
/// values of a thousand upstreams would take longer to write down than all the rest of a reload.
struct Upstreams<'a> {
    old: &'a Config,
    new: &'a Config,
    /// Lines for each pair that was compared, below what it stands in. The blocks are kept so that their addresses stay
    /// their own.
    blocks: HashMap<Pair, Compared>,
}

/// The addresses of two blocks, null for one that is not there, and the key of both.
type Pair = (*const Node, *const Node, Arc<str>);

/// The blocks themselves and what differs.
type Compared = (Sides<Arc<Node>>, Arc<[String]>);

/// Before and after, as far as it is there.
type Sides<T> = (Option<T>, Option<T>);

impl Upstreams<'_> {
    fn compare(mut self, changes: &mut Vec<String>) {
        let mut names: BTreeMap<&str, Sides<&Arc<Node>>> = BTreeMap::new();
        let (old, new) = (self.old, self.new);
        for entry in written(old) {
            names.entry(&entry.key).or_default().0 = Some(&entry.value);
        }
        for entry in written(new) {
            names.entry(&entry.key).or_default().1 = Some(&entry.value);
        }
        let inherit_the_same = old.layers.upstreams_inherit_as(&new.layers);
        for (name, sides) in names {
            give_way();
            match sides {
                (Some(before), Some(after)) => {
                    if inherit_the_same && before.shows_as(after) {
                        continue;
                    }
                    let (before, after) = (old.layers.upstream(before), new.layers.upstream(after));
                    let path = format!("upstreams.{name}");
                    self.mappings(&path, &before, &after, changes);
                    self.routes(&path, &before, &after, changes);
                }
                (Some(_), None) => changes.push(format!("upstreams.{name}: removed")),
                (None, _) => changes.push(format!("upstreams.{name}: added")),
            }
        }
    }

    /// Two merged upstreams or routes, but for what they are called and an upstream's routes.
    fn mappings(&mut self, path: &str, before: &Node, after: &Node, changes: &mut Vec<String>) {
        let mut keys: Vec<&Arc<str>> = before.entries().iter().map(|entry| &entry.key).collect();
        keys.extend(after.entries().iter().map(|entry| &entry.key).filter(|key| before.entry(key).is_none()));
        for key in keys.into_iter().filter(|key| &***key != "routes") {
            let lines = self.blocks(key, (before.get(key), after.get(key)));
            changes.extend(lines.iter().map(|line| format!("{path}.{line}")));
        }
    }

    fn blocks(&mut self, key: &Arc<str>, sides: Sides<&Arc<Node>>) -> Arc<[String]> {
        if let (Some(before), Some(after)) = sides
            && before.shows_as(after)
        {
            return [].into();
        }
        let address = |node: Option<&Arc<Node>>| node.map_or(std::ptr::null(), Arc::as_ptr);
        let pair = (address(sides.0), address(sides.1), key.clone());
        if let Some((_, lines)) = self.blocks.get(&pair) {
            return lines.clone();
        }
        let shown = |node: Option<&Arc<Node>>| node.map_or(Value::Null, |node| effective::value(node, key));
        let mut lines = Vec::new();
        compare(key, &shown(sides.0), &shown(sides.1), &mut lines);
        let lines: Arc<[String]> = lines.into();
        self.blocks.insert(pair, ((sides.0.cloned(), sides.1.cloned()), lines.clone()));
        lines
    }

    /// One by one, as far as both go.
    fn routes(&mut self, path: &str, before: &Arc<Node>, after: &Arc<Node>, changes: &mut Vec<String>) {
        let items = |upstream: &Arc<Node>| upstream.get("routes").map_or(Vec::new(), |routes| routes.items().to_vec());
        let (old, new) = (items(before), items(after));
        for at in 0..old.len().max(new.len()) {
            let sides = (old.get(at), new.get(at));
            let name = sides.1.or(sides.0).and_then(|route| route.get("name"));
            let name = name.and_then(|name| name.scalar());
            let place = name.map_or_else(|| at.to_string(), |name| name.as_written().to_owned());
            let path = format!("{path}.routes[{place}]");
            match sides {
                (Some(one), Some(other)) => {
                    let one = self.old.layers.route(before, one);
                    let other = self.new.layers.route(after, other);
                    self.mappings(&path, &one, &other, changes);
                }
                (Some(_), None) => changes.push(format!("{path}: removed")),
                (None, _) => changes.push(format!("{path}: added")),
            }
        }
    }
}

fn written(config: &Config) -> &[tree::Entry] {
    config.layers.root().get("upstreams").map_or(&[], |upstreams| upstreams.entries())
}

fn compare(path: &str, old: &Value, new: &Value, changes: &mut Vec<String>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                compare(&join(path, key), value, after.get(key).unwrap_or(&Value::Null), changes);
            }
            for (key, value) in after.iter().filter(|(key, _)| !before.contains_key(*key)) {
                compare(&join(path, key), &Value::Null, value, changes);
            }
        }
        // Lists of blocks (routes) are compared one by one, as far as both go.
        (Value::Array(before), Value::Array(after)) if before.iter().chain(after).all(Value::is_object) => {
            for at in 0..before.len().max(after.len()) {
                let of = |list: &[Value]| list.get(at).cloned().unwrap_or_default();
                let (before, after) = (of(before), of(after));
                let name = after.get("name").or(before.get("name")).and_then(Value::as_str);
                let place = name.map_or_else(|| at.to_string(), str::to_owned);
                compare(&format!("{path}[{place}]"), &before, &after, changes);
            }
        }
        (Value::Null, Value::Object(_)) => changes.push(format!("{path}: added")),
        (Value::Object(_), Value::Null) => changes.push(format!("{path}: removed")),
        (_, Value::Object(_)) => changes.push(format!("{path}: {} → on", show(old))),
        (Value::Object(_), _) => changes.push(format!("{path}: on → {}", show(new))),
        _ => changes.push(format!("{path}: {} → {}", show(old), show(new))),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(show).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(old: Value, new: Value) -> Vec<String> {
        let mut changes = Vec::new();
        compare("", &old, &new, &mut changes);
        changes
    }

    #[test]
    fn a_change_names_its_setting_and_both_values() {
        let old = json!({"upstreams": {"stripe": {"retry": {"max_attempts": 3, "on": ["reset", 503]}}}});
        let new = json!({"upstreams": {"stripe": {"retry": {"max_attempts": 5, "on": ["reset"]}}}});
        assert_eq!(
            changed(old.clone(), new),
            ["upstreams.stripe.retry.max_attempts: 3 → 5", "upstreams.stripe.retry.on: [reset, 503] → [reset]"]
        );
        assert!(changed(old.clone(), old).is_empty());
    }

    #[test]
    fn blocks_come_and_go_as_one_line() {
        let lines = changed(
            json!({"upstreams": {"a": {"hosts": []}, "b": {"retry": "off"}}}),
            json!({"upstreams": {"b": {"retry": {"max_attempts": 3}}, "c": {"hosts": []}}}),
        );
        assert_eq!(lines, ["upstreams.a: removed", "upstreams.b.retry: off → on", "upstreams.c: added"]);
    }

    #[test]
    fn routes_are_told_by_name() {
        let route = |name, attempt| json!({"name": name, "timeouts": {"attempt": attempt}});
        assert_eq!(
            changed(
                json!({"routes": [route("charges", "20s")]}),
                json!({"routes": [route("charges", "10s"), route("refunds", "1s")]})
            ),
            ["routes[charges].timeouts.attempt: 20s → 10s", "routes[refunds]: added"]
        );
    }
}
