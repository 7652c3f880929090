//! Values without places: what is added, and what two documents are compared by.

/// A value as Kubernetes would see it: quotes, order of writing and comments don't count, the order of keys does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Text.
    Text(String),
    /// A number, boolean or null, as written.
    Word(String),
    /// Text or word with a tag of its own.
    Tagged(String, String),
    /// A sequence.
    List(Vec<Value>),
    /// A mapping, in order.
    Map(Vec<(Value, Value)>),
    /// An alias, by the number of its anchor.
    Alias(usize),
    /// What was taken out.
    Gone,
}

impl Value {
    /// Text.
    pub(crate) fn text(text: impl Into<String>) -> Value {
        Value::Text(text.into())
    }

    /// A number or boolean.
    pub(crate) fn word(word: impl ToString) -> Value {
        Value::Word(word.to_string())
    }

    /// A mapping.
    pub(crate) fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
        Value::Map(entries.into_iter().map(|(key, value)| (Value::text(key), value)).collect())
    }

    /// A list of texts.
    pub(crate) fn texts<const N: usize>(texts: [&str; N]) -> Value {
        Value::List(texts.into_iter().map(Value::text).collect())
    }

    /// A scalar as it was read.
    pub(crate) fn scalar(text: &str, plain: bool, tag: Option<&str>) -> Value {
        match tag {
            Some(tag) => Value::Tagged(tag.to_owned(), text.to_owned()),
            None if plain && is_null(text) => Value::word("null"),
            None if plain && !is_text(text) => Value::word(text),
            None => Value::text(text),
        }
    }

    /// The value of a key of a mapping.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Map(entries) => {
                entries.iter().find(|(key, _)| matches!(key, Value::Text(text) if text == name)).map(|(_, value)| value)
            }
            Value::Text(_) | Value::Word(_) | Value::Tagged(..) | Value::List(_) | Value::Alias(_) | Value::Gone => {
                None
            }
        }
    }

    /// Its text, where it is text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            Value::Word(_) | Value::Tagged(..) | Value::List(_) | Value::Map(_) | Value::Alias(_) | Value::Gone => None,
        }
    }

    /// Whether an alias is in it.
    pub(crate) fn has_alias(&self) -> bool {
        match self {
            Value::Alias(_) => true,
            Value::List(items) => items.iter().any(Value::has_alias),
            Value::Map(entries) => entries.iter().any(|(key, value)| key.has_alias() || value.has_alias()),
            Value::Text(_) | Value::Word(_) | Value::Tagged(..) | Value::Gone => false,
        }
    }

    /// Whether it fits on a part of a line.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Value::Text(_) | Value::Word(_) | Value::Tagged(..) | Value::Alias(_) | Value::Gone => true,
            Value::List(_) | Value::Map(_) => false,
        }
    }
}

/// Whether a plain scalar means null.
pub(crate) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Whether a plain scalar means text to every reader of manifests, those of YAML 1.1 included.
pub(crate) fn is_text(text: &str) -> bool {
    const WORDS: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "y", "n", "<<", "="];
    if is_null(text) || WORDS.contains(&text.to_ascii_lowercase().as_str()) {
        return false;
    }
    let digits = text.trim_start_matches(['+', '-', '.']);
    let number = digits.starts_with(|c: char| c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_hexdigit() || matches!(c, '+' | '-' | '.' | '_' | 'x' | 'o' | ':' | 'T' | 'Z'));
    let special = matches!(digits.to_ascii_lowercase().as_str(), "inf" | "nan") && digits.len() < text.len();
    !number && !special
}

/// Whether a plain scalar means yes.
pub(crate) fn is_true(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "y")
}
