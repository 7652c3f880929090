//! What leads apps that know of no proxy to Outrigger: names that mean 127.0.0.1, and port 443 without root.

use crate::inject::change::{Change, Place};
use crate::inject::manifest::Spot;
use crate::inject::pod::Pod;
use crate::inject::tree::Node;
use crate::inject::value::{Value, is_true};
use crate::inject::{Notes, Refusal};

const LOOPBACK: &str = "127.0.0.1";
/// Safe in Kubernetes' sense since 1.22, and allowed by Pod Security's `restricted`.
const SYSCTL: &str = "net.ipv4.ip_unprivileged_port_start";
/// Where `listeners.tls` is.
pub(crate) const PORT: u16 = 443;

impl Pod<'_> {
    /// The changes of the pod for `--host-aliases`.
    pub(super) fn aliases(&self, notes: &mut Notes) -> Result<Vec<Change>, Refusal> {
        if self.options.aliases.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(node) =
            self.document.read(self.spec.node, "hostNetwork").filter(|node| node.text().is_some_and(is_true))
        {
            let help = "such an app needs the proxy variables";
            let message = "hostNetwork: the sysctl for port 443 is not allowed there, and the port is the node's";
            return Err(Refusal::new(node.span.start, message, help));
        }
        let mut changes = self.names_here(notes)?;
        changes.extend(self.low_ports()?);
        Ok(changes)
    }

    fn names_here(&self, notes: &mut Notes) -> Result<Vec<Change>, Refusal> {
        let field = self.document.field(&self.spec, "hostAliases")?;
        let items = field.as_ref().map_or(&[][..], |field| field.value.node.items());
        let ip = |item| self.document.read(self.document.resolve(item), "ip").and_then(Node::text);
        let names = |item| {
            let list = self.document.read(self.document.resolve(item), "hostnames").map_or(&[][..], Node::items);
            list.iter().filter_map(|name| self.document.resolve(name).text())
        };
        let mut missing = Vec::new();
        for host in &self.options.aliases {
            match items.iter().find(|item| names(item).any(|name| name.eq_ignore_ascii_case(host))) {
                None => missing.push(Value::text(host)),
                Some(item) if ip(item) == Some(LOOPBACK) => {}
                Some(item) => {
                    let to = ip(item).unwrap_or("another address");
                    notes.warn(item.span.start, format!("hostAliases lead {host} to {to} already, and it is left"));
                }
            }
        }
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let alias = |missing| Value::map([("ip", Value::text(LOOPBACK)), ("hostnames", Value::List(missing))]);
        let map = self.spec.path.clone();
        let Some(field) = field else {
            let (key, value) = ("hostAliases".to_owned(), Value::List(vec![alias(missing)]));
            return Ok(vec![Change::AddKey { map, key, value, place: Place::Last }]);
        };
        // One item for each address: it is the key by which patches are merged.
        let Some(number) = items.iter().position(|item| ip(item) == Some(LOOPBACK)) else {
            return Ok(vec![add(&field.value, map, field.entry, alias(missing))]);
        };
        let item = field.value.item(number);
        self.document.refuse_alias(item.node, "this item")?;
        Ok(vec![match self.document.field(&item, "hostnames")? {
            Some(names) if names.value.node.items().is_empty() => {
                Change::SetValue { map: item.path, entry: names.entry, value: Value::List(missing) }
            }
            Some(names) => Change::AddItems { list: names.value.path, items: missing, front: false },
            None => {
                let (key, value) = ("hostnames".to_owned(), Value::List(missing));
                Change::AddKey { map: item.path, key, value, place: Place::Last }
            }
        }])
    }

    /// Lets the sidecar, which isn't root, listen on 443.
    fn low_ports(&self) -> Result<Option<Change>, Refusal> {
        let wanted = Value::map([("name", Value::text(SYSCTL)), ("value", Value::text("0"))]);
        let list = |wanted| Value::List(vec![wanted]);
        let map = self.spec.path.clone();
        let Some(context) = self.document.field(&self.spec, "securityContext")? else {
            let (key, value) = ("securityContext".to_owned(), Value::map([("sysctls", list(wanted))]));
            return Ok(Some(Change::AddKey { map, key, value, place: Place::Last }));
        };
        if context.value.node.entries().is_empty() {
            let value = Value::map([("sysctls", list(wanted))]);
            return Ok(Some(Change::SetValue { map, entry: context.entry, value }));
        }
        let Some(field) = self.document.field(&context.value, "sysctls")? else {
            let (map, key) = (context.value.path, "sysctls".to_owned());
            return Ok(Some(Change::AddKey { map, key, value: list(wanted), place: Place::Last }));
        };
        let items = field.value.node.items();
        let Some(number) = items.iter().position(|item| self.document.name(item) == Some(SYSCTL)) else {
            return Ok(Some(add(&field.value, context.value.path, field.entry, wanted)));
        };
        let item = field.value.item(number);
        self.document.refuse_alias(item.node, "this sysctl")?;
        let value = self.document.field(&item, "value")?;
        let from = value.as_ref().and_then(|value| value.value.node.text()).and_then(|text| text.parse::<u16>().ok());
        if from.is_some_and(|from| from <= PORT) {
            return Ok(None);
        }
        Ok(Some(match value {
            Some(value) => Change::SetValue { map: item.path, entry: value.entry, value: Value::text("0") },
            None => {
                Change::AddKey { map: item.path, key: "value".to_owned(), value: Value::text("0"), place: Place::Last }
            }
        }))
    }
}

/// One more for a list, which is an entry of `map`.
fn add(list: &Spot<'_>, map: Vec<usize>, entry: usize, item: Value) -> Change {
    if list.node.items().is_empty() {
        return Change::SetValue { map, entry, value: Value::List(vec![item]) };
    }
    Change::AddItems { list: list.path.clone(), items: vec![item], front: false }
}
