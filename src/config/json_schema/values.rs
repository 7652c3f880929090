//! What a key of each kind may hold.

use serde_json::{Value as Json, json};

use crate::address::AddressRule;
use crate::config::json_schema::reference;
use crate::config::schema::{Item, Kind};
use crate::config::upstream::LONGEST_NAME;
use crate::policy::classify::Events;
use crate::policy::retry::METHODS;
use crate::units::{DURATION_UNITS, SIZE_UNITS};

/// `${NAME}`, `${NAME:-default}` or `${file:/path}`, anywhere in a string.
pub(super) const REFERENCE: &str = r"\$\{[A-Za-z_][^}]*\}";
/// One of them alone, which is read as the scalar that it stands for.
const REFERENCE_ALONE: &str = r"^\$\{[A-Za-z_][^}]*\}$";
/// A name as DNS knows it, with or without a dot at the end.
const HOST_NAME: &str = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?";
const IPV4: &str = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}";
const IPV6: &str = "[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*";
/// Of a host: 1 to 65535.
const PORT: &str = "0{0,4}[1-9][0-9]{0,4}";
/// The characters of a method or a header name (RFC 9110, section 5.6.2).
const TOKEN: &str = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";

/// What a key of this kind may hold.
pub(super) fn value(kind: Kind) -> Json {
    match kind {
        Kind::Version => json!({"anyOf": [{"const": 1}, {"type": "string", "pattern": REFERENCE_ALONE}]}),
        Kind::CountUpTo(most) => count(most),
        Kind::Choice(words) => choice(words),
        Kind::One(Item::Name) => reference(of_item(Item::Name).0),
        Kind::One(item) => json!({"anyOf": [reference(of_item(item).0), {"type": "null"}]}),
        Kind::List(item) => json!({"type": ["array", "null"], "items": reference(of_item(item).0)}),
        Kind::Routes => json!({"type": ["array", "null"], "items": reference("route")}),
        Kind::Block | Kind::BlockOrOff => unreachable!("blocks are made by their keys"),
        Kind::Duration
        | Kind::Wait
        | Kind::Clock
        | Kind::Size
        | Kind::Count
        | Kind::CountOrOff
        | Kind::Ratio
        | Kind::Boolean
        | Kind::Switch
        | Kind::Ports
        | Kind::Listen
        | Kind::ListenOrOff
        | Kind::Text
        | Kind::Secret => match named(kind) {
            Some((name, _)) => reference(name),
            None => unreachable!("these kinds have names"),
        },
    }
}

/// The kinds of which there is one, with the names that `$defs` has for them.
pub(super) fn named(kind: Kind) -> Option<(&'static str, Json)> {
    let nothing = json!({"type": "string", "pattern": "^[^1-9$]*$"});
    let duration: String = DURATION_UNITS.map(|(unit, _)| format!("(?:[0-9]+{unit})?")).concat();
    let size = format!("[0-9]+(?:{})", SIZE_UNITS.map(|(unit, _)| unit).join("|"));
    let listen = format!(r"(?:{IPV4}|\[{IPV6}(?:%[0-9]+)?\]):[0-9]+");
    Some(match kind {
        Kind::Duration => (
            "duration",
            json!({
                "description": "A duration such as 250ms, 2s, 1m30s or 1h, longer than 0.",
                "type": ["string", "null"], "pattern": one(&duration), "not": nothing,
            }),
        ),
        Kind::Wait => (
            "wait",
            json!({
                "description": "A duration such as 250ms, 2s, 1m30s or 1h, or 0.",
                "type": ["string", "integer", "null"], "pattern": one(&format!("0|{duration}")), "minLength": 1,
                "minimum": 0, "maximum": 0,
            }),
        ),
        Kind::Clock => (
            "clock",
            json!({
                "description": "A duration such as 250ms, 2s, 1m30s or 1h, or off.",
                "anyOf": [
                    {
                        "type": ["string", "null"], "pattern": one(&format!("off|{duration}")), "examples": ["off"],
                        "not": {"type": "string", "pattern": "^[^1-9$o]*$"},
                    },
                    {"const": false},
                ],
            }),
        ),
        Kind::Size => (
            "size",
            json!({
                "description": "A size such as 512B, 64KiB or 10MB.",
                "type": ["string", "null"], "pattern": one(&size), "not": nothing,
            }),
        ),
        Kind::Count => ("count", count(u32::MAX)),
        Kind::CountOrOff => (
            "count_or_off",
            json!({
                "description": "A whole number of at least 1, or off.",
                "anyOf": [
                    {
                        "type": ["integer", "string", "null"], "minimum": 1, "maximum": u32::MAX, "pattern": one("off"),
                        "examples": ["off"],
                    },
                    {"const": false},
                ],
            }),
        ),
        Kind::Ratio => (
            "ratio",
            json!({
                "description": "A number above 0 and at most 1.",
                "type": ["number", "string", "null"], "exclusiveMinimum": 0, "maximum": 1, "pattern": REFERENCE_ALONE,
            }),
        ),
        Kind::Boolean => (
            "switch",
            json!({"description": "true or false.", "type": ["boolean", "string", "null"], "pattern": REFERENCE_ALONE}),
        ),
        Kind::Switch => (
            "switch_or_off",
            json!({
                "description": "true, false or off.",
                "type": ["boolean", "string", "null"], "pattern": one("off"), "examples": ["off"],
            }),
        ),
        Kind::Ports => (
            "ports",
            json!({
                "description": "any, or a list of ports.",
                "type": ["array", "string", "null"], "pattern": one("any"), "minItems": 1,
                "items": {
                    "type": ["integer", "string"], "minimum": 1, "maximum": u16::MAX, "pattern": one(r"\+?0*[1-9][0-9]{0,4}"),
                },
            }),
        ),
        Kind::Listen => (
            "listen",
            json!({
                "description": "An address with a port, such as 127.0.0.1:7171 or [::]:7173.",
                "type": ["string", "null"], "pattern": one(&listen),
            }),
        ),
        Kind::ListenOrOff => (
            "listen_or_off",
            json!({
                "description": "An address with a port, such as 127.0.0.1:7171 or [::]:7173, or off.",
                "anyOf": [
                    {"type": ["string", "null"], "pattern": one(&format!("off|{listen}")), "examples": ["off"]},
                    {"const": false},
                ],
            }),
        ),
        Kind::Text => ("text", json!({"description": "Text.", "type": ["string", "number", "null"], "minLength": 1})),
        Kind::Secret => (
            "secret",
            json!({
                "description": "A secret: ${file:/path}, without spaces.",
                "type": ["string", "number", "null"], "pattern": one("[!-~]+"),
            }),
        ),
        Kind::Version
        | Kind::CountUpTo(_)
        | Kind::Choice(_)
        | Kind::One(_)
        | Kind::List(_)
        | Kind::Block
        | Kind::BlockOrOff
        | Kind::Routes => return None,
    })
}

fn count(most: u32) -> Json {
    json!({
        "description": "A whole number of at least 1.",
        "type": ["integer", "string", "null"], "minimum": 1, "maximum": most, "pattern": REFERENCE_ALONE,
    })
}

/// Words; YAML has some of them as numbers or as false.
fn choice(words: &[&str]) -> Json {
    let mut all = Vec::new();
    for word in words {
        if let Ok(number) = word.parse::<Json>()
            && number.is_number()
        {
            all.push(number);
        }
        all.push(json!(word));
        if *word == "off" {
            all.push(json!(false));
        }
    }
    json!({"anyOf": [{"enum": all}, {"type": ["string", "null"], "pattern": REFERENCE}]})
}

/// What a single value or an item of a list may be, with the name that `$defs` has for it.
pub(super) fn of_item(item: Item) -> (&'static str, Json) {
    let text = |pattern: &str| json!({"type": "string", "pattern": one(pattern)});
    match item {
        Item::Event => (
            "event",
            json!({
                "description": "connect_failure, reset, timeout, a status from 400 to 599, 4xx or 5xx.",
                "anyOf": [
                    {"enum": Events::WORDS},
                    {"type": "integer", "minimum": Events::STATUSES.start(), "maximum": Events::STATUSES.end()},
                    text(r"\+?0*[45][0-9]{2}"),
                ],
            }),
        ),
        Item::Method => (
            "method",
            json!({
                "description": "An HTTP method, in capitals.",
                "anyOf": [{"enum": METHODS}, text("[!#$%&'*+.^_`|~0-9A-Z-]+")],
            }),
        ),
        Item::Header => ("header", text(TOKEN)),
        Item::HostPattern => (
            "host",
            described(
                "A host, *.host, or an address, with or without :port.",
                text(&format!(r"(?:(?:\*\.)?{HOST_NAME}|\[{IPV6}\])(?::{PORT})?")),
            ),
        ),
        Item::Origin => (
            "origin",
            described(
                "https://host or http://host, with or without :port.",
                text(&format!(r"[Hh][Tt][Tt][Pp][Ss]?://(?:{HOST_NAME}|\[{IPV6}\])(?::{PORT})?/?")),
            ),
        ),
        Item::AddressRule => (
            "address",
            json!({
                "description": "A class of addresses, an address, or a CIDR.",
                "anyOf": [
                    {"enum": AddressRule::CLASSES},
                    text(&format!(r"(?:{IPV4}|{IPV6})(?:/[0-9]{{1,3}})?|\[(?:{IPV4}|{IPV6})\]")),
                ],
            }),
        ),
        Item::ServerName => ("server_name", text(&format!(r"{HOST_NAME}|\[{IPV6}\]|{IPV6}"))),
        Item::Name => {
            ("name", json!({"type": ["string", "number"], "pattern": one(&format!("[a-z0-9-]{{1,{LONGEST_NAME}}}"))}))
        }
        // What can be seen of a path, but for `?`, `#` and `*`, which stands at the end alone.
        Item::Path => ("path", text(r#"/(?:[!"$-)+->@-~]*|(?:[!"$-)+->@-~]*/)?\*)"#)),
        Item::Regex => ("regex", json!({"type": "string"})),
        Item::BucketKey => ("bucket_key", text(&format!("upstream|header:{TOKEN}"))),
    }
}

fn described(description: &str, mut schema: Json) -> Json {
    if let Json::Object(schema) = &mut schema {
        schema.insert("description".to_owned(), json!(description));
    }
    schema
}

/// The pattern of a whole string, or of one with a `${…}` in it, which may stand for anything.
fn one(pattern: &str) -> String {
    format!("^(?:{pattern})$|{REFERENCE}")
}
