//! What one pod needs, as changes.

use crate::inject::change::{Change, Place};
use crate::inject::env::Env;
use crate::inject::manifest::{Document, Field, Spot, Workload};
use crate::inject::sidecar::{self, NAME, VOLUME};
use crate::inject::tree::{Body, Node};
use crate::inject::value::{Value, is_true};
use crate::inject::{Notes, Options, Refusal};

/// Shortest time to end that Outrigger's own (25 s at most, `shutdown.grace`) fits into. Seconds.
const GRACE: u64 = 30;

/// What is to be done with a pod.
pub(crate) struct Plan {
    /// The changes.
    pub(crate) changes: Vec<Change>,
    /// What they come to, for people.
    pub(crate) summary: String,
}

/// A pod that is looked at.
pub(crate) struct Pod<'d> {
    document: &'d Document<'d>,
    workload: &'d Workload<'d>,
    options: &'d Options,
    spec: Spot<'d>,
    containers: Field<'d>,
    /// Ordinary and sidecar init containers.
    init: Option<Field<'d>>,
}

impl<'d> Pod<'d> {
    /// The pod of a template; refused where it has no containers.
    pub(crate) fn new(
        document: &'d Document<'d>,
        workload: &'d Workload<'d>,
        template: &Spot<'d>,
        options: &'d Options,
    ) -> Result<Self, Refusal> {
        let nothing = |at: usize, message: String| {
            Refusal::new(at, message, "is it a patch? Inject what kustomize or helm render to")
        };
        let spec = document.field(template, "spec")?.map(|field| field.value);
        let spec = spec
            .filter(|spec| !spec.node.entries().is_empty())
            .ok_or_else(|| nothing(template.node.span.start, format!("this {} has no pod `spec`", workload.kind)))?;
        let containers = document.field(&spec, "containers")?;
        let containers = containers
            .filter(|field| !field.value.node.items().is_empty())
            .ok_or_else(|| nothing(spec.node.span.start, format!("this {} has no `containers`", workload.kind)))?;
        let init = document.field(&spec, "initContainers")?;
        Ok(Pod { document, workload, options, spec, containers, init })
    }

    /// The names of its containers, the sidecar left out.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'d str> {
        let init = self.init.iter().flat_map(|init| init.value.node.items());
        let all = init.chain(self.containers.value.node.items());
        all.filter_map(|container| self.document.name(container)).filter(|name| *name != NAME)
    }

    /// All changes that the pod needs.
    pub(crate) fn plan(&self, notes: &mut Notes) -> Result<Plan, Refusal> {
        let sidecar = self.sidecar(notes)?;
        let mut changes = sidecar.changes;
        let added = changes.len();
        changes.extend(self.volume(notes)?);
        let (led, freed, variables) = self.variables(sidecar.ready_from, notes)?;
        let summary = if changes.is_empty() && variables.is_empty() {
            "everything is there already, nothing to do".to_owned()
        } else {
            let what = match (sidecar.word, added, changes.len()) {
                (word, 1.., _) => format!("sidecar {word}"),
                (_, 0, 0) => "sidecar as it was".to_owned(),
                (_, 0, _) => "volume brought up to date".to_owned(),
            };
            let list = |names: &[&str]| names.join(", ");
            let mut summary = format!("{what}; proxy variables in {}", list(&led));
            if led.is_empty() {
                summary = format!("{what}; proxy variables in no container");
            }
            if !freed.is_empty() {
                summary.push_str(&format!("; taken out of {}", list(&freed)));
            }
            summary
        };
        changes.extend(variables);
        self.warn(notes, !changes.is_empty());
        Ok(Plan { changes, summary })
    }

    fn sidecar(&self, notes: &mut Notes) -> Result<Sidecar, Refusal> {
        let find = |field: &Field<'d>| sidecar::find(self.document, field.value.node.items(), NAME);
        let init = self.init.as_ref().and_then(|init| find(init).map(|number| (init, number)));
        let main = find(&self.containers).map(|number| (&self.containers, number));
        for (field, number) in init.iter().chain(&main) {
            let container = field.value.item(*number);
            self.document.refuse_alias(container.node, "this container")?;
            if !sidecar::is_ours(self.document, container.node) {
                let message = format!("there is a container `{NAME}` already that is not Outrigger");
                return Err(Refusal::new(container.node.span.start, message, "call it something else"));
            }
        }
        let (here, elsewhere) = if self.options.native { (init, main) } else { (main, init) };
        let mut changes = Vec::new();
        let (word, ready_from) = match (here, elsewhere) {
            (Some((field, number)), None) => {
                let container = field.value.item(number);
                changes = sidecar::converge(self.document, &container, &sidecar::container(self.options))?;
                if self.options.native && number > 0 {
                    let names: Vec<&str> =
                        field.value.node.items()[..number].iter().filter_map(|one| self.document.name(one)).collect();
                    let message = format!("these run before the sidecar, without the proxy: {}", names.join(", "));
                    notes.warn(container.node.span.start, message);
                }
                ("brought up to date", number + 1)
            }
            (Some(_), Some((field, number))) => {
                let message = format!("Outrigger is in `containers` and in `initContainers`: {NAME} twice");
                let at = field.value.node.items()[number].span.start;
                return Err(Refusal::new(at, message, "take one of the two out"));
            }
            (None, Some((field, number))) => {
                let container = field.value.item(number);
                changes.push(self.without(field, number)?);
                changes.push(self.front(sidecar::moved(self.document, &container, self.options)?));
                ("moved", 0)
            }
            (None, None) => {
                changes.push(self.front(sidecar::container(self.options)));
                ("added", 0)
            }
        };
        Ok(Sidecar { changes, word, ready_from })
    }

    /// The container in front of all others of its list.
    fn front(&self, container: Value) -> Change {
        let items = vec![container];
        if !self.options.native {
            return Change::AddItems { list: self.containers.value.path.clone(), items, front: true };
        }
        let map = self.spec.path.clone();
        match &self.init {
            Some(init) if init.value.node.items().is_empty() => {
                Change::SetValue { map, entry: init.entry, value: Value::List(items) }
            }
            Some(init) => Change::AddItems { list: init.value.path.clone(), items, front: true },
            None => Change::AddKey {
                map,
                key: "initContainers".to_owned(),
                value: Value::List(items),
                place: Place::Before(self.containers.entry),
            },
        }
    }

    fn without(&self, field: &Field<'d>, number: usize) -> Result<Change, Refusal> {
        if field.value.node.items().len() > 1 {
            return Ok(Change::RemoveItem { list: field.value.path.clone(), item: number });
        }
        if field.entry == self.containers.entry {
            let message = "this pod has no container but Outrigger";
            return Err(Refusal::new(field.value.node.span.start, message, "there is nothing to lead to it"));
        }
        Ok(Change::RemoveKey { map: self.spec.path.clone(), entry: field.entry })
    }

    fn volume(&self, notes: &mut Notes) -> Result<Vec<Change>, Refusal> {
        let wanted = sidecar::volume(&self.options.config_map);
        let map = self.spec.path.clone();
        let Some(field) = self.document.field(&self.spec, "volumes")? else {
            let (key, value) = ("volumes".to_owned(), Value::List(vec![wanted]));
            return Ok(vec![Change::AddKey { map, key, value, place: Place::Last }]);
        };
        let items = field.value.node.items();
        if items.is_empty() {
            return Ok(vec![Change::SetValue { map, entry: field.entry, value: Value::List(vec![wanted]) }]);
        }
        let Some(number) = sidecar::find(self.document, items, VOLUME) else {
            let list = field.value.path.clone();
            return Ok(vec![Change::AddItems { list, items: vec![wanted], front: false }]);
        };
        let volume = field.value.item(number);
        self.document.refuse_alias(volume.node, "this volume")?;
        if self.document.read(volume.node, "configMap").is_none() {
            let message = format!("the volume {VOLUME} is not a plain ConfigMap and is left as it is");
            notes.warn(volume.node.span.start, message);
            return Ok(Vec::new());
        }
        sidecar::converge(self.document, &volume, &wanted)
    }

    /// Which containers are led to the proxy, which no longer, and the changes for that. Init containers that run before
    /// it can't reach it.
    fn variables(&self, ready_from: usize, notes: &mut Notes) -> Result<Variables<'d>, Refusal> {
        let (mut led, mut freed, mut changes) = (Vec::new(), Vec::new(), Vec::new());
        let fields = self.init.iter().map(|init| (init, true)).chain([(&self.containers, false)]);
        for (field, init) in fields {
            for number in 0..field.value.node.items().len() {
                let container = field.value.item(number);
                let name = self.document.name(container.node).unwrap_or("(no name)");
                if name == NAME {
                    continue;
                }
                let policy = self.document.read(container.node, "restartPolicy").and_then(Node::text);
                let other_sidecar = init && policy == Some("Always");
                let reached = !init || self.options.native && number >= ready_from && !other_sidecar;
                let chosen =
                    self.options.containers.is_empty() || self.options.containers.iter().any(|one| one == name);
                if reached && chosen {
                    self.document.refuse_alias(container.node, "this container")?;
                    let env = Env::new(self.document, &container, name)?;
                    let own = env.lead(self.options, notes)?;
                    changes.extend(own.changes);
                    if own.led {
                        led.push(name);
                    }
                } else if !matches!(container.node.body, Body::Alias(_)) {
                    let found = Env::new(self.document, &container, name)?.release(self.options)?;
                    if !found.is_empty() {
                        freed.push(name);
                    }
                    changes.extend(found);
                }
            }
        }
        Ok((led, freed, changes))
    }

    /// What is right as YAML and wrong in a cluster.
    fn warn(&self, notes: &mut Notes, changed: bool) {
        let spec = self.spec.node;
        let read = |key| self.document.read(spec, key);
        if let Some(node) = read("hostNetwork").filter(|node| node.text().is_some_and(is_true)) {
            let message =
                "hostNetwork: Outrigger's ports 7171 to 7173 are the node's then: only one such pod fits on a node";
            notes.warn(node.span.start, message.to_owned());
        }
        let named = read("os").and_then(|os| self.document.name(os));
        let selected = read("nodeSelector").and_then(|labels| self.document.read(labels, "kubernetes.io/os"));
        if named == Some("windows") || selected.and_then(Node::text) == Some("windows") {
            notes.warn(spec.span.start, "this pod is for Windows, and Outrigger runs on Linux only".to_owned());
        }
        if let Some(node) = read("terminationGracePeriodSeconds")
            && let Some(seconds) =
                node.text().and_then(|text| text.parse::<u64>().ok()).filter(|seconds| *seconds < GRACE)
        {
            let message = format!(
                "terminationGracePeriodSeconds is {seconds}: make it {GRACE} or more, or set shutdown.grace to less than {seconds}s"
            );
            notes.warn(node.span.start, message);
        }
        let init = self.init.iter().flat_map(|init| init.value.node.items());
        for container in
            init.chain(self.containers.value.node.items()).filter(|one| self.document.name(one) != Some(NAME))
        {
            let ports = self.document.read(self.document.resolve(container), "ports").map_or(&[][..], Node::items);
            for port in ports {
                let number =
                    self.document.read(port, "containerPort").and_then(Node::text).and_then(|text| text.parse().ok());
                if let Some(number) = number.filter(|number| sidecar::PORTS.contains(number)) {
                    let name = self.document.name(container).unwrap_or("(no name)");
                    let message = format!("container {name} listens on {number}, which is a port of Outrigger's");
                    notes.warn(port.span.start, message);
                }
            }
        }
        if !changed {
            return;
        }
        let object = self.workload.object.node;
        let metadata = self.document.read(object, "metadata");
        let field = |key| metadata.and_then(|node| self.document.read(node, key)).filter(|node| !node.is_null());
        let job = matches!(self.workload.kind.as_str(), "Job" | "CronJob");
        if !self.options.native {
            if job {
                let message =
                    "--no-native: the sidecar runs on when the app has ended, so this never completes".to_owned();
                notes.warn(spec.span.start, message);
            } else {
                let message = "--no-native: all containers are told to end at once. Outrigger's configuration needs `shutdown: {quiet: \"${OUTRIGGER_QUIET:-1s}\"}`, which reads the 15s that are set on it".to_owned();
                notes.warn(spec.span.start, message);
            }
        }
        if let Some(owner) = field("ownerReferences").and_then(|list| list.items().first()) {
            let owner = self.document.resolve(owner);
            let kind = self.document.read(owner, "kind").and_then(Node::text).unwrap_or("something");
            let message =
                format!("this was made by {kind} {}: inject that", self.document.name(owner).unwrap_or_default());
            notes.warn(owner.span.start, message);
        } else if field("uid").is_some() && matches!(self.workload.kind.as_str(), "Pod" | "Job") {
            let kind = &self.workload.kind;
            let message = format!("a running {kind} can't be changed: delete it and create it anew from this");
            notes.warn(object.span.start, message);
        }
    }
}

/// Names that are led, names that no longer are, changes.
type Variables<'d> = (Vec<&'d str>, Vec<&'d str>, Vec<Change>);

struct Sidecar {
    changes: Vec<Change>,
    word: &'static str,
    /// Number of the first init container that can reach it.
    ready_from: usize,
}
