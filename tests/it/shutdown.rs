//! The end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::operator::{config, held_upstream, start, through};
use crate::support::PATIENCE;

#[tokio::test]
async fn a_drain_goes_on_serving_until_the_app_is_quiet() {
    let up = held_upstream().await;
    let yaml = config(up.address, "") + "shutdown: {quiet: 300ms, grace: 20s}\n";
    let rig = start(&yaml);
    let proxy = rig.app.address("proxy");
    let first = tokio::spawn(async move { through(proxy, "/first").await });
    up.arrived().await;
    let meanwhile = async {
        while rig.get("probes", "/readyz").await.status != 503 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.get("probes", "/livez").await.status, 200);
        up.gate.add_permits(2);
        let second = rig.through("/second").await;
        assert!(second.status == 200 && second.head.contains("connection: close"), "{second:?}");
        assert_eq!(first.await.unwrap().body, "ok");
    };
    let (complete, ()) = tokio::join!(rig.app.drain(), meanwhile);
    assert!(complete);
}

#[tokio::test]
async fn grace_ends_what_does_not_end_with_an_answer() {
    let up = held_upstream().await;
    let yaml = config(up.address, "") + "shutdown: {quiet: 50ms, grace: 200ms}\n";
    let rig = start(&yaml);
    let proxy = rig.app.address("proxy");
    let request = tokio::spawn(async move { through(proxy, "/never").await });
    up.arrived().await;
    assert!(!tokio::time::timeout(Duration::from_secs(10), rig.app.drain()).await.unwrap());
    let answer = request.await.unwrap();
    assert!(answer.status == 503 && answer.body.contains("shutting_down"), "{answer:?}");
}

#[test]
fn a_log_that_nobody_reads_does_not_keep_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outrigger.yaml");
    let listeners = "{proxy: '127.0.0.1:0', admin: off, probes: off}";
    std::fs::write(&path, format!("version: 1\nlisteners: {listeners}\nshutdown: {{quiet: 50ms}}\n")).unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    let process = process.args(["run", "--config"]).arg(&path).stdout(Stdio::piped());
    let mut process = process.spawn().unwrap();
    let mut log = BufReader::new(process.stdout.take().unwrap());
    let mut ready = String::new();
    log.read_line(&mut ready).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let proxy = ready["proxy"].as_str().unwrap();

    // From here on nobody reads, and more lines come than the pipe and all buffers hold. Each request leads back: one line.
    let mut app = TcpStream::connect(proxy).unwrap();
    let asked = format!("GET / HTTP/1.1\r\nHost: {proxy}\r\n\r\n").repeat(100);
    let mut answers = Vec::new();
    let mut answered = 0;
    for round in 1..=100 {
        app.write_all(asked.as_bytes()).unwrap();
        while answered < round * 100 {
            let mut bytes = [0; 64 << 10];
            let n = app.read(&mut bytes).unwrap();
            assert!(n > 0, "closed after {answered} answers");
            answers.extend_from_slice(&bytes[..n]);
            let start = b"HTTP/1.1 508 ";
            answered += answers.windows(start.len()).filter(|window| window == start).count();
            // What may be the beginning of one more stays.
            answers.drain(..answers.len().saturating_sub(start.len() - 1));
        }
    }
    drop(app);

    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::Term).unwrap();
    let patience = std::time::Instant::now() + PATIENCE;
    let ended = loop {
        match process.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if std::time::Instant::now() > patience => break None,
            // std waits for a process without an end, or not at all.
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    if ended.is_none() {
        process.kill().unwrap();
    }
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    drop(log);
}
