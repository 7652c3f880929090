//! Each bound, at the bound: new work is refused with an answer that says why, it is counted, and old work goes on.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::support::{Client, Origin, Proxy, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: up.test\r\n\r\n";

/// Answers each request once it is told to.
async fn holding() -> (Origin, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let origin = Origin::scripted(move |mut conn| {
        let told = Arc::clone(&told);
        async move {
            while conn.request().await.is_some() {
                told.notified().await;
                if conn.try_send(OK.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, go)
}

async fn served(app: &mut Client) {
    let head = app.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    app.take(2).await;
}

#[tokio::test]
async fn one_connection_too_many_is_refused_and_counted_and_those_before_go_on() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {max_connections: 3}\n").await;
    let mut old = Vec::new();
    for _ in 0..3 {
        let mut app = proxy.connect().await;
        app.send(GET).await;
        served(&mut app).await;
        old.push(app);
    }
    for _ in 0..5 {
        let got = proxy.talk(GET.as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("limits.max_connections"), "{got}");
        assert!(got.to_ascii_lowercase().contains("\r\nretry-after: 1\r\n"), "{got}");
    }
    for app in &mut old {
        app.send(GET).await;
        served(app).await;
    }
    let metrics = proxy.metrics().await;
    assert!(metrics.contains("outrigger_limit_refused_total{limit=\"max_connections\"} 5\n"), "{metrics}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_storm_on_one_listener_leaves_places_for_the_others() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {max_connections: 80}\n").await;
    for (stormy, other) in [("up", "proxy"), ("proxy", "up")] {
        let mut storm = Vec::new();
        for _ in 0..120 {
            storm.push(Client::connect(proxy.address(stormy)).await);
        }
        let full = "the storm has what it can get";
        eventually(full, async || proxy.metrics().await.contains("outrigger_downstream_connections 7")).await;
        let mut refused = Client::connect(proxy.address(stormy)).await;
        refused.send(GET).await;
        assert!(refused.head().await.starts_with("HTTP/1.1 503 "));
        for _ in 0..5 {
            let mut app = Client::connect(proxy.address(other)).await;
            app.send(GET).await;
            served(&mut app).await;
        }
        drop(storm);
        let quiet = "nobody is connected";
        eventually(quiet, async || proxy.metrics().await.contains("outrigger_downstream_connections 0\n")).await;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_those_in_it_are_served() {
    let (origin, go) = holding().await;
    let proxy = Proxy::for_origin(&origin, "    concurrency: {max_in_flight: 1, max_queue: 1, max_wait: 20s}\n").await;
    let (mut first, mut second) = (proxy.connect().await, proxy.connect().await);
    first.send(GET).await;
    eventually("one is with the upstream", async || origin.seen().len() == 1).await;
    second.send(GET).await;
    let queued = "outrigger_requests_queued{upstream=\"up\"} 1\n";
    eventually("one waits", async || proxy.metrics().await.contains(queued)).await;
    for _ in 0..3 {
        let mut third = proxy.connect().await;
        third.send(GET).await;
        let head = third.head().await;
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("concurrency"), "{head}");
    }
    for app in [&mut first, &mut second] {
        go.notify_one();
        served(app).await;
    }
    let metrics = proxy.metrics().await;
    assert!(metrics.contains("outrigger_rejected_total{reason=\"concurrency\",upstream=\"up\"} 3\n"), "{metrics}");
    proxy.stop().await;
}

#[tokio::test]
async fn without_a_connection_in_time_it_is_503_and_who_has_one_goes_on() {
    let (origin, go) = holding().await;
    let more = "    connections: {max: 1}\n    timeouts: {attempt: 600ms, request: 20s}\n    retry: off\n";
    let proxy = Proxy::for_origin(&origin, more).await;
    let mut first = proxy.connect().await;
    // Its clocks stand still while it sends.
    first.send("POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: 4\r\n\r\nha").await;
    eventually("it has the connection", async || {
        proxy.metrics().await.contains("outrigger_upstream_connections{state=\"active\",upstream=\"up\"} 1\n")
    })
    .await;
    let mut second = proxy.connect().await;
    second.send(GET).await;
    let head = second.head().await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("connections.max"), "{head}");
    go.notify_one();
    first.send("lf").await;
    served(&mut first).await;
    let metrics = proxy.metrics().await;
    assert!(metrics.contains("outrigger_rejected_total{reason=\"concurrency\",upstream=\"up\"} 1\n"), "{metrics}");
    proxy.stop().await;
}

#[tokio::test]
async fn nobody_waits_for_a_token_that_cannot_come_in_time() {
    let origin = Origin::answering(OK).await;
    let more = "    rate_limit: {requests: 1, per: 1h, burst: 2, max_wait: 10s}\n    timeouts: off\n";
    let proxy = Proxy::for_origin(&origin, more).await;
    let mut app = proxy.connect().await;
    for _ in 0..2 {
        app.send(GET).await;
        served(&mut app).await;
    }
    let mut late: Vec<Client> = Vec::new();
    for _ in 0..20 {
        let mut app = proxy.connect().await;
        app.send(GET).await;
        late.push(app);
    }
    for app in &mut late {
        let head = app.head().await;
        assert!(head.starts_with("HTTP/1.1 429 ") && head.to_ascii_lowercase().contains("retry-after: "), "{head}");
    }
    let metrics = proxy.metrics().await;
    assert!(metrics.contains("outrigger_rejected_total{reason=\"rate_limited\",upstream=\"up\"} 20\n"), "{metrics}");
    assert!(metrics.contains("outrigger_requests_queued{upstream=\"up\"} 0\n"), "{metrics}");
    proxy.stop().await;
}

#[tokio::test]
async fn an_answer_with_too_many_fields_is_502_and_the_next_one_is_passed_on() {
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(seen) = conn.request().await {
            let fields = if seen.line().contains("/many") { "X: y\r\n".repeat(30) } else { String::new() };
            let answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok");
            if conn.try_send(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "    retry: off\nlimits: {max_headers: 20}\n").await;
    let mut app = proxy.connect().await;
    app.send("GET /many HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
    let head = app.head().await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    let mut app = proxy.connect().await;
    app.send(GET).await;
    served(&mut app).await;
    proxy.stop().await;
}
