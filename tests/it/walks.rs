//! Every way in, once.

use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::{Client, Origin, Proxy};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Case-Kept: Yes\r\n\r\nok";

#[tokio::test]
async fn an_absolute_url_is_sent_in_origin_form_and_the_answer_comes_back_byte_for_byte() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send("GET http://up.test/a?b=%20c HTTP/1.1\r\nHost: wrong.test\r\nX-CaSe: 1\r\nAccept: x\r\naccept: y\r\nProxy-Connection: keep-alive\r\n\r\n").await;
    assert_eq!(app.head().await, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Case-Kept: Yes\r\n\r\n");
    assert_eq!(app.take(2).await, b"ok");
    let seen = origin.only();
    // The address in `to` leaves the app's Host alone.
    assert_eq!(seen.head, "GET /a?b=%20c HTTP/1.1\r\nHost: up.test\r\nX-CaSe: 1\r\nAccept: x\r\naccept: y");
    // The connection is kept.
    app.send("GET http://up.test/2 HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
    assert!(app.head().await.starts_with("HTTP/1.1 200 "));
    proxy.stop().await;
}

#[tokio::test]
async fn the_refusal_of_a_malformed_head_request_has_no_body() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let long = format!("HEAD /{} HTTP/1.1\r\nHost: up.test\r\n\r\n", "x".repeat(70_000));
    for (head, status) in [
        ("\r\nHEAD /` HTTP/1.1\r\nHost: up.test\r\n\r\n", 400),
        ("HEAD / HTTP/1.1\r\nHost: up.test\r\nX y: 1\r\n\r\n", 400),
        (&long, 414),
    ] {
        let got = proxy.talk(head.as_bytes()).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{got}");
        assert!(got.contains("proxy-status: outrigger") && got.ends_with("\r\n\r\n"), "{got}");
    }
    assert!(origin.seen().is_empty());
    proxy.stop().await;
}

#[tokio::test]
async fn a_path_is_routed_by_the_host_header() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let got = proxy.talk(b"GET /a HTTP/1.1\r\nHost: UP.test.\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\nok"), "{got}");
    assert_eq!(origin.only().line(), "GET /a HTTP/1.1");
    proxy.stop().await;
}

#[tokio::test]
async fn an_upstreams_own_port_leads_there_whatever_the_host() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = Client::connect(proxy.address("up")).await;
    app.send(format!("GET /a HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address("up"))).await;
    assert!(app.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(origin.only().all("host"), [origin.address().to_string()]);
    proxy.stop().await;
}

#[tokio::test]
async fn http_1_0_gets_http_1_0_and_keeps_the_connection_only_where_it_asks() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let got = proxy.talk(b"GET http://up.test/ HTTP/1.0\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.0 200 OK\r\n") && got.ends_with("\r\n\r\nok"), "{got}");
    assert!(!got.to_ascii_lowercase().contains("transfer-encoding"), "{got}");
    assert_eq!(origin.only().line(), "GET / HTTP/1.1");

    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    for _ in 0..2 {
        app.send("GET http://up.test/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        let head = app.head().await.to_ascii_lowercase();
        assert!(head.contains("connection: keep-alive"), "{head}");
        app.take(2).await;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn on_an_own_port_without_to_host_is_the_one_that_the_upstream_names() {
    let origin = Origin::answering(OK).await;
    let named = format!("localhost:{}", origin.address().port());
    let proxy = Proxy::start(&format!(
        "upstreams:\n  up: {{hosts: [\"{named}\"], scheme: http, listen: \"127.0.0.1:0\", allow_addresses: [loopback]}}\n"
    ))
    .await;
    let mut app = Client::connect(proxy.address("up")).await;
    app.send(format!("GET /x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address("up"))).await;
    assert!(app.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(origin.only().all("host"), [named]);
    proxy.stop().await;
}

#[tokio::test]
async fn http2_with_prior_knowledge_on_the_same_port() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let stream = proxy.connect().await.stream;
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://up.test/x").body(Full::new(bytes::Bytes::from("hello"))).unwrap();
    let response = send.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    let seen = origin.only();
    assert_eq!((seen.line(), &seen.body[..]), ("POST /x HTTP/1.1", &b"hello"[..]));
    assert_eq!(seen.all("host"), ["up.test"]);
    let request = http::Request::get("http://up.test/").header("host", "other").body(Full::default()).unwrap();
    assert_eq!(send.send_request(request).await.unwrap().status(), 400);
    proxy.stop().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(seen) = conn.request().await {
            let path = seen.line().split(' ').nth(1).unwrap().to_owned();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len())).await;
        }
    })
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    let requests: String = (0..5).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: up.test\r\n\r\n")).collect();
    app.send(requests).await;
    for n in 0..5 {
        app.head().await;
        assert_eq!(app.take(2).await, format!("/{n}").as_bytes());
    }
    proxy.stop().await;
}

#[tokio::test]
async fn nothing_is_added_to_an_answer_and_connection_headers_stay_behind() {
    let origin = Origin::answering(
        "HTTP/1.1 418 I'm a teapot\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let mut app = proxy.connect().await;
    app.send("GET / HTTP/1.1\r\nHost: up.test\r\nConnection: X-Mine\r\nX-Mine: 1\r\n\r\n").await;
    assert_eq!(
        app.head().await,
        "HTTP/1.1 418 I'm a teapot\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n"
    );
    assert_eq!(origin.only().head, "GET / HTTP/1.1\r\nHost: up.test");
    proxy.stop().await;
}

#[tokio::test]
async fn a_request_for_our_own_listener_is_a_loop() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let own = proxy.address("proxy");
    for request in [
        format!("GET / HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n\r\n"),
        format!("GET http://localhost:{}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", own.port()),
        format!("CONNECT {own} HTTP/1.1\r\nHost: {own}\r\n\r\n"),
    ] {
        let got = proxy.talk(request.as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 508 "), "{request}: {got}");
    }
    assert!(origin.seen().is_empty());
    proxy.stop().await;
}
