//! The JSON Schema of the configuration, held against the loader by a validator that knows nothing of it.

mod documents;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jsonschema::{Draft, Validator};
use outrigger::config::json_schema;
use outrigger::config::load::{Options, load_text};
use outrigger::config::schema::{KEYS, Key, Kind, RESERVED, Scope};
use outrigger::document::read::one_of;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value as Json;

use documents::{FOR_BLOCKS, Tree, VALUES, document, is_a_slip, likely};

/// Files that a schema can't refuse, since each value is right by itself, and why they are wrong all the same.
const UNSEEN: &[(&str, &str)] = &[
    ("admin_token.yaml", "an address that is not loopback needs a token, which may stand in two places"),
    ("admin_token_unusable.yaml", "what the variable holds"),
    ("backoff_crossed.yaml", "two durations compared"),
    ("host_twice.yaml", "a host in two upstreams"),
    ("host_twice_in_one.yaml", "two ways to write a host"),
    ("intercept.yaml", "an upstream needs what stands elsewhere"),
    ("intercept_dirs.yaml", "two paths compared"),
    ("leads_to_itself.yaml", "an upstream's address is a listener's"),
    ("listen_taken.yaml", "two listeners compared"),
    ("listen_without_target.yaml", "how many hosts are exact"),
    ("number_as_key.yaml", "in JSON every key is text"),
    ("regex_too_large.yaml", "a regular expression compiled"),
    ("secret_in_the_wrong_place.yaml", "what the variable holds"),
    ("tab_after_colon.yaml", "not every reader of YAML minds the tab"),
    ("times_crossed.yaml", "two durations compared"),
];

/// Files that are no YAML, or none that has a meaning in JSON: an editor says so by itself.
const NOT_YAML: &[&str] = &[
    "at_sign.yaml",
    "bad_indent.yaml",
    "duplicate_key.yaml",
    "merge_key.yaml",
    "tab.yaml",
    "two_documents.yaml",
    "unquoted_in_braces.yaml",
];

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    jsonschema::options().with_draft(Draft::Draft202012).build(&json_schema::document()).expect("it is a schema")
});

fn json(yaml: &str) -> Result<Json, String> {
    let mut value: yaml_serde::Value = yaml_serde::from_str(yaml).map_err(|error| error.to_string())?;
    value.apply_merge().map_err(|error| error.to_string())?;
    serde_json::to_value(value).map_err(|error| error.to_string())
}

fn refusals(document: &Json) -> Vec<String> {
    VALIDATOR.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn accepts(yaml: &str) -> bool {
    json(yaml).is_ok_and(|document| VALIDATOR.is_valid(&document))
}

/// Missing files are no matter of a schema.
fn loads(yaml: &str) -> bool {
    load_text(yaml, Path::new("f.yaml"), Options { no_env: true }, &known).config.is_some()
}

/// The environment.
fn known(name: &str) -> Option<String> {
    let value = match name {
        "N" => "4",
        "D" => "5s",
        "W" => "off",
        "H" => "x.example",
        _ => return None,
    };
    Some(value.to_owned())
}

fn files(directory: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
}

#[test]
fn it_is_a_schema_of_2020_12() {
    jsonschema::draft202012::meta::validate(&json_schema::document()).unwrap();
}

#[test]
fn it_accepts_every_file_that_is_meant_to_be_used() {
    let mut all = files("tests/config/valid");
    all.extend(files("docs/recipes"));
    all.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.yaml"));
    for file in all {
        let document = json(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(refusals(&document), [""; 0], "{}", file.display());
    }
}

#[test]
fn it_accepts_every_whole_file_that_the_docs_show() {
    let mut pages = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")];
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { &mut directories } else { &mut pages }.push(path);
        }
    }
    let mut shown = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        for block in fs::read_to_string(page).unwrap().split("\n```yaml\n").skip(1) {
            let text = block.split("\n```").next().unwrap();
            if text.lines().any(|line| line == "version: 1") {
                assert_eq!(refusals(&json(text).unwrap()), [""; 0], "{}\n{text}", page.display());
                shown += 1;
            }
        }
    }
    assert!(shown >= 2, "{shown}");
}

#[test]
fn it_refuses_every_broken_file_but_those_that_no_schema_can() {
    let broken = files("tests/config/broken");
    let name = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().to_owned();
    for sorted in UNSEEN.iter().map(|(name, _)| name).chain(NOT_YAML) {
        assert!(broken.iter().any(|file| name(file) == *sorted), "{sorted} is gone");
    }
    let mut wrong = String::new();
    for file in broken {
        let name = name(&file);
        let unseen = UNSEEN.iter().any(|(unseen, _)| *unseen == name);
        let expected = (NOT_YAML.contains(&&*name), unseen);
        let found = json(&fs::read_to_string(&file).unwrap());
        let sorted = (found.is_err(), found.as_ref().is_ok_and(|document| VALIDATOR.is_valid(document)));
        if sorted != expected {
            wrong.push_str(&format!("{name}: {:?}\n", found.map(|document| refusals(&document))));
        }
    }
    assert!(wrong.is_empty(), "sort these into UNSEEN or NOT_YAML, or mend the schema:\n{wrong}");
}

#[test]
fn it_accepts_the_built_in_values() {
    let text = include_str!("../../src/config/defaults.yaml");
    let mut document = json(text).unwrap();
    let map = document.as_object_mut().unwrap();
    map.remove("unmatched");
    let mut upstream = map.remove("upstream").unwrap();
    upstream["hosts"] = serde_json::json!(["a.example"]);
    map.insert("upstreams".to_owned(), serde_json::json!({"a": upstream}));
    map.insert("version".to_owned(), serde_json::json!(1));
    assert_eq!(refusals(&document), [""; 0]);
}

#[test]
fn every_key_is_in_it_with_its_description_and_its_default() {
    let schema = json_schema::document();
    let step = |at: &Json, name: &str| -> Json {
        let found = at["properties"][name].clone();
        match found["$ref"].as_str() {
            Some(reference) if !name.is_empty() => {
                let mut target = schema.pointer(reference.trim_start_matches('#')).unwrap().clone();
                for (key, value) in found.as_object().unwrap() {
                    target[key] = value.clone();
                }
                target
            }
            _ => found,
        }
    };
    let mut defaults = 0;
    for key in KEYS {
        let starts: &[&str] = match key.scope {
            Scope::Top => &["/"],
            Scope::Policy => &["/$defs/defaults", "/$defs/upstream", "/$defs/route"],
            Scope::Shared => &["/$defs/defaults", "/$defs/upstream"],
            Scope::Upstream => &["/$defs/upstream"],
            Scope::Route => &["/$defs/route"],
        };
        for start in starts {
            let start = if *start == "/" { &schema } else { schema.pointer(start).unwrap() };
            let found = key.path.split('.').fold(start.clone(), |at, name| step(&at, name));
            let description = found["description"].as_str().unwrap();
            assert!(description.starts_with(&format!("{} ({}", key.about, key.kind.form())), "{}", key.path);
            defaults += usize::from(found.get("default").is_some());
        }
    }
    assert!(defaults > 100, "{defaults}");
    let rest = &schema["$defs"]["retry"]["properties"]["backoff"]["properties"]["base"];
    assert_eq!(rest["default"], "100ms");
}

#[test]
fn the_words_of_a_choice_are_those_that_the_loader_knows() {
    for key in KEYS {
        let Kind::Choice(words) = key.kind else { continue };
        // What a word needs beside it is another matter.
        let refused = |word: &str| {
            let text = document(key, word);
            let problems = load_text(&text, Path::new("f.yaml"), Options::default(), &|_| None).problems.errors;
            let expected = format!("must be {}, not `{word}`", one_of(words));
            problems.iter().any(|problem| problem.message == expected)
        };
        for word in words {
            assert!(!refused(word), "{} {word}", key.path);
        }
        assert!(refused("nonsense"), "{}", key.path);
    }
}

#[test]
fn words_for_a_later_version_are_refused() {
    for word in RESERVED {
        for text in [
            format!("version: 1\n{word}: {{}}\n"),
            format!("version: 1\ndefaults: {{{word}: ~}}\n"),
            format!("version: 1\nupstreams: {{a: {{{word}: {{}}}}}}\n"),
        ] {
            assert!(!accepts(&text) && !loads(&text), "{text}");
        }
    }
}

/// Which of the values the loader accepts for a key. Those of upstreams are loaded together, each in one of its own.
fn loadable(key: &Key, values: &[String]) -> Vec<bool> {
    if key.scope == Scope::Top || key.path == "hosts" {
        return values.iter().map(|value| loads(&document(key, value))).collect();
    }
    let mut text = "version: 1\nupstreams:\n".to_owned();
    for (index, value) in values.iter().enumerate() {
        let mut one = Tree::default();
        one.place(key, 1, value);
        let one = one.text().replacen("{upstreams: {a: ", "", 1).replacen("}, version: 1}", "", 1);
        text.push_str(&format!(
            "  u{index}: {}\n",
            one.trim().replace("[host.example]", &format!("[u{index}.example]"))
        ));
    }
    let problems = load_text(&text, Path::new("f.yaml"), Options { no_env: true }, &known).problems.errors;
    let mut accepted = vec![true; values.len()];
    for problem in problems {
        let index: Option<usize> =
            problem.path.strip_prefix("upstreams.u").and_then(|rest| rest.split(['.', '[']).next()?.parse().ok());
        accepted[index.unwrap_or_else(|| panic!("{problem}\n{text}"))] = false;
    }
    accepted
}

#[test]
fn what_the_loader_accepts_of_one_value_the_schema_accepts() {
    let (mut alarms, mut loaded, mut accepted) = (String::new(), 0, 0);
    let mut kinds: Vec<Kind> = Vec::new();
    let (top, upstreams): (Vec<&Key>, Vec<&Key>) = KEYS.iter().partition(|key| key.scope == Scope::Top);
    for key in upstreams.into_iter().chain(top) {
        let values = match key.kind {
            Kind::Block | Kind::BlockOrOff => FOR_BLOCKS,
            Kind::Choice(words) if !words.contains(&"1") && !words.contains(&"errors") => FOR_BLOCKS,
            // Whatever the key, a kind is a kind.
            kind if kinds.contains(&kind) => continue,
            _ => &VALUES,
        };
        kinds.push(key.kind);
        let list = matches!(key.kind, Kind::List(_) | Kind::Ports);
        let values: Vec<String> =
            values.iter().map(|value| if list { format!("[{value}]") } else { (*value).to_owned() }).collect();
        for (value, loads) in values.iter().zip(loadable(key, &values)) {
            let text = document(key, value);
            let accepts = accepts(&text);
            accepted += usize::from(accepts);
            loaded += usize::from(loads);
            if loads && !accepts && !is_a_slip(key.kind, value) {
                alarms.push_str(&format!("{text}{:?}\n", json(&text).map(|document| refusals(&document))));
            }
        }
    }
    assert!(alarms.is_empty(), "{alarms}");
    assert!(loaded > 400 && accepted < loaded * 2, "{loaded} {accepted}");
}

#[test]
fn what_the_loader_accepts_of_any_document_the_schema_accepts() {
    let (tried, accepted) = (Cell::new(0), Cell::new(0));
    let choice = (select(KEYS), 0usize..3, any::<Index>(), prop::option::weighted(0.05, select(VALUES.as_slice())));
    let documents = prop::collection::vec(choice, 1..12);
    let config = Config { failure_persistence: None, ..Config::with_cases(500) };
    let run = TestRunner::new(config).run(&documents, |choices| {
        let mut tree = Tree::default();
        for (key, place, index, odd) in choices {
            let value = odd.unwrap_or_else(|| likely(key.kind, &index));
            if !is_a_slip(key.kind, value) || likely(key.kind, &index) == value {
                tree.place(&key, place, value);
            }
        }
        let text = tree.text();
        tried.set(tried.get() + 1);
        if loads(&text) {
            accepted.set(accepted.get() + 1);
            prop_assert!(accepts(&text), "{text}{:?}", json(&text).map(|document| refusals(&document)));
        }
        Ok(())
    });
    run.unwrap();
    assert!(accepted.get() * 5 > tried.get(), "only {} of {} load", accepted.get(), tried.get());
}

mod command {
    use assert_cmd::Command;

    #[test]
    fn the_schema_is_printed() {
        let output = Command::new(env!("CARGO_BIN_EXE_outrigger")).arg("schema").output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(printed, super::json_schema::document());
    }
}
