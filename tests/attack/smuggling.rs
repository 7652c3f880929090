//! Malformed requests: 400, the connection closed, and not a byte forwarded.

use crate::support::{Origin, Proxy};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn malformed_requests_are_refused_and_nothing_of_them_is_forwarded() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    for (name, request) in [
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("no host with url", "GET http://up.test/ HTTP/1.1\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: up.test\r\nHost: up.test\r\n\r\n"),
        ("two hosts with url", "GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nhost: other\r\n\r\n"),
        ("host with userinfo", "GET / HTTP/1.1\r\nHost: u@up.test\r\n\r\n"),
        ("host with path", "GET / HTTP/1.1\r\nHost: up.test/x\r\n\r\n"),
        ("host with bad port", "GET / HTTP/1.1\r\nHost: up.test:x\r\n\r\n"),
        ("host with port 0", "GET / HTTP/1.1\r\nHost: up.test:0\r\n\r\n"),
        ("empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        ("url with userinfo", "GET http://u:p@up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("url without host", "GET http:///x HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("other scheme", "GET ftp://up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        (
            "length and chunked",
            "POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked and length",
            "POST / HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        ),
        ("chunked twice", "POST / HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        (
            "chunked on two lines",
            "POST / HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("gzip, chunked", "POST / HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("identity", "POST / HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding: identity\r\n\r\n"),
        ("chunked in 1.0", "POST / HTTP/1.0\r\nHost: up.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("chunked behind a tab", "POST / HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
        (
            "differing lengths",
            "POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        ),
        ("repeated length", "POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        ("signed length", "POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: +5\r\n\r\nhello"),
        ("length list", "POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: 5,5\r\n\r\nhello"),
        ("negative length", "POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: -1\r\n\r\n"),
        ("huge length", "POST / HTTP/1.1\r\nHost: up.test\r\nContent-Length: 18446744073709551616\r\n\r\n"),
        ("control byte in target", "GET /\u{1} HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("delete in target", "GET /\u{7f} HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("non-ASCII target", "GET /\u{e9} HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("fragment", "GET /a#b HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("non-ASCII name", "GET / HTTP/1.1\r\nHost: up.test\r\nX\u{e9}: 1\r\n\r\n"),
        ("control byte in name", "GET / HTTP/1.1\r\nHost: up.test\r\nX\u{1}: 1\r\n\r\n"),
        ("zero byte in value", "GET / HTTP/1.1\r\nHost: up.test\r\nX: a\0b\r\n\r\n"),
        ("bare CR in value", "GET / HTTP/1.1\r\nHost: up.test\r\nX: a\rb\r\n\r\n"),
        ("bare LF", "GET / HTTP/1.1\nHost: up.test\n\n"),
        ("folded header", "GET / HTTP/1.1\r\nHost: up.test\r\nX: a\r\n b\r\n\r\n"),
        ("folded first header", "GET / HTTP/1.1\r\n Host: up.test\r\n\r\n"),
        ("space before colon", "GET / HTTP/1.1\r\nHost: up.test\r\nX : a\r\n\r\n"),
        ("no colon", "GET / HTTP/1.1\r\nHost: up.test\r\nX\r\n\r\n"),
        ("no name", "GET / HTTP/1.1\r\nHost: up.test\r\n: a\r\n\r\n"),
        ("version 1.2", "GET / HTTP/1.2\r\nHost: up.test\r\n\r\n"),
        ("version 0.9", "GET /\r\n\r\n"),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("bad method", "GE{T / HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("star with GET", "GET * HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("authority with GET", "GET up.test:80 HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("CONNECT with a path", "CONNECT /x HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("CONNECT with a URL", "CONNECT http://up.test:80 HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("CONNECT without a port", "CONNECT up.test HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("CONNECT with userinfo", "CONNECT u@up.test:80 HTTP/1.1\r\nHost: up.test\r\n\r\n"),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\n\r\n\r\n"),
    ] {
        let got = proxy.talk(request.as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 400 ") || got.starts_with("HTTP/1.0 400 "), "{name}: {got:?}");
        assert!(got.contains("application/problem+json"), "{name}: {got:?}");
        assert!(got.to_ascii_lowercase().contains("connection: close"), "{name}: {got:?}");
        assert!(origin.seen().is_empty(), "{name}: {:?}", origin.seen());
    }
    let metrics = proxy.metrics().await;
    assert!(metrics.contains("outrigger_rejected_total{reason=\"bad_request\",upstream=\"unmatched\"}"), "{metrics}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_body_with_broken_chunks_never_reaches_the_upstream_whole() {
    for body in [
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "zz\r\n",
        "ffffffffffffffff1\r\n",
        "3\r\nabc\r\n0\r\nbad\r\n\r\n",
    ] {
        let origin = Origin::answering(OK).await;
        let proxy = Proxy::for_origin(&origin, "").await;
        let head = "POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        let got = proxy.talk(format!("{head}{body}").as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 400 "), "{body:?}: {got:?}");
        assert!(origin.seen().is_empty(), "{body:?}: {:?}", origin.seen());
        proxy.stop().await;
    }
}

#[tokio::test]
async fn connection_cannot_take_away_what_gives_a_request_its_meaning() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::for_origin(&origin, "").await;
    let got = proxy
        .talk(b"POST / HTTP/1.1\r\nHost: up.test\r\nAuthorization: Bearer x\r\nIdempotency-Key: k\r\nCookie: c\r\nContent-Length: 2\r\nConnection: close, Host, Authorization, Idempotency-Key, Cookie, Content-Length\r\n\r\nhi")
        .await;
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    let seen = origin.only();
    for (name, value) in [
        ("host", "up.test"),
        ("authorization", "Bearer x"),
        ("idempotency-key", "k"),
        ("cookie", "c"),
        ("content-length", "2"),
    ] {
        assert_eq!(seen.all(name), [value], "{name}");
    }
    assert_eq!(seen.body, b"hi");
    proxy.stop().await;
}

#[tokio::test]
async fn malformed_answers_are_502() {
    for (name, answer) in [
        (
            "length and chunked",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        ("two encodings", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("differing lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"),
        ("unasked switch", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
        ("no HTTP", "hello there\r\n\r\n"),
        ("nothing", ""),
    ] {
        let origin = Origin::closing(answer).await;
        let proxy = Proxy::for_origin(&origin, "    retry: off\n").await;
        let got = proxy
            .talk(b"POST http://up.test/ HTTP/1.1\r\nHost: up.test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
        assert!(got.starts_with("HTTP/1.1 502 "), "{name}: {got:?}");
        proxy.stop().await;
    }
}
