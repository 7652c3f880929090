//! What is explained is what happens: compared with the live table and with the pipeline.

mod configurations;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use crate::config::Config;
use crate::config::load::{Options, load_text};
use crate::error::Sent;
use crate::explain::question::Body;
use crate::explain::retries::Request;
use crate::explain::{Explanation, Question, clocks, explain};
use crate::policy::policies::Settings;
use crate::policy::replay::ReplayMemory;
use crate::policy::retry;
use crate::policy::testing::{Bench, Step, settings};
use crate::telemetry::metrics::Metrics;
use crate::upstream::connect::Connector;
use crate::upstream::table::Table;

pub(super) fn config(yaml: &str) -> Config {
    let loaded = load_text(yaml, Path::new("dir/f.yaml"), Options::default(), &|name| match name {
        "ATTEMPT" => Some("3s".to_owned()),
        "PASSWORD" => Some("hunter2".to_owned()),
        _ => None,
    });
    let shown = loaded.problems.render(&loaded.text, Path::new("f.yaml"));
    loaded.config.unwrap_or_else(|| panic!("{yaml}\n{shown}"))
}

pub(super) fn ask(config: &Config, method: &str, url: &str, headers: &[&str]) -> Explanation {
    let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
    explain(config, &Question::new(method, url, &headers, None).unwrap())
}

/// Upstreams that share these patterns out among them, with routes.
fn configurations() -> impl Strategy<Value = String> {
    let patterns = ["x.y", "a.x.y", "b.a.x.y", "*.y", "*.x.y", "*.a.x.y", "10.0.0.1"];
    let ports = ["", ":80", ":443", ":8080"];
    let all: Vec<String> = patterns.iter().flat_map(|host| ports.map(|port| format!("{host}{port}"))).collect();
    let count = all.len();
    let route = (
        prop::sample::select(vec!["", "methods: [GET]", "methods: [GET, PUT]", "methods: [POST]"]),
        prop::sample::select(vec!["path: /a", "path: /a/*", "path: /*", "path_regex: \"/[ab]\"", "path: /b"]),
    );
    let routes = prop::collection::vec(route, 0..4);
    let upstream = (routes, prop::sample::select(vec!["http", "same"]), any::<bool>());
    (prop::collection::vec(0usize..4, count), prop::collection::vec(upstream, 3)).prop_map(
        move |(owners, upstreams)| {
            let mut yaml = "version: 1\nupstreams:\n".to_owned();
            for (at, (routes, scheme, to)) in upstreams.iter().enumerate() {
                let hosts: Vec<String> = all
                    .iter()
                    .zip(&owners)
                    .filter(|(_, owner)| **owner == at)
                    .map(|(host, _)| format!("\"{host}\""))
                    .collect();
                yaml.push_str(&format!("  u{at}:\n    hosts: [{}]\n    scheme: {scheme}\n", hosts.join(", ")));
                if *to {
                    yaml.push_str("    to: [http://to.y:81]\n");
                }
                if !routes.is_empty() {
                    yaml.push_str("    routes:\n");
                }
                for (number, (methods, path)) in routes.iter().enumerate() {
                    let comma = if methods.is_empty() { "" } else { ", " };
                    yaml.push_str(&format!("      - {{name: r{number}, match: {{{methods}{comma}{path}}}}}\n"));
                }
            }
            yaml
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn upstream_route_and_origin_are_those_of_the_live_table(
        yaml in configurations(),
        requests in prop::collection::vec((
            prop::sample::select(vec!["GET", "PUT", "POST"]),
            prop::sample::select(vec!["x.y", "A.x.y", "b.a.x.y.", "c.x.y", "y", "z", "10.0.0.1", "c.b.a.x.y"]),
            prop::sample::select(vec!["", ":80", ":443", ":8080", ":9"]),
            prop::sample::select(vec!["", "/", "/a", "/a/", "/a/b", "/b", "/A", "/%61", "/a?q=/b"]),
        ), 16),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let config = Arc::new(config(&yaml));
        let connector = Connector::new(&config.dns, &config.egress, Vec::new()).unwrap();
        let (metrics, replay) = (Metrics::new(), ReplayMemory::new(1));
        let table = Table::evolve(None, config.clone(), connector, &metrics, &replay).unwrap();
        for (method, host, port, path) in requests {
            let url = format!("http://{host}{port}{path}");
            let question = Question::new(method, &url, &[], None).unwrap();
            let told = explain(&config, &question);
            let target = &question.target;
            let live = table.find(&target.host, target.port).unwrap_or(&table.unmatched);
            let lane = live.lane(&question.method, question.uri.path());
            prop_assert_eq!(&told.upstream.as_ref().unwrap().name[..], &*live.name, "{}\n{}", url, yaml);
            let route = told.route.as_ref().and_then(|route| route.name.as_deref()).unwrap_or_default();
            prop_assert_eq!(route, &*lane.route, "{} {}\n{}", method, url, yaml);
            let origin = match live.config.as_ref().and_then(|config| config.to.first()) {
                Some(to) => to.clone(),
                None => live.origin(target.scheme, target.host.clone(), target.port),
            };
            prop_assert_eq!(&told.leads_to[0].origin, &origin.to_string());
        }
    }
}

#[test]
fn every_value_has_the_origin_that_the_configuration_gives_it() {
    for file in ["tests/config/valid/everything.yaml", "tests/config/valid/anchors.yaml", "config.example.yaml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let value = |name: &str| (name == "N").then(|| "4".to_owned());
        let config = load_text(&text, &path, Options::default(), &value).config.unwrap();
        let mut seen = 0;
        for upstream in &config.upstreams {
            let Some(host) = upstream.hosts.iter().find(|pattern| !pattern.wildcard) else { continue };
            let mut paths = vec![("GET", "/nowhere", None)];
            paths.extend(upstream.routes.iter().map(|route| match &*route.name {
                "charges" => ("POST", "/v1/charges", Some("charges")),
                "files" => ("GET", "/v1/files/a", Some("files")),
                "ids" => ("GET", "/v1/abc/12", Some("ids")),
                other => panic!("{other}"),
            }));
            for (method, path, route) in paths {
                let told = ask(&config, method, &format!("http://{}{path}", host.host), &[]);
                assert_eq!(told.route.unwrap().name.as_deref(), route);
                for setting in told.policy {
                    let policy = ["timeouts", "retry", "circuit_breaker", "rate_limit", "concurrency"];
                    let block = setting.setting.split('.').next().unwrap();
                    let scope = match route {
                        _ if block == "egress" => String::new(),
                        Some(route) if policy.contains(&block) => {
                            format!("upstreams.{}.routes.{route}.", upstream.name)
                        }
                        Some(_) | None => format!("upstreams.{}.", upstream.name),
                    };
                    if setting.note.is_some() || setting.setting == "egress.deny" {
                        continue;
                    }
                    let source = config.origin_of(&format!("{scope}{}", setting.setting)).unwrap();
                    assert_eq!(setting.from, source.layer.as_str(), "{}", setting.setting);
                    assert_eq!(setting.value, source.value, "{}", setting.setting);
                    assert_eq!(setting.place.map(|place| place.line), source.place.map(|place| place.line));
                    seen += 1;
                }
            }
        }
        assert!(seen > 60, "{file}: {seen}");
    }
}

/// What can happen to a first attempt, and the case that explains it.
const EVENTS: &[(&str, Step)] = &[
    ("no connection", Step::Refused),
    ("a new connection closes before a byte", Step::Unsent),
    ("a pooled connection turns out", Step::Stale(Sent::No)),
    ("a pooled connection closes", Step::Stale(Sent::Maybe)),
    ("the connection breaks", Step::Reset),
    ("`timeouts.attempt` passes without", Step::Hang),
    ("500", Step::Answer(500, "")),
    ("404", Step::Answer(404, "")),
    ("429 without", Step::Answer(429, "")),
    ("503 without", Step::Answer(503, "")),
    ("429 with Retry-After", Step::AnswerWith(429, "retry-after", "2")),
    ("503 with Retry-After", Step::AnswerWith(503, "retry-after", "2")),
];

fn lanes() -> Vec<(&'static str, Settings)> {
    let with = |change: &dyn Fn(&mut retry::Settings)| {
        let mut lane = settings();
        change(lane.retry.as_mut().unwrap());
        lane
    };
    vec![
        ("built-in", settings()),
        ("off", Settings { retry: None, ..settings() }),
        ("one attempt", with(&|retry| retry.max_attempts = 1.try_into().unwrap())),
        ("key", with(&|retry| retry.generate_idempotency_key = true)),
        (
            "key without a name",
            with(&|retry| {
                retry.generate_idempotency_key = true;
                retry.idempotency_headers.clear();
            }),
        ),
        ("every method", with(&|retry| retry.methods.extend([Method::POST, Method::PATCH]))),
        (
            "connections only",
            with(&|retry| {
                retry.on = Default::default();
                retry.on.add("connect_failure").unwrap();
            }),
        ),
        ("small bodies", with(&|retry| retry.max_body = 4)),
        ("no Retry-After", with(&|retry| retry.max_retry_after = Duration::ZERO)),
    ]
}

#[tokio::test(start_paused = true)]
async fn what_is_said_to_be_retried_is_what_the_pipeline_retries() {
    let mut retried = 0;
    for (lane, settings) in lanes() {
        for method in [Method::GET, Method::PUT, Method::POST, Method::PATCH] {
            for key in [None, Some("k"), Some("")] {
                for body in ["", "pay", "payment"] {
                    for (case, step) in EVENTS {
                        let mut headers = HeaderMap::new();
                        let name = HeaderName::from_static("idempotency-key");
                        headers.extend(key.map(|key| (name, HeaderValue::from_static(key))));
                        let request = Request {
                            settings: settings.retry.as_ref(),
                            method: &method,
                            headers: &headers,
                            body: if body.is_empty() { Body::None } else { Body::Of(body.len() as u64) },
                            memory: 64 << 20,
                            tunnel: false,
                            attempt_clock: settings.timeouts.attempt.is_some(),
                            show_names: true,
                        };
                        let told = request.explain();
                        let told = told.cases.iter().find(|told| covers(told, case));
                        let told = told.unwrap_or_else(|| panic!("{case} is not explained ({lane})"));

                        let bench = Bench::new(settings.clone(), [step.clone(), Step::Answer(200, "fine")]);
                        let given: Vec<(&'static str, &str)> =
                            key.map(|key| ("idempotency-key", key)).into_iter().collect();
                        let got = bench.send(method.clone(), &given, body).await;
                        let again = got.status() == 200;
                        assert_eq!(told.retried, again, "{lane}: {method} {key:?} {body:?} {case}: {told:?}");
                        let skipped = got.no_retry();
                        let reason =
                            crate::telemetry::report::Skipped::ALL.into_iter().find(|reason| *reason as u8 == skipped);
                        if let Some(reason) = reason {
                            assert_eq!(told.reason, Some(reason.as_str()), "{lane}: {method} {key:?} {body:?} {case}");
                        }
                        retried += u32::from(again);
                    }
                }
            }
        }
    }
    assert!(retried > 500, "{retried}");
}

/// Whether a case is about this event: by its first words, or by the status that it lists.
fn covers(told: &crate::explain::Case, event: &str) -> bool {
    let Some((status, rest)) = event.split_at_checked(3).filter(|(status, _)| status.parse::<u16>().is_ok()) else {
        return told.when.starts_with(event);
    };
    let number: u16 = status.parse().unwrap();
    let listed = told.on.iter().any(|word| match word.split_once('–') {
        Some((first, last)) => (first.parse().unwrap()..=last.parse().unwrap()).contains(&number),
        None => word == status,
    });
    let suffix = rest.trim_start();
    // Where both fates are the same nothing is said about Retry-After.
    let fits = suffix.is_empty() || !told.when.contains("Retry-After") || told.when.contains(&format!(" {suffix}"));
    listed && fits || (told.on.is_empty() && told.when.starts_with("any ") && told.stage == "answered")
}

#[tokio::test(start_paused = true)]
async fn no_request_takes_longer_than_the_worst_case_and_a_hanging_upstream_takes_as_long() {
    let s = Duration::from_secs;
    let slow = |step| Step::After(Duration::from_millis(8_900), Box::new(step));
    let mut exact = 0;
    for request_clock in [None, Some(s(12)), Some(s(120))] {
        for max_attempts in [1u32, 3, 7] {
            for base in [0, 400] {
                for step in [
                    Step::Hang,
                    slow(Step::Refused),
                    slow(Step::Answer(500, "")),
                    slow(Step::Answer(429, "")),
                    slow(Step::AnswerWith(503, "retry-after", "20")),
                ] {
                    for method in [Method::GET, Method::POST] {
                        let mut settings = settings();
                        settings.timeouts.attempt = Some(s(9));
                        settings.timeouts.request = request_clock;
                        settings.circuit_breaker = None;
                        let retry = settings.retry.as_mut().unwrap();
                        retry.max_attempts = max_attempts.try_into().unwrap();
                        retry.backoff.base = Duration::from_millis(base);
                        retry.max_retry_after = s(20);
                        let headers = HeaderMap::new();
                        let request = Request {
                            settings: settings.retry.as_ref(),
                            method: &method,
                            headers: &headers,
                            body: Body::None,
                            memory: 1,
                            tunnel: false,
                            attempt_clock: settings.timeouts.attempt.is_some(),
                            show_names: true,
                        };
                        let told = clocks::add_up(&request, &settings, request_clock);
                        let hangs = matches!(step, Step::Hang);
                        let bench = Bench::new(settings.clone(), [step.clone()]);
                        let got = bench.send(method.clone(), &[], "").await;
                        let took = u64::try_from(got.took.as_millis()).unwrap();
                        assert!(got.exchange.attempts.load(Ordering::Relaxed) <= told.attempts);
                        assert!(took <= told.at_most_ms.unwrap(), "{took} {told:?}");
                        let bound = told.sum_ms.unwrap().min(told.request_ms.unwrap_or(u64::MAX));
                        if hangs && base == 0 && method == Method::GET && max_attempts == 1 {
                            assert_eq!(took, bound);
                            exact += 1;
                        }
                    }
                }
            }
        }
    }
    assert_eq!(exact, 3);
}
