//! The dashboard's page and what it is told.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::time::Instant;

use crate::operator::{config, held_upstream, send, start, through, upstream};
use crate::support::{Client, PATIENCE, eventually};

/// A stream of events, its head read.
struct Stream {
    client: Client,
}

impl Stream {
    async fn open(admin: SocketAddr, fields: &str) -> (Stream, String) {
        let mut client = Client::connect(admin).await;
        client.send(format!("GET /api/events HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n")).await;
        let head = client.head().await;
        (Stream { client }, head.to_ascii_lowercase())
    }

    /// The next event: its name and what it tells. HTTP/1 chunks are told apart by hand: each holds one event.
    async fn next(&mut self) -> (String, Value) {
        let size = self.client.until("\r\n").await;
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        assert!(size > 0, "the stream ended");
        let text = String::from_utf8(self.client.take(size + 2).await).unwrap();
        let (event, data) = text.trim_end().split_once('\n').unwrap();
        let data = data.strip_prefix("data: ").unwrap();
        (event.strip_prefix("event: ").unwrap().to_owned(), serde_json::from_str(data).unwrap())
    }

    /// Reads on until an event fits.
    async fn until(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let (event, data) = self.next().await;
            assert_eq!(event, "tick");
            if fits(&data) {
                return data;
            }
            assert!(begun.elapsed() < PATIENCE, "it was never told: {data}");
        }
    }
}

/// How this upstream is told, where it is.
fn told<'a>(event: &'a Value, name: &str) -> Option<&'a Value> {
    event["upstreams"].as_array().unwrap().iter().find(|one| one["name"] == name)
}

#[tokio::test]
async fn the_page_is_one_document_that_may_load_nothing() {
    let rig = start(&config(upstream().await.address, ""));
    let page = rig.get("admin", "/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.starts_with("<!doctype html>") && page.body.len() < 100 << 10);
    let policy = page.head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
    for rule in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
    ] {
        assert!(policy.contains(rule), "{rule}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    for line in ["x-content-type-options: nosniff", "x-frame-options: deny", "referrer-policy: no-referrer"] {
        assert!(page.head.contains(line), "{line}");
    }
    assert_eq!(rig.ask("admin", "HEAD", "/", "", "").await.body, "");
    assert!(rig.get("admin", "/api").await.body.contains("GET  /api/events"));
    for path in ["/", "/api", "/api/events", "/api/failures", "/api/history", "/api/reloads"] {
        assert_eq!(rig.get("probes", path).await.status, 404, "{path}");
        assert_eq!(rig.post(path, "").await.status, 405, "{path}");
    }
}

#[tokio::test]
async fn a_name_that_only_points_here_sees_neither_page_nor_events() {
    let rig = start(&config(upstream().await.address, ""));
    for path in ["/", "/api/events", "/api/failures", "/api/history", "/api/reloads"] {
        let text = format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
        assert_eq!(send(rig.app.address("admin"), &text).await.status, 403, "{path}");
    }
}

#[tokio::test]
async fn another_page_takes_no_place_of_those_who_listen() {
    let rig = start(&config(upstream().await.address, ""));
    for field in ["sec-fetch-site: cross-site\r\n", "origin: http://evil.example\r\n"] {
        let answer = rig.ask("admin", "GET", "/api/events", field, "").await;
        assert_eq!(answer.status, 403, "{field}");
    }
}

#[tokio::test]
async fn the_page_is_shown_without_the_token_and_the_events_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "geheim\n").unwrap();
    let yaml = config(upstream().await.address, "") + &format!("admin_token: '${{file:{}}}'\n", file.display());
    let rig = start(&yaml);
    assert_eq!(rig.get("admin", "/").await.status, 200);
    for path in ["/api", "/api/events", "/api/failures", "/api/history", "/api/reloads"] {
        assert_eq!(rig.get("admin", path).await.status, 401, "{path}");
    }
    let admin = rig.app.address("admin");
    let (mut stream, head) = Stream::open(admin, "authorization: Bearer geheim\r\n").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
    let (event, state) = stream.next().await;
    assert!(event == "state" && !state.to_string().contains("geheim"));
    // Who holds the old token has to show the new one.
    std::fs::write(&file, "anders\n").unwrap();
    assert!(rig.app.reload_now().await.took_effect());
    let _ = stream.client.end().await;
    assert!(Stream::open(admin, "authorization: Bearer geheim\r\n").await.1.starts_with("http/1.1 401"));
}

#[tokio::test]
async fn the_state_is_told_once_and_then_what_changes() {
    let up = upstream().await;
    let rig = start(&config(up.address, "  b:\n    hosts: [b.test]\n    circuit_breaker: off\n"));
    let (mut stream, _) = Stream::open(rig.app.address("admin"), "").await;
    let (event, state) = stream.next().await;
    assert_eq!(event, "state");
    assert_eq!(state["order"], serde_json::json!(["a", "b", "unmatched"]));
    assert_eq!(state["upstreams"].as_array().unwrap().len(), 3);
    assert_eq!((&state["failures"], &state["draining"]), (&serde_json::json!([]), &false.into()));
    assert_eq!(state["reloads"][0]["cause"], "start");
    assert_eq!(state["config"]["in_effect"], true);
    assert_eq!(rig.through("/x").await.status, 200);
    let counted = |event: &Value| told(event, "a").is_some_and(|a| a["recent"]["app"]["count"] == 1);
    let event = stream.until(counted).await;
    let a = told(&event, "a").unwrap();
    assert_eq!(
        (a["recent"]["app"]["success"].as_f64(), a["recent"]["upstream"]["count"].as_u64()),
        (Some(1.0), Some(1))
    );
    assert!(a["recent"]["app"]["p95_ms"].as_f64().unwrap() > 0.0);
    // What stays as it is is not told again.
    stream.until(|event| told(event, "b").is_none()).await;
}

#[tokio::test]
async fn a_failure_is_told_with_its_trace_and_without_its_secrets() {
    let rig = start(&config(upstream().await.address, ""));
    assert_eq!(rig.post("/api/upstreams/a/circuit", r#"{"state": "open"}"#).await.status, 200);
    let (mut stream, _) = Stream::open(rig.app.address("admin"), "").await;
    stream.next().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let ask = format!(
        "GET http://a.test/v1/sk_live_4eC39HqLyjWDarjtT1zdp7dc?card=4242 HTTP/1.1\r\nhost: a.test\r\nauthorization: Bearer geheim\r\n\
         traceparent: 00-{trace}-00f067aa0ba902b7-01\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(send(rig.app.address("proxy"), &ask).await.status, 503);
    let event = stream.until(|event| event["failures"].is_array()).await;
    let failure = &event["failures"][0];
    assert_eq!((failure["trace_id"].as_str(), failure["status"].as_u64()), (Some(trace), Some(503)));
    assert_eq!((failure["upstream"].as_str(), failure["error"].as_str()), (Some("a"), Some("circuit_open")));
    assert_eq!((failure["method"].as_str(), failure["host"].as_str()), (Some("GET"), Some("a.test")));
    assert_eq!(failure["path"], "/v1/***?card=***");
    assert_eq!((failure["attempts"].as_u64(), &failure["no_retry"]), (Some(0), &Value::Null));
    let all = rig.get("admin", "/api/failures").await;
    assert!(!all.body.contains("geheim") && !all.body.contains("4242") && !all.body.contains("sk_live"), "{all:?}");
    assert_eq!(all.json()["failures"][0]["number"], failure["number"]);
    assert_eq!(rig.through("/quiet").await.status, 503);
    assert_eq!(rig.get("admin", "/api/failures").await.json()["failures"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_path_that_may_not_be_logged_is_not_shown_either_and_success_is_no_failure() {
    let up = upstream().await;
    let rig = start(&(config(up.address, "") + "log: {path: off, access: off}\n"));
    assert_eq!(rig.through("/fine").await.status, 200);
    assert_eq!(rig.post("/api/upstreams/a/circuit", r#"{"state": "open"}"#).await.status, 200);
    assert_eq!(rig.through("/hidden").await.status, 503);
    let shown = rig.get("admin", "/api/failures").await.json();
    assert_eq!(shown["failures"].as_array().unwrap().len(), 1);
    assert_eq!(shown["failures"][0]["path"], Value::Null);
}

#[tokio::test]
async fn an_app_that_hangs_up_is_shown_and_counts_against_nobody() {
    let up = held_upstream().await;
    let rig = start(&config(up.address, ""));
    let mut app = Client::connect(rig.app.address("proxy")).await;
    app.send("GET http://a.test/slow HTTP/1.1\r\nhost: a.test\r\n\r\n").await;
    up.arrived().await;
    drop(app);
    eventually("the failure is kept", async || {
        let shown = rig.get("admin", "/api/failures").await.json();
        shown["failures"][0]["error"] == "app_gone" && shown["failures"][0]["status"] == 499
    })
    .await;
    let shown = rig.get("admin", "/api/upstreams").await.json();
    let recent = &shown["upstreams"][0]["recent"];
    assert_eq!((&recent["app"]["failed"], &recent["app"]["success"]), (&0.into(), &Value::Null));
}

#[tokio::test]
async fn a_refused_file_is_told_with_its_problems_and_a_mended_one_with_what_changed() {
    let up = upstream().await;
    let rig = start(&config(up.address, ""));
    let (mut stream, _) = Stream::open(rig.app.address("admin"), "").await;
    stream.next().await;
    rig.write(&config(up.address, "    retry: {max_attemps: 5}\n"));
    assert_eq!(rig.post("/reload", "").await.status, 422);
    let event = stream.until(|event| event["config"]["in_effect"] == false).await;
    let problem = &event["config"]["problems"][0];
    assert!(problem["line"].as_u64().is_some() && problem["file"].as_str().is_some(), "{problem}");
    assert_eq!(
        (event["reloads"][0]["result"].as_str(), event["reloads"][0]["count"].as_u64()),
        (Some("failure"), Some(1))
    );
    rig.write(&config(up.address, "    retry: {max_attempts: 5}\n"));
    assert_eq!(rig.post("/reload", "").await.status, 200);
    let event = stream.until(|event| event["config"]["in_effect"] == true).await;
    assert_eq!(event["reloads"][0]["lines"][0], "upstreams.a.retry.max_attempts: 3 → 5");
    let listed = rig.get("admin", "/api/reloads").await.json();
    assert_eq!(listed["reloads"], event["reloads"]);
    assert_eq!(listed["reloads"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn an_upstream_comes_and_goes_with_the_file() {
    let up = upstream().await;
    let rig = start(&config(up.address, ""));
    let (mut stream, _) = Stream::open(rig.app.address("admin"), "").await;
    stream.next().await;
    rig.write(&config(up.address, "  b:\n    hosts: [b.test]\n"));
    assert_eq!(rig.post("/reload", "").await.status, 200);
    let event = stream.until(|event| event["order"] == serde_json::json!(["a", "b", "unmatched"])).await;
    assert!(told(&event, "b").is_some());
    rig.write(&config(up.address, ""));
    assert_eq!(rig.post("/reload", "").await.status, 200);
    stream.until(|event| event["order"] == serde_json::json!(["a", "unmatched"])).await;
}

#[tokio::test]
async fn streams_are_few_and_probes_and_scrapes_get_through() {
    let rig = start(&config(upstream().await.address, ""));
    let admin = rig.app.address("admin");
    let mut streams = Vec::new();
    for _ in 0..16 {
        let (stream, head) = Stream::open(admin, "").await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        streams.push(stream);
    }
    let refused = rig.get("admin", "/api/events").await;
    assert!(refused.status == 503 && refused.head.contains("retry-after: 5"), "{refused:?}");
    for path in ["/livez", "/readyz", "/metrics", "/", "/api/upstreams"] {
        assert_eq!(rig.get("admin", path).await.status, 200, "{path}");
    }
    // A head says what there would be, and takes no place.
    assert_eq!(rig.ask("admin", "HEAD", "/api/events", "", "").await.status, 200);
    streams.pop();
    eventually("there is room again", async || Stream::open(admin, "").await.1.starts_with("http/1.1 200")).await;
}

#[tokio::test]
async fn streams_tell_of_the_drain_and_end_with_it() {
    let yaml = config(upstream().await.address, "") + "shutdown: {quiet: 2s, grace: 10s}\n";
    let rig = start(&yaml);
    let (mut stream, _) = Stream::open(rig.app.address("admin"), "").await;
    stream.next().await;
    let (drained, ()) = tokio::join!(rig.app.drain(), async {
        stream.until(|event| event["draining"] == true).await;
        let _ = stream.client.end().await;
    });
    assert!(drained, "a dashboard that is open is nothing in flight");
}

#[tokio::test]
async fn a_listener_that_moves_takes_no_streams_along() {
    let up = upstream().await;
    let rig = start(&config(up.address, ""));
    let (mut stream, _) = Stream::open(rig.app.address("admin"), "").await;
    stream.next().await;
    rig.write(&config(up.address, "").replace("admin: '127.0.0.1:0'", "admin: '127.0.0.2:0'"));
    assert!(rig.app.reload_now().await.took_effect());
    let _ = stream.client.end().await;
    assert!(Stream::open(rig.app.address("admin"), "").await.1.starts_with("http/1.1"));
}

#[tokio::test]
async fn samples_are_kept_of_who_has_traffic() {
    let up = upstream().await;
    let rig = start(&config(up.address, "  b:\n    hosts: [b.test]\n"));
    assert_eq!(through(rig.app.address("proxy"), "/x").await.status, 200);
    eventually("there is a sample", async || {
        let history = rig.get("admin", "/api/history").await.json();
        assert!(history["upstreams"].get("b").is_none());
        history["upstreams"]["a"]["requests"].as_array().is_some_and(|samples| samples.contains(&1.into()))
    })
    .await;
    let history = rig.get("admin", "/api/history").await.json();
    assert_eq!((history["interval_ms"].as_u64(), history["kept"].as_u64()), (Some(5000), Some(180)));
}

#[tokio::test]
async fn without_a_listener_nobody_is_told_and_with_one_again_samples_go_on() {
    let up = upstream().await;
    let on = config(up.address, "");
    let rig = start(&on);
    let (mut stream, _) = Stream::open(rig.app.address("admin"), "").await;
    stream.next().await;
    rig.write(&on.replace("admin: '127.0.0.1:0'", "admin: off"));
    assert!(rig.app.reload_now().await.took_effect());
    let _ = stream.client.end().await;
    assert_eq!(through(rig.app.address("proxy"), "/x").await.status, 200);
    rig.write(&on);
    assert!(rig.app.reload_now().await.took_effect());
    let recent = async || {
        let all = rig.get("admin", "/api/upstreams").await.json();
        let a = all["upstreams"].as_array().unwrap().iter().find(|one| one["name"] == "a").unwrap();
        a["recent"]["app"]["count"].as_u64().unwrap()
    };
    assert_eq!(recent().await, 0, "what came while there was none is no news");
    eventually("what comes after the next sample is", async || {
        assert_eq!(through(rig.app.address("proxy"), "/x").await.status, 200);
        recent().await > 0
    })
    .await;
}
