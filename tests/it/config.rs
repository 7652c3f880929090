//! The configuration: a corpus of broken and valid files, the example, the reference page, and `check` as a command.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger::config::load::{Loaded, Options, load_text};
use outrigger::config::{Config, schema};
use outrigger::document::Layer;

fn load(yaml: &str) -> Loaded {
    load_as(yaml, Path::new("f.yaml"))
}

fn load_as(yaml: &str, path: &Path) -> Loaded {
    load_text(yaml, path, Options::default(), &|name| match name {
        "N" => Some("4".to_owned()),
        "PASSWORD" => Some("hunter2".to_owned()),
        "SPACED" => Some("hunter2 hunter3".to_owned()),
        _ => None,
    })
}

fn valid(yaml: &str) -> Config {
    let loaded = load(yaml);
    let shown = loaded.problems.render(&loaded.text, Path::new("f.yaml"));
    loaded.config.unwrap_or_else(|| panic!("{shown}"))
}

fn warnings(yaml: &str) -> Vec<String> {
    let loaded = load(yaml);
    assert_eq!(loaded.problems.errors, []);
    loaded.problems.warnings.iter().map(ToString::to_string).collect()
}

fn files(directory: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_problem_of_every_broken_file_is_reported_at_its_place() {
    let mut failures = String::new();
    let files = files("tests/config/broken");
    assert!(files.len() >= 30);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let loaded = load_as(&text, Path::new("f.yaml"));
        let mut found: Vec<String> = loaded.problems.errors.iter().map(ToString::to_string).collect();
        let all = found.join("\n  ");
        for expected in text.lines().filter_map(|line| line.strip_prefix("# expect ")) {
            let (place, fragment) = expected.split_once(' ').unwrap();
            let start = format!("f.yaml:{place}: ");
            match found.iter().position(|shown| shown.starts_with(&start) && shown.contains(fragment)) {
                Some(at) => drop(found.remove(at)),
                None => failures.push_str(&format!("{}: no `{expected}` in\n  {all}\n", file.display())),
            }
        }
        if !found.is_empty() || loaded.config.is_some() {
            failures.push_str(&format!("{}: not expected: {found:?}\n", file.display()));
        }
        let rendered = loaded.problems.render(&loaded.text, Path::new("f.yaml"));
        assert!(!rendered.contains("hunter2") && !rendered.contains("secretpw"), "{rendered}");
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn valid_files_load() {
    for file in files("tests/config/valid") {
        let loaded = load_as(&fs::read_to_string(&file).unwrap(), &file);
        let shown = loaded.problems.render(&loaded.text, &file);
        assert!(loaded.config.is_some(), "{shown}");
        assert!(loaded.problems.warnings.is_empty() || file.ends_with("everything.yaml"), "{shown}");
    }
}

#[test]
fn the_example_loads_without_a_warning_and_lets_every_host_through() {
    let text = include_str!("../../config.example.yaml");
    let loaded = load_text(text, Path::new("config.example.yaml"), Options::default(), &|_| None);
    assert_eq!(loaded.problems, Default::default());
    assert!(loaded.config.unwrap().egress.forward_unmatched);
}

#[test]
fn the_least_file_gets_every_built_in_value() {
    let config = valid("version: 1\nupstreams:\n  a: {hosts: [a.example]}\n");
    let policies = &config.upstreams[0].policies;
    assert_eq!(policies.timeouts.attempt, Some(Duration::from_secs(10)));
    assert_eq!(policies.retry.as_ref().unwrap().max_attempts.get(), 3);
    assert!(policies.circuit_breaker.is_some() && policies.rate_limit.is_none() && policies.concurrency.is_none());
    assert_eq!(config.listeners.proxy, "127.0.0.1:7171".parse().unwrap());
    assert_eq!(config.effective()["upstreams"]["a"]["rate_limit"], "off");
    assert_eq!(config.effective()["upstreams"]["a"]["retry"]["max_attempts"], 3);
}

#[test]
fn hosts_without_an_upstream_get_only_what_defaults_write() {
    use outrigger::policy::classify::Event;
    let built_in = valid("version: 1\n").unmatched.policies;
    assert_eq!((built_in.timeouts.attempt, built_in.timeouts.request), (None, None));
    assert_eq!(built_in.timeouts.connect, Some(Duration::from_secs(2)));
    let retry = built_in.retry.unwrap();
    assert!(retry.on.contains(Event::ConnectFailure) && !retry.on.contains(Event::Status(503)));
    assert!(built_in.circuit_breaker.is_none());

    let written =
        valid("version: 1\ndefaults:\n  timeouts: {attempt: 5s}\n  retry: {on: [503]}\n  rate_limit: {requests: 1}\n");
    let written = written.unmatched.policies;
    assert_eq!((written.timeouts.attempt, written.timeouts.request), (Some(Duration::from_secs(5)), None));
    assert!(written.retry.unwrap().on.contains(Event::Status(503)));
    assert!(written.rate_limit.is_none() && written.circuit_breaker.is_none());
    assert!(valid("version: 1\ndefaults: {retry: off}\n").unmatched.policies.retry.is_none());
}

#[test]
fn layers_merge_field_by_field_and_each_value_knows_where_it_comes_from() {
    let config = valid(
        "version: 1\n\
         defaults:\n  timeouts: {attempt: 5s}\n  retry: off\n\
         upstreams:\n  a:\n    hosts: [a.example]\n    timeouts: {request: 20s}\n    retry: {max_attempts: 2}\n\
         \x20   routes:\n      - name: r\n        match: {path: /x}\n        timeouts: {attempt: 6s}\n        retry: {budget: off}\n",
    );
    let upstream = &config.upstreams[0];
    assert_eq!(upstream.policies.timeouts.attempt, Some(Duration::from_secs(5)));
    let route = &upstream.routes[0];
    assert_eq!(route.policies.timeouts.attempt, Some(Duration::from_secs(6)));
    assert_eq!(route.policies.timeouts.request, Some(Duration::from_secs(20)));
    assert_eq!(route.policies.retry.as_ref().unwrap().max_attempts.get(), 2);
    assert!(route.own.budget && !route.own.breaker);

    let origin = |path: &str| config.origin_of(path).map(|source| (source.layer, source.place.map(|place| place.line)));
    assert_eq!(origin("upstreams.a.routes.r.timeouts.attempt"), Some((Layer::Route, Some(13))));
    assert_eq!(origin("upstreams.a.routes.r.timeouts.request"), Some((Layer::Upstream, Some(8))));
    assert_eq!(origin("upstreams.a.timeouts.attempt"), Some((Layer::Defaults, Some(3))));
    assert_eq!(origin("upstreams.a.timeouts.connect"), Some((Layer::BuiltIn, None)));
    assert_eq!(origin("unmatched.timeouts.attempt"), Some((Layer::Defaults, Some(3))));
    assert_eq!(origin("dns.min_ttl"), Some((Layer::BuiltIn, None)));
    assert_eq!(origin("upstreams.a.timeouts.nothing"), None);
}

#[test]
fn what_is_valid_but_dangerous_is_a_warning_with_a_place() {
    let upstream = |rest: &str| format!("version: 1\nupstreams:\n  a:\n    hosts: [a.example]\n{rest}");
    for (yaml, start, fragment) in [
        (upstream("    retry: {methods: [GET, POST]}\n"), "f.yaml:5:", "carried out more than once"),
        (upstream("    timeouts: {request: 5s}\n"), "f.yaml:5:", "3 attempts of 10s are 30s"),
        (upstream("    retry: {generate_idempotency_key: true}\n"), "f.yaml:5:", "documents such a header"),
        (upstream("    to: [\"https://b.example\"]\n"), "f.yaml:5:", "no effect on tunnels"),
        (
            upstream("    https: deny\n    to: [\"http://b.example\"]\n    tls: {server_name: x}\n"),
            "f.yaml:7:",
            "plain HTTP",
        ),
        (upstream("    scheme: http\n"), "f.yaml:5:", "`scheme` has no effect on tunnels"),
        (upstream("    rate_limit: {burst: 5}\n"), "f.yaml:5:", "without `requests`"),
        ("version: 1\nlisteners: {proxy: \"0.0.0.0:7171\"}\n".to_owned(), "f.yaml:2:", "not a loopback address"),
        ("version: 1\nupstreams:\n  a:\n".to_owned(), "f.yaml:3:", "no host leads to this upstream"),
        ("version: 1\nadmin_token: hunter2\n".to_owned(), "f.yaml:2:", "written in the configuration itself"),
    ] {
        let found = warnings(&yaml);
        assert_eq!(found.len(), 1, "{yaml}\n{found:?}");
        assert!(found[0].starts_with(start) && found[0].contains(fragment), "{found:?}");
    }
    // A tunnel goes there, and over TLS, anyway.
    for rest in ["    to: [\"https://a.example\"]\n", "    scheme: same\n", "    scheme: https\n"] {
        assert_eq!(warnings(&upstream(rest)), [""; 0]);
    }
}

#[test]
fn secrets_are_in_no_view_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), "hunter2\n").unwrap();
    let yaml = "version: 1\nadmin_token: ${file:token}\nupstreams:\n  a:\n    hosts: [\"${HOST}\"]\n    timeouts: {attempt: \"${T}\"}\n    \
                rate_limit: {requests: 1, key: \"header:${K}\"}\n    retry: {idempotency_headers: [\"${K}\"]}\n    routes:\n      - {name: r, match: {path: \"/${P}\"}}\n";
    let loaded = load_text(yaml, &dir.path().join("f.yaml"), Options::default(), &|name| match name {
        "HOST" => Some("a.example".to_owned()),
        "T" => Some("3s".to_owned()),
        "K" => Some("X-hunter2".to_owned()),
        "P" => Some("hunter2".to_owned()),
        _ => None,
    });
    let config = loaded.config.unwrap();
    assert_eq!(config.listeners.admin_token.as_ref().unwrap().reveal(), "hunter2");
    assert!(config.files.contains(&dir.path().join("token")));
    let shown = config.effective().to_string();
    assert!(!shown.contains("hunter2") && shown.contains("a.example") && shown.contains("3s"), "{shown}");
}

#[test]
fn what_is_missing_is_a_warning_where_there_is_no_environment() {
    let yaml = "version: 1\nadmin_token: ${file:/nowhere}\nlisteners: {proxy: \"${P}\", admin: \"0.0.0.0:1\"}\nupstreams:\n  a:\n    \
                hosts: [\"${H}\"]\n    timeouts: ${T}\n    retry: {max_attempts: \"${N}\", on: [\"${O}\"]}\n    \
                tls: {ca_file: /nowhere/ca.pem, client_cert: \"${C}\", client_key: /nowhere/key.pem}\n";
    let loaded = load_text(yaml, Path::new("f.yaml"), Options { no_env: true }, &|_| None);
    assert_eq!(loaded.problems.errors, []);
    assert!(loaded.problems.warnings.len() >= 8, "{:?}", loaded.problems.warnings);
}

#[test]
fn certificates_and_keys_are_checked_to_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [(); 2].map(|()| rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap());
    fs::write(dir.path().join("a.crt"), a.cert.pem()).unwrap();
    fs::write(dir.path().join("a.key"), a.signing_key.serialize_pem()).unwrap();
    fs::write(dir.path().join("b.key"), b.signing_key.serialize_pem()).unwrap();
    let with = |cert: &str, key: &str, ca: &str| {
        let yaml = format!(
            "version: 1\nupstreams:\n  a: {{hosts: [a.example], tls: {{client_cert: {cert}, client_key: {key}, ca_file: {ca}}}}}\n"
        );
        load_text(&yaml, &dir.path().join("f.yaml"), Options::default(), &|_| None)
    };
    let good = with("a.crt", "a.key", "a.crt").config.unwrap();
    assert!(good.upstreams[0].tls.identity.is_some() && good.upstreams[0].tls.roots.is_some());
    assert_eq!(good.files.len(), 3);
    for (cert, key, ca, message) in [
        ("a.crt", "b.key", "a.crt", "doesn't belong"),
        ("a.crt", "a.crt", "a.crt", "no private key"),
        ("a.key", "a.key", "a.crt", "no certificate"),
        ("a.crt", "a.key", "a.key", "no certificate"),
    ] {
        let problems = with(cert, key, ca).problems;
        assert_eq!(problems.errors.len(), 1);
        assert!(problems.errors[0].message.contains(message), "{:?}", problems.errors);
    }
}

#[test]
fn every_key_of_the_table_is_a_setting_and_is_in_the_reference_page() {
    let page = include_str!("../../docs/configuration.md");
    for key in schema::KEYS {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{}` |", key.path)));
        let row = row.unwrap_or_else(|| panic!("{} is not in docs/configuration.md", key.path));
        let end = format!("| {} | {} |", key.kind.form(), key.about);
        assert!(row.ends_with(&end), "docs/configuration.md should say of {}: … {end}", key.path);
    }
}

#[test]
fn the_defaults_of_the_reference_page_are_the_built_in_ones() {
    let page = include_str!("../../docs/configuration.md");
    let config = valid("version: 1\nupstreams:\n  a: {hosts: [a.example]}\n");
    let mut checked = 0;
    for key in schema::KEYS {
        let path = match key.scope {
            schema::Scope::Top => key.path.to_owned(),
            schema::Scope::Upstream | schema::Scope::Policy | schema::Scope::Shared => {
                format!("upstreams.a.{}", key.path)
            }
            schema::Scope::Route => continue,
        };
        let block = matches!(key.kind, schema::Kind::Block | schema::Kind::BlockOrOff);
        let Some(source) = config.origin_of(&path).filter(|source| !block && source.layer == Layer::BuiltIn) else {
            continue;
        };
        let shown = match source.value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| item.to_string().replace('"', "")).collect();
                format!("[{}]", items.join(", "))
            }
            value => value.to_string(),
        };
        assert!(page.contains(&format!("| `{}` | `{shown}` |", key.path)), "| `{}` | `{shown}` |", key.path);
        checked += 1;
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn a_thousand_upstreams_load() {
    let mut yaml = String::from("version: 1\nupstreams:\n");
    for index in 0..1000 {
        yaml.push_str(&format!("  u{index}: {{hosts: [u{index}.example], retry: {{max_attempts: 2}}}}\n"));
    }
    assert_eq!(valid(&yaml).upstreams.len(), 1000);
}

mod command {
    use assert_cmd::Command;

    use super::*;

    fn check(file: &Path, more: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        let output =
            command.env_remove("OUTRIGGER_CONFIG").arg("check").arg("--config").arg(file).args(more).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    #[test]
    fn the_exit_status_tells_valid_invalid_and_unreadable_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.yaml");
        assert_eq!(check(&file, &[]).0, 2);
        fs::write(&file, "version: 1\n").unwrap();
        assert_eq!(check(&file, &["--strict"]).0, 0);
        fs::write(&file, "version: 1\nlisteners: {proxy: \"0.0.0.0:1\"}\n").unwrap();
        assert_eq!(check(&file, &[]).0, 0);
        assert_eq!(check(&file, &["--strict"]).0, 1);
        fs::write(&file, "version: 1\nlog: {level: warning}\nlogs: {}\n").unwrap();
        let (status, report) = check(&file, &[]);
        assert_eq!(status, 1);
        for part in [
            "f.yaml:2:14",
            "log: {level: warning}",
            "did you mean `warn`?",
            "f.yaml:3:1",
            "did you mean `log`?",
            "2 errors",
        ] {
            assert!(report.contains(part), "{part}\n{report}");
        }
        assert!(!report.contains('\u{1b}'));
        fs::write(&file, b"version: 1\n\xff\n").unwrap();
        let (status, report) = check(&file, &[]);
        assert!(status == 1 && report.contains("f.yaml:2:1") && report.contains("UTF-8"), "{report}");
    }

    #[test]
    fn the_report_can_be_json() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.yaml");
        fs::write(&file, "version: 1\nlog: {level: warning}\nadmin_token: ${NOBODY_SET_THIS}\n").unwrap();
        let (status, report) = check(&file, &["--format", "json", "--no-env"]);
        assert_eq!(status, 1);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["errors"][0]["line"], 2);
        assert_eq!(report["errors"][0]["setting"], "log.level");
        assert_eq!(report["warnings"][0]["line"], 3);
    }
}

mod damage {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

        #[test]
        fn no_damage_to_a_file_makes_loading_or_showing_panic(
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..6, "[\\[\\]{}:,&*!|>'\"#%@`$ \\t\\n\\r~a0\u{e9}\u{feff}\u{0}-]{0,5}"), 1..6),
        ) {
            let mut text: Vec<char> = include_str!("../config/valid/everything.yaml").chars().collect();
            for (at, cut, insert) in edits {
                let at = at.index(text.len());
                let end = (at + cut).min(text.len());
                text.splice(at..end, insert.chars());
            }
            let text: String = text.into_iter().collect();
            let loaded = load(&text);
            prop_assert!(loaded.config.is_some() == loaded.problems.errors.is_empty());
            loaded.problems.render(&loaded.text, Path::new("f.yaml"));
            prop_assert!(loaded.problems.errors.iter().all(|problem| problem.place.is_some()), "{:?}", loaded.problems.errors);
        }
    }
}
