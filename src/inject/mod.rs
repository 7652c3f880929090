//! `outrigger inject`: Kubernetes manifests with the sidecar added.
//!
//! The text is edited, not written anew, so that comments, quotes, order, anchors and markers stay as they are. Each document
//! goes through four steps: `tree` reads it with places, `pod` decides what is missing (`change`), `edit` puts that into
//! the text, and the result is read again and must be what was read at first with exactly these changes made, or it is refused.
//!
//! | file | owns |
//! | --- | --- |
//! | `stream` | where one document ends and the next begins |
//! | `tree`, `value` | a document with places, and without |
//! | `manifest` | which objects have pods and where; aliases and merge keys |
//! | `pod`, `env`, `sidecar` | what a pod needs: as a whole, its variables, the container and its volume |
//! | `change`, `edit`, `render` | changes as data, made in the text, written as YAML or JSON |

mod change;
mod edit;
pub(crate) mod env;
mod manifest;
mod pod;
mod render;
mod sidecar;
mod stream;
mod tree;
mod value;

use std::fmt;

use crate::inject::edit::{column, dash};
use crate::inject::manifest::{Document, Workload};
use crate::inject::pod::Pod;
use crate::inject::render::Style;
use crate::inject::tree::{Body, Form, Node};

pub use stream::separate;

/// Asks on a pod template to be left alone.
const ANNOTATION: &str = "outrigger.dev/inject";

/// What is to be put in.
#[derive(Clone, Debug)]
pub struct Options {
    /// The ConfigMap with `outrigger.yaml`.
    pub config_map: String,
    /// The sidecar's image.
    pub image: String,
    /// An init container with `restartPolicy: Always`; else an ordinary container, for clusters before 1.29.
    pub native: bool,
    /// The containers that are led to the proxy; all where it is empty.
    pub containers: Vec<String>,
    /// Hosts that don't go through the proxy, besides the pod's, node's and cluster's own.
    pub no_proxy: Vec<String>,
    /// Whether proxy variables of the app's own are replaced.
    pub overwrite_env: bool,
}

/// The image that belongs to this build.
pub const IMAGE: &str = concat!("outrigger:", env!("CARGO_PKG_VERSION"));

/// What came of a stream of manifests.
#[derive(Clone, Debug)]
pub struct Injected {
    /// The stream with the sidecar in it; of no use where something was refused.
    pub text: String,
    /// What was done, what looks wrong, what was refused, in the order of the text.
    pub notes: Vec<Note>,
    /// The names of all containers that were seen in pods.
    pub containers: Vec<String>,
}

impl Injected {
    /// Whether a document was refused.
    pub fn refused(&self) -> bool {
        self.notes.iter().any(|note| note.level == Level::Error)
    }
}

/// One thing to say about the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How much it matters.
    pub level: Level,
    /// Line, from 1.
    pub line: usize,
    /// What is to be said.
    pub message: String,
}

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What was done, or why nothing was.
    Done,
    /// Right as YAML, but look at it.
    Warning,
    /// Refused.
    Error,
}

/// `line: warning: message`
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Done => "",
            Level::Warning => "warning: ",
            Level::Error => "error: ",
        };
        write!(f, "{}: {level}{}", self.line, self.message)
    }
}

/// Why a document can't be injected.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// A byte of the document.
    at: usize,
    message: String,
    help: String,
}

impl Refusal {
    fn new(at: usize, message: impl Into<String>, help: &str) -> Self {
        Refusal { at, message: message.into(), help: help.to_owned() }
    }
}

/// Notes on one document.
pub(crate) struct Notes {
    found: Vec<(usize, Level, String)>,
    subject: String,
}

impl Notes {
    /// Something that looks wrong at a byte of the document.
    fn warn(&mut self, at: usize, message: String) {
        self.found.push((at, Level::Warning, format!("{}: {message}", self.subject)));
    }

    fn done(&mut self, at: usize, message: &str) {
        self.found.push((at, Level::Done, format!("{}: {message}", self.subject)));
    }
}

/// Puts the sidecar into every pod of a stream of manifests.
pub fn inject(text: &str, options: &Options) -> Injected {
    let (mark, body) = match text.strip_prefix('\u{feff}') {
        Some(body) => (&text[..text.len() - body.len()], body),
        None => ("", text),
    };
    let mut injected = Injected { text: mark.to_owned(), notes: Vec::new(), containers: Vec::new() };
    let mut first_line = 1;
    for range in stream::documents(body) {
        let document = &body[range];
        let mut notes = Notes { found: Vec::new(), subject: String::new() };
        match one(document, first_line, options, &mut notes, &mut injected.containers) {
            Ok(text) => injected.text.push_str(&text),
            Err(refusal) => {
                let subject = if notes.subject.is_empty() { String::new() } else { format!("{}: ", notes.subject) };
                let message = format!("{subject}{} ({})", refusal.message, refusal.help);
                notes.found.push((refusal.at, Level::Error, message));
            }
        }
        notes.found.sort_by_key(|(at, _, _)| *at);
        let notes = notes.found.into_iter().map(|(at, level, message)| {
            let line = first_line + stream::line_of(document, at) - 1;
            Note { level, line, message }
        });
        injected.notes.extend(notes);
        first_line += document.bytes().filter(|byte| *byte == b'\n').count();
    }
    injected
}

fn one(
    text: &str,
    first_line: usize,
    options: &Options,
    notes: &mut Notes,
    seen: &mut Vec<String>,
) -> Result<String, Refusal> {
    let Some(root) = Node::parse(text)?.filter(|root| !root.is_null()) else { return Ok(text.to_owned()) };
    let document = Document::new(text, &root, first_line);
    let mut changes = Vec::new();
    let mut style = None;
    for workload in document.workloads()? {
        notes.subject = workload.name.clone();
        let at = workload.object.node.span.start;
        let Some(template) = &workload.template else {
            notes.done(at, "left alone, inject doesn't know this kind");
            continue;
        };
        if asks_to_be_left(&document, &workload, notes) {
            continue;
        }
        document.refuse_malformed(workload.object.node)?;
        let pod = Pod::new(&document, &workload, template, options)?;
        let named =
            options.containers.is_empty() || pod.names().any(|name| options.containers.iter().any(|one| one == name));
        seen.extend(pod.names().map(str::to_owned));
        if !named {
            notes.done(at, &format!("left alone, it has no container {}", options.containers.join(" or ")));
            continue;
        }
        let plan = pod.plan(notes)?;
        notes.done(at, &plan.summary);
        for change in &plan.changes {
            document.refuse_shared(change.path())?;
        }
        changes.extend(plan.changes);
        style.get_or_insert_with(|| style_of(&document, template));
    }
    let Some(style) = style.filter(|_| !changes.is_empty()) else { return Ok(text.to_owned()) };
    let out = edit::edit(text, &root, &changes, &style)?;
    verify(text, &root, &changes, &out)?;
    Ok(out)
}

/// The last word: what comes out must be what came in and what was decided, and nothing else.
fn verify(text: &str, root: &Node, changes: &[change::Change], out: &str) -> Result<(), Refusal> {
    let at = changes.first().and_then(|change| edit::at(root, change.path())).map_or(0, |node| node.span.start);
    let broken = |what: &str| {
        let help =
            "write the lists and mappings of the pod's spec in plain block style; and please report this document";
        Refusal::new(at, format!("this can't be edited safely: {what}"), help)
    };
    let mut wanted = root.value();
    change::apply(&mut wanted, changes);
    let found = Node::parse(out).map_err(|_| broken("what would come out is not YAML"))?;
    if !found.is_some_and(|found| change::same(&wanted, &found.value())) {
        return Err(broken("what would come out means something else"));
    }
    let json = |text: &str| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    if json(text) && !json(out) { Err(broken("what would come out is not JSON")) } else { Ok(()) }
}

fn asks_to_be_left(document: &Document<'_>, workload: &Workload<'_>, notes: &mut Notes) -> bool {
    let asks = |object: &manifest::Spot<'_>| {
        let annotations = object.node.entries().iter().find(|entry| entry.key.text() == Some("metadata"));
        let annotations = annotations.and_then(|entry| document.read(document.resolve(&entry.value), "annotations"));
        let value = annotations.and_then(|node| document.read(node, ANNOTATION));
        value.filter(|value| value.text() == Some("false")).map(|value| value.span.start)
    };
    if let Some(at) = workload.template.as_ref().and_then(asks) {
        notes.done(at, &format!("left alone, as its annotation {ANNOTATION} says"));
        return true;
    }
    if let Some(at) = asks(&workload.object) {
        notes.warn(at, format!("the annotation {ANNOTATION} only counts in the pod template's metadata"));
    }
    false
}

/// How the document is written, judged by its pod.
fn style_of(document: &Document<'_>, template: &manifest::Spot<'_>) -> Style {
    let text = document.text;
    let find = |node: &Node, key: &str| node.entries().iter().position(|entry| entry.key.text() == Some(key));
    let spec = find(template.node, "spec").map(|number| &template.node.entries()[number]);
    let mut style = Style { step: 2, dash: 2, unit: "  ".to_owned(), json: false, newline: "\n" };
    if let Some(spec) = spec
        && let Body::Map { entries, form: Form::Block } = &spec.value.body
        && let Some(first) = entries.first()
    {
        let step = column(text, first.key.span.start).saturating_sub(column(text, spec.key.span.start));
        style.step = if step == 0 { 2 } else { step.min(8) };
        style.dash = style.step.min(2);
        if let Some(containers) = find(&spec.value, "containers").map(|number| &entries[number])
            && let Body::List { items, flow: false } = &containers.value.body
            && let Some((_, dash)) = items.first().and_then(|item| dash(text, item))
        {
            style.dash = dash.saturating_sub(column(text, containers.key.span.start)).min(8);
        }
    }
    if let Body::Map { entries, form: Form::Braces } = &document.root.body
        && let Some(first) = entries.first()
    {
        let start = first.key.span.start;
        style.json = text[start..].starts_with('"');
        let indent = &text[tree::line_start(text, start)..start];
        if !indent.is_empty() && indent.trim().is_empty() {
            style.unit = indent.to_owned();
        }
    }
    if text.find('\n').is_some_and(|newline| text[..newline].ends_with('\r')) {
        style.newline = "\r\n";
    }
    style
}
