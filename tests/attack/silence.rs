//! Upstreams that are gone without a word: no FIN, no reset, no answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::net::TcpListener;

use crate::support::{Proxy, eventually};

#[tokio::test]
async fn a_retry_does_not_go_to_the_http2_connection_that_fell_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        let mut silent = Vec::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut peer = h2::server::handshake(stream).await.unwrap();
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                // One answer, then nothing is read or written any more.
                let (_, mut answer) = peer.accept().await.unwrap().unwrap();
                answer.send_response(Response::new(()), true).unwrap();
                let second = peer.accept().await;
                silent.push((peer, second));
                continue;
            }
            tokio::spawn(async move {
                while let Some(Ok((_, mut answer))) = peer.accept().await {
                    answer.send_response(Response::new(()), false).unwrap().send_data(Bytes::from("ok"), true).unwrap();
                }
            });
        }
    });
    let proxy = Proxy::start(&format!(
        "upstreams:\n  up:\n    hosts: [up.test]\n    to: [\"http://{address}\"]\n    connections: {{http: 2}}\n    timeouts: {{attempt: 500ms}}\n    retry: {{backoff: {{base: 1ms}}}}\n"
    ))
    .await;
    let ask = b"GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n";
    assert!(proxy.talk(ask).await.starts_with("HTTP/1.1 200 "));
    let got = proxy.talk(ask).await;
    assert!(got.starts_with("HTTP/1.1 200 ") && got.ends_with("ok\r\n0\r\n\r\n"), "{got}");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_hangs_up_on_a_slow_http2_upstream_costs_the_others_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut peer = h2::server::handshake(stream).await.unwrap();
                let mut slow = Vec::new();
                while let Some(Ok((request, mut answer))) = peer.accept().await {
                    if request.uri().path() == "/slow" {
                        slow.push(answer);
                        continue;
                    }
                    answer.send_response(Response::new(()), false).unwrap().send_data(Bytes::from("ok"), true).unwrap();
                }
            });
        }
    });
    let proxy = Proxy::start(&format!(
        "upstreams:\n  up:\n    hosts: [up.test]\n    to: [\"http://{address}\"]\n    connections: {{http: 2}}\n"
    ))
    .await;
    let ask = |path: &str| format!("GET http://up.test{path} HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n");
    assert!(proxy.talk(ask("/").as_bytes()).await.starts_with("HTTP/1.1 200 "));
    for round in 1..=3 {
        let mut app = proxy.connect().await;
        app.send(ask("/slow")).await;
        // Longer than the least wait that says anything about a connection.
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(app);
        eventually("it is gone", async || {
            proxy
                .metrics()
                .await
                .contains(&format!("code=\"499\",method=\"GET\",route=\"\",upstream=\"up\"}} {round}\n"))
        })
        .await;
        assert!(proxy.talk(ask("/").as_bytes()).await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    proxy.stop().await;
}
