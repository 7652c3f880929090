//! The layers of the configuration, merged: built-in values, `defaults`, an upstream, a route. Remembers where each value
//! comes from.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::effective;
use crate::document::tree::{Entry, Layer, Node, Value};
use crate::document::{Place, Problems};

/// The policy blocks: in `defaults`, upstreams and routes.
pub(crate) const POLICIES: [&str; 5] = ["timeouts", "retry", "circuit_breaker", "rate_limit", "concurrency"];
/// The policies that need a name, and don't act on hosts that no upstream names.
const NAMED_ONLY: [&str; 3] = ["circuit_breaker", "rate_limit", "concurrency"];

/// The document and the built-in values below it.
#[derive(Clone)]
pub struct Layers {
    root: Arc<Node>,
    built_in: Arc<Node>,
    /// What every upstream starts from where nothing is written: `defaults` and `upstream` of the built-in values.
    upstream_built_in: Arc<Node>,
    /// The same below the file's `defaults`.
    upstream_base: Arc<Node>,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Which layer.
    pub layer: Layer,
    /// Where in the file; `None` for built-in values.
    pub place: Option<Place>,
    /// The value, as the effective configuration shows it.
    pub value: serde_json::Value,
}

/// Holds secrets, so it shows nothing.
impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<layers>")
    }
}

impl Layers {
    /// Over a document whose `${…}` are replaced.
    pub(crate) fn new(root: Arc<Node>) -> Layers {
        let mut problems = Problems::default();
        let file = Arc::new(PathBuf::from("built-in"));
        let built_in = Node::parse(include_str!("defaults.yaml"), &file, Layer::BuiltIn, &mut problems)
            .unwrap_or_else(|| unreachable!("the built-in values are a document: {problems:?}"));
        let mut entries = Vec::new();
        for block in ["defaults", "upstream"] {
            entries.extend_from_slice(built_in.get(block).map_or(&[], |node| node.entries()));
        }
        let upstream_built_in = map_like(&built_in, entries);
        let upstream_base = match root.get("defaults").filter(|node| node.is_map()) {
            Some(defaults) => {
                let defaults = defaults.in_layer(Layer::Defaults);
                Node::merge(Some(&upstream_built_in), &defaults, Some(&upstream_built_in))
            }
            None => upstream_built_in.clone(),
        };
        Layers { root, built_in, upstream_built_in, upstream_base }
    }

    /// The document itself.
    pub(crate) fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// The settings outside `defaults` and `upstreams`, over the built-in ones.
    pub(crate) fn top(&self) -> Arc<Node> {
        let inner = ["defaults", "upstream", "unmatched"];
        let entries = self.built_in.entries().iter().filter(|entry| !inner.contains(&&*entry.key)).cloned().collect();
        let built_in = map_like(&self.built_in, entries);
        Node::merge(Some(&built_in), &self.root, Some(&built_in))
    }

    /// `defaults` over the built-in values, without what only an upstream may have.
    pub(crate) fn defaults(&self) -> Arc<Node> {
        let own = self.built_in.get("upstream");
        let written = self.root.get("defaults");
        let inherited = |entry: &Entry| {
            own.is_some_and(|own| own.entry(&entry.key).is_some())
                && written.is_none_or(|written| written.entry(&entry.key).is_none())
        };
        let entries = self.upstream_base.entries().iter().filter(|entry| !inherited(entry)).cloned().collect();
        map_like(&self.upstream_base, entries)
    }

    /// What hosts that no upstream names get.
    pub(crate) fn unmatched(&self) -> Arc<Node> {
        let built_in = self.built_in.get("defaults").unwrap_or(&self.built_in);
        let own = self.built_in.get("unmatched").map(|own| Node::merge(Some(built_in), own, Some(built_in)));
        let base = own.as_ref().unwrap_or(built_in);
        let merged = match self.root.get("defaults").filter(|node| node.is_map()) {
            // A map over an `off` of `defaults` itself can't be: there is one `defaults`.
            Some(defaults) => Node::merge(Some(base), &defaults.in_layer(Layer::Defaults), Some(base)),
            None => base.clone(),
        };
        let entries = merged.entries().iter().filter(|entry| !NAMED_ONLY.contains(&&*entry.key)).cloned().collect();
        map_like(&merged, entries)
    }

    /// Whether upstreams inherit the same values from both, as far as can be told quickly.
    pub(crate) fn upstreams_inherit_as(&self, other: &Layers) -> bool {
        self.upstream_base.shows_as(&other.upstream_base)
    }

    /// An upstream over `defaults` over the built-in values.
    pub(crate) fn upstream(&self, written: &Arc<Node>) -> Arc<Node> {
        let written = written.in_layer(Layer::Upstream);
        if written.is_map() {
            Node::merge(Some(&self.upstream_base), &written, Some(&self.upstream_built_in))
        } else {
            let base = &self.upstream_base;
            Arc::new(Node { place: written.place.clone(), layer: written.layer, value: base.value.clone() })
        }
    }

    /// A route's policies over those of its (merged) upstream.
    pub(crate) fn route(&self, upstream: &Arc<Node>, written: &Arc<Node>) -> Arc<Node> {
        let entries = upstream.entries().iter().filter(|entry| POLICIES.contains(&&*entry.key)).cloned().collect();
        let base = map_like(upstream, entries);
        Node::merge(Some(&base), &written.in_layer(Layer::Route), Some(&self.upstream_built_in))
    }

    /// Where the value at a path comes from.
    pub(crate) fn origin_of(&self, path: &str) -> Option<Source> {
        let keys: Vec<&str> = path.split('.').collect();
        let (node, rest): (Arc<Node>, &[&str]) = match keys.as_slice() {
            ["upstreams", name, "routes", route, rest @ ..] => {
                let upstream = self.upstream(&self.root.get("upstreams")?.entry(name)?.value);
                let named = |node: &&Arc<Node>| {
                    node.get("name").and_then(|name| name.scalar()).is_some_and(|name| &*name.text == *route)
                };
                let written = upstream.get("routes")?.items().iter().find(named)?.clone();
                (self.route(&upstream, &written), rest)
            }
            ["upstreams", name, rest @ ..] => (self.upstream(&self.root.get("upstreams")?.entry(name)?.value), rest),
            ["defaults", rest @ ..] => (self.defaults(), rest),
            ["unmatched", rest @ ..] => (self.unmatched(), rest),
            rest => (self.top(), rest),
        };
        let found = node.at(rest)?;
        let path = match keys.first() {
            Some(&"upstreams" | &"defaults" | &"unmatched") => rest.join("."),
            Some(_) | None => path.to_owned(),
        };
        let place = crate::document::read::written(found);
        Some(Source { layer: found.layer, place, value: effective::value(found, &path) })
    }
}

fn map_like(node: &Node, entries: Vec<Entry>) -> Arc<Node> {
    Arc::new(Node { place: node.place.clone(), layer: node.layer, value: Value::Map(entries) })
}
