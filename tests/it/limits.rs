//! Bounds of `limits:` give answers, not crashes.

use crate::support::{Origin, Proxy, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn large_heads_are_431_and_long_targets_414() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {max_header_bytes: 8KiB, max_headers: 20}\n").await;
    for (request, status) in [
        (format!("GET / HTTP/1.1\r\nHost: up.test\r\nX: {}\r\n\r\n", "x".repeat(100_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: up.test\r\n{}\r\n", "X: y\r\n".repeat(30)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: up.test\r\n\r\n", "x".repeat(100_000)), 414),
    ] {
        let mut app = proxy.connect().await;
        // The proxy may stop reading before all of it is written.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut app.stream, request.as_bytes()).await;
        let head = app.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    assert!(origin.seen().is_empty());
    let metrics = proxy.metrics().await;
    for counted in ["{limit=\"max_header_bytes\"} 2", "{limit=\"max_headers\"} 1", "{limit=\"header_timeout\"} 0"] {
        assert!(metrics.contains(&format!("outrigger_limit_refused_total{counted}\n")), "{metrics}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn small_bounds_hold_to_the_byte_both_ways() {
    let answer = |total: usize| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: ";
        format!("{head}{}\r\n\r\nok", "x".repeat(total - head.len() - 4))
    };
    for (total, status) in [(1024, 200), (1025, 502)] {
        let answer: &'static str = answer(total).leak();
        let origin = Origin::answering(answer).await;
        let proxy = Proxy::for_origin(&origin, "    retry: off\nlimits: {max_header_bytes: 1KiB}\n").await;
        let got = proxy.talk(b"GET / HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n").await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{total}: {got}");
        proxy.stop().await;
    }
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {max_header_bytes: 1KiB}\n").await;
    for (total, status) in [(1024, 200), (1025, 431)] {
        let head = "GET / HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\nX: ";
        let got = proxy.talk(format!("{head}{}\r\n\r\n", "x".repeat(total - head.len() - 4)).as_bytes()).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{total}: {got}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_slow_head_times_out_and_an_idle_connection_does_not() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {header_timeout: 200ms}\n").await;
    let mut app = proxy.connect().await;
    app.send("GET / HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
    app.head().await;
    app.take(2).await;
    let got = proxy.talk(b"GET / HTTP/1.1\r\nHost: up").await;
    assert!(got.starts_with("HTTP/1.1 408 "), "{got}");
    // Longer idle than the other took to be refused.
    app.send("GET / HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
    assert!(app.head().await.starts_with("HTTP/1.1 200 "));
    proxy.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_is_503() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {max_connections: 1}\n").await;
    let mut app = proxy.connect().await;
    app.send("GET / HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
    app.head().await;
    let got = proxy.talk(b"GET / HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("limits.max_connections"), "{got}");
    drop(app);
    eventually("there is room again", async || {
        let got = proxy.talk(b"GET / HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n").await;
        got.starts_with("HTTP/1.1 200 ")
    })
    .await;
    proxy.stop().await;
}
