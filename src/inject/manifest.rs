//! Where in a manifest the pods are described.

use std::collections::HashMap;

use crate::inject::Refusal;
use crate::inject::change::Path;
use crate::inject::edit::at;
use crate::inject::stream::line_of;
use crate::inject::tree::{Body, Entry, Node, TEMPLATE};

/// How many steps a merge key may lead through others.
const MAX_MERGES: usize = 32;

/// A document with what its aliases stand for.
pub(crate) struct Document<'d> {
    /// Its text.
    pub(crate) text: &'d str,
    /// Its value.
    pub(crate) root: &'d Node,
    /// Number of its first line in the stream.
    first_line: usize,
    anchors: HashMap<usize, &'d Node>,
    /// Where each anchor is used.
    aliases: HashMap<usize, &'d Node>,
}

/// A node with the way to it.
#[derive(Clone, Debug)]
pub(crate) struct Spot<'d> {
    /// The node.
    pub(crate) node: &'d Node,
    /// The way from the root.
    pub(crate) path: Path,
}

/// An entry of a mapping with the way to its value.
#[derive(Clone, Debug)]
pub(crate) struct Field<'d> {
    /// Number of the entry.
    pub(crate) entry: usize,
    /// Its value.
    pub(crate) value: Spot<'d>,
}

/// What a document holds.
#[derive(Debug)]
pub(crate) struct Workload<'d> {
    /// As people name it: `Deployment/web`.
    pub(crate) name: String,
    /// The kind.
    pub(crate) kind: String,
    /// The whole object.
    pub(crate) object: Spot<'d>,
    /// The pod or pod template, with `metadata` and `spec`; `None` for a kind that isn't known.
    pub(crate) template: Option<Spot<'d>>,
}

impl<'d> Document<'d> {
    /// A document whose aliases are known.
    pub(crate) fn new(text: &'d str, root: &'d Node, first_line: usize) -> Self {
        let mut document = Document { text, root, first_line, anchors: HashMap::new(), aliases: HashMap::new() };
        document.index(root);
        document
    }

    fn index(&mut self, node: &'d Node) {
        if node.anchor > 0 {
            self.anchors.insert(node.anchor, node);
        }
        match &node.body {
            Body::Alias(anchor) => {
                self.aliases.entry(*anchor).or_insert(node);
            }
            Body::List { items, .. } => items.iter().for_each(|item| self.index(item)),
            Body::Map { entries, .. } => {
                for Entry { key, value } in entries {
                    self.index(key);
                    self.index(value);
                }
            }
            Body::Scalar { .. } => {}
        }
    }

    /// The objects of the document: itself, or the items of a list.
    pub(crate) fn workloads(&self) -> Result<Vec<Workload<'d>>, Refusal> {
        let mut found = Vec::new();
        self.collect(Spot { node: self.root, path: Vec::new() }, None, &mut found)?;
        Ok(found)
    }

    /// Refuses what no server takes: a mapping or list as a key, which is what `{{ … }}` is to YAML, and a key that is written
    /// twice.
    pub(crate) fn refuse_malformed(&self, node: &Node) -> Result<(), Refusal> {
        let mut names = HashMap::new();
        for Entry { key, value } in node.entries() {
            match key.text() {
                Some("<<") => {}
                Some(name) => {
                    if let Some(first) = names.insert(name, key.span.start) {
                        let message = format!("`{name}` is written twice, first in line {}", self.line(first));
                        return Err(Refusal::new(key.span.start, message, "keep one of the two"));
                    }
                }
                None if matches!(key.body, Body::Alias(_)) => {}
                None => return Err(Refusal::new(key.span.start, "a key must be text", TEMPLATE)),
            }
            self.refuse_malformed(value)?;
        }
        node.items().iter().try_for_each(|item| self.refuse_malformed(item))
    }

    fn collect(&self, object: Spot<'d>, listed: Option<&str>, found: &mut Vec<Workload<'d>>) -> Result<(), Refusal> {
        let kind = self.read(object.node, "kind").and_then(Node::text).or(listed).unwrap_or_default().to_owned();
        let list = match kind.strip_suffix("List") {
            Some(kind) => kind.is_empty() || steps(kind).is_some(),
            None => false,
        };
        if list {
            let Some(items) = self.field(&object, "items")? else { return Ok(()) };
            let of = kind.strip_suffix("List").filter(|kind| !kind.is_empty());
            for number in 0..items.value.node.items().len() {
                let item = items.value.item(number);
                self.refuse_alias(item.node, "an item of the list")?;
                self.collect(item, of, found)?;
            }
            return Ok(());
        }
        let version = self.read(object.node, "apiVersion").and_then(Node::text);
        let steps = steps(&kind).filter(|_| version.is_none_or(is_own_group));
        let template = match steps {
            Some(steps) => Some(self.descend(&object, &kind, steps)?),
            None => None,
        };
        let metadata = self.read(object.node, "metadata");
        let called = |key| metadata.and_then(|node| self.read(node, key)).and_then(Node::text);
        let name = called("name").or_else(|| called("generateName")).unwrap_or("(no name)");
        let shown = if kind.is_empty() { "(no kind)" } else { &kind };
        found.push(Workload { name: format!("{shown}/{name}"), kind, object, template });
        Ok(())
    }

    fn descend(&self, object: &Spot<'d>, kind: &str, steps: &[&str]) -> Result<Spot<'d>, Refusal> {
        let mut spot = object.clone();
        for step in steps {
            spot = match self.field(&spot, step)? {
                Some(field) if !field.value.node.entries().is_empty() => field.value,
                Some(_) | None => {
                    let message = format!("this {kind} has no `{step}` with something in it");
                    let help = "is it a patch? Inject what kustomize or helm render to";
                    return Err(Refusal::new(spot.node.span.start, message, help));
                }
            };
        }
        Ok(spot)
    }

    /// The entry of a key, to be edited. Refused where it stands behind an alias or a merge key.
    pub(crate) fn field(&self, map: &Spot<'d>, key: &str) -> Result<Option<Field<'d>>, Refusal> {
        let mut found: Option<Field<'d>> = None;
        for (number, entry) in map.node.entries().iter().enumerate() {
            match entry.key.text() {
                Some(name) if name == key => {
                    self.refuse_alias(&entry.value, &format!("`{key}`"))?;
                    let mut path = map.path.clone();
                    path.push(number);
                    found = Some(Field { entry: number, value: Spot { node: &entry.value, path } });
                }
                Some("<<") if self.merged(&entry.value, key, 0).is_some() => {
                    let message = format!("`{key}` comes from somewhere else, by `<<`");
                    return Err(Refusal::new(entry.key.span.start, message, &format!("write `{key}` out here")));
                }
                Some(_) | None => {}
            }
        }
        Ok(found)
    }

    /// Refuses an alias where something must be edited.
    pub(crate) fn refuse_alias(&self, node: &Node, what: &str) -> Result<(), Refusal> {
        let Body::Alias(anchor) = node.body else { return Ok(()) };
        let written = self.anchors.get(&anchor).map_or(0, |target| target.span.start);
        let line = self.line(written);
        let name = &self.text[node.span.clone()];
        let message = format!("{what} is the alias `{name}` of what stands in line {line}");
        Err(Refusal::new(node.span.start, message, "write it out here: a change there would change other places too"))
    }

    /// Refuses a change inside of something that other places use by an alias.
    pub(crate) fn refuse_shared(&self, path: &[usize]) -> Result<(), Refusal> {
        for length in 0..=path.len() {
            let Some(node) = at(self.root, &path[..length]) else { continue };
            let Some(alias) = self.aliases.get(&node.anchor).filter(|_| node.anchor > 0) else { continue };
            let line = self.line(alias.span.start);
            let name = &self.text[alias.span.clone()];
            let message = format!("this has an anchor, and is used in line {line} too, as `{name}`");
            let help = "write it out there: a change here would change that place too";
            return Err(Refusal::new(node.span.start, message, help));
        }
        Ok(())
    }

    /// A value as Kubernetes reads it, through aliases and merge keys.
    pub(crate) fn read(&self, map: &'d Node, key: &str) -> Option<&'d Node> {
        self.lookup(map, key, 0)
    }

    fn lookup(&self, map: &'d Node, key: &str, depth: usize) -> Option<&'d Node> {
        let entries = self.resolve(map).entries();
        let own = entries.iter().find(|entry| entry.key.text() == Some(key));
        let merged = || {
            let merges = entries.iter().filter(|entry| entry.key.text() == Some("<<"));
            merges.filter_map(|entry| self.merged(&entry.value, key, depth)).next()
        };
        own.map(|entry| self.resolve(&entry.value)).or_else(merged)
    }

    fn merged(&self, source: &'d Node, key: &str, depth: usize) -> Option<&'d Node> {
        if depth > MAX_MERGES {
            return None;
        }
        let source = self.resolve(source);
        if source.entries().is_empty() {
            source.items().iter().find_map(|item| self.lookup(item, key, depth + 1))
        } else {
            self.lookup(source, key, depth + 1)
        }
    }

    fn line(&self, at: usize) -> usize {
        self.first_line + line_of(self.text, at) - 1
    }

    /// The name of a container, volume or variable.
    pub(crate) fn name(&self, item: &'d Node) -> Option<&'d str> {
        self.read(item, "name").and_then(Node::text)
    }

    /// What an alias stands for, or the node itself.
    pub(crate) fn resolve(&self, node: &'d Node) -> &'d Node {
        match node.body {
            Body::Alias(anchor) => self.anchors.get(&anchor).copied().unwrap_or(node),
            Body::Scalar { .. } | Body::List { .. } | Body::Map { .. } => node,
        }
    }
}

impl<'d> Spot<'d> {
    /// An item of a list.
    pub(crate) fn item(&self, number: usize) -> Spot<'d> {
        let mut path = self.path.clone();
        path.push(number);
        Spot { node: &self.node.items()[number], path }
    }
}

/// The keys that lead from an object to its pod template.
fn steps(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "Pod" => Some(&[]),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some(&["spec", "template"])
        }
        "CronJob" => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// Whether the kinds of this version are Kubernetes' own.
fn is_own_group(version: &str) -> bool {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    matches!(group, "" | "apps" | "batch" | "extensions")
}
