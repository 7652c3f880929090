//! Configuration files: read, checked, shown, made into a routing table, and held against the schema.

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use jsonschema::{Draft, Validator};
use outrigger::config::load::{Loaded, Options, load_text};
use outrigger::config::{Config, json_schema};
use outrigger::document::Problem;
use outrigger::explain::{Question, explain};
use outrigger::policy::replay::ReplayMemory;
use outrigger::telemetry::metrics::Metrics;
use outrigger::upstream::connect::Connector;
use outrigger::upstream::table::Table;
use serde_json::Value as Json;

const FILE: &str = "/nowhere/outrigger.yaml";
/// Nesting and repetition are reached by less.
const LONGEST: usize = 1 << 14;

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    jsonschema::options().with_draft(Draft::Draft202012).build(&json_schema::document()).expect("it is a schema")
});

thread_local! {
    static TABLES: RefCell<Tables> = RefCell::new(Tables::new());
}

/// What tables are made with.
struct Tables {
    runtime: tokio::runtime::Runtime,
    metrics: Arc<Metrics>,
}

impl Tables {
    fn new() -> Tables {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Tables { runtime: runtime.expect("a runtime can be made"), metrics: Metrics::new() }
    }
}

/// A file loads, or every problem has its place in the file. What loads can run, is explained, and the schema accepts it;
/// the same text comes to the same twice.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(&data[..data.len().min(LONGEST)]) else { return };
    for options in [Options { no_env: true }, Options { no_env: false }] {
        let loaded = read(text, options);
        shown(text, &loaded);
        let again = read(text, options);
        assert_eq!(loaded.problems, again.problems);
        match (&loaded.config, again.config) {
            (Some(config), Some(again)) => {
                assert_eq!(config.effective(), again.effective());
                runs(again);
                asked(config);
                if options.no_env {
                    accepted(text);
                }
            }
            (None, None) => assert!(!loaded.problems.errors.is_empty(), "refused without a word"),
            (Some(_), None) | (None, Some(_)) => panic!("the same text is read differently"),
        }
    }
}

fn read(text: &str, options: Options) -> Loaded {
    let variable = |name: &str| match name {
        "N" => Some("4".to_owned()),
        "D" => Some("5s".to_owned()),
        "H" => Some("x.example".to_owned()),
        "Y" => Some("{a: [b".to_owned()),
        "S" => Some("sesame-open".to_owned()),
        _ => None,
    };
    load_text(text, Path::new(FILE), options, &variable)
}

/// Problems have places that are there, and are shown without what a terminal would obey.
fn shown(text: &str, loaded: &Loaded) {
    let problems = loaded.problems.errors.iter().chain(&loaded.problems.warnings);
    for Problem { place, message, .. } in problems {
        assert!(!message.is_empty());
        let Some(place) = place else { continue };
        if place.file.as_path() != Path::new(FILE) {
            panic!("a problem is somewhere else: {place}: {message}");
        }
        let whole = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
        let lines: Vec<&str> = whole.split(LINE_ENDS).collect();
        // What ends too early is wrong behind its last character.
        assert!((1..=lines.len() + 1).contains(&place.line), "{place}: {message}: there are {} lines", lines.len());
        let line = lines.get(place.line - 1).copied().unwrap_or("");
        let columns = line.chars().count();
        assert!((1..=columns + 2).contains(&place.column), "{place}: {message}: {line:?}");
    }
    let plain = loaded.problems.render(&loaded.text, Path::new(FILE));
    assert!(plain.chars().all(|c| c == '\n' || !c.is_control()), "{plain:?}");
    let coloured = loaded.problems.render_in_colour(&loaded.text, Path::new(FILE));
    assert!(plain.len() <= coloured.len());
    assert_eq!(loaded.text.chars().count(), text.chars().count(), "masking changes what stands where");
    for problem in &loaded.problems.errors {
        assert!(problem.json().is_object());
    }
}

const LINE_ENDS: [char; 2] = ['\n', '\r'];

/// What is valid can be put into service.
fn runs(config: Config) {
    // The CA is written into files.
    if config.intercept.is_some() {
        return;
    }
    TABLES.with_borrow(|tables| {
        let _inside = tables.runtime.enter();
        let config = Arc::new(config);
        let connector = match Connector::new(&config.dns, &config.egress, Vec::new()) {
            Ok(connector) => connector,
            Err(why) => panic!("{why}"),
        };
        let replay = ReplayMemory::new(config.limits.replay_memory);
        let table = Table::evolve(None, config.clone(), connector.clone(), &tables.metrics, &replay);
        let table = table.unwrap_or_else(|problems| panic!("what is valid can't run: {problems:?}"));
        let again = Table::evolve(Some(&table), config.clone(), connector, &tables.metrics, &replay);
        assert_eq!(again.unwrap_or_else(|problems| panic!("{problems:?}")).upstreams.len(), config.upstreams.len());
        for upstream in &config.upstreams {
            for pattern in upstream.hosts.iter().filter(|pattern| !pattern.wildcard) {
                let found = table.find(&pattern.host, pattern.port.unwrap_or(443)).map(|found| &*found.name);
                let named = |name| config.upstreams.iter().any(|other| other.name == name);
                assert!(found.is_some_and(|name| named(name.into())), "{pattern} leads nowhere");
            }
        }
        tables.metrics.retain(&|_, _| false);
    });
}

/// `explain` has an answer to everything.
fn asked(config: &Config) {
    let mut urls = vec!["http://elsewhere.example/".to_owned()];
    for upstream in config.upstreams.iter().take(4) {
        for pattern in upstream.hosts.iter().take(2) {
            let below = if pattern.wildcard { "below." } else { "" };
            let port = pattern.port.map(|port| format!(":{port}")).unwrap_or_default();
            let host = &pattern.host;
            urls.extend([format!("https://{below}{host}{port}/"), format!("http://{below}{host}{port}/v1/x?y")]);
        }
    }
    for url in urls {
        for method in ["GET", "POST"] {
            let Ok(question) = Question::new(method, &url, &[], None) else { continue };
            let explained = explain(config, &question);
            let json = serde_json::to_value(&explained).expect("it is data");
            assert!(json["request"].is_string());
            assert!(!explained.text(false).is_empty());
        }
    }
}

/// What loads is valid by the schema, but for words that YAML takes for numbers and truths: the loader takes them for text.
fn accepted(text: &str) {
    let Ok(mut value) = yaml_serde::from_str::<yaml_serde::Value>(text) else { return };
    let Ok(document) = value.apply_merge().map(|()| value) else { return };
    let Ok(document) = serde_json::to_value(document) else { return };
    for error in SCHEMA.iter_errors(&document) {
        let path = error.instance_path().to_string();
        let at = document.pointer(&path).unwrap_or(&Json::Null);
        assert!(has_a_slip(at), "the schema refuses what loads: {path}: {error}\n{text}");
    }
}

fn has_a_slip(value: &Json) -> bool {
    match value {
        Json::Bool(_) | Json::Number(_) => true,
        Json::Array(items) => items.iter().any(has_a_slip),
        Json::Object(entries) => entries.values().any(has_a_slip),
        Json::Null | Json::String(_) => false,
    }
}
