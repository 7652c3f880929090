//! CONNECT.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Origin, Proxy, eventually};

/// Sends back whatever comes, until the end, and then says so.
async fn echo() -> Origin {
    Origin::scripted(|mut conn| async move {
        let mut buf = [0; 4096];
        loop {
            match conn.stream.read(&mut buf).await {
                Ok(0) => break,
                Ok(n) => conn.stream.write_all(&buf[..n]).await.unwrap(),
                Err(_) => return,
            }
        }
        let _ = conn.stream.write_all(b"[end]").await;
    })
    .await
}

#[tokio::test]
async fn bytes_pass_both_ways_early_ones_once_and_an_end_is_only_half_of_it() {
    let origin = echo().await;
    let proxy = Proxy::for_origin(&origin, "").await;
    for head in [
        format!("CONNECT {} HTTP/1.0\r\n\r\n", origin.address()),
        format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\nProxy-Connection: keep-alive\r\n\r\n", origin.address()),
    ] {
        let mut app = proxy.connect().await;
        app.send(format!("{head}early")).await;
        let got = app.head().await;
        assert!(got.starts_with("HTTP/1.") && got.contains(" 200 "), "{got}");
        assert!(!got.to_ascii_lowercase().contains("content-length"), "{got}");
        assert_eq!(app.take(5).await, b"early");
        app.send(vec![b'x'; 300_000]).await;
        assert_eq!(app.take(300_000).await.len(), 300_000);
        app.stream.shutdown().await.unwrap();
        assert_eq!(app.rest().await, b"[end]");
    }
    let metrics = proxy.metrics().await;
    assert!(metrics.contains("outrigger_tunnels{upstream=\"up\"} 0"), "{metrics}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_tunnel_to_nobody_is_502_and_not_200() {
    let origin = echo().await;
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let proxy = Proxy::for_origin(&origin, "    retry: off\n").await;
    let got = proxy.talk(format!("CONNECT {gone} HTTP/1.1\r\nHost: {gone}\r\n\r\n").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 502 ") && got.contains("connection_refused"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn denied_tunnels_are_403_with_the_way_out() {
    let origin = echo().await;
    let to = origin.address();
    for (more, word) in [
        ("    https: deny\n".to_owned(), "NO_PROXY"),
        ("egress: {connect_ports: [443]}\n".to_owned(), "egress.connect_ports"),
    ] {
        let proxy = Proxy::for_origin(&origin, &more).await;
        let got = proxy.talk(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 403 ") && got.contains(word), "{got}");
        proxy.stop().await;
    }
    let proxy = Proxy::start("egress: {unmatched: deny}\n").await;
    let got = proxy.talk(b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 403 ") && got.contains("NO_PROXY"), "{got}");
    proxy.stop().await;
    // Without an upstream that allows it, loopback is never dialled.
    let proxy = Proxy::start("").await;
    let got = proxy.talk(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 403 ") && got.contains("allow_addresses"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_silent_tunnel_is_closed() {
    let origin = echo().await;
    let proxy = Proxy::for_origin(&origin, "    timeouts: {tunnel_idle: 100ms}\n").await;
    let mut app = proxy.connect().await;
    app.send(format!("CONNECT {} HTTP/1.0\r\n\r\n", origin.address())).await;
    app.head().await;
    let _ = app.end().await;
    eventually("the tunnel is counted out", async || {
        proxy.metrics().await.contains("outrigger_tunnels{upstream=\"up\"} 0")
    })
    .await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_reset_passes_through() {
    let origin = Origin::scripted(|mut conn| async move {
        conn.take(1).await;
        conn.reset();
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send(format!("CONNECT {} HTTP/1.0\r\n\r\n", origin.address())).await;
    app.head().await;
    app.send("x").await;
    let (_, end) = app.end().await;
    assert!(end.is_err());
    proxy.stop().await;
}
