//! Connections that end although something was said on them: apps are told beforehand, and what was said arrives.

use std::io;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::support::{Origin, PATIENCE, Proxy};

/// A proxy whose upstream is a port that nobody listens on.
async fn deserted() -> Proxy {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    Proxy::start(&format!(
        "upstreams:\n  up:\n    hosts: [up.test]\n    to: [\"http://{nobody}\"]\n    retry: off\n    circuit_breaker: off\n"
    ))
    .await
}

#[tokio::test]
async fn an_answer_of_ours_to_a_request_whose_body_is_left_unread_says_that_the_connection_closes() {
    let proxy = deserted().await;
    let bodies = ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"];
    for body in bodies {
        let got = proxy.talk(format!("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\n{body}").as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
        assert!(got.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{got}");
    }
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_says_that_the_connection_closes() {
    let origin = Origin::scripted(|mut conn| async move {
        conn.head().await;
        conn.send("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await;
        conn.closed().await;
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: 10\r\n\r\nhalf").await;
    let got = String::from_utf8_lossy(&app.rest().await).into_owned();
    assert!(got.starts_with("HTTP/1.1 413 "), "{got}");
    assert!(got.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{got}");
}

#[tokio::test]
async fn an_app_keeps_its_connection_after_a_refusal_of_a_request_that_came_whole() {
    let proxy = deserted().await;
    let mut app = proxy.connect().await;
    for _ in 0..3 {
        app.send("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: 4\r\n\r\nbody").await;
        let head = app.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        assert!(!head.to_ascii_lowercase().contains("connection: close"), "{head}");
        app.until("}").await;
    }
}

/// Says its last words while more than it ever reads is sent to it, and is gone, which is a reset.
async fn leave(mut stream: TcpStream) {
    stream.read_exact(&mut [0; 16]).await.unwrap();
    stream.peek(&mut [0]).await.unwrap();
    stream.write_all(b"no more").await.unwrap();
}

/// Sends for as long as it can. What came meanwhile, and whether the end was a reset.
async fn insist(stream: TcpStream) -> (Vec<u8>, bool) {
    let (mut read, mut write) = stream.into_split();
    let sends = async {
        loop {
            if let Err(error) = write.write_all(&[b'x'; 4096]).await {
                return error.kind();
            }
        }
    };
    let mut got = Vec::new();
    let (sent, end) = timeout(PATIENCE, async { tokio::join!(sends, read.read_to_end(&mut got)) }).await.unwrap();
    // The system tells of a reset once, be it to the one who writes or to the one who reads.
    let reset = io::ErrorKind::ConnectionReset;
    let was_reset = sent == reset || end.is_err_and(|error| error.kind() == reset);
    (got, was_reset)
}

/// A tunnel or an upgraded stream: the app's end and the upstream's.
async fn streams(upgrade: bool) -> (Proxy, Origin, TcpStream, TcpStream) {
    let (given, upstream) = oneshot::channel();
    let given = Mutex::new(Some(given));
    let origin = Origin::scripted(move |mut conn| {
        let given = given.lock().unwrap().take().unwrap();
        async move {
            if upgrade {
                conn.head().await;
                conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
            }
            given.send(conn.stream).unwrap();
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    let head = if upgrade {
        "GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n".to_owned()
    } else {
        format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address())
    };
    app.send(head).await;
    app.head().await;
    (proxy, origin, app.stream, upstream.await.unwrap())
}

#[tokio::test]
async fn the_last_words_of_a_side_that_resets_a_tunnel_or_upgraded_stream_reach_the_other_and_so_does_the_reset() {
    for upgrade in [false, true] {
        for app_leaves in [false, true] {
            for round in 0..10 {
                let (proxy, _origin, app, upstream) = streams(upgrade).await;
                let (leaver, other) = if app_leaves { (app, upstream) } else { (upstream, app) };
                let ((), (got, was_reset)) = tokio::join!(leave(leaver), insist(other));
                let of = format!("upgrade: {upgrade}, app leaves: {app_leaves}, round {round}");
                assert_eq!(String::from_utf8_lossy(&got), "no more", "{of}");
                // hyper keeps an upgraded stream's socket to itself.
                assert!(was_reset || (upgrade && app_leaves), "{of}");
                proxy.stop().await;
            }
        }
    }
}
