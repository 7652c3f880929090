//! Uploads that end before their time: the app is answered, whatever it still sends, and told that the connection ends.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Client, Origin, PATIENCE, Proxy};

/// More than the buffers of two sockets on loopback.
const BODY: usize = 24 << 20;

#[tokio::test]
async fn an_app_that_sends_a_large_body_before_it_reads_is_answered_when_it_is_refused() {
    // A port that refuses: nothing listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy =
        Proxy::start(&format!("upstreams:\n  up: {{hosts: [up.test], to: [\"http://{gone}\"], retry: off}}\n")).await;
    for framing in ["Content-Length", "Transfer-Encoding"] {
        let mut app = TcpStream::connect(proxy.address("proxy")).await.unwrap();
        let value = if framing == "Content-Length" { BODY.to_string() } else { "chunked".to_owned() };
        let head = format!("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\n{framing}: {value}\r\n\r\n");
        app.write_all(head.as_bytes()).await.unwrap();
        // So that the refusal is on its way before the body is.
        tokio::time::timeout(PATIENCE, app.readable()).await.unwrap().unwrap();
        let sent = if value == "chunked" {
            let mut body = format!("{BODY:x}\r\n").into_bytes();
            body.resize(body.len() + BODY, b'x');
            body.extend(b"\r\n0\r\n\r\n");
            app.write_all(&body).await
        } else {
            app.write_all(&vec![b'x'; BODY]).await
        };
        assert!(sent.is_ok(), "{framing}: {sent:?}");
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, app.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{framing}: {answer}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_refusal_that_leaves_a_body_unread_says_that_the_connection_ends() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy =
        Proxy::start(&format!("upstreams:\n  up: {{hosts: [up.test], to: [\"http://{gone}\"], retry: off}}\n")).await;
    let mut app = proxy.connect().await;
    app.send("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: 200000\r\n\r\nxxx").await;
    let head = app.head().await;
    assert!(head.starts_with("HTTP/1.1 502 ") && closes(&head), "{head}");

    // One that is there as a whole does not cost the connection.
    let mut app = proxy.connect().await;
    for _ in 0..3 {
        app.send("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: 3\r\n\r\nxxx").await;
        let head = app.head().await;
        assert!(head.starts_with("HTTP/1.1 502 ") && !closes(&head), "{head}");
        app.until("}").await;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_upload_that_its_upstream_breaks_off_is_answered_with_the_end_of_the_connection() {
    let origin = Origin::scripted(|mut conn| async move {
        conn.head().await.unwrap();
        conn.take(3).await.unwrap();
        conn.reset();
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "    retry: off\n").await;
    let mut app: Client = proxy.connect().await;
    app.send("POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: 200000\r\n\r\nxxx").await;
    let head = app.head().await;
    assert!(head.starts_with("HTTP/1.1 502 ") && closes(&head), "{head}");
    proxy.stop().await;
}

fn closes(head: &str) -> bool {
    head.to_ascii_lowercase().contains("\r\nconnection: close")
}
