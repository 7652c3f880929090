//! What Outrigger promises while an upstream misbehaves, by the upstream of the demonstration; and the demonstration itself.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use outrigger::demo::Demo;
use outrigger::demo::app::{Traffic, Way};
use outrigger::demo::behaviour::{Behaviour, Fault};
use outrigger::demo::board::{Board, Stage};
use outrigger::demo::phase::Phase;
use outrigger::demo::screen::{Screen, Size, Style};
use outrigger::demo::table::Paint;
use outrigger::demo::upstream::Upstream;

use crate::operator::{Answer, send};
use crate::support::{PATIENCE, Proxy, eventually};

/// A proxy with one upstream, api.test. `policies` is indented below it.
async fn proxy(upstream: &Upstream, policies: &str) -> Proxy {
    let to = upstream.address();
    Proxy::start(&format!("upstreams:\n  api:\n    hosts: [api.test]\n    to: ['http://{to}']\n{policies}")).await
}

async fn get(proxy: &Proxy, path: &str) -> Answer {
    ask(proxy.address("proxy"), "GET", path, "", "").await
}

async fn post(proxy: &Proxy, key: Option<&str>, body: &str) -> Answer {
    let key = key.map(|key| format!("Idempotency-Key: {key}\r\n")).unwrap_or_default();
    ask(proxy.address("proxy"), "POST", "/orders", &key, body).await
}

async fn ask(proxy: SocketAddr, method: &str, path: &str, fields: &str, body: &str) -> Answer {
    let length = body.len();
    let text = format!(
        "{method} http://api.test{path} HTTP/1.1\r\nhost: api.test\r\nconnection: close\r\n\
         content-length: {length}\r\n{fields}\r\n{body}"
    );
    send(proxy, &text).await
}

fn flaky(share: f64, faults: &[Fault]) -> Behaviour {
    Behaviour::Flaky { share, faults: faults.to_vec() }
}

const UNAVAILABLE: Fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);

#[tokio::test]
async fn of_an_upstream_that_fails_thirty_percent_the_app_sees_next_to_nothing() {
    let upstream = Upstream::start(1).unwrap();
    upstream.behave(flaky(0.3, &[UNAVAILABLE, Fault::Reset])).unwrap();
    let retry = "    retry: {max_attempts: 5, backoff: {base: 0}, budget: off}\n    circuit_breaker: off\n";
    let proxy = proxy(&upstream, retry).await;
    let mut failed = 0;
    for n in 0..300 {
        failed += u64::from(get(&proxy, &format!("/{n}")).await.status != 200);
    }
    let seen = upstream.seen().reads;
    assert!(seen.failed > seen.requests / 5, "the upstream failed too little: {seen:?}");
    assert!(failed * 20 < seen.failed, "the app saw {failed} failures of {seen:?}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_post_without_a_key_never_arrives_twice_and_one_with_a_key_is_carried_through() {
    let upstream = Upstream::start(2).unwrap();
    upstream.behave(flaky(0.5, &[UNAVAILABLE, Fault::Reset, Fault::Hang])).unwrap();
    let policies = "    retry: {max_attempts: 20, backoff: {base: 0}, budget: off}\n    circuit_breaker: off\n\
                    \x20   timeouts: {attempt: 60ms}\n";
    let proxy = proxy(&upstream, policies).await;
    let (mut failed, mut failed_with_key) = (0, 0);
    for n in 0..60 {
        failed += u64::from(post(&proxy, None, &format!("order {n}")).await.status != 200);
        let key = format!("key-{n}");
        failed_with_key += u64::from(post(&proxy, Some(&key), &format!("order {n}")).await.status != 200);
    }
    let seen = upstream.seen();
    assert_eq!(seen.unkeyed.repeated, 0);
    assert!(failed >= seen.unkeyed.failed, "{failed} {seen:?}");
    assert_eq!(failed_with_key, 0);
    assert!(seen.keyed.repeated > 10, "{seen:?}");
    proxy.stop().await;
}

#[tokio::test]
async fn an_upstream_that_is_down_is_left_alone_until_it_is_well_again() {
    for down in [Behaviour::Failing(Fault::Status(StatusCode::INTERNAL_SERVER_ERROR)), Behaviour::Refusing] {
        let upstream = Upstream::start(3).unwrap();
        let policies = "    retry: off\n    circuit_breaker: {consecutive_failures: 5, open_for: 1s}\n";
        let proxy = proxy(&upstream, policies).await;
        upstream.behave(down.clone()).unwrap();
        let mut refused = 0;
        for _ in 0..50 {
            refused += u64::from(get(&proxy, "/").await.body.contains("circuit_open"));
        }
        // More than five where the fifty calls took longer than a second.
        let asked = 50 - refused;
        assert!((5..25).contains(&asked), "{down:?}: {asked}");
        assert!(upstream.seen().requests() <= asked, "{down:?}: {:?}", upstream.seen());
        upstream.behave(Behaviour::Healthy).unwrap();
        eventually("the circuit closes", async || get(&proxy, "/").await.status == 200).await;
        proxy.stop().await;
    }
}

#[tokio::test]
async fn calls_that_hang_are_cut_off_and_open_the_circuit() {
    let upstream = Upstream::start(4).unwrap();
    upstream.behave(Behaviour::Failing(Fault::Hang)).unwrap();
    let policies =
        "    timeouts: {attempt: 50ms}\n    retry: off\n    circuit_breaker: {consecutive_failures: 2, open_for: 5m}\n";
    let proxy = proxy(&upstream, policies).await;
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(get(&proxy, "/").await.status);
    }
    assert_eq!(statuses, [504, 504, 503, 503, 503, 503, 503, 503, 503, 503]);
    // Fewer where an attempt was cut off before its request had arrived.
    assert!(upstream.seen().requests() <= 2, "{:?}", upstream.seen());
    proxy.stop().await;
}

#[tokio::test]
async fn a_retry_after_of_the_upstreams_makes_all_calls_wait() {
    let upstream = Upstream::start(5).unwrap();
    upstream.behave(Behaviour::RateLimited { requests: 2, per: Duration::from_secs(20) }).unwrap();
    let policies = "    retry: off\n    rate_limit: {requests: 1000, per: 1s, max_wait: 0}\n";
    let proxy = proxy(&upstream, policies).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(get(&proxy, "/").await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 429, 429, 429]);
    assert_eq!((upstream.seen().requests(), upstream.seen().reads.failed), (3, 1));
    proxy.stop().await;
}

#[tokio::test]
async fn a_retry_waits_as_long_as_the_upstream_asks() {
    let upstream = Upstream::start(6).unwrap();
    upstream.behave(Behaviour::RateLimited { requests: 1, per: Duration::from_secs(1) }).unwrap();
    let proxy = proxy(&upstream, "").await;
    assert_eq!((get(&proxy, "/a").await.status, get(&proxy, "/b").await.status), (200, 200));
    assert_eq!((upstream.seen().reads.requests, upstream.seen().reads.failed), (3, 1));
    proxy.stop().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_reaches_the_app_broken_and_is_not_asked_for_again() {
    let upstream = Upstream::start(7).unwrap();
    let proxy = proxy(&upstream, "").await;
    let whole = get(&proxy, "/a").await;
    assert_eq!((whole.status, &*whole.body), (200, "an answer for /a\n"));
    upstream.behave(Behaviour::Failing(Fault::CutShort)).unwrap();
    let mut app = proxy.connect().await;
    app.send("GET http://api.test/b HTTP/1.1\r\nhost: api.test\r\n\r\n").await;
    assert!(app.head().await.contains("content-length: 34\r\n"));
    let (body, _) = app.end().await;
    assert_eq!(String::from_utf8_lossy(&body), "an answer for /b\n");
    assert_eq!(upstream.seen().requests(), 2);
    proxy.stop().await;
}

#[tokio::test]
async fn who_refuses_connections_keeps_its_port() {
    let upstream = Upstream::start(8).unwrap();
    let proxy = proxy(&upstream, "    retry: off\n    circuit_breaker: off\n").await;
    for _ in 0..3 {
        upstream.behave(Behaviour::Refusing).unwrap();
        eventually("nothing listens", async || get(&proxy, "/").await.body.contains("connection_refused")).await;
        upstream.behave(Behaviour::Healthy).unwrap();
        assert_eq!(get(&proxy, "/").await.status, 200);
    }
    proxy.stop().await;
}

#[tokio::test]
async fn calls_under_way_when_the_app_stops_are_waited_for() {
    let upstream = Upstream::start(9).unwrap();
    upstream.answer_after(Duration::from_millis(40));
    let app = Traffic::start(&Way::Straight(upstream.address()), &Arc::default());
    eventually("it calls", async || app.figures().calls() > 5).await;
    let figures = app.end(PATIENCE).await;
    assert_eq!(figures.calls(), upstream.seen().requests());
    assert_eq!(figures.reads.failed + figures.keyed.failed + figures.unkeyed.failed, 0, "{figures:?}");
    assert_eq!(upstream.seen().unkeyed.repeated + upstream.seen().keyed.repeated, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demonstration_measures_every_phase_and_tells_what_it_saw() {
    let demo = Demo::start(0.1).unwrap();
    let board = demo.board();
    tokio::time::timeout(3 * PATIENCE, demo.round()).await.expect("it ends").unwrap();
    let board = board.lock().unwrap().clone();
    let reload = "POST /reload HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let reloaded = send(board.dashboard, reload).await;
    assert_eq!((reloaded.status, &reloaded.json()["changed"]), (200, &serde_json::json!([])));
    for row in &board.rows {
        assert_eq!(row.stage, Stage::Done, "{:?}", row.phase);
        let measured = row.measured.as_ref().unwrap();
        assert!(measured.with.figures.calls() > 0 && measured.without.figures.calls() > 0, "{:?}", row.phase);
    }
    let of = |phase| board.rows.iter().find(|row| row.phase == phase).and_then(|row| row.measured.as_ref()).unwrap();
    assert!(of(Phase::Flaky).acts.retries.total() > 0);
    assert!(of(Phase::Down).acts.transitions.of("open") > 0);
    assert!(of(Phase::Slow).without.stuck > 0 && of(Phase::Slow).with.stuck == 0);
    assert_eq!(board.twice, 0);

    let size = Size { columns: 80, rows: 24 };
    let mut told = Vec::new();
    let mut screen = Screen::new(&mut told, Style { live: false, paint: Paint(false) }, true);
    screen.begin(&board, size).unwrap();
    screen.end(&board, size).unwrap();
    let told = String::from_utf8(told).unwrap();
    for phase in Phase::ALL {
        assert!(told.contains(&format!("\n{} ", phase.name())), "{} is not explained in\n{told}", phase.name());
    }
    assert!(told.contains(&format!("http://{}/", board.dashboard)) && told.contains("consecutive_failures"), "{told}");
    assert!(!told.contains('\x1b'), "{told}");
}

#[test]
fn what_is_drawn_in_place_is_never_higher_than_the_terminal() {
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let board = Board::new(nowhere, nowhere, "".into());
    for rows in [1, 5, 8, 24] {
        let size = Size { columns: 80, rows };
        let mut drawn = Vec::new();
        let mut screen = Screen::new(&mut drawn, Style { live: true, paint: Paint(false) }, true);
        screen.update(&board, size).unwrap();
        screen.update(&board, size).unwrap();
        let drawn = String::from_utf8(drawn).unwrap();
        let (first, second) = drawn.split_once('\x1b').unwrap();
        let lines = first.lines().count();
        assert!(lines < rows.max(2), "{rows}: {drawn}");
        assert!(second.starts_with(&format!("[{lines}A")), "{rows}: {drawn:?}");
    }
}

fn run(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn an_interrupt_ends_the_demonstration_with_what_was_seen_so_far() {
    let mut child = run(&["demo", "--hold"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut told = String::new();
    while !told.contains("healthy: ") {
        assert!(out.read_line(&mut told).unwrap() > 0, "it ended early: {told}");
    }
    assert!(told.contains("dashboard     http://127.0.0.1:"), "{told}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::Int).unwrap();
    out.read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success(), "{told}");
    assert!(told.contains("upstream got") && told.contains("The policies that did it"), "{told}");
}

#[test]
fn the_demonstration_ends_in_peace_when_nobody_reads_any_more() {
    let mut child = run(&["demo"]);
    let mut line = String::new();
    // The pipe is closed with the reader.
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut complaints = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(complaints, "");
}
