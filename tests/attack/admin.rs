//! The control port against web pages that the operator has open, and against whoever reaches it.

use std::io::Write;

use crate::support::{Client, Origin, Proxy, eventually};

/// Everything that shows or changes something.
pub(crate) const READS: &[&str] = &[
    "/config",
    "/api",
    "/api/upstreams",
    "/api/history",
    "/api/failures",
    "/api/reload",
    "/api/reloads",
    "/metrics",
    "/",
    "/livez",
];
const CIRCUIT: &str = "/api/upstreams/up/circuit";
const OPEN: &str = r#"{"state": "open"}"#;

/// A proxy with `admin`, and more keys at the top of its file.
async fn start(origin: &Origin, more: &str) -> Proxy {
    let text = format!("upstreams:\n  up:\n    hosts: [up.test]\n    to: [\"http://{}\"]\n{more}", origin.address());
    Proxy::listening("proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", probes: \"127.0.0.1:0\"", &text).await
}

/// A request to `admin`, read to the end of its connection.
async fn ask(proxy: &Proxy, method: &str, path: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n{body}");
    let mut client = Client::connect(proxy.address("admin")).await;
    client.send(request).await;
    String::from_utf8_lossy(&client.end().await.0).into_owned()
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("")
}

/// Whether an order that opens the circuit was followed.
async fn is_open(proxy: &Proxy) -> bool {
    proxy.metrics().await.contains(r#"outrigger_circuit_state{route="",upstream="up"} 2"#)
}

#[tokio::test]
async fn a_name_that_a_page_s_owner_points_here_is_refused_for_everything() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = start(&origin, "").await;
    let port = proxy.address("admin").port();
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "[::ffff:10.0.0.1]",
        "evil.example@localhost",
        "localhost, evil.example",
        "",
    ] {
        for path in READS.iter().chain(&["/api/events", "/nothing"]) {
            let answer = ask(&proxy, "GET", path, &format!("Host: {host}\r\n"), "").await;
            assert_eq!(status(&answer), "403", "{host} {path}: {answer}");
        }
        for path in ["/reload", CIRCUIT] {
            let answer = ask(&proxy, "POST", path, &format!("Host: {host}\r\n"), OPEN).await;
            assert_eq!(status(&answer), "403", "{host} {path}: {answer}");
        }
    }
    for fields in ["", "Host: localhost\r\nHost: evil.example\r\n"] {
        assert_eq!(status(&ask(&proxy, "GET", "/config", fields, "").await), "403", "{fields}");
    }
    // A URL as the target doesn't get around the Host, nor the other way round.
    for (url, host) in [("http://localhost/config", "evil.example"), ("http://evil.example/config", "localhost")] {
        assert_eq!(status(&ask(&proxy, "GET", url, &format!("Host: {host}\r\n"), "").await), "403", "{url} {host}");
    }
    for host in ["localhost", "127.0.0.1", "[::1]:1", "127.1", "outrigger.localhost:9"] {
        assert_eq!(status(&ask(&proxy, "GET", "/config", &format!("Host: {host}\r\n"), "").await), "200", "{host}");
    }
    assert!(!is_open(&proxy).await);
    proxy.stop().await;
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing_and_listens_to_nothing() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = start(&origin, "").await;
    let port = proxy.address("admin").port();
    let host = format!("Host: localhost:{port}\r\n");
    let foreign = [
        "Origin: http://evil.example\r\n".to_owned(),
        "Origin: null\r\n".to_owned(),
        format!("Origin: https://localhost:{port}\r\n"),
        format!("Origin: http://localhost:{}\r\n", port ^ 1),
        format!("Origin: http://127.0.0.1:{port}\r\n"),
        format!("Origin: http://localhost:{port}\r\nOrigin: http://evil.example\r\n"),
        format!("Origin: http://localhost:{port}\r\nSec-Fetch-Site: cross-site\r\n"),
        "Sec-Fetch-Site: cross-site\r\n".to_owned(),
        "Sec-Fetch-Site: same-site\r\n".to_owned(),
        "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n".to_owned(),
        "Origin: \r\n".to_owned(),
    ];
    for fields in &foreign {
        // As a form sends it, which asks nobody before.
        for kind in
            ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json"]
        {
            let fields = format!("{host}{fields}Content-Type: {kind}\r\n");
            for path in ["/reload", CIRCUIT] {
                let answer = ask(&proxy, "POST", path, &fields, OPEN).await;
                assert_eq!(status(&answer), "403", "{fields} {path}: {answer}");
            }
        }
        let answer = ask(&proxy, "GET", "/api/events", &format!("{host}{fields}"), "").await;
        assert_eq!(status(&answer), "403", "{fields}: {answer}");
    }
    assert!(!is_open(&proxy).await);
    let own = format!("{host}Origin: http://localhost:{port}\r\nSec-Fetch-Site: same-origin\r\n");
    assert_eq!(status(&ask(&proxy, "POST", CIRCUIT, &own, OPEN).await), "200");
    assert!(is_open(&proxy).await);
    proxy.stop().await;
}

#[tokio::test]
async fn no_answer_may_be_read_framed_embedded_or_kept_by_another_page() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = start(&origin, "").await;
    let foreign = "Host: localhost\r\nOrigin: http://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
    let mut answers = Vec::new();
    for path in READS.iter().chain(&["/nothing", "/reload"]) {
        answers.push(ask(&proxy, "GET", path, foreign, "").await);
    }
    // A preflight is not granted.
    for path in ["/reload", CIRCUIT, "/config"] {
        let fields = format!(
            "{foreign}Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n"
        );
        let answer = ask(&proxy, "OPTIONS", path, &fields, "").await;
        assert_eq!(status(&answer), "405", "{answer}");
        answers.push(answer);
    }
    answers.push(ask(&proxy, "GET", "/config", "Host: evil.example\r\n", "").await);
    for answer in answers {
        let head = answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
        assert!(!head.contains("access-control-"), "{head}");
        for field in [
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "frame-ancestors 'none'",
            "cross-origin-resource-policy: same-origin",
            "cache-control: no-store",
        ] {
            assert!(head.contains(field), "{field}: {head}");
        }
        assert_eq!(head.matches("content-security-policy:").count(), 1, "{head}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn neither_another_method_nor_another_spelling_of_a_path_changes_anything() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = start(&origin, "").await;
    let host = "Host: localhost\r\n";
    for override_ in ["X-HTTP-Method-Override: POST\r\n", "X-HTTP-Method: POST\r\n", "X-Method-Override: POST\r\n"] {
        for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "QUERY"] {
            for path in ["/reload", CIRCUIT, "/reload?_method=POST"] {
                let answer = ask(&proxy, method, path, &format!("{host}{override_}"), OPEN).await;
                assert_eq!(status(&answer), "405", "{method} {path}: {answer}");
            }
        }
    }
    for path in [
        "/reload/",
        "//reload",
        "/./reload",
        "/x/../reload",
        "/%72eload",
        "/reload%00",
        "/reload;x",
        "/RELOAD",
        "/api//upstreams/up/circuit",
        "/api/upstreams/up/circuit/",
        "/api/upstreams/../upstreams/up/circuit",
        "/api/upstreams/up%2Fcircuit",
        "/api/upstreams//circuit",
    ] {
        let answer = ask(&proxy, "POST", path, host, OPEN).await;
        assert_eq!(status(&answer), "404", "{path}: {answer}");
    }
    // As if it were a proxy itself.
    let answer = ask(&proxy, "CONNECT", "localhost:80", "Host: localhost:80\r\n", "").await;
    assert!(matches!(status(&answer), "400" | "404" | "405"), "{answer}");
    for request in
        ["Upgrade: websocket\r\nConnection: upgrade\r\n", "Upgrade: h2c\r\nConnection: upgrade, http2-settings\r\n"]
    {
        let answer = ask(&proxy, "GET", "/livez", &format!("{host}{request}"), "").await;
        assert_eq!(status(&answer), "200", "{answer}");
    }
    assert!(!is_open(&proxy).await);
    proxy.stop().await;
}

#[tokio::test]
async fn with_a_token_nothing_is_shown_or_changed_without_exactly_that_token() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "the-token").unwrap();
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = start(&origin, &format!("admin_token: '${{file:{}}}'\n", file.path().display())).await;
    for sent in [
        "",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: Bearer the-toke\r\n",
        "Authorization: Bearer the-token2\r\n",
        "Authorization: Bearer THE-TOKEN\r\n",
        "Authorization: Basic dGhlLXRva2Vu\r\n",
        "Authorization: the-token\r\n",
        "Authorization: Bearer the-token\r\nAuthorization: Bearer the-token\r\n",
        "Proxy-Authorization: Bearer the-token\r\n",
        "Cookie: token=the-token\r\n",
    ] {
        let fields = format!("Host: localhost\r\n{sent}");
        let reads = READS.iter().filter(|path| !matches!(**path, "/" | "/livez"));
        for (method, path) in reads.map(|path| ("GET", *path)).chain([
            ("GET", "/api/events"),
            ("GET", "/config?token=the-token"),
            ("POST", "/reload"),
            ("POST", CIRCUIT),
        ]) {
            let answer = ask(&proxy, method, path, &fields, OPEN).await;
            assert_eq!(status(&answer), "401", "{sent} {path}: {answer}");
            assert!(!answer.contains("the-token") && answer.contains("bearer") | answer.contains("Bearer"), "{answer}");
        }
    }
    assert!(!is_open(&proxy).await);
    let fields = "Host: localhost\r\nAuthorization: Bearer the-token\r\n";
    assert_eq!(status(&ask(&proxy, "POST", CIRCUIT, fields, OPEN).await), "200");
    proxy.stop().await;
}

#[tokio::test]
async fn an_oversized_body_or_head_is_refused_and_costs_no_memory() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = start(&origin, "").await;
    let huge = "Host: localhost\r\nContent-Length: 99999999999\r\n";
    for (path, expected) in [(CIRCUIT, "413"), ("/reload", "200"), ("/config", "405")] {
        let mut client = Client::connect(proxy.address("admin")).await;
        client.send(format!("POST {path} HTTP/1.1\r\n{huge}\r\n{}", "x".repeat(8000))).await;
        let head = client.head().await;
        assert_eq!(status(&head), expected, "{path}: {head}");
    }
    let chunked = format!("POST {CIRCUIT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut client = Client::connect(proxy.address("admin")).await;
    client.send(format!("{chunked}2000\r\n{}\r\n", "x".repeat(0x2000))).await;
    assert_eq!(status(&client.head().await), "413");
    let mut client = Client::connect(proxy.address("admin")).await;
    // It may be refused before all of it was sent.
    let head = format!("GET /config HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1 << 16));
    let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, head.as_bytes()).await;
    let (answer, _) = client.end().await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
    proxy.stop().await;
}

#[tokio::test]
async fn those_who_listen_from_everywhere_can_t_take_the_place_of_a_probe() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = start(&origin, "").await;
    let mut listeners = Vec::new();
    for _ in 0..64 {
        let mut client = Client::connect(proxy.address("admin")).await;
        client.send("GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        listeners.push(client);
    }
    eventually("all places are taken", async || {
        status(&ask(&proxy, "GET", "/api/events", "Host: localhost\r\n", "").await) == "503"
    })
    .await;
    assert_eq!(status(&ask(&proxy, "GET", "/livez", "Host: localhost\r\n", "").await), "200");
    assert_eq!(status(&ask(&proxy, "GET", "/config", "Host: localhost\r\n", "").await), "200");
    proxy.stop().await;
}

#[tokio::test]
async fn the_control_port_is_not_reached_through_the_proxy_port() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy =
        start(&origin, "  local: {hosts: [127.0.0.1, \"*.localhost\"], scheme: http, circuit_breaker: off, allow_addresses: [loopback]}\n")
            .await;
    let port = proxy.address("admin").port();
    for host in ["127.0.0.1", "a.localhost", "0x7f.1", "[::ffff:127.0.0.1]"] {
        for request in [
            format!("GET http://{host}:{port}/config HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"),
            format!(
                "POST http://{host}:{port}/reload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            ),
            format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"),
        ] {
            let got = proxy.talk(request.as_bytes()).await;
            let elsewhere = host == "a.localhost" && got.contains("[::1]");
            assert!(got.starts_with("HTTP/1.1 508 ") || elsewhere, "{request}: {got}");
        }
    }
    proxy.stop().await;
}
