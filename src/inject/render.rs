//! Values as text: in block style, in brackets, or as JSON.

use crate::inject::value::{self, Value};

/// How a document is indented.
#[derive(Clone, Debug)]
pub(crate) struct Style {
    /// Spaces from a key to the keys of the mapping under it.
    pub(crate) step: usize,
    /// Spaces from a key to the dashes of the list under it.
    pub(crate) dash: usize,
    /// What one level is indented by in brackets that span lines.
    pub(crate) unit: String,
    /// Whether text and keys stand in double quotes, as in JSON.
    pub(crate) json: bool,
    /// The line break.
    pub(crate) newline: &'static str,
}

impl Style {
    /// A key with its value, as lines in block style.
    pub(crate) fn entry(&self, key: &str, value: &Value, column: usize) -> Vec<String> {
        let indent = " ".repeat(column);
        match value {
            Value::Map(entries) if !entries.is_empty() => {
                let mut lines = vec![format!("{indent}{key}:")];
                lines.extend(self.entries(entries, column + self.step));
                lines
            }
            Value::List(items) if !items.is_empty() && !items.iter().all(Value::is_scalar) => {
                let mut lines = vec![format!("{indent}{key}:")];
                lines.extend(self.items(items, column + self.dash));
                lines
            }
            // A list of texts is short, and reads best in one line.
            Value::Text(_)
            | Value::Word(_)
            | Value::Tagged(..)
            | Value::List(_)
            | Value::Map(_)
            | Value::Alias(_)
            | Value::Gone => vec![format!("{indent}{key}: {}", self.inline(value))],
        }
    }

    fn entries(&self, entries: &[(Value, Value)], column: usize) -> Vec<String> {
        entries.iter().flat_map(|(key, value)| self.entry(&scalar(key, false, false), value, column)).collect()
    }

    /// Items of a list, as lines in block style, with the dash at a column.
    pub(crate) fn items(&self, items: &[Value], column: usize) -> Vec<String> {
        let dash = format!("{}- ", " ".repeat(column));
        let mut lines = Vec::new();
        for item in items {
            match item {
                Value::Map(entries) if !entries.is_empty() => {
                    let mut inner = self.entries(entries, column + 2);
                    if let Some(first) = inner.first_mut() {
                        first.replace_range(..column + 2, &dash);
                    }
                    lines.extend(inner);
                }
                Value::Text(_)
                | Value::Word(_)
                | Value::Tagged(..)
                | Value::List(_)
                | Value::Map(_)
                | Value::Alias(_)
                | Value::Gone => lines.push(format!("{dash}{}", self.inline(item))),
            }
        }
        lines
    }

    /// A value in one line, collections in brackets.
    pub(crate) fn inline(&self, value: &Value) -> String {
        match value {
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(|item| self.inside(item)).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Map(entries) => {
                let pair = |(key, value): &(Value, Value)| format!("{}: {}", self.key(key), self.inside(value));
                let entries: Vec<String> = entries.iter().map(pair).collect();
                format!("{{{}}}", entries.join(", "))
            }
            Value::Text(_) | Value::Word(_) | Value::Tagged(..) | Value::Alias(_) | Value::Gone => {
                scalar(value, self.json, false)
            }
        }
    }

    /// The same inside of brackets, where more characters need quotes.
    fn inside(&self, value: &Value) -> String {
        if value.is_scalar() { scalar(value, self.json, true) } else { self.inline(value) }
    }

    /// A key as it is written in braces.
    pub(crate) fn key(&self, key: &Value) -> String {
        scalar(key, self.json, true)
    }

    /// A value in brackets that span lines; `indent` is that of the line it starts in.
    pub(crate) fn spread(&self, value: &Value, indent: &str) -> String {
        let inner = format!("{indent}{}", self.unit);
        let newline = self.newline;
        let wrap = |open: char, parts: Vec<String>, close: char| {
            let parts = parts.join(&format!(",{newline}{inner}"));
            format!("{open}{newline}{inner}{parts}{newline}{indent}{close}")
        };
        match value {
            Value::List(items) if !items.is_empty() => {
                wrap('[', items.iter().map(|item| self.spread(item, &inner)).collect(), ']')
            }
            Value::Map(entries) if !entries.is_empty() => {
                let pair = |(key, value): &(Value, Value)| format!("{}: {}", self.key(key), self.spread(value, &inner));
                wrap('{', entries.iter().map(pair).collect(), '}')
            }
            Value::Text(_)
            | Value::Word(_)
            | Value::Tagged(..)
            | Value::List(_)
            | Value::Map(_)
            | Value::Alias(_)
            | Value::Gone => self.inside(value),
        }
    }
}

/// A scalar, in double quotes where they are needed or wanted.
fn scalar(value: &Value, json: bool, flow: bool) -> String {
    match value {
        Value::Word(word) => word.clone(),
        Value::Text(text) if !json && is_plain(text, flow) => text.clone(),
        Value::Text(text) => quoted(text),
        Value::Tagged(tag, text) => format!("!<{tag}> {}", quoted(text)),
        Value::List(_) | Value::Map(_) | Value::Alias(_) | Value::Gone => String::new(),
    }
}

/// Whether text can stand without quotes; when in doubt, not.
fn is_plain(text: &str, flow: bool) -> bool {
    let starts = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_');
    let starts = text.strip_prefix("--").unwrap_or(text).starts_with(starts);
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-' | '@') || c == ':' && !flow;
    starts && text.chars().all(safe) && !text.ends_with(':') && !text.contains("://") && value::is_text(text)
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style() -> Style {
        Style { step: 2, dash: 2, unit: "  ".into(), json: false, newline: "\n" }
    }

    #[test]
    fn values_are_written_in_block_style_in_brackets_and_as_json() {
        let value = Value::map([
            ("name", Value::text("x")),
            ("ports", Value::List(vec![Value::map([("port", Value::word(1)), ("on", Value::text("true"))])])),
            ("args", Value::texts(["run", "--config"])),
            ("empty", Value::Map(Vec::new())),
        ]);
        let lines = style().entry("c", &value, 2).join("\n");
        assert_eq!(
            lines,
            "  c:\n    name: x\n    ports:\n      - port: 1\n        \"on\": \"true\"\n    args: [run, --config]\n    empty: {}"
        );
        assert_eq!(
            style().inline(&value),
            r#"{name: x, ports: [{port: 1, "on": "true"}], args: [run, --config], empty: {}}"#
        );
        let json = Style { json: true, ..style() };
        let spread: serde_json::Value = serde_json::from_str(&json.spread(&value, "")).expect("it is JSON");
        assert_eq!(spread["ports"][0]["port"], 1);
        assert!(json.spread(&value, "  ").starts_with("{\n    \"name\": \"x\",\n"));
    }

    #[test]
    fn what_could_be_read_as_something_else_stands_in_quotes() {
        for (text, written) in [
            ("outrigger:1.2", "outrigger:1.2"),
            ("16Mi", "16Mi"),
            ("10m", "10m"),
            ("12", "\"12\""),
            ("no", "\"no\""),
            ("1e3", "\"1e3\""),
            ("a b", "\"a b\""),
            ("*", "\"*\""),
            ("", "\"\""),
            ("a\"\\\u{1}", "\"a\\\"\\\\\\u0001\""),
        ] {
            assert_eq!(style().inline(&Value::text(text)), written);
        }
    }
}
