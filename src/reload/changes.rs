//! What changed between two configurations, in words.

use serde_json::Value;

use crate::config::Config;

/// A line for each setting: `upstreams.stripe.retry.max_attempts: 3 → 5`. Values come from the effective
/// configuration, where secrets are hidden; that a hidden value or a file's content changed is told without it.
pub(super) fn between(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    compare("", &old.effective, &new.effective, &mut changes);
    let mut content = |what: String, changed: bool| {
        if changed && !changes.iter().any(|line| line.starts_with(&format!("{what}:"))) {
            changes.push(format!("{what}: changed"));
        }
    };
    content("admin_token".to_owned(), old.listeners.admin_token != new.listeners.admin_token);
    content("defaults.tls (content of its files)".to_owned(), old.unmatched.tls != new.unmatched.tls);
    for upstream in &new.upstreams {
        let before = old.upstreams.iter().find(|one| one.name == upstream.name);
        let changed = before.is_some_and(|before| {
            before.tls.roots != upstream.tls.roots || before.tls.identity != upstream.tls.identity
        });
        content(format!("upstreams.{}.tls (content of its files)", upstream.name), changed);
    }
    changes
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
