//! What makes a container trust the CA of `https: intercept`: variables and a mount.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::inject::change::{Change, Place};
use crate::inject::env::{Env, variable};
use crate::inject::java;
use crate::inject::sidecar::{self, CA, CA_DIRECTORY, PORTS};
use crate::inject::tree::Node;
use crate::inject::value::Value;
use crate::inject::{Notes, Options, Refusal};
use crate::intercept::trust;

/// A list, where the others are one value.
const JAVA: &str = "JAVA_TOOL_OPTIONS";
/// Makes Node read the proxy variables.
const NODE: &str = "NODE_USE_ENV_PROXY";

/// What a container sets to trust the CA, besides the proxy's own variables.
///
/// Where the app has a proxy of its own, nothing must turn a runtime to another that it ignored so far.
fn wanted(led: bool) -> impl Iterator<Item = (&'static str, String)> {
    let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS[0]));
    let all = trust::variables(Path::new(CA_DIRECTORY), proxy);
    let proxies = move |name: &str| name.to_ascii_uppercase().ends_with("_PROXY") && !(led && name == NODE);
    all.into_iter().filter(move |(name, _)| !proxies(name)).map(move |(name, value)| {
        let value = if name == JAVA && !led { java::without_proxy(&value) } else { value };
        (name, value)
    })
}

impl Env<'_, '_> {
    /// The variables and the mount; `led` where `HTTPS_PROXY` leads here. What the app itself says is left, with a warning, or overwritten where that is wanted.
    pub(super) fn trust(
        &self,
        led: bool,
        options: &Options,
        notes: &mut Notes,
        changes: &mut Vec<Change>,
        new: &mut Vec<Value>,
    ) -> Result<(), Refusal> {
        for (name, ours) in wanted(led) {
            let present = self.present(name);
            let old = present.as_ref().map_or(Some(""), |present| present.value);
            let merged = match old {
                Some(old) if name == JAVA => java::merge(old, &ours, &options.no_proxy, options.overwrite_env),
                None if name == JAVA && options.overwrite_env => java::merge("", &ours, &options.no_proxy, true),
                Some("") if present.is_none() => Ok(ours),
                Some(old) if old == ours || options.overwrite_env => Ok(ours),
                None if options.overwrite_env => Ok(ours),
                Some(_) => Err(present.as_ref().map(|present| present.shown()).unwrap_or_default()),
                None => Err("from elsewhere".to_owned()),
            };
            match (merged, present) {
                (Ok(value), None) => new.push(variable(name, &value)),
                (Ok(value), Some(present)) if present.value == Some(&*value) => {}
                (Ok(value), Some(present)) => changes.push(self.set(&present, value)?),
                (Err(own), present) => {
                    let at = present.map_or(self.container.node.span.start, |present| present.item.node.span.start);
                    let name_of = self.name;
                    let message = format!(
                        "container {name_of} sets {name} itself ({own}): it is left (--overwrite-env replaces it)"
                    );
                    notes.warn(at, message);
                }
            }
        }
        changes.extend(self.mount(notes)?);
        Ok(())
    }

    fn mount(&self, notes: &mut Notes) -> Result<Vec<Change>, Refusal> {
        let wanted = sidecar::mount(CA, CA_DIRECTORY, true);
        let map = self.container.path.clone();
        let Some(field) = self.document.field(self.container, "volumeMounts")? else {
            let (key, value) = ("volumeMounts".to_owned(), Value::List(vec![wanted]));
            return Ok(vec![Change::AddKey { map, key, value, place: Place::Last }]);
        };
        let items = field.value.node.items();
        if items.is_empty() {
            return Ok(vec![Change::SetValue { map, entry: field.entry, value: Value::List(vec![wanted]) }]);
        }
        if let Some(number) = sidecar::find(self.document, items, CA) {
            let item = field.value.item(number);
            self.document.refuse_alias(item.node, "this mount")?;
            return sidecar::converge(self.document, &item, &wanted);
        }
        let path = |item| self.document.read(self.document.resolve(item), "mountPath").and_then(Node::text);
        if let Some(item) =
            items.iter().find(|item| path(item).is_some_and(|at| at.trim_end_matches('/') == CA_DIRECTORY))
        {
            let message = format!("container {} mounts something else at {CA_DIRECTORY}, and it is left", self.name);
            notes.warn(item.span.start, message);
            return Ok(Vec::new());
        }
        Ok(vec![Change::AddItems { list: field.value.path, items: vec![wanted], front: false }])
    }

    /// What [`Env::trust`] put into the variables: numbers of those that go, and changes of those that stay.
    pub(super) fn distrust(&self, options: &Options) -> Result<(Vec<usize>, Vec<Change>), Refusal> {
        let (mut gone, mut changes) = (Vec::new(), Vec::new());
        for (name, ours) in wanted(true) {
            let Some(present) = self.present(name) else { continue };
            let Some(old) = present.value else { continue };
            // On its own it may well be the app's.
            if name == NODE && self.unmount()?.is_none() {
                continue;
            }
            let rest = if name == JAVA && old.contains(CA_DIRECTORY) {
                java::without(old, &ours, &options.no_proxy)
            } else if old == ours {
                String::new()
            } else {
                continue;
            };
            if rest.is_empty() {
                gone.push(present.number);
            } else {
                changes.push(self.set(&present, rest)?);
            }
        }
        Ok((gone, changes))
    }

    /// The change that takes the mount out, where there is one.
    pub(super) fn unmount(&self) -> Result<Option<Change>, Refusal> {
        let Some(field) = self.document.field(self.container, "volumeMounts")? else { return Ok(None) };
        let items = field.value.node.items();
        let Some(number) = sidecar::find(self.document, items, CA) else { return Ok(None) };
        if items.len() == 1 {
            return Ok(Some(Change::RemoveKey { map: self.container.path.clone(), entry: field.entry }));
        }
        Ok(Some(Change::RemoveItem { list: field.value.path, item: number }))
    }
}
