//! What is put beside an app: the container and its volume. `deploy/k8s/base` shows the same.

use crate::inject::change::{Change, Path, Place, apply};
use crate::inject::manifest::{Document, Spot};
use crate::inject::tree::Node;
use crate::inject::value::Value;
use crate::inject::{Options, Refusal};

/// Name of the container.
pub(crate) const NAME: &str = "outrigger";
/// Name of the volume.
pub(crate) const VOLUME: &str = "outrigger-config";
/// Where the configuration is mounted: the directory, since a file that is mounted by `subPath` never changes.
const DIRECTORY: &str = "/etc/outrigger";
/// Ports of the proxy, of admin and of the probes, all in the pod's network.
pub(crate) const PORTS: [u16; 3] = [7171, 7172, PROBES];
const PROBES: u16 = 7173;
/// For how long an ordinary container waits for the app to fall silent, as the shipped policies read it: the app is told to
/// end at the same time, and may still call out.
const QUIET: (&str, &str) = ("OUTRIGGER_QUIET", "15s");

/// The container.
pub(crate) fn container(options: &Options) -> Value {
    let check = |path: &str| Value::map([("path", Value::text(path)), ("port", Value::text(NAME))]);
    let mut container = vec![("name", Value::text(NAME)), ("image", Value::text(&options.image))];
    if options.native {
        container.push(("restartPolicy", Value::text("Always")));
    }
    container.push(("args", Value::texts(["run", "--config", "/etc/outrigger/outrigger.yaml"])));
    if !options.native {
        let quiet = Value::map([("name", Value::text(QUIET.0)), ("value", Value::text(QUIET.1))]);
        container.push(("env", Value::List(vec![quiet])));
    }
    container.extend([
        ("ports", Value::List(vec![Value::map([("name", Value::text(NAME)), ("containerPort", Value::word(PROBES))])])),
        // A native sidecar's start-up probe holds the app back until the proxy listens.
        (
            "startupProbe",
            Value::map([
                ("httpGet", check("/readyz")),
                ("periodSeconds", Value::word(1)),
                ("failureThreshold", Value::word(30)),
            ]),
        ),
        // Patient: on a busy node a restart would only make things worse.
        (
            "livenessProbe",
            Value::map([
                ("httpGet", check("/livez")),
                ("periodSeconds", Value::word(10)),
                ("timeoutSeconds", Value::word(5)),
                ("failureThreshold", Value::word(6)),
            ]),
        ),
        // No readiness probe: it would count for the pod, and /readyz says 503 from SIGTERM on, while the app still serves.
        (
            "securityContext",
            Value::map([
                ("runAsNonRoot", Value::word(true)),
                ("runAsUser", Value::word(65532)),
                ("runAsGroup", Value::word(65532)),
                ("allowPrivilegeEscalation", Value::word(false)),
                ("readOnlyRootFilesystem", Value::word(true)),
                ("capabilities", Value::map([("drop", Value::texts(["ALL"]))])),
                ("seccompProfile", Value::map([("type", Value::text("RuntimeDefault"))])),
            ]),
        ),
        // No CPU limit: throttling would show as latency of every upstream.
        (
            "resources",
            Value::map([
                ("requests", Value::map([("cpu", Value::text("10m")), ("memory", Value::text("16Mi"))])),
                ("limits", Value::map([("memory", Value::text("128Mi"))])),
            ]),
        ),
        (
            "volumeMounts",
            Value::List(vec![Value::map([
                ("name", Value::text(VOLUME)),
                ("mountPath", Value::text(DIRECTORY)),
                ("readOnly", Value::word(true)),
            ])]),
        ),
    ]);
    Value::Map(container.into_iter().map(|(key, value)| (Value::text(key), value)).collect())
}

/// The volume.
pub(crate) fn volume(config_map: &str) -> Value {
    let source = Value::map([("name", Value::text(config_map))]);
    Value::map([("name", Value::text(VOLUME)), ("configMap", source)])
}

/// Whether a container that has the sidecar's name is the sidecar, and not an app that is called so.
pub(crate) fn is_ours(document: &Document<'_>, container: &Node) -> bool {
    let mounts = document.read(container, "volumeMounts").map_or(&[][..], Node::items);
    let mounted = mounts.iter().any(|mount| {
        let name = document.read(document.resolve(mount), "name").and_then(Node::text);
        name == Some(VOLUME)
    });
    let image = document.read(container, "image").and_then(Node::text).unwrap_or_default();
    let repository = image.split('@').next().unwrap_or_default();
    let last = repository.rsplit('/').next().unwrap_or_default();
    mounted || last.split(':').next() == Some(NAME)
}

/// Brings what is there to what is wanted, and leaves what is there besides: environment, mounts, a server's defaults.
pub(crate) fn converge(document: &Document<'_>, spot: &Spot<'_>, wanted: &Value) -> Result<Vec<Change>, Refusal> {
    let mut changes = Vec::new();
    let Value::Map(wanted) = wanted else { return Ok(changes) };
    for (name, value) in wanted {
        let Some(name) = name.as_text() else { continue };
        let Some(field) = document.field(spot, name)? else {
            let (map, key, value) = (spot.path.clone(), name.to_owned(), value.clone());
            changes.push(Change::AddKey { map, key, value, place: Place::Last });
            continue;
        };
        // How much a sidecar needs is measured by those who run it.
        if name == "resources" && !field.value.node.is_null() {
            continue;
        }
        // A variable that was set by hand stays as it is.
        if name == "env" && !field.value.node.items().is_empty() {
            changes.extend(missing(document, &field.value, value));
            continue;
        }
        // A probe of another sort was put there by hand, and two sorts in one are refused.
        let entries = field.value.node.entries();
        if name.ends_with("Probe") && !entries.is_empty() && document.read(field.value.node, "httpGet").is_none() {
            continue;
        }
        let set = || Change::SetValue { map: spot.path.clone(), entry: field.entry, value: value.clone() };
        match value {
            Value::Map(_) if !entries.is_empty() => changes.extend(converge(document, &field.value, value)?),
            Value::List(items) if !field.value.node.items().is_empty() && !items.iter().all(Value::is_scalar) => {
                changes.extend(converge_list(document, &field.value, items)?);
            }
            Value::Text(_)
            | Value::Word(_)
            | Value::Tagged(..)
            | Value::List(_)
            | Value::Map(_)
            | Value::Alias(_)
            | Value::Gone => {
                if field.value.node.value() != *value {
                    changes.push(set());
                }
            }
        }
    }
    Ok(changes)
}

/// The items that no item of the list has the name of.
fn missing(document: &Document<'_>, list: &Spot<'_>, wanted: &Value) -> Option<Change> {
    let Value::List(wanted) = wanted else { return None };
    let there = |item: &Value| {
        let name = item.get("name").and_then(Value::as_text);
        find(document, list.node.items(), name.unwrap_or_default()).is_some()
    };
    let items: Vec<Value> = wanted.iter().filter(|item| !there(item)).cloned().collect();
    (!items.is_empty()).then(|| Change::AddItems { list: list.path.clone(), items, front: false })
}

fn converge_list(document: &Document<'_>, list: &Spot<'_>, wanted: &[Value]) -> Result<Vec<Change>, Refusal> {
    let mut changes = Vec::new();
    for item in wanted {
        let name = item.get("name").and_then(Value::as_text);
        match find(document, list.node.items(), name.unwrap_or_default()) {
            Some(number) => {
                let present = list.item(number);
                document.refuse_alias(present.node, "this item")?;
                changes.extend(converge(document, &present, item)?);
            }
            None => {
                let items = vec![item.clone()];
                changes.push(Change::AddItems { list: list.path.clone(), items, front: false });
            }
        }
    }
    Ok(changes)
}

/// A container that was there, as it is to be at another place.
pub(crate) fn moved(document: &Document<'_>, container: &Spot<'_>, options: &Options) -> Result<Value, Refusal> {
    let base = container.path.len();
    let wanted = self::container(options);
    let mut changes = converge(document, container, &wanted)?;
    if options.native {
        changes.extend(hurried(document, container)?);
    }
    for change in &mut changes {
        change.path_mut().drain(..base);
    }
    let mut value = container.node.value();
    if value.has_alias() {
        let message = "this container must move, and there are aliases in it";
        return Err(Refusal::new(container.node.span.start, message, "write them out"));
    }
    if !options.native
        && let Some(field) = document.field(container, "restartPolicy")?
    {
        changes.push(Change::RemoveKey { map: Path::new(), entry: field.entry });
    }
    apply(&mut value, &changes);
    // In the order of a new one, and what else there is behind.
    if let (Value::Map(entries), Value::Map(order)) = (&mut value, &wanted) {
        entries.sort_by_key(|(key, _)| order.iter().position(|(name, _)| name == key).unwrap_or(usize::MAX));
    }
    Ok(value)
}

/// A native sidecar ends after the app, and needn't wait for it.
fn hurried(document: &Document<'_>, container: &Spot<'_>) -> Result<Option<Change>, Refusal> {
    let Some(field) = document.field(container, "env")? else { return Ok(None) };
    let items = field.value.node.items();
    let Some(item) = find(document, items, QUIET.0) else { return Ok(None) };
    if document.read(document.resolve(&items[item]), "value").and_then(Node::text) != Some(QUIET.1) {
        return Ok(None);
    }
    Ok(Some(if items.len() == 1 {
        Change::RemoveKey { map: container.path.clone(), entry: field.entry }
    } else {
        Change::RemoveItem { list: field.value.path.clone(), item }
    }))
}

/// Number of the item with a name.
pub(crate) fn find(document: &Document<'_>, items: &[Node], name: &str) -> Option<usize> {
    items.iter().position(|item| document.name(item) == Some(name))
}
