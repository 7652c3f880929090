//! WebSocket and other upgrades.

use crate::support::{Origin, Proxy};

const ASK: &str = "GET http://up.test/chat HTTP/1.1\r\nHost: up.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[tokio::test]
async fn both_sides_switch_and_bytes_pass_unread() {
    let origin = Origin::scripted(|mut conn| async move {
        conn.request().await;
        // The first bytes come with the head.
        conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhi\0").await;
        assert_eq!(conn.take(4).await.unwrap(), b"\x81\n\n\xff");
        conn.send(b"bye").await;
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send(ASK).await;
    let head = app.head().await;
    assert_eq!(
        head,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n"
    );
    assert_eq!(app.take(3).await, b"hi\0");
    app.send(b"\x81\n\n\xff").await;
    assert_eq!(app.rest().await, b"bye");
    let seen = origin.only();
    assert_eq!(seen.all("connection"), ["Upgrade"]);
    assert_eq!(seen.all("upgrade"), ["websocket"]);
    proxy.stop().await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_answer_and_the_connection_goes_on() {
    let origin = Origin::answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    for _ in 0..2 {
        app.send(ASK).await;
        assert!(app.head().await.starts_with("HTTP/1.1 403 "));
        assert_eq!(app.take(2).await, b"no");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn h2c_is_not_offered_on() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send("GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n").await;
    assert!(app.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(origin.only().head, "GET / HTTP/1.1\r\nHost: up.test");
    proxy.stop().await;
}
