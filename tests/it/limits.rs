//! Bounds of `limits:` give answers, not crashes.

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};

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

#[tokio::test]
async fn what_a_limit_refuses_is_counted_by_its_name() {
    let origin = Origin::scripted(|mut conn| async move {
        // Each body is kept for a retry until the answer comes.
        while conn.request().await.is_some() {
            tokio::io::AsyncWriteExt::write_all(&mut conn.stream, OK.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::for_origin(
        &origin,
        "    rate_limit: {requests: 100000, key: \"header:X-Tenant\"}\n\
         limits: {max_header_bytes: 8KiB, max_headers: 20, header_timeout: 200ms, replay_memory: 100B}\n",
    )
    .await;
    let many = format!("GET / HTTP/1.1\r\nHost: up.test\r\n{}\r\n", "X: y\r\n".repeat(30));
    let large = format!("GET / HTTP/1.1\r\nHost: up.test\r\nX: {}\r\n\r\n", "x".repeat(9000));
    assert!(proxy.talk(many.as_bytes()).await.contains("limits.max_headers"));
    assert!(proxy.talk(large.as_bytes()).await.contains("limits.max_header_bytes"));
    proxy.talk(b"GET / HTTP/1.1\r\nHost: up").await;
    let put = format!(
        "PUT / HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\nContent-Length: 2000\r\n\r\n{}",
        "z".repeat(2000)
    );
    assert!(proxy.talk(put.as_bytes()).await.starts_with("HTTP/1.1 200 "));
    // Twice, since what is read from elsewhere must not be counted twice.
    proxy.metrics().await;
    let metrics = proxy.metrics().await;
    for limit in ["max_headers", "max_header_bytes", "header_timeout", "replay_memory"] {
        let line = format!("outrigger_limit_refused_total{{limit=\"{limit}\"}} 1\n");
        assert!(metrics.contains(&line), "{limit}\n{metrics}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn http2_has_the_same_bound_of_fields() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "limits: {max_headers: 20}\n").await;
    let stream = tokio::net::TcpStream::connect(proxy.address("proxy")).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::get("http://up.test/").body(Empty::<Bytes>::new()).unwrap();
    for number in 0..21 {
        request.headers_mut().insert(http::HeaderName::try_from(format!("x-{number}")).unwrap(), "y".parse().unwrap());
    }
    assert_eq!(send.send_request(request).await.unwrap().status(), 431);
    assert!(origin.seen().is_empty());
    proxy.stop().await;
}

#[tokio::test]
async fn who_waits_for_a_token_or_a_slot_is_queued() {
    for block in [
        "rate_limit: {requests: 1, per: 10s, burst: 1, max_wait: 20s}",
        "concurrency: {max_in_flight: 1, max_wait: 20s}",
    ] {
        let origin = Origin::scripted(|mut conn| async move {
            while conn.request().await.is_some() {
                std::future::pending::<()>().await;
            }
        })
        .await;
        let proxy = Proxy::for_origin(&origin, &format!("    {block}\n    timeouts: off\n")).await;
        let queued = async |count: u32| {
            let line = format!("outrigger_requests_queued{{upstream=\"up\"}} {count}\n");
            eventually(&format!("{block}: {line}"), async || proxy.metrics().await.contains(&line)).await;
        };
        let get = "GET / HTTP/1.1\r\nHost: up.test\r\n\r\n";
        let mut first = proxy.connect().await;
        first.send(get).await;
        eventually("the first is sent", async || origin.seen().len() == 1).await;
        queued(0).await;
        let mut second = proxy.connect().await;
        second.send(get).await;
        queued(1).await;
        drop(second);
        queued(0).await;
        proxy.stop().await;
    }
}
