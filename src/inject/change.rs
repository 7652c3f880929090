//! Changes of a document, as data: what is decided, before it is known how it is written.
//!
//! Every path counts in the document as it was read, whatever other changes come before it. So the same changes can be
//! made in the text ([`crate::inject::edit`]) and, by [`apply`], in the bare values, and the two must agree.

use crate::inject::value::Value;

/// The way to a node: at each step the number of the entry or item.
pub(crate) type Path = Vec<usize>;

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A new key in a mapping.
    AddKey { map: Path, key: String, value: Value, place: Place },
    /// New items in a list, before its first or behind its last.
    AddItems { list: Path, items: Vec<Value>, front: bool },
    /// Another value for an entry of a mapping.
    SetValue { map: Path, entry: usize, value: Value },
    /// Another key and value for an entry of a mapping.
    SetEntry { map: Path, entry: usize, key: String, value: Value },
    /// An item less.
    RemoveItem { list: Path, item: usize },
    /// A key less.
    RemoveKey { map: Path, entry: usize },
}

/// Where a new key goes; a wish, which the text may not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before an entry.
    Before(usize),
    /// Behind an entry.
    After(usize),
    /// Behind all others.
    Last,
}

impl Change {
    /// The node whose inside changes.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Change::AddKey { map: path, .. }
            | Change::AddItems { list: path, .. }
            | Change::SetValue { map: path, .. }
            | Change::SetEntry { map: path, .. }
            | Change::RemoveItem { list: path, .. }
            | Change::RemoveKey { map: path, .. } => path,
        }
    }

    /// The way to it, to be shortened.
    pub(crate) fn path_mut(&mut self) -> &mut Path {
        match self {
            Change::AddKey { map: path, .. }
            | Change::AddItems { list: path, .. }
            | Change::SetValue { map: path, .. }
            | Change::SetEntry { map: path, .. }
            | Change::RemoveItem { list: path, .. }
            | Change::RemoveKey { map: path, .. } => path,
        }
    }
}

/// Makes the changes. A new key is put last: mappings are compared without regard to order.
pub(crate) fn apply(root: &mut Value, changes: &[Change]) {
    let front = |change: &&Change| matches!(change, Change::AddItems { front: true, .. });
    // What comes in front moves all paths behind it, so it comes last, and the deepest first.
    let mut fronts: Vec<&Change> = changes.iter().filter(front).collect();
    fronts.sort_by_key(|change| std::cmp::Reverse(change.path().len()));
    for change in changes.iter().filter(|change| !front(change)).chain(fronts) {
        let Some(target) = at(root, change.path()) else { continue };
        match (target, change) {
            (Value::Map(entries), Change::AddKey { key, value, .. }) => {
                entries.push((Value::text(key), value.clone()));
            }
            (Value::Map(entries), Change::SetValue { entry, value, .. }) => entries[*entry].1 = value.clone(),
            (Value::Map(entries), Change::SetEntry { entry, key, value, .. }) => {
                entries[*entry] = (Value::text(key), value.clone());
            }
            (Value::Map(entries), Change::RemoveKey { entry, .. }) => entries[*entry] = (Value::Gone, Value::Gone),
            (Value::List(list), Change::AddItems { items, front, .. }) => {
                let place = if *front { 0 } else { list.len() };
                list.splice(place..place, items.iter().cloned());
            }
            (Value::List(list), Change::RemoveItem { item, .. }) => list[*item] = Value::Gone,
            // The comparison that follows tells.
            (
                Value::Text(_)
                | Value::Word(_)
                | Value::Tagged(..)
                | Value::List(_)
                | Value::Map(_)
                | Value::Alias(_)
                | Value::Gone,
                Change::AddKey { .. }
                | Change::AddItems { .. }
                | Change::SetValue { .. }
                | Change::SetEntry { .. }
                | Change::RemoveItem { .. }
                | Change::RemoveKey { .. },
            ) => {}
        }
    }
    clear(root);
}

fn at<'v>(root: &'v mut Value, path: &[usize]) -> Option<&'v mut Value> {
    path.iter().try_fold(root, |node, step| match node {
        Value::List(items) => items.get_mut(*step),
        Value::Map(entries) => entries.get_mut(*step).map(|(_, value)| value),
        Value::Text(_) | Value::Word(_) | Value::Tagged(..) | Value::Alias(_) | Value::Gone => None,
    })
}

fn clear(value: &mut Value) {
    match value {
        Value::List(items) => {
            items.retain(|item| *item != Value::Gone);
            items.iter_mut().for_each(clear);
        }
        Value::Map(entries) => {
            entries.retain(|(key, _)| *key != Value::Gone);
            entries.iter_mut().for_each(|(_, value)| clear(value));
        }
        Value::Text(_) | Value::Word(_) | Value::Tagged(..) | Value::Alias(_) | Value::Gone => {}
    }
}

/// Whether two values mean the same: keys in any order, items in theirs.
pub(crate) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::List(one), Value::List(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Map(one), Value::Map(other)) => {
            one.len() == other.len()
                && one.iter().enumerate().all(|(at, (key, value))| {
                    // Nearly always the same place, which spares the search.
                    let beside = other.get(at).filter(|(name, _)| name == key);
                    let found = beside.or_else(|| other.iter().find(|(name, _)| name == key));
                    found.is_some_and(|(_, other)| same(value, other))
                })
        }
        (one, other) => one == other,
    }
}
