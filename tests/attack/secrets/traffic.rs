//! What apps send: requests, what is none, and what goes on inside of streams.

use tokio::io::AsyncWriteExt;

use super::emitted::Emitted;
use super::known::secret;
use super::running::Running;

/// What may stand in the head of every request.
pub(super) fn fields() -> String {
    let one = |field: &str, name: &str| format!("{field}: {}\r\n", secret(name));
    [
        format!("Authorization: Bearer {}\r\n", secret("authorization")),
        format!("Proxy-Authorization: Basic {}\r\n", secret("proxy-authorization")),
        format!("Cookie: session={}\r\n", secret("cookie")),
        one("X-Api-Key", "api-key"),
        one("Idempotency-Key", "idempotency-key"),
        one("X-Tenant", "tenant"),
        format!("Referer: http://a.test/?{}\r\n", secret("referer")),
        format!("Trailer: x-sum\r\nX-{}: 1\r\n", secret("tenant")),
    ]
    .concat()
}

pub(super) fn query() -> String {
    format!("{}?key={}&{}", secret("path-token"), secret("query-value"), secret("query-word"))
}

/// Every request of the attack, and whether what comes back is the upstream's.
pub(super) fn requests() -> Vec<(String, bool)> {
    let (fields, query) = (fields(), query());
    let body = secret("request-body");
    let post = |url: &str, host: &str, more: &str| {
        format!(
            "POST {url} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let mut all = Vec::new();
    for what in ["ok", "500", "reset", "hang", "bad-length", "bad-header", "bad-status", "both", "broken", "bad-chunk"]
    {
        let mine = matches!(what, "ok" | "500" | "broken" | "bad-chunk");
        all.push((post(&format!("http://up.test/{what}/{query}"), "up.test", ""), mine));
        all.push((post(&format!("/{what}/{query}"), "up.test", ""), mine));
    }
    all.push((post(&format!("http://up.test/hook/{}", secret("hook-in-env")), "up.test", ""), true));
    for host in ["limited.test", "secure.test", "closed.test", "169.254.169.254", "127.0.0.1:9"] {
        for _ in 0..2 {
            all.push((post(&format!("http://{host}/ok/{query}"), host, ""), host == "limited.test"));
        }
    }
    // What is no request.
    let bad = |target: &str, more: &str| {
        (format!("GET {target} HTTP/1.1\r\nHost: up.test\r\n{fields}Connection: close\r\n{more}\r\n"), false)
    };
    let (name, value) = (secret("refused-name"), secret("refused-header"));
    all.push(bad(&format!("http://user:{}@up.test/{query}", secret("url-password")), ""));
    all.push(bad(&format!("http://up.test/{query}#{}", secret("query-word")), ""));
    all.push(bad(&format!("/{query}\u{7f}"), ""));
    all.push(bad("/ok", &format!("X {name}: {value}\r\n")));
    all.push(bad("/ok", &format!("X: {value}\u{1}\r\n")));
    all.push(bad("/ok", &format!(" {value}\r\n")));
    all.push(bad("/ok", &format!("{name}\u{1}: {value}\r\n")));
    all.push(bad("/ok", &format!("Content-Length: {value}\r\n")));
    all.push(bad("/ok", &format!("Transfer-Encoding: {value}\r\n")));
    all.push(bad("/ok", &format!("Host: {value}.test\r\n")));
    all.push(bad("/ok", &format!("Expect: {}\r\n", secret("refused-expect"))));
    all.push(bad("/ok", &format!("X-Large: {}\r\n", value.repeat(200))));
    all.push(bad(&format!("/{}", secret("path-token").repeat(200)), ""));
    let bad_chunk =
        format!("POST /ok HTTP/1.1\r\nHost: up.test\r\n{fields}Transfer-Encoding: chunked\r\n\r\n{body}\r\n");
    all.push((bad_chunk, false));
    all.push((
        format!(
            "POST /ok HTTP/1.1\r\nHost: up.test\r\n{fields}Connection: close, te\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
             1\r\nx\r\n0\r\nx-sum: {}\r\n\r\n",
            secret("request-trailer")
        ),
        true,
    ));
    all.push((
        post(
            "/grpc",
            "closed.test",
            &format!("Content-Type: application/grpc\r\nX-Meta: {}\r\n", secret("grpc-metadata")),
        ),
        false,
    ));
    // Tunnels, denied and to nobody.
    for (host, more) in [
        ("closed.test:443", String::new()),
        ("127.0.0.1:1", String::new()),
        (&*format!("u:{}@up.test:443", secret("connect-password")), String::new()),
    ] {
        all.push((
            format!("CONNECT {host} HTTP/1.1\r\nHost: up.test\r\n{fields}{more}\r\n{}", secret("tunnel-bytes")),
            false,
        ));
    }
    all
}

/// What goes on inside of streams.
pub(super) async fn streams(running: &Running, emitted: &mut Emitted) {
    let fields = fields();
    let mut client = running.connect("proxy").await;
    client
        .send(format!("GET /upgrade HTTP/1.1\r\nHost: up.test\r\n{fields}Connection: upgrade\r\nUpgrade: x\r\n\r\n"))
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    let _ = client.stream.write_all(secret("websocket").as_bytes()).await;
    client.end().await.0.clear();
    for inside in [
        format!("\0{}", secret("unknown-protocol")),
        format!("GET /{} HTTP/1.1\r\nHost: inside.test:443\r\n{fields}Connection: close\r\n\r\n", query()),
        format!("GET /{} HTTP/1.1\r\nHost: other.test:443\r\n{fields}Connection: close\r\n\r\n", query()),
        format!("\u{16}\u{3}\u{1}\0\u{20}{}", secret("tunnel-bytes")),
    ] {
        let mut client = running.connect("proxy").await;
        client.send("CONNECT inside.test:443 HTTP/1.1\r\nHost: inside.test:443\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "));
        let _ = client.stream.write_all(inside.as_bytes()).await;
        let answer = client.end().await.0;
        if !answer.starts_with(b"HTTP/1.1 200 ") {
            emitted.add("answers inside", answer);
        }
    }
    // Hung up in the middle.
    let mut client = running.connect("proxy").await;
    client
        .send(format!(
            "POST /ok HTTP/1.1\r\nHost: up.test\r\n{fields}Content-Length: 9999\r\n\r\n{}",
            secret("request-body")
        ))
        .await;
}
