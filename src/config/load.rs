//! From a file to a [`Config`], or everything that is wrong with it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::background::give_way;
use crate::config::layers::Layers;
use crate::config::schema::Scope;
use crate::config::tls::Files;
use crate::config::upstream::{self, Seen};
use crate::config::{Config, Listeners, checks, global, intercept, schema};
use crate::document::expand::{self, Sources};
use crate::document::known::Known;
use crate::document::parse::MAX_BYTES;
use crate::document::tree::{Layer, Node};
use crate::document::{Place, Problem, Problems, Reader, file};
use crate::units::show_size;

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Missing variables and files are warnings: for checking where the secrets are not.
    pub no_env: bool,
}

/// What loading gives.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration, where there are no errors.
    pub config: Option<Config>,
    /// Errors and warnings.
    pub problems: Problems,
    /// The file's text, for showing problems in it; empty where it could not be read. What in it must not be shown is
    /// replaced by `*`, character for character.
    pub text: String,
}

/// Reads, merges and validates the file.
///
/// # Errors
/// Only when the file itself can't be read; everything else is in `problems`.
pub fn load(path: &Path, options: Options) -> std::io::Result<Loaded> {
    let bytes = file::beginning(path, MAX_BYTES as u64 + 1)?;
    let mut problems = Problems::default();
    if bytes.len() > MAX_BYTES {
        let message =
            format!("the file is larger than the {} that a configuration may have", show_size(MAX_BYTES as u64));
        problems.error(None, "", message, None);
        return Ok(Loaded { config: None, problems, text: String::new() });
    }
    match String::from_utf8(bytes) {
        Ok(text) => {
            let mut loaded = load_text(&text, path, options, &|name| std::env::var(name).ok());
            if let Some(config) = &loaded.config {
                mounted_alone(path, config, &mut loaded.problems);
            }
            Ok(loaded)
        }
        Err(error) => {
            let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
            let line = valid.matches('\n').count() + 1;
            let column = valid.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            let place = Place { file: Arc::new(path.to_owned()), line, column };
            problems.error(Some(place), "", "this is not UTF-8 text", Some("save the file as UTF-8"));
            Ok(Loaded { config: None, problems, text: masked(&String::from_utf8_lossy(error.as_bytes())) })
        }
    }
}

/// As [`load`], from a text, with an environment of one's own. `path` is what problems name, and relative paths are relative
/// to its directory.
pub fn load_text(text: &str, path: &Path, options: Options, variable: &dyn Fn(&str) -> Option<String>) -> Loaded {
    let (config, mut problems) = build(text, path, options, variable);
    problems.tidy();
    say_where_keys_belong(&mut problems);
    let config = config.filter(|_| problems.errors.is_empty());
    Loaded { config, problems, text: masked(text) }
}

/// A key that is right but stands at the wrong level is told its own.
fn say_where_keys_belong(problems: &mut Problems) {
    for problem in &mut problems.errors {
        let guessed = problem.help.as_ref().is_none_or(|help| help.starts_with("did you mean"));
        if problem.message != "is not a setting" || guessed {
            continue;
        }
        let name = problem.path.rsplit('.').next().unwrap_or("");
        let homes: Vec<String> = schema::KEYS
            .iter()
            .filter_map(|key| {
                let parent = match key.path.strip_suffix(name)? {
                    "" => None,
                    parent => Some(parent.strip_suffix('.')?),
                };
                Some(match (parent, key.scope) {
                    (Some(parent), _) => format!("below `{parent}`"),
                    (None, Scope::Top) => "at the top of the file".to_owned(),
                    (None, Scope::Policy) => "in `defaults`, an upstream or a route".to_owned(),
                    (None, Scope::Shared) => "in `defaults` or an upstream".to_owned(),
                    (None, Scope::Upstream) => "in an upstream".to_owned(),
                    (None, Scope::Route) => "in a route".to_owned(),
                })
            })
            .collect();
        if !homes.is_empty() {
            problem.help = Some(format!("`{name}` belongs {}", homes.join(", or ")));
        }
    }
}

fn build(
    text: &str,
    path: &Path,
    options: Options,
    variable: &dyn Fn(&str) -> Option<String>,
) -> (Option<Config>, Problems) {
    let mut problems = Problems::default();
    let file = Arc::new(path.to_owned());
    let Some(mut root) = Node::parse(text, &file, Layer::File, &mut problems) else { return (None, problems) };
    let start = Place { file: file.clone(), line: 1, column: 1 };
    if root.is_null() {
        problems.error(Some(start), "", "the file is empty", Some("write at least `version: 1`"));
        return (None, problems);
    }
    if !root.is_map() {
        problems.error(Some(start), "", "the file is not a block of keys", Some("start it by `version: 1`"));
        return (None, problems);
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new("."),
    };
    let mut files = vec![path.to_owned()];
    let sources = Sources { variable, directory, forgiving: options.no_env };
    expand::expand(&mut root, &sources, &mut files, &mut problems);

    let problems = RefCell::new(problems);
    let layers = Layers::new(root);
    let mut tls = Files::new(directory, options.no_env);
    let config = read(&layers, &mut tls, &problems);
    let mut problems = problems.into_inner();
    let config = config.map(|mut config| {
        for named in tls.named {
            if !files.contains(&named) {
                files.push(named);
            }
        }
        config.files = files;
        checks::whole(&config, layers.root(), &mut problems);
        config
    });
    (config, problems)
}

fn read(layers: &Layers, tls: &mut Files<'_>, problems: &RefCell<Problems>) -> Option<Config> {
    let top = layers.top();
    let mut reader = Reader::new(&top, "", problems);
    global::version(&mut reader);
    let listeners = global::listeners(&mut reader);

    if let Some(node) = reader.raw("defaults")
        && !node.is_map()
    {
        reader.problem(
            "defaults",
            "must be a block of keys".to_owned(),
            Some("write blocks such as `timeouts` below".into()),
        );
    }
    let merged = layers.defaults();
    let mut defaults = Reader::new(&merged, "defaults", problems);
    upstream::defaults(&mut defaults, tls);
    defaults.finish();
    // What is wrong here was noted when `defaults` was read.
    let unmatched_node = layers.unmatched();
    let ignored = RefCell::new(Problems::default());
    let unmatched = upstream::unmatched(&mut Reader::new(&unmatched_node, "unmatched", &ignored), tls);

    let upstreams = upstreams(&mut reader, layers, tls, problems);
    let own = upstreams.iter().filter_map(|upstream| upstream.listen).collect();
    let egress = reader.section("egress", global::egress);
    let intercept = reader.section("intercept", |reader| intercept::intercept(reader, tls)).flatten();
    let dns = reader.section("dns", global::dns);
    let memory = global::memory_limit();
    let limits = reader.section("limits", |reader| global::limits(reader, memory));
    let shutdown = reader.section("shutdown", global::shutdown);
    let log = reader.section("log", global::log);
    let trace_send = reader.section("trace", |reader| reader.boolean("send"));
    reader.reserved(schema::RESERVED);
    reader.finish();

    Some(Config {
        listeners: Listeners { own, ..listeners? },
        upstreams,
        unmatched,
        intercept,
        egress: egress?,
        dns: dns?,
        limits: limits?,
        shutdown: shutdown?,
        log: log?,
        trace_send: trace_send?,
        files: Vec::new(),
        layers: layers.clone(),
    })
}

fn upstreams(
    reader: &mut Reader<'_>,
    layers: &Layers,
    tls: &mut Files<'_>,
    problems: &RefCell<Problems>,
) -> Vec<Arc<super::Upstream>> {
    let Some(node) = reader.raw("upstreams") else { return Vec::new() };
    if !node.is_map() {
        let help = Some("write each upstream's name as a key below".to_owned());
        reader.problem("upstreams", "must be a block of names".to_owned(), help);
        return Vec::new();
    }
    let mut seen = Seen::default();
    let known = Known::default();
    let mut upstreams = Vec::with_capacity(node.entries().len());
    for entry in node.entries() {
        give_way();
        let path = format!("upstreams.{}", entry.key);
        let note = |message: String, help: String| {
            let problem = Problem { place: Some(entry.place.clone()), path: path.clone(), message, help: Some(help) };
            problems.borrow_mut().errors.push(problem);
        };
        if let Some((message, help)) = upstream::name_problem(&entry.key) {
            note(message, help);
        } else if &*entry.key == "unmatched" {
            note("is the name of what no upstream names".to_owned(), "choose another name".to_owned());
        }
        if !entry.value.is_map() && !entry.value.is_null() {
            note("must be a block of keys".to_owned(), "write `hosts: [api.example.com]` below it".to_owned());
            continue;
        }
        let merged = layers.upstream(&entry.value);
        let mut reader = Reader::new(&merged, path.as_str(), problems).knowing(&known);
        if entry.value.is_null() {
            reader.stand_at(entry.place.clone());
        }
        let read = upstream::upstream(&mut reader, &entry.key, &merged, layers, tls, &mut seen);
        reader.finish();
        upstreams.push(Arc::new(read));
    }
    upstreams
}

/// Lines may be shown beside problems, so what is secret in them is blanked: a token that is written out, passwords in URLs.
fn masked(text: &str) -> String {
    let blank = |line: &str, from: usize, to: usize| {
        let stars = "*".repeat(line[from..to].chars().count());
        format!("{}{stars}{}", &line[..from], &line[to..])
    };
    let mut lines: Vec<String> = Vec::new();
    for line in text.split('\n') {
        give_way();
        let mut line = line.to_owned();
        if let Some(at) = line.find("admin_token") {
            let from = line[at..].find(':').map_or(line.len(), |colon| at + colon + 1);
            let from = from + line[from..].len() - line[from..].trim_start().len();
            if !line[from..].contains("${") {
                line = blank(&line, from, line.len());
            }
        }
        let mut start = 0;
        while let Some(at) = line[start..].find("://").map(|at| start + at + 3) {
            let end = line[at..].find(|c: char| c.is_whitespace() || matches!(c, ',' | ']' | '"' | '\''));
            let end = end.map_or(line.len(), |end| at + end);
            if let Some(user) = line[at..end].rfind('@') {
                line = blank(&line, at, at + user);
            }
            start = at;
        }
        lines.push(line);
    }
    lines.join("\n")
}

/// Kubernetes never updates a file that is mounted by `subPath`.
fn mounted_alone(path: &Path, config: &Config, problems: &mut Problems) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points: Vec<PathBuf> =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| unescape(point).into()).collect();
    for file in &config.files {
        let Ok(real) = file.canonicalize() else { continue };
        if points.contains(&real) {
            let which = if file == path { "the configuration".to_owned() } else { format!("`{}`", file.display()) };
            let message =
                format!("{which} is mounted as a single file (`subPath`): edits of its source never arrive here");
            problems.warning(None, "", message, Some("mount its directory"));
        }
    }
}

/// `mountinfo` writes spaces and the like as octal escapes.
fn unescape(point: &str) -> String {
    point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}
