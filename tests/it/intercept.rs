//! `https: intercept`: what is inside a tunnel gets the policies.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Origin, Proxy, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A proxy that intercepts `api.test` and `other.test`, and where its CA is.
async fn intercepting(origin: &Origin, more: &str) -> (Proxy, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&text(dir.path(), origin, more)).await;
    (proxy, dir)
}

fn text(dir: &Path, origin: &Origin, more: &str) -> String {
    let (ca, key) = (dir.join("ca"), dir.join("key"));
    let to = origin.address();
    format!(
        "intercept: {{generate: true, dir: {}, key_dir: {}}}\nupstreams:\n  other: {{hosts: [other.test], to: [\"http://{to}\"], https: \
         intercept}}\n  api:\n    hosts: [api.test]\n    to: [\"http://{to}\"]\n    https: intercept\n{more}",
        ca.display(),
        key.display()
    )
}

/// An app that trusts the CA.
fn trusting(dir: &Path, alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(dir.join("ca/ca.crt")).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    connector(roots, alpn)
}

fn connector(roots: RootCertStore, alpn: &[&str]) -> TlsConnector {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// A tunnel, open.
async fn connect(proxy: &Proxy, host: &str) -> TcpStream {
    let mut app = proxy.connect().await;
    app.send(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    let head = app.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    app.stream
}

async fn tls(connector: &TlsConnector, name: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    connector.connect(ServerName::try_from(name.to_owned()).unwrap(), tcp).await
}

/// Sends a request that asks for the connection's end, and reads to it.
async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    String::from_utf8(got).unwrap()
}

#[tokio::test]
async fn what_is_inside_gets_the_policies() {
    let origin = Origin::scripted(|mut conn| async move {
        for answer in ["HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", OK] {
            conn.request().await.unwrap();
            conn.send(answer).await;
        }
    })
    .await;
    let (proxy, dir) = intercepting(&origin, "    retry: {backoff: {base: 0, max: 1ms}}\n").await;
    let app = trusting(dir.path(), &["http/1.1"]);
    let mut stream = tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    let got = ask(&mut stream, "GET /x?y HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("ok"), "{got}");
    assert!(got.contains("received-status=200; attempts=2"), "{got}");
    let seen = origin.seen();
    assert_eq!((seen.len(), seen[1].line(), seen[1].all("host")), (2, "GET /x?y HTTP/1.1", vec!["api.test"]));
    let metrics = proxy.metrics().await;
    assert!(
        metrics.contains(r#"outrigger_intercept_handshakes_total{result="success",upstream="api"} 1"#),
        "{metrics}"
    );
    assert!(metrics.contains(r#"outrigger_requests_total{code="200",method="GET",route="",upstream="api"} 1"#));
    assert!(metrics.contains(r#"outrigger_certificate_expiry_timestamp_seconds{kind="intercept",upstream="api"}"#));
    proxy.stop().await;
}

#[tokio::test]
async fn http2_inside_carries_many_streams() {
    let origin = Origin::answering(OK).await;
    let (proxy, dir) = intercepting(&origin, "").await;
    let app = trusting(dir.path(), &["h2"]);
    let stream = tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let asked = (0..50).map(|n| {
        let mut send = send.clone();
        let uri = format!("https://api.test/{n}");
        async move {
            let request = http::Request::get(uri).body(Full::new(Bytes::new())).unwrap();
            let answer = send.send_request(request).await.unwrap();
            (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes())
        }
    });
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(answer, (200, Bytes::from("ok")));
    }
    assert!(origin.seen().iter().all(|seen| seen.all("host") == ["api.test"]));
    proxy.stop().await;
}

#[tokio::test]
async fn no_request_reaches_another_upstream_through_ones_tunnel() {
    let origin = Origin::answering(OK).await;
    let (proxy, dir) = intercepting(&origin, "").await;
    let app = trusting(dir.path(), &["http/1.1"]);
    for (tunnel, sni, host) in [
        ("api.test:443", "api.test", "other.test"),
        ("api.test:443", "api.test", "api.test:8443"),
        ("api.test:443", "other.test", "api.test"),
        ("api.test:443", "other.test", "other.test"),
        ("api.test:8443", "api.test", "api.test"),
    ] {
        let mut stream = tls(&app, sni, connect(&proxy, tunnel).await).await.unwrap();
        for target in ["/", &format!("https://{host}/")] {
            stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 421", "{tunnel} {sni} {host} {target}");
            stream = tls(&app, sni, connect(&proxy, tunnel).await).await.unwrap();
        }
        let got = ask(&mut stream, "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 400 ") || got.starts_with("HTTP/1.1 421 "), "{got}");
    }
    assert_eq!(origin.seen().len(), 0);
    proxy.stop().await;
}

#[tokio::test]
async fn plain_http_in_a_tunnel_gets_the_policies_too() {
    let origin = Origin::answering(OK).await;
    let (proxy, _dir) = intercepting(&origin, "").await;
    let mut stream = connect(&proxy, "api.test:80").await;
    stream.write_all(b"GET /p HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert!(got.starts_with("HTTP/1.1 200 ") && got.ends_with("ok"), "{got}");
    assert_eq!(origin.only().line(), "GET /p HTTP/1.1");
    proxy.stop().await;
}

#[tokio::test]
async fn what_is_neither_tls_nor_http_is_refused_or_passed_on() {
    let origin = Origin::scripted(|mut conn| async move {
        let got = conn.take(6).await.unwrap();
        conn.send(got).await;
    })
    .await;
    let (proxy, _dir) = intercepting(&origin, "").await;
    let mut stream = connect(&proxy, "api.test:5432").await;
    stream.write_all(b"\x00\x00\x00\x08db").await.unwrap();
    // Closed, as an end or a reset.
    assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    proxy.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let to = origin.address();
    let text = format!(
        "intercept: {{generate: true, dir: {}, unknown: tunnel}}\nupstreams:\n  db: {{hosts: [\"127.0.0.1\"], allow_addresses: \
         [loopback], https: intercept}}\n",
        dir.path().display()
    );
    let proxy = Proxy::start(&text).await;
    let mut stream = connect(&proxy, &to.to_string()).await;
    stream.write_all(b"\x00\x00\x00\x08db").await.unwrap();
    let mut got = [0; 6];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"\x00\x00\x00\x08db");
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_does_not_trust_the_ca_is_counted() {
    let origin = Origin::answering(OK).await;
    let (proxy, _dir) = intercepting(&origin, "").await;
    let app = connector(RootCertStore::empty(), &[]);
    tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap_err();
    let counted = r#"outrigger_intercept_handshakes_total{result="rejected",upstream="api"} 1"#;
    eventually("the rejection is counted", async || proxy.metrics().await.contains(counted)).await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_certificate_problem_of_the_upstreams_is_a_502_and_never_a_trusted_page() {
    // It speaks TLS, with a certificate of its own making.
    let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![key.cert.der().clone()],
            rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = acceptor.accept(stream).await;
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "intercept: {{generate: true, dir: {}}}\nupstreams:\n  api: {{hosts: [api.test], to: [\"https://{address}\"], https: \
         intercept}}\n",
        dir.path().join("ca").display()
    );
    let proxy = Proxy::start(&text).await;
    let app = trusting(dir.path(), &[]);
    let mut stream = tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    let got = ask(&mut stream, "GET / HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 502 ") && got.contains("error=tls_certificate_error"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn the_ca_outlives_a_restart_and_its_key_is_where_the_app_is_not() {
    let origin = Origin::answering(OK).await;
    let (proxy, dir) = intercepting(&origin, "").await;
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let before = read("ca/ca.crt");
    let app = trusting(dir.path(), &[]);
    proxy.stop().await;
    let proxy = Proxy::start(&text(dir.path(), &origin, "")).await;
    assert_eq!(read("ca/ca.crt"), before);
    tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    for entry in std::fs::read_dir(dir.path().join("ca")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("PRIVATE KEY"), "{}", path.display());
    }
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&dir.path().join("key/ca.key").metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    proxy.stop().await;
}

#[tokio::test]
async fn a_reload_that_intercepts_a_host_outside_of_the_ca_is_refused() {
    let origin = Origin::answering(OK).await;
    let (proxy, dir) = intercepting(&origin, "").await;
    let more = format!("  new: {{hosts: [new.test], to: [\"http://{}\"], https: intercept}}\n", origin.address());
    let status = proxy.reload(&text(dir.path(), &origin, &more)).await;
    assert!(!status.took_effect());
    assert!(format!("{:?}", status.problems).contains("restart the pod"), "{:?}", status.problems);
    let below =
        format!("  new: {{hosts: [\"*.api.test\"], to: [\"http://{}\"], https: intercept}}\n", origin.address());
    assert!(proxy.reload(&text(dir.path(), &origin, &below)).await.took_effect());
    proxy.stop().await;
}

#[tokio::test]
async fn an_idle_connection_inside_does_not_hold_the_drain() {
    let origin = Origin::answering(OK).await;
    let (proxy, dir) = intercepting(&origin, "shutdown: {quiet: 10ms, grace: 1m}\n").await;
    let app = trusting(dir.path(), &[]);
    let mut stream = tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert!(proxy.drain().await);
}

#[tokio::test]
async fn a_connection_inside_that_idled_serves_on_and_ends_as_one_in_use_does() {
    // Longer than a connection is kept ready for its next request.
    const IDLE: std::time::Duration = std::time::Duration::from_millis(1300);
    let origin = Origin::answering(OK).await;
    let dir = tempfile::tempdir().unwrap();
    let text = |https: &str| {
        text(dir.path(), &origin, "shutdown: {quiet: 10ms, grace: 1m}\n").replace("https: intercept\n", https)
    };
    let proxy = Proxy::start(&text("https: intercept\n")).await;
    let app = trusting(dir.path(), &["http/1.1"]);
    let get = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
        stream.write_all(get.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; OK.len()]).await.unwrap();
        streams.push(stream);
    }
    let [serves, leaves, retires, drains] = &mut streams[..] else { unreachable!() };
    for _ in 0..2 {
        tokio::time::sleep(IDLE).await;
        let (first, rest) = get.split_at(1);
        serves.write_all(first.as_bytes()).await.unwrap();
        serves.write_all(rest.as_bytes()).await.unwrap();
        let mut got = [0; OK.len()];
        serves.read_exact(&mut got).await.unwrap();
        assert_eq!(got, OK.as_bytes());
    }
    // Each end is with a farewell: without it reading fails.
    leaves.shutdown().await.unwrap();
    assert_eq!(leaves.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(proxy.reload(&text("https: tunnel\n")).await.took_effect());
    let got = ask(retires, get).await;
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("connection: close"), "{got}");
    assert!(proxy.drain().await);
    assert_eq!(drains.read(&mut [0; 1]).await.unwrap(), 0);
    proxy.stop().await;
}

#[tokio::test]
async fn an_upgrade_inside_is_relayed() {
    let origin = Origin::scripted(|mut conn| async move {
        conn.request().await.unwrap();
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n").await;
        let got = conn.take(5).await.unwrap();
        conn.send(got).await;
    })
    .await;
    let (proxy, dir) = intercepting(&origin, "").await;
    let app = trusting(dir.path(), &["http/1.1"]);
    let mut stream = tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: api.test\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    let got = String::from_utf8(got).unwrap();
    assert!(got.starts_with("HTTP/1.1 101 ") && got.ends_with("\r\n\r\nhello"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_ignores_proxies_is_served_by_sni() {
    let origin = Origin::answering(OK).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::listening(
        "proxy: \"127.0.0.1:0\", admin: off, probes: \"127.0.0.1:0\", tls: \"127.0.0.1:0\"",
        &text(dir.path(), &origin, ""),
    )
    .await;
    let app = trusting(dir.path(), &[]);
    let address = proxy.address("tls");
    let mut stream = tls(&app, "api.test", TcpStream::connect(address).await.unwrap()).await.unwrap();
    let port = address.port();
    let got = ask(&mut stream, &format!("GET / HTTP/1.1\r\nHost: api.test:{port}\r\nConnection: close\r\n\r\n")).await;
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    let error = tls(&app, "else.test", TcpStream::connect(address).await.unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    let mut stream = tls(&app, "api.test", TcpStream::connect(address).await.unwrap()).await.unwrap();
    let got =
        ask(&mut stream, &format!("GET / HTTP/1.1\r\nHost: other.test:{port}\r\nConnection: close\r\n\r\n")).await;
    assert!(got.starts_with("HTTP/1.1 421 "), "{got}");
    assert_eq!(origin.seen().len(), 1);
    proxy.stop().await;
}

#[tokio::test]
async fn a_name_that_leads_back_to_the_tls_listener_is_a_loop() {
    let dir = tempfile::tempdir().unwrap();
    let port = {
        // The name's port is that of the listener, as 443 is in a pod, so it must be known beforehand.
        let probe = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        probe.local_addr().unwrap().port()
    };
    let (ca, key) = (dir.path().join("ca"), dir.path().join("key"));
    // Without `to`, and a name that the hosts file has, as hostAliases would put it there. `localhost` may also be [::1], which the
    // unspecified address covers.
    let text = format!(
        "intercept: {{generate: true, dir: {}, key_dir: {}}}\nupstreams:\n  api: {{hosts: [localhost], https: intercept, \
         allow_addresses: [loopback]}}\n",
        ca.display(),
        key.display()
    );
    let listeners = format!("proxy: \"127.0.0.1:0\", admin: off, probes: \"127.0.0.1:0\", tls: \"0.0.0.0:{port}\"");
    let proxy = Proxy::listening(&listeners, &text).await;
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut stream = tls(&trusting(dir.path(), &[]), "localhost", tcp).await.unwrap();
    let got = ask(&mut stream, &format!("GET / HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n")).await;
    assert!(got.starts_with("HTTP/1.1 508 ") && got.contains(":loop"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_reload_that_ends_interception_costs_no_request_of_a_live_connection_and_closes_it() {
    let origin = Origin::answering(OK).await;
    let dir = tempfile::tempdir().unwrap();
    let text = |https: &str| text(dir.path(), &origin, "").replace("https: intercept\n", https);
    let proxy = Proxy::start(&text("https: intercept\n")).await;
    let app = trusting(dir.path(), &["http/1.1"]);
    let h2 = trusting(dir.path(), &["h2"]);
    let get = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
    for (https, status) in [("https: tunnel\n", 200), ("https: deny\n", 403)] {
        assert!(proxy.reload(&text("https: intercept\n")).await.took_effect());
        let mut stream = tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
        stream.write_all(get.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; OK.len()]).await.unwrap();
        let many = tls(&h2, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(many)).await.unwrap();
        let connection = tokio::spawn(connection);
        assert!(proxy.reload(&text(https)).await.took_effect());

        // Read to the end, which is a clean one.
        let got = ask(&mut stream, get).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")) && got.contains("connection: close"), "{https} {got}");
        let request = http::Request::get("https://api.test/").body(Full::new(Bytes::new())).unwrap();
        assert_eq!(send.send_request(request).await.unwrap().status().as_u16(), status);
        connection.await.unwrap().unwrap();
    }
    let other = format!("upstreams: {{new: {{hosts: [new.test], to: [\"http://{}\"]}}}}\n", origin.address());
    assert!(proxy.reload(&text("https: intercept\n")).await.took_effect());
    let mut stream = tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    assert!(proxy.reload(&other).await.took_effect());
    let got = ask(&mut stream, get).await;
    assert!(got.starts_with("HTTP/1.1 421 ") && got.contains("connection: close"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_connection_that_never_asks_is_closed_cleanly_inside_tls() {
    let origin = Origin::answering(OK).await;
    let (proxy, dir) = intercepting(&origin, "limits: {header_timeout: 200ms}\n").await;
    let app = trusting(dir.path(), &["http/1.1"]);
    let mut stream = tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    // An end without close_notify would be an error.
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    proxy.stop().await;
}

#[tokio::test]
async fn an_app_that_waits_for_the_servers_first_word_gets_it_long_before_the_header_timeout() {
    let origin = Origin::scripted(|mut conn| async move {
        conn.send("220 hello\r\n").await;
        conn.take(1).await;
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "limits: {{header_timeout: 1h}}\nintercept: {{generate: true, dir: {}, unknown: tunnel}}\nupstreams:\n  mail: {{hosts: \
         [\"127.0.0.1\"], allow_addresses: [loopback], https: intercept}}\n",
        dir.path().display()
    );
    let proxy = Proxy::start(&text).await;
    let mut stream = connect(&proxy, &origin.address().to_string()).await;
    let mut got = [0; 9];
    let read = tokio::time::timeout(crate::support::PATIENCE, stream.read_exact(&mut got));
    read.await.unwrap().unwrap();
    assert_eq!(&got, b"220 hello");
    proxy.stop().await;
}

#[tokio::test]
async fn a_ca_that_was_made_stays_over_reloads_that_move_it_or_lift_its_constraints() {
    let origin = Origin::answering(OK).await;
    let dir = tempfile::tempdir().unwrap();
    let text = |ca: &str, more: &str| {
        let to = origin.address();
        format!(
            "intercept: {{generate: true, dir: {}{more}}}\nupstreams:\n  api: {{hosts: [api.test], to: [\"http://{to}\"], https: \
             intercept}}\n",
            dir.path().join(ca).display()
        )
    };
    let proxy = Proxy::start(&text("ca", "")).await;
    let app = trusting(dir.path(), &["http/1.1"]);
    assert!(proxy.reload(&text("moved", ", constrain: off")).await.took_effect());
    tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    let read = |file: &str| std::fs::read(dir.path().join(file)).unwrap();
    assert_eq!(read("ca/ca.crt"), read("moved/ca.crt"));
    let outside = text("moved", ", constrain: off").replace("[api.test]", "[api.test, new.test]");
    assert!(!proxy.reload(&outside).await.took_effect());
    let nowhere = proxy.reload(&text("ca/ca.crt/below", "")).await;
    assert!(!nowhere.took_effect());
    assert!(format!("{:?}", nowhere.problems).contains("can't be written"), "{:?}", nowhere.problems);
    proxy.stop().await;
}

#[tokio::test]
async fn a_start_with_a_ca_that_does_not_cover_a_host_serves_the_others() {
    let origin = Origin::answering(OK).await;
    let (proxy, dir) = intercepting(&origin, "").await;
    proxy.stop().await;
    let more = format!("  new: {{hosts: [new.test], to: [\"http://{}\"], https: intercept}}\n", origin.address());
    let proxy = Proxy::start(&text(dir.path(), &origin, &more)).await;
    let app = trusting(dir.path(), &["http/1.1"]);
    tls(&app, "api.test", connect(&proxy, "api.test:443").await).await.unwrap();
    tls(&app, "new.test", connect(&proxy, "new.test:443").await).await.unwrap_err();
    proxy.stop().await;
}

/// The program, with its log in a file.
fn run(config: &Path, log: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    let log = std::fs::File::create(log).unwrap();
    command.args(["run", "--config"]).arg(config);
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// What it logged as "ready".
async fn ready(log: &Path) -> serde_json::Value {
    let mut found = None;
    eventually("it is ready", async || {
        let text = std::fs::read_to_string(log).unwrap();
        found = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find(|line| line["message"] == "ready");
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn get(address: &str, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    got
}

/// The key in every form that it might slip out in: PEM, DER, and the 32 bytes that are secret.
fn forms(pem: &str) -> Vec<Vec<u8>> {
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let der = der.secret_pkcs8_der();
    // RFC 5915: version 1, then the key as an octet string.
    let at = der.windows(5).position(|bytes| bytes == [2, 1, 1, 4, 32]).unwrap() + 5;
    let secret = &der[at..at + 32];
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = pem.lines().nth(1).unwrap();
    vec![
        secret.to_vec(),
        hex.to_uppercase().into(),
        hex.into(),
        format!("{secret:?}").into(),
        line[24..48].into(),
        b"PRIVATE KEY".to_vec(),
    ]
}

#[tokio::test]
async fn the_ca_s_key_is_in_nothing_that_the_app_or_anybody_reads() {
    let origin = Origin::answering(OK).await;
    let dir = tempfile::tempdir().unwrap();
    let (config, log) = (dir.path().join("outrigger.yaml"), dir.path().join("log"));
    let listeners = "listeners: {proxy: '127.0.0.1:0', admin: '127.0.0.1:0', probes: '127.0.0.1:0'}";
    let yaml = format!("version: 1\n{listeners}\nlog: {{level: debug}}\n{}", text(dir.path(), &origin, ""));
    std::fs::write(&config, yaml).unwrap();
    let mut process = run(&config, &log);
    let addresses = ready(&log).await;
    let of = |listener: &str| addresses[listener].as_str().unwrap().to_owned();

    let key = dir.path().join("key/ca.key");
    let pem = std::fs::read_to_string(&key).unwrap();
    let mut read: Vec<(String, Vec<u8>)> = Vec::new();
    // It is used, refused, and reloaded.
    for app in [trusting(dir.path(), &[]), connector(RootCertStore::empty(), &[])] {
        let mut stream = TcpStream::connect(of("proxy")).await.unwrap();
        stream.write_all(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n").await.unwrap();
        let mut head = [0; 19];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK\r\n\r\n");
        if let Ok(mut stream) = tls(&app, "api.test", stream).await {
            let got = ask(&mut stream, "GET / HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n").await;
            read.push(("inside".to_owned(), got.into_bytes()));
        }
    }
    for path in ["/config", "/api/upstreams", "/metrics", "/", "/ca.key"] {
        read.push((path.to_owned(), get(&of("admin"), path).await));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    read.push(("log".to_owned(), std::fs::read(&log).unwrap()));
    for what in ["print", "bundle", "env"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        let done = command.args(["ca", what, "--config"]).arg(&config).output().unwrap();
        assert!(done.status.success());
        read.push((what.to_owned(), [done.stdout, done.stderr].concat()));
    }

    // What is wrong with it is told without it: cut short, and without its certificate.
    let cut = pem.replace("-----END PRIVATE KEY-----", "");
    let certificate = dir.path().join("key/ca.crt");
    for broken in [&key, &certificate] {
        std::fs::write(&key, &pem).unwrap();
        std::fs::write(broken, &cut).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command.args(["run", "--config"]).arg(&config).stdout(Stdio::piped()).stderr(Stdio::piped());
        let done = command.output().unwrap();
        assert_eq!(done.status.code(), Some(1));
        read.push((format!("{} broken", broken.display()), [done.stdout, done.stderr].concat()));
    }
    for entry in std::fs::read_dir(dir.path().join("ca")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = Vec::new();
        std::fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
        read.push((path.display().to_string(), bytes));
    }
    assert_eq!(read.len(), 16);
    for (what, bytes) in &read {
        assert!(!bytes.is_empty(), "{what}");
        for form in forms(&pem) {
            let found = bytes.windows(form.len()).any(|window| window == form);
            assert!(!found, "{what} holds the key as {:?}", String::from_utf8_lossy(&form));
        }
    }
}
