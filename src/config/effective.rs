//! The effective configuration as JSON: merged, with what is or may be secret hidden.

use serde_json::{Map, Value as Json, json};

use crate::config::schema::{self, Kind};
use crate::document::tree::{Node, Scalar, Value};

/// What stands in place of a secret.
pub(crate) const HIDDEN: &str = "<redacted>";

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
