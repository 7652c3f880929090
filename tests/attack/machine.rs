//! A machine that runs out of things, on the real binary: descriptors, room on the disk, a reader of the log, time to run.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use tokio::sync::watch;

use crate::child::{Child, text};
use crate::support::{Client, Origin, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const DESCRIPTORS: &str = "outrigger_limit_refused_total{limit=\"descriptors\"}";

async fn ask(app: &mut Client, host: &str) -> String {
    app.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    let head = app.head().await;
    if head.starts_with("HTTP/1.1 200 ") {
        app.take(2).await;
    }
    head
}

#[tokio::test]
async fn out_of_descriptors_old_traffic_and_probes_go_on_new_work_is_503_and_it_recovers() {
    let origin = Origin::answering(OK).await;
    let configuration = text(&origin, "    connections: {idle_timeout: 1m}\n", "limits: {header_timeout: 1m}\n");
    let child = Child::spawn("ulimit -n 128;", Stdio::null(), Stdio::inherit(), &configuration);
    child.ready().await;
    let mut old = join_all((0..9).map(|_| child.connect())).await;
    for app in &mut old {
        assert!(ask(app, "up.test").await.starts_with("HTTP/1.1 200 "));
    }
    let (mut old, diallers) = (old.remove(0), old);

    let mut hanging = join_all((0..200).map(|_| child.connect())).await;
    // Who finds no room is told so, or where there is no room for that either, the connection is closed.
    eventually("it says so", async || {
        let got = child.get().await;
        assert!(got.is_empty() || got.starts_with("HTTP/1.1 503 "), "{got}");
        got.contains("ulimit -n")
    })
    .await;
    for listener in ["probes", "admin"] {
        assert!(child.ask(listener, "GET", "/livez").await.starts_with("HTTP/1.1 200 "), "{listener}");
    }
    assert!(child.figure(DESCRIPTORS).await > 0.0);
    // Files are read as ever.
    let reloaded = child.ask("admin", "POST", "/reload").await;
    assert!(reloaded.starts_with("HTTP/1.1 200 "), "{reloaded}");
    // What has its connections goes on; what needs a new one is refused, and that is not the upstream's failure.
    assert!(ask(&mut old, "up.test").await.starts_with("HTTP/1.1 200 "));
    let mut refused = 0;
    for mut app in diallers {
        eventually("it is full", async || {
            hanging.push(child.connect().await);
            child.get().await.contains("ulimit -n")
        })
        .await;
        // One that was refused before may have made room in the meantime.
        let head = ask(&mut app, "up2.test").await;
        let full = head.starts_with("HTTP/1.1 503 ") && head.contains("ulimit -n");
        assert!(full || head.starts_with("HTTP/1.1 200 "), "{head}");
        refused += u32::from(full);
    }
    assert!(refused > 0);
    assert_eq!(child.figure("outrigger_circuit_state{route=\"\",upstream=\"up2\"}").await, 0.0);
    assert_eq!(
        child.figure("outrigger_upstream_connect_failures_total{reason=\"unreachable\",upstream=\"up2\"}").await,
        0.0
    );

    drop(hanging);
    eventually("there is room again", async || ask(&mut child.connect().await, "up2.test").await.contains(" 200 "))
        .await;
    assert!(ask(&mut old, "up.test").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_log_that_nobody_reads_costs_lines_not_requests_and_does_not_hold_the_end() {
    // Nothing listens there, and every attempt has its lines.
    let origin = Origin::answering(OK).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let more = format!(
        "  gone: {{hosts: [gone.test], to: [\"http://{gone}\"], circuit_breaker: off, retry: {{max_attempts: 10, backoff: {{base: 0, max: 1ms}}, budget: off}}}}\nlog: {{level: debug, path: full}}\n"
    );
    let mut child = Child::spawn("", Stdio::piped(), Stdio::inherit(), &text(&origin, "", &more));
    child.ready().await;
    let before = child.resident();
    let long = "/x".repeat(1000);
    let one = format!("GET http://gone.test{long} HTTP/1.1\r\nHost: gone.test\r\n\r\n");
    let apps = (0..8).map(async |_| {
        let mut app = child.connect().await;
        for _ in 0..60 {
            app.send(&one).await;
            let head = app.head().await;
            assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
            let length = head.to_ascii_lowercase();
            let length = length.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap();
            app.take(length).await;
        }
    });
    join_all(apps).await;
    assert!(child.figure("outrigger_log_lines_dropped_total").await > 0.0);
    assert!(child.get().await.starts_with("HTTP/1.1 200 "));
    // What waits is bounded in bytes, not in lines alone.
    let grown = child.resident().saturating_sub(before);
    assert!(grown < 30 * 1024, "{grown} KiB more");
    child.signal(Signal::Term);
    assert_eq!(child.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_log_on_a_full_disk_costs_lines_not_requests() {
    let origin = Origin::answering(OK).await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = Child::spawn("", full.into(), Stdio::null(), &text(&origin, "", ""));
    child.ready().await;
    let mut app = child.connect().await;
    for _ in 0..600 {
        assert!(ask(&mut app, "up.test").await.starts_with("HTTP/1.1 200 "));
    }
    eventually("lines are counted", async || child.figure("outrigger_log_lines_dropped_total").await > 0.0).await;
    drop(app);
    child.signal(Signal::Term);
    assert_eq!(child.ended().await.code(), Some(0));
}

/// No file may grow; who tries is told so, as on a full disk.
const FULL_DISK: &str = "trap '' XFSZ; ulimit -f 0;";

fn intercepting(dir: &std::path::Path) -> String {
    format!("intercept: {{generate: true, dir: {0}/app, key_dir: {0}/key}}\n", dir.display())
}

#[tokio::test]
async fn ca_files_that_cannot_be_written_refuse_the_start_and_say_which() {
    let origin = Origin::answering(OK).await;
    let dir = tempfile::tempdir().unwrap();
    let more = intercepting(dir.path());
    let mut child =
        Child::spawn(FULL_DISK, Stdio::null(), Stdio::piped(), &text(&origin, "    https: intercept\n", &more));
    assert_eq!(child.ended().await.code(), Some(1));
    let complaint = child.complaint();
    assert!(complaint.contains("can't be written") && complaint.contains("key/"), "{complaint}");
    // Nothing that looks whole is left.
    let left: Vec<_> =
        std::fs::read_dir(dir.path().join("key")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[tokio::test]
async fn a_reload_whose_ca_files_cannot_be_written_changes_nothing() {
    let origin = Origin::answering(OK).await;
    let child = Child::spawn(FULL_DISK, Stdio::null(), Stdio::inherit(), &text(&origin, "", ""));
    child.ready().await;
    child.write(&text(&origin, "    https: intercept\n", &intercepting(child.dir())));
    let got = child.ask("admin", "POST", "/reload").await;
    assert!(got.starts_with("HTTP/1.1 422 ") && got.contains("can't be written"), "{got}");
    assert!(child.get().await.starts_with("HTTP/1.1 200 "));
    child.comes_to("outrigger_config_last_reload_success", 0.0).await;
}

/// Answers once the gate is open; closes everything while it is 2.
async fn gated() -> (Origin, watch::Sender<u8>, Arc<AtomicUsize>) {
    let (open, gate) = watch::channel(0);
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let origin = Origin::scripted(move |mut conn| {
        let (mut gate, mut close, counter) = (gate.clone(), gate.clone(), Arc::clone(&counter));
        async move {
            let serving = async {
                while conn.request().await.is_some() {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let _ = gate.wait_for(|gate| *gate > 0).await;
                    if conn.try_send(OK.as_bytes()).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = serving => {}
                _ = close.wait_for(|gate| *gate == 2) => {}
            }
        }
    })
    .await;
    (origin, open, asked)
}

#[tokio::test]
async fn a_pause_of_the_process_is_no_failure_of_the_upstream() {
    let (origin, gate, asked) = gated().await;
    let policies = "    timeouts: {attempt: 3s, request: 10s}\n    connections: {idle_timeout: 1m}\n";
    let child = Child::start(&text(&origin, policies, "")).await;
    let mut apps = join_all((0..40).map(|_| child.connect())).await;
    let get = "GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n";
    for app in &mut apps {
        app.send(get).await;
    }
    eventually("the upstream has them", async || asked.load(Ordering::SeqCst) == 40).await;
    // Answers come while it is stopped, and every clock runs out: `attempt` of 3 s, in real time.
    child.signal(Signal::Stop);
    gate.send(1).unwrap();
    tokio::time::sleep(Duration::from_millis(3500)).await;
    child.signal(Signal::Cont);
    for app in &mut apps {
        let head = app.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        app.take(2).await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 40, "nothing was sent again");
    assert_eq!(child.figure("outrigger_circuit_state{route=\"\",upstream=\"up\"}").await, 0.0);
    assert_eq!(child.figure("outrigger_attempts_total{result=\"timeout\",route=\"\",upstream=\"up\"}").await, 0.0);

    // Connections that the upstream closed meanwhile are replaced.
    child.signal(Signal::Stop);
    gate.send(2).unwrap();
    eventually("they are closed", async || gate.receiver_count() <= 1).await;
    gate.send(1).unwrap();
    child.signal(Signal::Cont);
    for app in &mut apps {
        app.send(get).await;
    }
    for app in &mut apps {
        let head = app.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
}
