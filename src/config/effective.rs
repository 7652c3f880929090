//! The effective configuration as JSON: merged, with what is or may be secret hidden.

use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use crate::config::Config;
use crate::config::schema::{self, Kind};
use crate::document::tree::{Node, Scalar, Value};
use crate::units::show_size;

/// What stands in place of a secret.
pub(crate) const HIDDEN: &str = "<redacted>";

/// All of it.
pub(crate) fn whole(config: &Config) -> Json {
    let mut shown = top(config);
    let upstreams = config.layers.root().get("upstreams").map_or(&[][..], |node| node.entries());
    let upstreams =
        upstreams.iter().map(|entry| (entry.key.to_string(), upstream(&config.layers.upstream(&entry.value), config)));
    let upstreams: Map<String, Json> = upstreams.collect();
    shown.insert("upstreams".to_owned(), Json::Object(upstreams));
    Json::Object(shown)
}

/// All but the upstreams.
pub(crate) fn top(config: &Config) -> Map<String, Json> {
    let mut shown = Map::new();
    for entry in config.layers.top().entries() {
        if !matches!(&*entry.key, "defaults" | "upstreams") && !entry.value.is_null() {
            shown.insert(entry.key.to_string(), value(&entry.value, &entry.key));
        }
    }
    let deny: Vec<String> = config.egress.deny.0.iter().map(ToString::to_string).collect();
    if let Some(Json::Object(egress)) = shown.get_mut("egress") {
        egress.insert("deny".to_owned(), deny.into());
    }
    if let Some(Json::Object(limits)) = shown.get_mut("limits") {
        limits.insert("replay_memory".to_owned(), show_size(config.limits.replay_memory).into());
    }
    shown.insert("unmatched".to_owned(), value(&config.layers.unmatched(), ""));
    shown
}

/// One upstream, each route merged.
fn upstream(merged: &Arc<Node>, config: &Config) -> Json {
    let mut shown = value(merged, "");
    if let (Json::Object(map), Some(routes)) = (&mut shown, merged.get("routes")) {
        let routes = routes.items().iter().map(|route| value(&config.layers.route(merged, route), ""));
        map.insert("routes".to_owned(), routes.collect());
    }
    shown
}

/// A value as JSON. `path` is where it stands, from where its scope starts (`retry.max_attempts`).
pub(crate) fn value(node: &Node, path: &str) -> Json {
    match &node.value {
        Value::Scalar(found) => scalar(found, schema::find(path).map_or(Kind::Secret, |key| key.kind)),
        Value::List(items) => items.iter().map(|item| value(item, path)).collect(),
        Value::Map(entries) => {
            let mut map = Map::new();
            for entry in entries {
                if entry.value.is_null() {
                    continue;
                }
                let path = if path.is_empty() { entry.key.to_string() } else { format!("{path}.{}", entry.key) };
                map.insert(entry.key.to_string(), value(&entry.value, &path));
            }
            // These two are off until their first key is written.
            let switch = match path {
                "rate_limit" => Some("requests"),
                "concurrency" => Some("max_in_flight"),
                _ => None,
            };
            if switch.is_some_and(|switch| !map.contains_key(switch)) {
                return json!("off");
            }
            Json::Object(map)
        }
    }
}

fn scalar(scalar: &Scalar, kind: Kind) -> Json {
    let hidden = match &scalar.expansion {
        Some(expansion) => expansion.secret || expansion.missing || !kind.may_be_shown(),
        None => kind == Kind::Secret,
    };
    if hidden {
        return json!(HIDDEN);
    }
    if scalar.is_off() && kind != Kind::Boolean {
        return json!("off");
    }
    if scalar.plain && !kind.is_text() {
        if let Ok(number) = scalar.text.parse::<u64>() {
            return json!(number);
        }
        if kind == Kind::Ratio
            && let Ok(number) = scalar.text.parse::<f64>()
        {
            return json!(number);
        }
        if matches!(kind, Kind::Boolean | Kind::Switch) {
            return json!(scalar.text.eq_ignore_ascii_case("true"));
        }
    }
    json!(&*scalar.text)
}
