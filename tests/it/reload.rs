//! A new configuration while traffic flows.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::operator::{Rig, config, held_upstream, start, through, upstream};
use crate::support::eventually;

#[tokio::test]
async fn a_change_takes_effect_and_is_told() {
    let up = upstream().await.address;
    let rig = start(&config(up, "    retry: {max_attempts: 3}\n"));
    rig.write(&config(up, "    retry: {max_attempts: 5}\n"));
    let answer = rig.post("/reload", "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["changed"], serde_json::json!(["upstreams.a.retry.max_attempts: 3 → 5"]));
    assert_eq!(rig.post("/reload", "").await.json()["changed"], serde_json::json!([]));
    assert_eq!(rig.app.metrics().sample(r#"outrigger_config_reloads_total{result="success"}"#), Some(2.0));
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_says_where() {
    let up = upstream().await.address;
    let rig = start(&config(up, ""));
    let before = rig.get("admin", "/config").await.body;
    rig.write(&config(up, "    retry: {max_attempts: 0}\n    timeouts: {atempt: 1s}\n"));
    let answer = rig.post("/reload", "").await;
    assert_eq!(answer.status, 422, "{answer:?}");
    let problems = answer.json()["problems"].clone();
    assert_eq!(problems.as_array().unwrap().len(), 2, "{problems}");
    assert_eq!(problems[0]["line"], 7);
    assert_eq!(rig.get("admin", "/config").await.body, before);
    assert_eq!(rig.through("/x").await.status, 200);
    assert_eq!(rig.get("admin", "/api/reload").await.json()["result"], "failure");
    assert_eq!(rig.app.metrics().sample("outrigger_config_last_reload_success"), Some(0.0));
}

#[tokio::test]
async fn a_changed_file_is_noticed_by_itself() {
    let up = upstream().await.address;
    let rig = start(&config(up, ""));
    rig.write(&config(up, "    timeouts: {attempt: 7s}\n"));
    // The file's watcher has no event for others, so it is asked for.
    let end = Instant::now() + Duration::from_secs(5);
    while rig.get("admin", "/config").await.json()["upstreams"]["a"]["timeouts"]["attempt"] != "7s" {
        assert!(Instant::now() < end, "not noticed within 5 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_file_that_a_reload_brought_in_is_watched_at_once() {
    let up = upstream().await.address;
    let rig = start(&config(up, ""));
    let more = rig.path.with_file_name("attempt");
    std::fs::write(&more, "7s").unwrap();
    rig.write(&config(up, &format!("    timeouts: {{attempt: '${{file:{}}}'}}\n", more.display())));
    // Before the watch has noticed the edit by itself.
    assert_eq!(rig.post("/reload", "").await.status, 200);
    let reloads = |rig: &Rig| rig.app.metrics().sample(r#"outrigger_config_reloads_total{result="success"}"#);
    let before = reloads(&rig);
    std::fs::write(&more, "9s").unwrap();
    eventually("the new file's change is noticed", async || reloads(&rig) > before).await;
}

#[tokio::test]
async fn a_request_in_flight_finishes_under_the_old_configuration() {
    let up = held_upstream().await;
    let rig = start(&config(up.address, ""));
    let proxy = rig.app.address("proxy");
    let request = tokio::spawn(async move { through(proxy, "/x").await });
    up.arrived().await;
    rig.write("version: 1\nlisteners: {proxy: '127.0.0.1:0', admin: '127.0.0.1:0', probes: '127.0.0.1:0'}\n");
    assert_eq!(rig.post("/reload", "").await.status, 200);
    up.gate.add_permits(1);
    assert_eq!(request.await.unwrap().body, "ok");
    assert!(!rig.get("probes", "/metrics").await.body.contains(r#"upstream="a""#));
}

#[tokio::test]
async fn an_order_of_the_operators_survives() {
    let up = upstream().await.address;
    let rig = start(&config(up, ""));
    rig.post("/api/upstreams/a/circuit", r#"{"state": "open"}"#).await;
    rig.write(&config(up, "    circuit_breaker: {consecutive_failures: 9}\n"));
    assert_eq!(rig.post("/reload", "").await.status, 200);
    assert_eq!(rig.through("/x").await.status, 503);
}

#[tokio::test]
async fn a_listener_that_moves_is_opened_before_the_old_one_closes() {
    let up = upstream().await.address;
    let rig = start(&config(up, ""));
    let old = rig.app.address("probes");
    rig.write(&config(up, "").replace("probes: '127.0.0.1:0'", "probes: '127.0.0.2:0'"));
    assert_eq!(rig.post("/reload", "").await.status, 200);
    assert_ne!(rig.app.address("probes"), old);
    assert_eq!(rig.get("probes", "/readyz").await.status, 200);
    let end = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(old).await.is_ok() {
        assert!(Instant::now() < end, "the old listener is still open");
    }
}

#[tokio::test]
async fn a_listener_that_cannot_be_opened_fails_the_reload_whole() {
    let up = upstream().await.address;
    let rig = start(&config(up, ""));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!("    listen: {}\n    retry: {{max_attempts: 9}}\n", taken.local_addr().unwrap());
    rig.write(&config(up, &more));
    let answer = rig.post("/reload", "").await;
    assert!(answer.status == 422 && answer.body.contains("upstreams.a.listen"), "{answer:?}");
    assert_ne!(rig.get("admin", "/config").await.json()["upstreams"]["a"]["retry"]["max_attempts"], 9);
}

#[tokio::test]
async fn many_reloads_lose_no_request() {
    let up = upstream().await.address;
    let rig = start(&config(up, ""));
    let proxy = rig.app.address("proxy");
    let traffic = tokio::spawn(async move {
        for _ in 0..300 {
            assert_eq!(through(proxy, "/x").await.body, "ok");
        }
    });
    for round in 0..20 {
        let more = if round % 2 == 0 {
            format!("    retry: {{max_attempts: {}}}\n", round + 1)
        } else {
            "    nonsense: 1\n".to_owned()
        };
        rig.write(&config(up, &more));
        let expected = if round % 2 == 0 { 200 } else { 422 };
        assert_eq!(rig.post("/reload", "").await.status, expected);
    }
    traffic.await.unwrap();
}

#[tokio::test]
async fn requests_are_answered_while_a_large_configuration_is_reloaded() {
    let up = upstream().await.address;
    let many: String = (0..300).map(|at| format!("  up{at}:\n    hosts: [up{at}.test]\n")).collect();
    let rig = start(&config(up, &many));
    rig.write(&config(up, &format!("    timeouts: {{attempt: 7s}}\n{many}")));
    let proxy = rig.app.address("proxy");
    // One thread serves all of it: where the reload held it, no request could end before the reload does.
    let mut answered = 0;
    let reload = rig.app.reload_now();
    tokio::pin!(reload);
    let status = loop {
        tokio::select! {
            biased;
            status = &mut reload => break status,
            answer = through(proxy, "/x") => {
                assert_eq!(answer.body, "ok");
                answered += 1;
            }
        }
    };
    assert_eq!(status.changed, ["upstreams.a.timeouts.attempt: 10s → 7s"]);
    assert!(answered > 0);
}

#[tokio::test]
async fn what_a_default_changes_for_each_upstream_and_route_is_told_for_each() {
    let up = upstream().await.address;
    let routes = "    routes:\n      - {name: r, match: {path: /r}, retry: {max_attempts: 2}}\n";
    let more = "  b:\n    hosts: [b.test]\n    timeouts: {idle: 9s}\n";
    let rig = start(&config(up, &format!("{routes}{more}")));
    rig.write(&format!("{}defaults: {{timeouts: {{idle: 7s}}}}\n", config(up, &format!("{routes}{more}"))));
    let changed = rig.post("/reload", "").await.json()["changed"].clone();
    let lines: Vec<&str> = changed.as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let told = ["unmatched", "upstreams.a", "upstreams.a.routes[r]"].map(|one| format!("{one}.timeouts.idle: 1m → 7s"));
    assert_eq!(lines.iter().map(|line| line.replace("60s", "1m")).collect::<Vec<_>>(), told);
    rig.write(&config(up, "    routes:\n      - {name: s, match: {path: /r}}\n").replace("a.test", "a2.test"));
    let changed = rig.post("/reload", "").await.json()["changed"].to_string();
    for line in ["upstreams.a.hosts: ", "upstreams.a.routes[s].name: r → s", "upstreams.b: removed"] {
        assert!(changed.contains(line), "{line}: {changed}");
    }
}
