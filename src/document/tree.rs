//! The tree: YAML values with the place each was written at, and the layered merge.

use std::sync::Arc;

use crate::document::Place;
use crate::document::expand::Expansion;

/// A value and where it came from.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it is written.
    pub place: Place,
    /// Which layer wrote it.
    pub layer: Layer,
    /// The value.
    pub value: Value,
}

/// Who wrote a value; what is more specific is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// A built-in default.
    BuiltIn,
    /// The file, outside the layered blocks.
    File,
    /// `defaults`
    Defaults,
    /// An upstream.
    Upstream,
    /// A route.
    Route,
}

impl Layer {
    /// As `explain` and `/config` name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Layer::BuiltIn => "built-in",
            Layer::File => "file",
            Layer::Defaults => "defaults",
            Layer::Upstream => "upstream",
            Layer::Route => "route",
        }
    }
}

/// What a node holds.
#[derive(Clone, Debug)]
pub enum Value {
    /// A single value.
    Scalar(Scalar),
    /// A list.
    List(Vec<Arc<Node>>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
}

/// One key of a mapping with its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// Where the key stands.
    pub place: Place,
    /// Its value.
    pub value: Arc<Node>,
}

/// A scalar as text. What it means (number, duration, word) is for the reader to say.
#[derive(Clone)]
pub struct Scalar {
    /// The text, after `${…}` was replaced.
    pub text: Arc<str>,
    /// Not quoted (or one `${…}` alone): may be read as a number, a boolean or null.
    pub plain: bool,
    /// What it was before `${…}` was replaced, and from where the replacement came.
    pub expansion: Option<Arc<Expansion>>,
}

impl Scalar {
    /// A plain scalar.
    pub fn plain(text: &str) -> Scalar {
        Scalar { text: text.into(), plain: true, expansion: None }
    }

    /// Null by YAML 1.2's core schema.
    pub fn is_null(&self) -> bool {
        let kept = self.expansion.as_ref().is_some_and(|expansion| expansion.secret || expansion.missing);
        self.plain && !kept && matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL")
    }

    /// `off` or `false`.
    pub fn is_off(&self) -> bool {
        &*self.text == "off" || (self.plain && matches!(&*self.text, "false" | "False" | "FALSE"))
    }

    /// Stands for a variable or file that was not there, in a check that does without.
    pub fn is_missing(&self) -> bool {
        self.expansion.as_ref().is_some_and(|expansion| expansion.missing)
    }

    /// The text as the file has it, which is safe to show: `${…}` not replaced.
    pub fn as_written(&self) -> &str {
        match &self.expansion {
            Some(expansion) => &expansion.written,
            None => &self.text,
        }
    }
}

/// Shows what the file says, not what `${…}` stands for.
impl std::fmt::Debug for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_written())
    }
}

impl Node {
    /// A map with nothing in it.
    pub fn empty_map(place: Place, layer: Layer) -> Node {
        Node { place, layer, value: Value::Map(Vec::new()) }
    }

    /// The value of a key, null ones left out: a key without a value is the same as no key.
    pub fn get(&self, key: &str) -> Option<&Arc<Node>> {
        self.entry(key).map(|entry| &entry.value).filter(|value| !value.is_null())
    }

    /// The entry of a key, null or not.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| &*entry.key == key)
    }

    /// The value at the end of a path of keys.
    pub fn at(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key).map(|value| &**value))
    }

    /// The entries of a mapping; none where it is something else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            Value::Scalar(_) | Value::List(_) => &[],
        }
    }

    /// The items of a list; none where it is something else.
    pub fn items(&self) -> &[Arc<Node>] {
        match &self.value {
            Value::List(items) => items,
            Value::Scalar(_) | Value::Map(_) => &[],
        }
    }

    /// The scalar, where it is one.
    pub fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Whether it is a mapping.
    pub fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        self.scalar().is_some_and(Scalar::is_null)
    }

    /// Whether it is `off` or `false`.
    pub fn is_off(&self) -> bool {
        self.scalar().is_some_and(Scalar::is_off)
    }

    /// Whether the other tree surely shows the same values, wherever they are written: without `${…}`, in the same order.
    pub fn shows_as(&self, other: &Node) -> bool {
        if std::ptr::eq(self, other) {
            return true;
        }
        match (&self.value, &other.value) {
            (Value::Scalar(a), Value::Scalar(b)) => {
                a.text == b.text && a.plain == b.plain && a.expansion.is_none() && b.expansion.is_none()
            }
            (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.shows_as(b)),
            (Value::Map(a), Value::Map(b)) => {
                let same = |(a, b): (&Entry, &Entry)| a.key == b.key && a.value.shows_as(&b.value);
                a.len() == b.len() && a.iter().zip(b).all(same)
            }
            (Value::Scalar(_) | Value::List(_) | Value::Map(_), _) => false,
        }
    }

    /// The same tree, written by another layer.
    pub fn in_layer(self: &Arc<Node>, layer: Layer) -> Arc<Node> {
        let value = match &self.value {
            Value::Scalar(scalar) => Value::Scalar(scalar.clone()),
            Value::List(items) => Value::List(items.iter().map(|item| item.in_layer(layer)).collect()),
            Value::Map(entries) => {
                Value::Map(entries.iter().map(|e| Entry { value: e.value.in_layer(layer), ..e.clone() }).collect())
            }
        };
        Arc::new(Node { place: self.place.clone(), layer, value })
    }

    /// Lays `over` upon `base`, field by field: a list or scalar replaces, null leaves what was there, and a mapping over
    /// an inherited `off` starts from the built-in values.
    pub fn merge(base: Option<&Arc<Node>>, over: &Arc<Node>, built_in: Option<&Arc<Node>>) -> Arc<Node> {
        if over.is_null() {
            return base.unwrap_or(over).clone();
        }
        let Value::Map(written) = &over.value else { return over.clone() };
        let base = base.filter(|base| !base.is_off()).or(built_in).filter(|base| base.is_map());
        let Some(base) = base else {
            return over.clone();
        };
        let mut entries = base.entries().to_vec();
        let inherited = entries.len();
        for entry in written {
            // Only among what was there: a file with very many keys of its own must not take their square.
            match entries[..inherited].iter_mut().find(|inherited| inherited.key == entry.key) {
                Some(inherited) => {
                    let built_in = built_in.and_then(|built_in| built_in.get(&entry.key));
                    let value = Node::merge(Some(&inherited.value), &entry.value, built_in);
                    *inherited =
                        if entry.value.is_null() { inherited.clone() } else { Entry { value, ..entry.clone() } };
                }
                None => entries.push(entry.clone()),
            }
        }
        Arc::new(Node { place: over.place.clone(), layer: over.layer, value: Value::Map(entries) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Problems;

    fn good(text: &str) -> Arc<Node> {
        let mut problems = Problems::default();
        let node = Node::parse(text, &Arc::new("f.yaml".into()), Layer::File, &mut problems);
        assert_eq!(problems, Problems::default());
        node.unwrap()
    }

    fn text<'n>(node: &'n Node, path: &[&str]) -> &'n str {
        &node.at(path).unwrap().scalar().unwrap().text
    }

    #[test]
    fn merging_goes_field_by_field_and_remembers_the_layer() {
        let built_in = good("retry: {max: 3, on: [a, b], budget: {ratio: 1}}").in_layer(Layer::BuiltIn);
        let defaults = good("retry: {max: 4, on: [c], budget: off}").in_layer(Layer::Defaults);
        let upstream = good("retry: {budget: {floor: 2}, max: ~}").in_layer(Layer::Upstream);
        let merged = Node::merge(Some(&built_in), &defaults, Some(&built_in));
        assert!(merged.at(&["retry", "budget"]).unwrap().is_off());
        assert_eq!(merged.at(&["retry", "on"]).unwrap().items().len(), 1);
        let merged = Node::merge(Some(&merged), &upstream, Some(&built_in));
        assert_eq!(text(&merged, &["retry", "max"]), "4");
        assert_eq!(merged.at(&["retry", "max"]).unwrap().layer, Layer::Defaults);
        // A map over an inherited `off` starts from the built-in values.
        assert_eq!(text(&merged, &["retry", "budget", "ratio"]), "1");
        assert_eq!(merged.at(&["retry", "budget", "ratio"]).unwrap().layer, Layer::BuiltIn);
        assert_eq!(merged.at(&["retry", "budget", "floor"]).unwrap().layer, Layer::Upstream);
    }

    #[test]
    fn a_block_over_a_switched_off_block_starts_from_the_built_in_values() {
        let built_in = good("retry: {max: 3}").in_layer(Layer::BuiltIn);
        let defaults = good("retry: false");
        let merged = Node::merge(Some(&built_in), &defaults, Some(&built_in));
        assert!(merged.get("retry").unwrap().is_off());
        let merged = Node::merge(Some(&merged), &good("retry: {}"), Some(&built_in));
        assert_eq!(text(&merged, &["retry", "max"]), "3");
    }
}
