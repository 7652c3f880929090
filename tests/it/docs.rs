//! The pages: links lead somewhere, and what they name exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use outrigger::config::load::{Options, load_text};
use outrigger::telemetry::report::Skipped;
use regex::Regex;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README, CHANGELOG, SECURITY and everything below `docs`.
fn pages() -> Vec<PathBuf> {
    let top = ["README.md", "CHANGELOG.md", "SECURITY.md"].map(|name| root().join(name));
    let below =
        files_below(&root().join("docs")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "md"));
    top.into_iter().chain(below).collect()
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn source(path: &str) -> String {
    read(&root().join(path))
}

fn all(pattern: &str, text: &str) -> BTreeSet<String> {
    let pattern = Regex::new(pattern).unwrap();
    pattern.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// Lines outside of code blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    assert!(!inside, "a code block without an end");
    prose
}

/// What the headings of a page are linked by.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for heading in prose(text).lines().filter_map(|line| line.strip_prefix('#')) {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let slug = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let slug: String = slug.map(|c| if c == ' ' { '-' } else { c }).collect();
        let times = seen.entry(slug.clone()).or_default();
        anchors.insert(if *times == 0 { slug } else { format!("{slug}-{times}") });
        *times += 1;
    }
    anchors
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        for found in link.captures_iter(&prose(&text)) {
            let target = &found[1];
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let known = path.exists() && (anchor.is_empty() || anchors(&read(&path)).contains(anchor));
            if !known {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_runbook_that_an_alert_names_is_a_heading() {
    let known = anchors(&source("docs/on-call.md"));
    for file in files_below(&root().join("deploy")) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for anchor in all(r"docs/on-call\.md#([\w-]+)", &text) {
            assert!(known.contains(&anchor), "{}: {anchor}", file.display());
        }
    }
}

/// The names of all metrics, without `outrigger_`.
fn metrics() -> BTreeSet<String> {
    let text = source("src/telemetry/metrics/families.rs");
    let names = all(r#"(?:counter|gauge|histogram|one)\(\s*r,\s*"([a-z_]+)""#, &text);
    assert!(names.len() > 25, "{names:?}");
    names
}

#[test]
fn every_metric_that_a_page_names_exists() {
    let known = metrics();
    for page in pages() {
        for name in all(r"\boutrigger_([a-z][a-z_]*[a-z])\b", &read(&page)) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let exists = known.contains(&name) || family.is_some_and(|family| known.contains(family));
            assert!(exists, "{}: outrigger_{name}", page.display());
        }
    }
}

#[test]
fn the_page_on_metrics_lists_every_one() {
    assert_eq!(all(r"(?m)^\| `([a-z_]+)` \|", &source("docs/metrics.md")), metrics());
}

/// The strings that a method of `Error` may return.
fn words_of(method: &str) -> BTreeSet<String> {
    let text = source("src/error.rs");
    let body = text.split_once(&format!("pub fn {method}(&self)")).unwrap().1;
    let body = body.split_once("\n    }\n").unwrap().0;
    all(r#""([a-z_]+)""#, body)
}

#[test]
fn every_error_code_is_in_its_table_and_a_page_names_no_other() {
    let codes = words_of("code");
    assert!(codes.len() > 30, "{codes:?}");
    let mut listed = all(r"(?m)^\| [45]\d\d \| `([a-z_]+)` \|", &source("docs/errors.md"));
    // Nobody reads that answer, so it has no row.
    listed.insert("app_gone".to_owned());
    assert_eq!(listed, codes);
    for page in pages() {
        let text = read(&page);
        let mut named = all(r"\b[45]\d\d `([a-z]+_[a-z_]+)`", &text);
        named.extend(all(r"urn:outrigger:error:([a-z_]+)", &text));
        let unknown: Vec<_> = named.difference(&codes).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", page.display());
    }
}

#[test]
fn every_word_of_proxy_status_is_explained_and_a_page_names_no_other() {
    let errors = words_of("proxy_status");
    let page = source("docs/proxy-status.md");
    assert_eq!(all(r"(?m)^\| `error=([a-z_]+)` \|", &page), errors);
    let reasons: BTreeSet<String> = Skipped::ALL.iter().map(|reason| reason.as_str().to_owned()).collect();
    assert_eq!(all(r"(?m)^\| `no-retry=([a-z_]+)` \|", &page), reasons);
    for page in pages() {
        let text = read(&page);
        let unknown: Vec<_> = all(r"outrigger; error=([a-z_]+)", &text).difference(&errors).cloned().collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", page.display());
        let unknown: Vec<_> = all(r"no-retry=([a-z_]+)", &text).difference(&reasons).cloned().collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", page.display());
    }
}

#[test]
fn every_whole_configuration_on_a_page_is_valid() {
    let block = Regex::new(r"(?s)```yaml\n(.*?)```").unwrap();
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        for found in block.captures_iter(&text).filter(|found| found[1].starts_with("version:")) {
            let options = Options { no_env: true };
            let loaded = load_text(&found[1], &page, options, &|_| None);
            assert!(loaded.config.is_some(), "{}", loaded.problems.render(&loaded.text, &page));
            count += 1;
        }
    }
    assert!(count >= 3);
}

/// What a configuration comes to that writes one setting.
fn effective(block: &str, setting: &str) -> serde_json::Value {
    let mut blocks = BTreeMap::from([("rate_limit", "requests: 7"), ("concurrency", "max_in_flight: 7")]);
    let top = if block == "shutdown" { format!("shutdown: {{{setting}}}\n") } else { String::new() };
    let both = blocks.get(block).map(|needed| format!("{needed}, {setting}"));
    blocks.insert(block, both.as_deref().unwrap_or(setting));
    let blocks = blocks.iter().filter(|(name, _)| **name != "shutdown");
    let blocks: String = blocks.map(|(name, settings)| format!("    {name}: {{{settings}}}\n")).collect();
    let text = format!("version: 1\n{top}upstreams:\n  a:\n    hosts: [a.example]\n{blocks}");
    let loaded = load_text(&text, Path::new("page.yaml"), Options::default(), &|_| None);
    let shown = loaded.problems.render(&loaded.text, Path::new("page.yaml"));
    loaded.config.unwrap_or_else(|| panic!("{shown}")).effective()
}

#[test]
fn the_defaults_on_every_page_are_the_built_in_ones() {
    let header = Regex::new(r"(?m)^\| `([a-z_]+)\.` \| default \|").unwrap();
    let row = Regex::new(r"^\| `([a-z_]+)` \| `([^`]+)` \|").unwrap();
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        for found in header.captures_iter(&text) {
            let block = &found[1];
            let rows = text[found.get(0).unwrap().end()..].lines().skip(2).take_while(|line| line.starts_with('|'));
            for setting in rows.filter_map(|line| row.captures(line)) {
                let written = format!("{}: {}", &setting[1], &setting[2]);
                assert_eq!(effective(block, &written), effective(block, ""), "{}: {block}.{written}", page.display());
                count += 1;
            }
        }
    }
    assert!(count >= 25, "{count}");
}

/// `file::name` in the pages that say which test shows what.
#[test]
fn every_test_that_a_page_cites_exists() {
    let cited = Regex::new(r"`((?:src|tests|deploy)/[A-Za-z0-9_/.-]+\.(?:rs|py|mjs))::([a-z0-9_]+)`").unwrap();
    // The fuzz targets are lines of a macro.
    let named = Regex::new(r"(?m)\b(?:fn|def) ([a-z0-9_]+)\b|^    ([a-z0-9_]+): [a-z0-9_]+;$").unwrap();
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for page in pages() {
        for found in cited.captures_iter(&read(&page)) {
            let names = known.entry(found[1].to_owned()).or_insert_with_key(|file| {
                let text = fs::read_to_string(root().join(file)).unwrap_or_default();
                let name = |found: regex::Captures| found.get(1).or(found.get(2)).unwrap().as_str().to_owned();
                named.captures_iter(&text).map(name).collect()
            });
            if !names.contains(&found[2]) {
                wrong.push(format!("{}: {}", page.display(), &found[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A promise without a test is a wish.
#[test]
fn every_line_of_the_promises_cites_a_test() {
    for page in ["docs/guarantees.md", "docs/threat-model.md"] {
        for line in source(page).lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
            let heading = line.ends_with("shown by |");
            assert!(heading || line.contains(".rs::") || line.contains(".py::"), "{page}: {line}");
        }
    }
}
