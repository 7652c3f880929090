//! Connections of apps that end although an answer was given: the app is told beforehand.

use tokio::net::TcpListener;

use crate::support::{Origin, Proxy};

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
