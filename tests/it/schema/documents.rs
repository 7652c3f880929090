//! Documents made of the table's keys, and values for them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use outrigger::config::schema::{Item, Key, Kind, Scope};
use proptest::sample::Index;
use serde_json::Value as Json;

use super::json;

/// Values as YAML has them, of every kind and of none.
pub(crate) static VALUES: LazyLock<Vec<&str>> = LazyLock::new(|| include_str!("values.txt").lines().collect());

/// Of these, what tells blocks apart.
pub(crate) const FOR_BLOCKS: &[&str] =
    &["~", "''", "5", "true", "false", "off", "'off'", "Off", "'false'", "x", "'${W}'", "'${D}'", "{}", "[]", "{a: 1}"];

/// What of a list's item nobody means: YAML has a number or a truth where a name stands, and the loader takes it as text.
pub(crate) fn is_a_slip(kind: Kind, value: &str) -> bool {
    let Ok(parsed) = json(value) else { return false };
    let items = match parsed {
        Json::Array(items) => items,
        single => vec![single],
    };
    match kind {
        Kind::One(Item::Name) | Kind::Text | Kind::Secret => items.iter().any(Json::is_boolean),
        Kind::One(_) | Kind::List(_) => items.iter().any(|item| item.is_boolean() || item.is_number()),
        _ => false,
    }
}

/// A document with one key.
pub(crate) fn document(key: &Key, value: &str) -> String {
    let mut tree = Tree::default();
    tree.place(key, if key.scope == Scope::Policy { 2 } else { 1 }, value);
    tree.text()
}

/// A document in the making: keys to values as they are written.
#[derive(Default)]
pub(crate) struct Tree(BTreeMap<Vec<String>, String>);

impl Tree {
    /// Puts a key at one of the places where it may stand: `defaults`, an upstream, a route.
    pub(crate) fn place(&mut self, key: &Key, place: usize, value: &str) {
        let prefix: &[&str] = match (key.scope, place) {
            (Scope::Top, _) => &[],
            (Scope::Policy | Scope::Shared, 0) => &["defaults"],
            (Scope::Policy, 2) | (Scope::Route, _) => &["upstreams", "a", "routes"],
            (Scope::Policy | Scope::Shared | Scope::Upstream, _) => &["upstreams", "a"],
        };
        let path: Vec<String> = prefix.iter().copied().chain(key.path.split('.')).map(str::to_owned).collect();
        // What is below a value, or above one, is already said.
        if !self.0.keys().any(|other| other.starts_with(&path) || path.starts_with(other)) {
            self.0.insert(path, value.to_owned());
        }
    }

    /// As YAML, with what every document needs.
    pub(crate) fn text(&self) -> String {
        let mut all = self.0.clone();
        let mut need = |path: &[&str], value: &str| {
            let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
            if !all.keys().any(|other| path.starts_with(other) || other.starts_with(&path)) {
                all.insert(path, value.to_owned());
            }
        };
        need(&["version"], "1");
        if self.0.keys().any(|path| path.len() > 1 && path[0] == "upstreams") {
            need(&["upstreams", "a", "hosts"], "[host.example]");
        }
        if self.0.keys().any(|path| path.len() > 3 && path[2] == "routes") {
            need(&["upstreams", "a", "routes", "name"], "r");
            need(&["upstreams", "a", "routes", "match"], "{path: /r}");
        }
        let entries: Vec<(&[String], &str)> = all.iter().map(|(path, value)| (&path[..], &**value)).collect();
        write(&entries, false) + "\n"
    }
}

fn write(entries: &[(&[String], &str)], list: bool) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = entries;
    while let Some((path, value)) = rest.first() {
        let same = rest.iter().take_while(|(other, _)| other[0] == path[0]).count();
        let (group, others) = rest.split_at(same);
        if path.len() == 1 {
            parts.push(format!("{}: {value}", path[0]));
        } else {
            let below: Vec<(&[String], &str)> = group.iter().map(|(path, value)| (&path[1..], *value)).collect();
            parts.push(format!("{}: {}", path[0], write(&below, path[0] == "routes")));
        }
        rest = others;
    }
    let block = format!("{{{}}}", parts.join(", "));
    if list { format!("[{block}]") } else { block }
}
/// A value that is right more often than not.
pub(crate) fn likely(kind: Kind, index: &Index) -> &'static str {
    let good: &[&str] = match kind {
        Kind::Version => &["1"],
        Kind::Duration => &["1s", "'${D}'", "5m", "~", "'1s'"],
        Kind::Wait => &["0", "100ms", "'0'", "'${D}'"],
        Kind::Clock => &["off", "false", "2s", "'${W}'", "'off'"],
        Kind::Size => &["64KiB", "2MB", "'1MiB'"],
        Kind::Count | Kind::CountUpTo(_) => &["2", "'${N}'", "300", "~"],
        Kind::CountOrOff => &["off", "2", "'${W}'", "false"],
        Kind::Ratio => &["0.2", "1", "5e-1"],
        Kind::Boolean => &["true", "False"],
        Kind::Switch => &["true", "off", "False"],
        Kind::Choice(words) => words,
        Kind::One(Item::ServerName) | Kind::List(Item::HostPattern) => &["b.example", "[b.example, '*.c.example:80']"],
        Kind::One(Item::Name) => &["q", "404"],
        Kind::One(Item::Path) => &["/a", "/a/*"],
        Kind::One(Item::Regex) => &["/[a-z]+", "'.*'"],
        Kind::One(Item::BucketKey) => &["upstream", "header:X-A", "'header:${H}'"],
        Kind::List(Item::Event) => &["[5xx, 429]", "[reset, '${N}29']", "[]"],
        Kind::List(Item::Method) => &["[GET, M-SEARCH]", "[]"],
        Kind::List(Item::Header) => &["[X-Key]", "['x-${H}']"],
        Kind::List(Item::Origin) => &["['https://b.example']", "['http://${H}:80', 'https://10.0.0.1/']"],
        Kind::List(Item::AddressRule) => &["[private, 10.0.0.0/8]", "['fd00::1', cgnat]"],
        Kind::One(_) | Kind::List(_) => &["~"],
        Kind::Ports => &["any", "[443, '80']", "'${NONE:-any}'"],
        Kind::Listen => &["127.0.0.1:7400", "'[::1]:7401'"],
        Kind::ListenOrOff => &["off", "127.0.0.1:7402", "'${W}'"],
        Kind::Text => &["/nowhere/x.pem", "5"],
        Kind::Secret => &["'${H}'", "12345678"],
        Kind::Block => &["{}", "~"],
        Kind::BlockOrOff => &["off", "{}", "~", "'${W}'"],
        Kind::Routes => &["[]", "[{name: z, match: {methods: [GET]}}]"],
    };
    good[index.index(good.len())]
}
