//! The variables that lead an app to the proxy, and those of its own that must not be lost.

use crate::inject::change::{Change, Place};
use crate::inject::manifest::{Document, Field, Spot};
use crate::inject::tree::Node;
use crate::inject::value::Value;
use crate::inject::{Notes, Options, Refusal};

/// Where the proxy listens.
const PROXY: &str = "http://127.0.0.1:7171";
/// What doesn't go through the proxy: the pod, the node's metadata, the cluster, and the address by which clients of the
/// Kubernetes API go, which the kubelet puts in.
pub(crate) const NO_PROXY: [&str; 8] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "169.254.0.0/16",
    ".svc",
    ".cluster.local",
    "kubernetes.default",
    "$(KUBERNETES_SERVICE_HOST)",
];
/// Both cases of each: curl and wget read lower case only, much else upper case only.
const PROXIES: [[&str; 2]; 2] = [["HTTP_PROXY", "http_proxy"], ["HTTPS_PROXY", "https_proxy"]];
const EXEMPT: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// A container whose variables are looked at.
pub(crate) struct Env<'e, 'd> {
    document: &'e Document<'d>,
    container: &'e Spot<'d>,
    name: &'e str,
    /// The `env` key, if there is one.
    list: Option<Field<'d>>,
}

/// A variable that is there.
struct Present<'d> {
    item: Spot<'d>,
    number: usize,
    /// Its value where that is written; empty where there is none; `None` where it comes from somewhere else.
    value: Option<&'d str>,
}

/// What leads a container to the proxy.
pub(crate) struct Lead {
    /// The changes for that.
    pub(crate) changes: Vec<Change>,
    /// Whether it is led there at all.
    pub(crate) led: bool,
}

impl<'e, 'd> Env<'e, 'd> {
    /// The variables of a container.
    pub(crate) fn new(document: &'e Document<'d>, container: &'e Spot<'d>, name: &'e str) -> Result<Self, Refusal> {
        let list = document.field(container, "env")?;
        Ok(Env { document, container, name, list })
    }

    /// The last of a name, as it is the one that counts.
    fn present(&self, name: &str) -> Option<Present<'d>> {
        let list = &self.list.as_ref()?.value;
        let number = list.node.items().iter().rposition(|item| self.document.name(item) == Some(name))?;
        let item = list.item(number);
        let elsewhere = self.document.read(item.node, "valueFrom").is_some_and(|node| !node.is_null());
        let value = self.document.read(item.node, "value");
        let value = if elsewhere {
            None
        } else {
            Some(value.filter(|v| !v.is_null()).and_then(Node::text).unwrap_or_default())
        };
        Some(Present { item, number, value })
    }

    /// What leads the container to the proxy. What the app itself says is left, with a warning, or overwritten where that
    /// is wanted.
    pub(crate) fn lead(&self, options: &Options, notes: &mut Notes) -> Result<Lead, Refusal> {
        let (mut changes, mut new, mut led) = (Vec::new(), Vec::new(), false);
        for pair in PROXIES {
            let present = pair.map(|name| self.present(name));
            let mut own = present.iter().zip(pair).filter_map(|(present, name)| {
                present.as_ref().filter(|present| !present.leads_here()).map(|present| (present, name))
            });
            if !options.overwrite_env
                && let Some((foreign, name)) = own.next()
            {
                // The other case would win over the app's own in some clients, so both are left.
                let message = format!(
                    "container {} sets {name} itself ({}): {} and {} are left (--overwrite-env replaces them)",
                    self.name,
                    foreign.shown(),
                    pair[0],
                    pair[1]
                );
                notes.warn(foreign.item.node.span.start, message);
                continue;
            }
            led = true;
            for (present, name) in present.iter().zip(pair) {
                match present {
                    None => new.push(variable(name, PROXY)),
                    Some(present) if present.leads_here() => {}
                    Some(present) => changes.push(self.set(present, PROXY.to_owned())?),
                }
            }
        }
        if led {
            self.exempt(options, notes, &mut changes, &mut new)?;
        }
        if let Some(source) = self.document.read(self.container.node, "envFrom").filter(|node| !node.items().is_empty())
            && !new.is_empty()
        {
            let message = format!(
                "container {} has envFrom: proxy variables that come from there lose against those added here",
                self.name
            );
            notes.warn(source.span.start, message);
        }
        changes.extend(self.add(new));
        Ok(Lead { changes, led })
    }

    /// What the app exempts stays exempt, in both cases.
    fn exempt(
        &self,
        options: &Options,
        notes: &mut Notes,
        changes: &mut Vec<Change>,
        new: &mut Vec<Value>,
    ) -> Result<(), Refusal> {
        let present = EXEMPT.map(|name| self.present(name));
        let wanted = || NO_PROXY.into_iter().chain(options.no_proxy.iter().map(String::as_str));
        if !options.overwrite_env
            && let Some(present) = present.iter().flatten().find(|present| present.value.is_none())
        {
            let list = wanted().collect::<Vec<_>>().join(",");
            let message = format!(
                "container {} takes NO_PROXY from elsewhere, and it is left: see to it that it says {list}",
                self.name
            );
            notes.warn(present.item.node.span.start, message);
            return Ok(());
        }
        for (at, name) in EXEMPT.into_iter().enumerate() {
            let other = present[1 - at].as_ref().and_then(|present| present.value).unwrap_or_default();
            match &present[at] {
                None => new.push(variable(name, &extend(other, wanted()))),
                Some(present) => {
                    let old = present.value.unwrap_or_default();
                    if old.split(',').any(|one| one.trim() == "*") {
                        let message =
                            format!("container {} sets {name}=*: nothing of it goes through Outrigger", self.name);
                        notes.warn(present.item.node.span.start, message);
                    }
                    let list = extend(old, wanted());
                    if present.value != Some(&*list) {
                        changes.push(self.set(present, list)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes out what leads to the proxy.
    pub(crate) fn release(&self, options: &Options) -> Result<Vec<Change>, Refusal> {
        let Some(list) = &self.list else { return Ok(Vec::new()) };
        let proxies = PROXIES.as_flattened().iter().filter_map(|name| self.present(name));
        let mut gone: Vec<Present<'d>> = proxies.filter(|present| present.value == Some(PROXY)).collect();
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let ours = extend("", NO_PROXY.into_iter().chain(options.no_proxy.iter().map(String::as_str)));
        let plain = extend("", NO_PROXY.into_iter());
        gone.extend(
            EXEMPT
                .iter()
                .filter_map(|name| self.present(name))
                .filter(|present| present.value == Some(&*ours) || present.value == Some(&*plain)),
        );
        if gone.len() == list.value.node.items().len() {
            return Ok(vec![Change::RemoveKey { map: self.container.path.clone(), entry: list.entry }]);
        }
        gone.sort_by_key(|present| present.number);
        let remove = |present: Present<'d>| {
            self.document.refuse_alias(present.item.node, "this variable")?;
            Ok(Change::RemoveItem { list: list.value.path.clone(), item: present.number })
        };
        gone.into_iter().map(remove).collect()
    }

    fn set(&self, present: &Present<'d>, value: String) -> Result<Change, Refusal> {
        self.document.refuse_alias(present.item.node, "this variable")?;
        let map = present.item.path.clone();
        let value = Value::Text(value);
        if let Some(field) = self.document.field(&present.item, "value")? {
            return Ok(Change::SetValue { map, entry: field.entry, value });
        }
        let key = "value".to_owned();
        Ok(match self.document.field(&present.item, "valueFrom")? {
            Some(field) => Change::SetEntry { map, entry: field.entry, key, value },
            None => Change::AddKey { map, key, value, place: Place::Last },
        })
    }

    fn add(&self, new: Vec<Value>) -> Option<Change> {
        if new.is_empty() {
            return None;
        }
        let map = self.container.path.clone();
        let Some(list) = &self.list else {
            let entries = self.container.node.entries();
            let find = |key| entries.iter().position(|entry| entry.key.text() == Some(key));
            let place = find("image").or_else(|| find("name")).map_or(Place::Last, Place::After);
            return Some(Change::AddKey { map, key: "env".to_owned(), value: Value::List(new), place });
        };
        Some(if list.value.node.items().is_empty() {
            Change::SetValue { map, entry: list.entry, value: Value::List(new) }
        } else {
            Change::AddItems { list: list.value.path.clone(), items: new, front: false }
        })
    }
}

impl Present<'_> {
    fn leads_here(&self) -> bool {
        self.value.is_some_and(|value| value.trim_end_matches('/') == PROXY)
    }

    /// Without a password that may be in it.
    fn shown(&self) -> String {
        match self.value {
            None => "from elsewhere".to_owned(),
            Some("") => "empty".to_owned(),
            Some(value) => {
                let host = value.rsplit('@').next().unwrap_or(value);
                if host.len() < value.len() { format!("…@{host}") } else { value.to_owned() }
            }
        }
    }
}

fn variable(name: &str, value: &str) -> Value {
    Value::map([("name", Value::text(name)), ("value", Value::text(value))])
}

/// A list of exemptions with those that are missing behind it.
fn extend<'l>(list: &str, wanted: impl Iterator<Item = &'l str>) -> String {
    let mut out = list.trim_end().trim_end_matches(',').to_owned();
    for one in wanted {
        if !out.split(',').any(|present| present.trim().eq_ignore_ascii_case(one)) {
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(one);
        }
    }
    // A list that has everything stays as it is written.
    if out.len() == list.trim_end().trim_end_matches(',').len() { list.to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemptions_are_added_behind_those_that_are_there() {
        assert_eq!(extend("", ["a", "b", "a"].into_iter()), "a,b");
        assert_eq!(extend("x.corp, LOCALHOST,", ["localhost", ".svc"].into_iter()), "x.corp, LOCALHOST,.svc");
        assert_eq!(extend("a, b,", ["b", "a"].into_iter()), "a, b,");
    }
}
