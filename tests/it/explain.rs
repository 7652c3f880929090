//! `explain` as a command, and against a proxy that really runs.

use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use outrigger::config::load::{Options, load_text};
use outrigger::explain::{Question, explain};
use serde_json::Value;

use crate::support::{Client, Proxy};

fn command(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.env_remove("OUTRIGGER_CONFIG").current_dir(directory).arg("explain").args(args).output().unwrap()
}

fn run(directory: &Path, args: &[&str]) -> (i32, String, String) {
    let output = command(directory, args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A directory with this configuration as `f.yaml`.
fn with(yaml: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("f.yaml"), yaml).unwrap();
    directory
}

/// The parts of a command line, without a shell.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        match at % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

#[test]
fn the_example_of_the_docs_is_what_it_prints() {
    let page = include_str!("../../docs/explain.md");
    let block = |kind: &str| page.split_once(&format!("```{kind}\n")).unwrap().1.split_once("\n```").unwrap().0;
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("outrigger.yaml"), block("yaml")).unwrap();
    let (asked, expected) = block("console").split_once('\n').unwrap();
    let words = words(asked.strip_prefix("$ outrigger explain ").unwrap());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (status, shown, _) = run(directory.path(), &words);
    assert_eq!(status, 0);
    assert_eq!(shown.trim_end(), expected.trim_end(), "\n{shown}");
}

#[test]
fn every_field_of_the_json_is_in_the_docs() {
    let directory = with(
        "version: 1\nupstreams:\n  a: {hosts: [a.test], routes: [{name: r, match: {path: /r}}, {name: s, match: {path: /s}}]}\n  b: {hosts: [\"*.test\"]}\n",
    );
    let page = include_str!("../../docs/explain.md");
    let mut missing = Vec::new();
    for url in ["http://a.test/r", "https://a.test/r", "http://127.0.0.1:7171/"] {
        let (status, json, _) = run(directory.path(), &["-c", "f.yaml", "POST", url, "--format", "json"]);
        assert_eq!(status, 0);
        keys(&serde_json::from_str(&json).unwrap(), &mut missing);
    }
    missing.retain(|key| !page.contains(&format!("`{key}`")));
    assert!(missing.is_empty(), "{missing:?}");
}

fn keys(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            into.push(key.clone());
            keys(value, into);
        }),
        Value::Array(items) => items.iter().for_each(|item| keys(item, into)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn the_exit_status_tells_explained_invalid_and_unusable_apart() {
    let directory = with("version: 1\nupstreams: {a: {hosts: [a.test]}}\nadmin_token: ${NOBODY_SET_THIS}\n");
    let here = directory.path();
    let valid = ["-c", "f.yaml", "--no-env", "GET", "http://a.test/"];
    assert_eq!(run(here, &valid).0, 0);
    // Refused is explained too.
    assert_eq!(run(here, &["-c", "f.yaml", "--no-env", "GET", "http://localhost:7171/"]).0, 0);

    let (status, report, _) = run(here, &["-c", "f.yaml", "GET", "http://a.test/"]);
    let mut check = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    let checked = check.current_dir(here).args(["check", "-c", "f.yaml"]).output().unwrap();
    assert_eq!((status, report), (1, String::from_utf8(checked.stdout).unwrap()));
    let (status, report, _) = run(here, &["-c", "f.yaml", "GET", "http://a.test/", "--format", "json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert!(status == 1 && report["valid"] == false && report["errors"][0]["line"] == 3);

    assert_eq!(run(here, &["-c", "nowhere.yaml", "GET", "http://a.test/"]).0, 2);
    for (args, says) in [
        (&["get", "http://a.test/"][..], "write `GET`"),
        (&["GET", "a.test"], "has no scheme"),
        (&["GET", "http://u:hunter2@a.test/"], "user information"),
        (&["GET", "http://a.test/", "-H", "hunter2"], "Name: value"),
        (&["GET", "http://a.test/", "--body-size", "5"], "needs a unit"),
        (&["GET"], "required arguments"),
    ] {
        let args = [&["-c", "f.yaml", "--no-env"], args].concat();
        let (status, _, complaint) = run(here, &args);
        assert!(status == 2 && complaint.contains(says) && complaint.contains("Usage: "), "{args:?}: {complaint}");
        assert!(!complaint.contains("hunter2"), "{complaint}");
    }
}

/// What each request comes to, in a proxy that runs: the answer of its own says which upstream and route it was.
#[tokio::test]
async fn a_running_proxy_does_what_is_explained() {
    let yaml = "defaults: {circuit_breaker: off}\nupstreams:\n\
        \x20 exact:\n    hosts: [a.test, \"b.test:81\"]\n    to: [\"http://127.0.0.1:1\"]\n    retry: {max_attempts: 2, backoff: {base: 0}}\n\
        \x20   routes:\n\
        \x20     - {name: posts, match: {methods: [POST], path: /v1/*}, retry: {on: [503]}}\n\
        \x20     - {name: one, match: {path: /v1/one}, retry: off}\n\
        \x20 wild: {hosts: [\"*.test\"], to: [\"http://127.0.0.1:1\"], retry: off, https: deny}\n\
        \x20 here: {hosts: [127.0.0.1, \"localhost:1\"], scheme: http, retry: off}\n\
        egress: {unmatched: deny, connect_ports: [1, 443]}\n";
    let proxy = Proxy::start(yaml).await;
    let text =
        format!("version: 1\nlisteners: {{proxy: \"{}\", admin: off, probes: off}}\n{yaml}", proxy.address("proxy"));
    let config = load_text(&text, Path::new("f.yaml"), Options::default(), &|_| None).config.unwrap();
    let own = proxy.address("proxy");
    for (method, url) in [
        ("GET", "http://a.test/"),
        ("GET", "http://A.test.:80/v1/one?x=1"),
        ("POST", "http://a.test/v1/one"),
        ("POST", "http://a.test/v1"),
        ("GET", "http://b.test:81/v1/one"),
        ("GET", "http://b.test/v1/one"),
        ("GET", "http://sub.a.test/v1/one"),
        ("GET", "http://test/"),
        ("GET", "http://127.0.0.1:1/"),
        ("GET", "http://localhost:1/"),
        ("GET", &format!("http://{own}/")),
        ("CONNECT", "a.test:443"),
        ("CONNECT", "b.test:443"),
        ("CONNECT", "a.test:82"),
        ("CONNECT", "127.0.0.1:1"),
        ("CONNECT", &own.to_string()),
    ] {
        let told = explain(&config, &Question::new(method, url, &[], None).unwrap());
        // A tunnel would look names up; nothing answers for these.
        if told.refusal.is_none() && method == "CONNECT" {
            continue;
        }
        let mut app = Client::connect(own).await;
        app.send(format!("{method} {url} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
            .await;
        let answer = String::from_utf8(app.rest().await).unwrap();
        let problem: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        let code = problem["type"].as_str().unwrap().rsplit(':').next().unwrap();
        match &told.refusal {
            Some(refusal) => {
                assert_eq!(
                    (code, problem["status"].as_u64()),
                    (refusal.code, Some(refusal.status.into())),
                    "{method} {url}"
                );
            }
            None => {
                assert_eq!(code, "connection_refused", "{method} {url}: {answer}");
                assert_eq!(problem["upstream"], told.upstream.unwrap().name, "{method} {url}");
                let route = told.route.and_then(|route| route.name).unwrap_or_default();
                assert_eq!(problem["route"].as_str().unwrap_or_default(), route, "{method} {url}");
                let retries = told.retries.unwrap();
                let again = retries.cases[0].retried;
                let attempts = if again { retries.max_attempts } else { 1 };
                assert_eq!(problem["attempts"], attempts, "{method} {url}");
            }
        }
    }
    proxy.stop().await;
}
