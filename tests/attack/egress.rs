//! Where nobody may go: every spelling of an address, by every entrance, is judged as the address that would be dialled.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Command;

use bytes::Bytes;
use http::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::{Client, Origin, Proxy};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What system libraries take for 127.0.0.1.
const LOOPBACK: &[&str] = &[
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "0x7f.1",
    "0X7f.0.0x0.1",
    "0177.0.0.1",
    "00177.0.0.01",
    "2130706433",
    "0x7f000001",
    "017700000001",
    "localhost",
    "LocalHost.",
    "some.localhost",
    "0.0.0.0",
    "0",
    "0x0",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7F00:1]",
    "[::127.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::127.0.0.1]",
    "[64:ff9b:1:7f00:0:100::]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[2001:0:808:808:0:0:80ff:fffe]",
    "[2001:db8::5efe:127.0.0.1]",
];

/// Where clouds serve credentials, and what system libraries take for those.
const METADATA: &[&str] = &[
    "169.254.169.254",
    "169.254.43518",
    "169.16689662",
    "0xa9.0xfe.0xa9.0xfe",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "2852039166",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::169.254.169.254]",
    "[::ffff:0:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::a9fe:a9fe]",
    "[64:ff9b:1:a9fe:a9:fe00::]",
    "[2002:a9fe:a9fe::1]",
    "[2001:0:a9fe:a9fe::]",
    "[2001:0:808:808:0:0:5601:5601]",
    "[2001:db8::200:5efe:a9fe:a9fe]",
    "169.254.170.2",
    "169.254.170.23",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "[fd00:ec2::254]",
    "[fd00:ec2::23]",
    "[fd20:ce::254]",
    "[fd00:c1::a9fe:a9fe]",
    "[fd00:a9fe:a9fe::1]",
    "[fd00:42::42]",
    "[fe80::a9fe:a9fe]",
];

/// Somebody who must not be called.
struct Canary(TcpListener);

impl Canary {
    fn at(address: &str) -> Canary {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        Canary(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// The kernel completes a handshake before it is accepted, so a connection that was made is seen here.
    fn was_called(&self) -> bool {
        self.0.accept().is_ok()
    }
}

/// A request by each of the ways in that name a host: URL, Host, CONNECT.
fn entrances(authority: &str) -> [(&'static str, String); 3] {
    [
        ("url", format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")),
        ("host", format!("GET / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")),
        ("connect", format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")),
    ]
}

/// The same over HTTP/2: the status of a GET and of a CONNECT.
async fn over_http2(proxy: SocketAddr, authority: &str) -> [u16; 2] {
    let stream = TcpStream::connect(proxy).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut statuses = [0; 2];
    for (at, (method, uri)) in
        [(Method::GET, format!("http://{authority}/")), (Method::CONNECT, authority.to_owned())].into_iter().enumerate()
    {
        let request = Request::builder().method(method).uri(uri).body(http_body_util::Empty::<Bytes>::new()).unwrap();
        statuses[at] = send.send_request(request).await.unwrap().status().as_u16();
    }
    statuses
}

#[tokio::test]
async fn no_spelling_of_loopback_is_dialled_by_any_entrance() {
    let (four, six) = (Canary::at("127.0.0.1:0"), Canary::at("[::]:0"));
    let proxy = Proxy::start("").await;
    for spelled in LOOPBACK {
        for port in [four.port(), six.port()] {
            let authority = format!("{spelled}:{port}");
            for (entrance, request) in entrances(&authority) {
                let got = proxy.talk(request.as_bytes()).await;
                assert!(got.starts_with("HTTP/1.1 403 "), "{entrance} {authority}: {got}");
                assert!(got.contains("urn:outrigger:error:denied_address"), "{entrance} {authority}: {got}");
            }
        }
        let authority = format!("{spelled}:{}", four.port());
        assert_eq!(over_http2(proxy.address("proxy"), &authority).await, [403, 403], "{authority}");
    }
    assert!(!four.was_called() && !six.was_called());
    proxy.stop().await;
}

#[tokio::test]
async fn no_spelling_of_a_metadata_address_is_dialled_also_where_link_local_and_private_are_allowed() {
    let wildcard = "upstreams:\n  all:\n    hosts: [\"*.test\"]\n    allow_addresses: [link_local, private, cgnat]\n";
    let listed: Vec<&str> =
        METADATA.iter().copied().filter(|host| host.parse::<IpAddr>().is_ok() || host.starts_with("[f")).collect();
    let allowing =
        wildcard.replace("\"*.test\"", &listed.iter().map(|host| format!("\"{host}\"")).collect::<Vec<_>>().join(", "));
    for text in ["", &allowing] {
        let proxy = Proxy::start(text).await;
        for spelled in METADATA {
            for (entrance, request) in entrances(&format!("{spelled}:80")) {
                let got = proxy.talk(request.as_bytes()).await;
                assert!(got.starts_with("HTTP/1.1 403 "), "{entrance} {spelled}: {got}");
                assert!(got.contains("urn:outrigger:error:denied_address"), "{entrance} {spelled}: {got}");
            }
        }
        proxy.stop().await;
    }
}

#[tokio::test]
async fn an_upstream_that_lists_an_address_gets_every_spelling_of_it() {
    let origin = Origin::answering(OK).await;
    let proxy = Proxy::start(&format!(
        "upstreams:\n  ten:\n    hosts: [10.9.9.9]\n    to: [\"http://{}\"]\n    https: deny\n",
        origin.address()
    ))
    .await;
    let spellings = [
        "10.9.9.9",
        "10.9.9.9.",
        "10.592137",
        "0xa.9.9.9",
        "012.011.011.011",
        "0x0a090909",
        "168364297",
        "[::ffff:10.9.9.9]",
        "[::FFFF:a09:909]",
    ];
    for (at, spelled) in spellings.iter().enumerate() {
        for (entrance, request) in entrances(&format!("{spelled}:443")) {
            let got = proxy.talk(request.as_bytes()).await;
            let expected = if entrance == "connect" { "HTTP/1.1 403 " } else { "HTTP/1.1 200 " };
            assert!(got.starts_with(expected), "{entrance} {spelled}: {got}");
            assert!(entrance != "connect" || got.contains("denied_connect") && got.contains("\"ten\""), "{got}");
        }
        assert_eq!(origin.seen().len(), 2 * (at + 1), "{spelled}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn names_compare_without_case_and_trailing_dot_by_every_entrance_and_no_further() {
    let origin = Origin::answering(OK).await;
    let more = "    https: deny\negress: {unmatched: deny}\n";
    let proxy = Proxy::for_origin(&origin, more).await;
    for (host, code) in [
        ("up.test", 200),
        ("UP.Test", 200),
        ("up.test.", 200),
        ("up.test..", 400),
        ("xup.test", 403),
        ("up.test.evil.test", 403),
        ("up.test\u{ff0e}", 400),
        ("u\u{440}.test", 400),
        ("up%2etest", 400),
        ("up.test%00", 400),
        ("xn--p-xtb.test", 403),
        ("u:p@up.test", 400),
        ("up.test@127.0.0.1", 400),
        ("up.test#@127.0.0.1", 400),
        ("up.test\\@127.0.0.1", 400),
        ("[up.test]", 400),
        ("[127.0.0.1]", 400),
        ("[::1%25lo]", 400),
        ("[fe80::1%eth0]", 400),
        ("[::1", 400),
        ("%31%32%37.0.0.1", 400),
        ("\u{ff11}\u{ff12}\u{ff17}.0.0.1", 400),
        ("127\u{3002}0\u{3002}0\u{3002}1", 400),
        ("+127.0.0.1", 400),
        ("127.0.0.1,up.test", 400),
        ("127..1", 400),
    ] {
        for (entrance, request) in entrances(&format!("{host}:80")) {
            let got = proxy.talk(request.as_bytes()).await;
            let expected = if (entrance, code) == ("connect", 200) { 403 } else { code };
            assert!(got.starts_with(&format!("HTTP/1.1 {expected} ")), "{entrance} {host}: {got}");
            assert!(code != 200 || got.contains("\"up\"") || expected == 200, "{entrance} {host}: {got}");
        }
    }
    assert_eq!(origin.seen().len(), 2 * 3);
    proxy.stop().await;
}

#[tokio::test]
async fn a_redirect_is_passed_on_and_never_followed() {
    let canary = Canary::at("127.0.0.1:0");
    for status in ["301 Moved", "302 Found", "303 See", "307 Again", "308 Moved"] {
        let location = format!("http://127.0.0.1:{}/secret", canary.port());
        let answer = format!("HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        let origin = Origin::answering(answer).await;
        let proxy = Proxy::for_origin(&origin, "").await;
        let got = proxy.talk(b"GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n").await;
        assert!(got.starts_with(&format!("HTTP/1.1 {}", &status[..3])) && got.contains(&location), "{got}");
        assert_eq!(origin.seen().len(), 1);
        proxy.stop().await;
    }
    assert!(!canary.was_called());
}

#[tokio::test]
async fn none_of_our_own_ports_is_reached_through_us_whatever_is_allowed() {
    let listeners = "proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", probes: \"[::]:0\"";
    let text = "defaults: {retry: off, circuit_breaker: off}\nupstreams:\n  all:\n    hosts: [127.0.0.1, 0.0.0.0, \"[::]\", localhost, \
                \"*.localhost\"]\n    scheme: http\n    allow_addresses: [loopback]\n  own:\n    hosts: [own.test]\n    to: \
                [\"http://127.0.0.1:9\"]\n    listen: 127.0.0.1:0\n";
    let proxy = Proxy::listening(listeners, text).await;
    for place in ["proxy", "admin", "probes", "own"] {
        let port = proxy.address(place).port();
        for spelled in [
            "127.0.0.1",
            "127.1",
            "0x7f000001",
            "[::ffff:127.0.0.1]",
            "localhost",
            "a.localhost.",
            "0.0.0.0",
            "0",
            "[::]",
        ] {
            for (entrance, request) in entrances(&format!("{spelled}:{port}")) {
                let got = proxy.talk(request.as_bytes()).await;
                // Of the two addresses of localhost the other one is not ours, and nobody listens there.
                let elsewhere = spelled.contains("localhost") && got.contains(&format!("[::1]:{port}"));
                assert!(got.starts_with("HTTP/1.1 508 ") || elsewhere, "{entrance} {place} {spelled}: {got}");
            }
        }
    }
    let metrics = proxy.metrics().await;
    assert!(metrics.contains(r#"outrigger_rejected_total{reason="loop""#), "{metrics}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_tunnel_to_our_own_port_by_another_of_the_machine_s_addresses_is_a_loop() {
    let text = "upstreams:\n  all:\n    hosts: [127.0.0.9, local.localhost]\n    allow_addresses: [loopback]\n";
    let proxy = Proxy::listening("proxy: \"0.0.0.0:0\", admin: off, probes: \"0.0.0.0:0\"", text).await;
    for place in ["proxy", "probes"] {
        let at = SocketAddr::new("127.0.0.1".parse().unwrap(), proxy.address("proxy").port());
        let port = proxy.address(place).port();
        for host in ["127.0.0.9", "local.localhost"] {
            for (entrance, request) in entrances(&format!("{host}:{port}")) {
                let mut client = Client::connect(at).await;
                client.send(request).await;
                let got = String::from_utf8_lossy(&client.rest().await).into_owned();
                assert!(got.starts_with("HTTP/1.1 508 "), "{entrance} {place} {host}: {got}");
            }
        }
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_upstream_s_own_port_leads_to_that_upstream_and_nowhere_else() {
    let (origin, canary) = (Origin::answering(OK).await, Canary::at("127.0.0.1:0"));
    let proxy = Proxy::for_origin(&origin, "  other: {hosts: [other.test]}\n").await;
    let at = proxy.address("up");
    let other = format!("other.test:{}", canary.port());
    for authority in ["other.test", &other, &format!("127.0.0.2:{}", canary.port()), "169.254.169.254"] {
        let host = format!("GET /x HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        let url = format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        let connect = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        for (request, statuses) in [(host, &["200"][..]), (url, &["421"]), (connect, &["421", "400"])] {
            let mut client = Client::connect(at).await;
            client.send(&request).await;
            let got = String::from_utf8_lossy(&client.rest().await).into_owned();
            assert!(statuses.iter().any(|status| got.starts_with(&format!("HTTP/1.1 {status} "))), "{request}: {got}");
        }
    }
    // By Host alone it is the upstream's all the same, under the name that `to` has.
    let to = origin.address().to_string();
    assert!(origin.seen().iter().all(|seen| seen.all("host") == [&*to]), "{:?}", origin.seen());
    assert!(!canary.was_called());
    proxy.stop().await;
}

#[tokio::test]
async fn an_intercepted_tunnel_is_found_by_every_spelling_and_serves_that_host_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (origin, canary) = (Origin::answering(OK).await, Canary::at("127.0.0.1:0"));
    let proxy = Proxy::start(&format!(
        "intercept: {{generate: true, dir: {}}}\nupstreams:\n  ten:\n    hosts: [10.9.9.9, deep.test]\n    to: [\"http://{}\"]\n    https: intercept\n",
        dir.path().display(),
        origin.address()
    ))
    .await;
    for (tunnel, inside, status) in [
        ("[::ffff:10.9.9.9]:443", "10.9.9.9:443", 200),
        ("10.592137:443", "[::ffff:a09:909]:443", 200),
        ("DEEP.test.:443", "deep.test:443", 200),
        ("deep.test:443", "10.9.9.9:443", 421),
        ("deep.test:443", &format!("127.0.0.1:{}", canary.port()), 421),
        ("deep.test:443", "169.254.169.254", 421),
        ("deep.test:443", "u:p@deep.test:443", 400),
    ] {
        let mut app = proxy.connect().await;
        app.send(format!("CONNECT {tunnel} HTTP/1.1\r\nHost: {tunnel}\r\n\r\n")).await;
        let head = app.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{tunnel}: {head}");
        app.send(format!("GET /in HTTP/1.1\r\nHost: {inside}\r\nConnection: close\r\n\r\n")).await;
        let got = String::from_utf8_lossy(&app.rest().await).into_owned();
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{tunnel} {inside}: {got}");
    }
    assert_eq!(origin.seen().len(), 3);
    assert!(!canary.was_called());
    proxy.stop().await;
}

#[tokio::test]
async fn a_kept_connection_is_not_used_after_a_reload_that_forbids_its_address() {
    let origin = Origin::answering(OK).await;
    let port = origin.address().port();
    let text = |allow: &str| {
        format!("upstreams:\n  local:\n    hosts: [127.0.0.1]\n    scheme: http\n    allow_addresses: [{allow}]\n")
    };
    let request = format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    let proxy = Proxy::start(&text("loopback")).await;
    // The app's connection is kept too, and is as subject to it.
    let mut app = proxy.connect().await;
    for _ in 0..2 {
        app.send(&request).await;
        assert!(app.until("\r\n\r\nok").await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(origin.seen().iter().map(|seen| seen.connection).max(), Some(0));
    assert!(proxy.reload(&text("")).await.took_effect());
    app.send(&request).await;
    let refused = app.head().await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("destination_ip_prohibited"), "{refused}");
    assert_eq!(origin.seen().len(), 2);
    proxy.stop().await;
}

#[test]
fn an_address_from_the_environment_is_forbidden_like_one_that_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("outrigger.yaml");
    std::fs::write(&file, "version: 1\negress: {deny: [\"${KUBERNETES_SERVICE_HOST}\"]}\n").unwrap();
    for url in ["http://10.96.0.1/api", "https://[::ffff:10.96.0.1]/api", "http://0xa600001/"] {
        let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["explain", "--config"])
            .arg(&file)
            .args(["GET", url])
            .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("10.96.0.1/32") && text.contains("403"), "{url}: {text}");
    }
}

#[test]
fn explain_finds_the_upstream_of_an_address_by_every_spelling() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("outrigger.yaml");
    std::fs::write(&file, "version: 1\nupstreams: {ten: {hosts: [\"[::ffff:10.9.9.9]\"]}}\n").unwrap();
    for url in ["http://10.9.9.9/", "http://0xa090909/", "https://[::ffff:10.9.9.9]/", "https://10.592137/"] {
        let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["explain", "--format", "json", "--config"])
            .arg(&file)
            .args(["GET", url])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["upstream"]["name"].as_str().or(json["upstream"].as_str()), Some("ten"), "{url}: {text}");
    }
}
