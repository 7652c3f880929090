//! The configuration as a JSON Schema (2020-12), for editors and for checks without Outrigger. Made from the same table and
//! the same built-in values as everything else.
//!
//! It never refuses what [`load`](super::load) accepts, but for what nobody means: a number as a host, or a variable that can
//! only be empty, where a list is written. It accepts more: what takes two settings, a file or the environment to judge is
//! `outrigger check`'s.

mod values;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use crate::config::json_schema::values::{REFERENCE, named, of_item, value};
use crate::config::layers::Layers;
use crate::config::schema::{self, Key, Kind, Scope};
use crate::config::upstream::LONGEST_NAME;
use crate::document::Problems;
use crate::document::tree::{Layer, Node};

/// The schema.
pub fn document() -> Json {
    let built_in = BuiltIn::new();
    let mut top = block(&properties(&[Scope::Top], "", &built_in));
    top.insert("required".to_owned(), json!(["version"]));
    if let Some(Json::Object(properties)) = top.get_mut("properties") {
        merge(properties, "defaults", reference("defaults"));
        merge(properties, "upstreams", upstreams());
    }
    top.insert("type".to_owned(), json!("object"));
    top.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    top.insert("$id".to_owned(), json!("urn:outrigger:config:1"));
    top.insert("title".to_owned(), json!("Outrigger configuration, version 1"));
    top.insert(
        "description".to_owned(),
        json!("Which policy every upstream gets. `outrigger check` sees what a schema can't."),
    );
    top.insert(
        "$comment".to_owned(),
        json!(format!(
            "Made by `outrigger schema` of version {}. Reserved for a later version: {}.",
            env!("CARGO_PKG_VERSION"),
            schema::RESERVED.join(", ")
        )),
    );
    top.insert("$defs".to_owned(), Json::Object(definitions(&built_in)));
    Json::Object(top)
}

/// The built-in values.
struct BuiltIn(Layers);

impl BuiltIn {
    fn new() -> BuiltIn {
        let mut problems = Problems::default();
        let file = Arc::new(PathBuf::from("nothing"));
        let root = Node::parse("upstreams: {a: {}}", &file, Layer::File, &mut problems);
        BuiltIn(Layers::new(root.unwrap_or_else(|| unreachable!("this is a document: {problems:?}"))))
    }

    /// The built-in value of a key.
    fn of(&self, key: &Key) -> Option<Json> {
        let path = match key.scope {
            Scope::Top => key.path.to_owned(),
            Scope::Policy | Scope::Shared | Scope::Upstream => format!("upstreams.a.{}", key.path),
            Scope::Route => return None,
        };
        let source = self.0.origin_of(&path)?;
        (source.layer == Layer::BuiltIn && !is_block(key.kind)).then_some(source.value)
    }
}

fn is_block(kind: Kind) -> bool {
    matches!(kind, Kind::Block | Kind::BlockOrOff | Kind::Routes)
}

/// What `$defs` holds: the kinds of values, and the blocks that may stand in several places.
fn definitions(built_in: &BuiltIn) -> Map<String, Json> {
    let mut all = Map::new();
    for key in schema::KEYS {
        if let Some((name, definition)) = named(key.kind) {
            all.insert(name.to_owned(), definition);
        }
        if let Kind::List(item) | Kind::One(item) = key.kind {
            let (name, definition) = of_item(item);
            all.insert(name.to_owned(), definition);
        }
        if matches!(key.scope, Scope::Policy | Scope::Shared) && !key.path.contains('.') {
            all.insert(key.path.to_owned(), of_block(key, built_in));
        }
    }
    let mut route = block(&properties(&[Scope::Route, Scope::Policy], "", built_in));
    route.insert("type".to_owned(), json!("object"));
    route.insert("required".to_owned(), json!(["name", "match"]));
    all.insert("route".to_owned(), Json::Object(route));
    for (name, scopes) in [
        ("defaults", &[Scope::Policy, Scope::Shared][..]),
        ("upstream", &[Scope::Upstream, Scope::Policy, Scope::Shared]),
    ] {
        let mut definition = block(&properties(scopes, "", built_in));
        definition.insert("type".to_owned(), json!(["object", "null"]));
        all.insert(name.to_owned(), Json::Object(definition));
    }
    all
}

/// The keys directly below a path, those of shared blocks by reference.
fn properties(scopes: &[Scope], below: &str, built_in: &BuiltIn) -> Map<String, Json> {
    let mut properties = Map::new();
    for key in schema::KEYS.iter().filter(|key| scopes.contains(&key.scope)) {
        let name = match (below, key.path.strip_prefix(below)) {
            ("", Some(name)) => name,
            (_, Some(rest)) => match rest.strip_prefix('.') {
                Some(name) => name,
                None => continue,
            },
            (_, None) => continue,
        };
        if name.contains('.') {
            continue;
        }
        let shared = below.is_empty() && matches!(key.scope, Scope::Policy | Scope::Shared);
        let mut property = match (shared, key.kind) {
            (true, _) => reference(name),
            (false, Kind::Block | Kind::BlockOrOff) => of_block(key, built_in),
            (false, kind) => value(kind),
        };
        if let Json::Object(property) = &mut property {
            let default = built_in.of(key);
            property.insert("description".to_owned(), json!(description(key, default.as_ref())));
            if let Some(default) = default {
                property.insert("default".to_owned(), default);
            }
        }
        properties.insert(name.to_owned(), property);
    }
    properties
}

/// What an editor shows beside the key.
fn description(key: &Key, default: Option<&Json>) -> String {
    let form = key.kind.form();
    match default {
        None | Some(Json::Array(_)) => format!("{} ({form})", key.about),
        Some(Json::String(text)) => format!("{} ({form}; default `{text}`)", key.about),
        Some(value) => format!("{} ({form}; default `{value}`)", key.about),
    }
}

fn of_block(key: &Key, built_in: &BuiltIn) -> Json {
    let mut definition = block(&properties(&[key.scope], key.path, built_in));
    if key.kind == Kind::BlockOrOff {
        definition.insert("type".to_owned(), json!(["object", "string", "boolean", "null"]));
        definition.insert("pattern".to_owned(), json!(format!("^off$|{REFERENCE}")));
        definition.insert("not".to_owned(), json!({"const": true}));
        definition.insert("examples".to_owned(), json!(["off"]));
    } else if key.path == "match" {
        definition.insert("type".to_owned(), json!("object"));
        let written = |keys: &[&str]| {
            let present: Map<String, Json> =
                keys.iter().map(|key| ((*key).to_owned(), json!({"not": {"type": "null"}}))).collect();
            json!({"required": keys, "properties": present})
        };
        let any: Vec<Json> = ["methods", "path", "path_regex"].iter().map(|key| written(&[key])).collect();
        definition.insert("anyOf".to_owned(), json!(any));
        definition.insert("not".to_owned(), written(&["path", "path_regex"]));
    } else {
        definition.insert("type".to_owned(), json!(["object", "null"]));
    }
    Json::Object(definition)
}

fn block(properties: &Map<String, Json>) -> Map<String, Json> {
    let mut block = Map::new();
    block.insert("properties".to_owned(), Json::Object(properties.clone()));
    block.insert("additionalProperties".to_owned(), json!(false));
    block
}

fn upstreams() -> Json {
    json!({
        "type": ["object", "null"],
        "propertyNames": {"pattern": format!("^[a-z0-9-]{{1,{LONGEST_NAME}}}$"), "not": {"const": "unmatched"}},
        "additionalProperties": reference("upstream"),
    })
}

fn reference(name: &str) -> Json {
    json!({"$ref": format!("#/$defs/{name}")})
}

/// Replaces a property, but for its description.
fn merge(properties: &mut Map<String, Json>, name: &str, mut with: Json) {
    let description = properties.get(name).and_then(|old| old.get("description")).cloned();
    if let (Some(description), Json::Object(with)) = (description, &mut with) {
        with.insert("description".to_owned(), description);
    }
    properties.insert(name.to_owned(), with);
}
