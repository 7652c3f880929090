//! What the inspector lets pass, and what it does not.

use super::*;

const BOUNDS: Bounds = Bounds { bytes: 1024, fields: 10 };

fn inspect(text: &[u8]) -> Verdict {
    Inspector::new(BOUNDS).inspect(text)
}

fn refused(head: &str) -> u16 {
    match inspect(head.as_bytes()) {
        Verdict::Refuse(0, error) => error.status(),
        other => panic!("{head:?}: {other:?}"),
    }
}

/// Passed whole, and in whatever pieces it comes.
fn passes(text: &[u8]) {
    match inspect(text) {
        Verdict::Pass(n) if n == text.len() => {}
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(text)),
    }
    let mut inspector = Inspector::new(BOUNDS);
    let mut held = Vec::new();
    for &byte in text {
        held.push(byte);
        match inspector.inspect(&held) {
            Verdict::Pass(n) => drop(held.drain(..n)),
            other => panic!("{:?} byte by byte: {other:?}", String::from_utf8_lossy(text)),
        }
    }
    assert!(held.is_empty(), "{:?} left {held:?}", String::from_utf8_lossy(text));
}

#[test]
fn what_follows_an_upgrade_waits_until_it_is_answered() {
    for (head, body) in [("", ""), ("Content-Length: 2\r\n", "hi"), ("Transfer-Encoding: chunked\r\n", "0\r\n\r\n")] {
        let asks = format!("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n{head}\r\n{body}");
        let mut inspector = Inspector::new(BOUNDS);
        let verdict = inspector.inspect(format!("{asks}\0\n").as_bytes());
        assert!(matches!(verdict, Verdict::Pass(n) if n == asks.len()), "{verdict:?}");
        assert!(inspector.undecided() && !inspector.in_head() && !inspector.opaque());
        inspector.go_on();
        assert!(matches!(inspector.inspect(b"\0\n"), Verdict::Refuse(0, _)));
        let mut plain = Inspector::new(BOUNDS);
        plain.inspect(asks.as_bytes());
        plain.go_on();
        assert!(matches!(plain.inspect(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Verdict::Pass(27)));
        assert!(plain.in_head(), "the next one asked for nothing");
    }
}

#[test]
fn options_of_a_url_without_a_path_is_told_apart_from_that_of_its_root() {
    let mut inspector = Inspector::new(BOUNDS);
    for (target, everything) in [
        ("http://a", true),
        ("HTTPS://a:1", true),
        ("http://a/", false),
        ("http://a?x", false),
        ("/http://a", false),
        ("*", false),
    ] {
        inspector.inspect(format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        assert_eq!(inspector.take_options(), [everything], "{target}");
    }
    inspector.inspect(b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(inspector.take_options().is_empty());
}

#[test]
fn good_requests_pass_whole_and_byte_by_byte() {
    passes(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    passes(b"\r\nGET http://a/b?c HTTP/1.0\r\n\r\n");
    passes(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    passes(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    passes(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3 \t;x=\"y\"\r\nabc\r\n00\r\nT: u\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    passes(b"OPTIONS * HTTP/1.1\r\nHost: a\r\nX-Odd: caf\xc3\xa9\tx\r\n\r\n");
    passes(b"CONNECT a:443 HTTP/1.0\r\n\r\n");
    passes(b"GET /a{b}|\"c\" HTTP/1.1\r\nHost: a\r\n\r\n");
    // Trailers as large as they may be.
    let trailer = format!("T: {}\r\n", "u".repeat(BOUNDS.bytes - 5));
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    passes(format!("{head}0\r\n{trailer}\r\n").as_bytes());
}

#[test]
fn what_follows_a_connect_is_held_unjudged() {
    match inspect(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n\x16\x03\x01") {
        Verdict::Pass(n) => assert_eq!(n, 39),
        other => panic!("{other:?}"),
    }
}

#[test]
fn malformed_heads_are_refused() {
    for head in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \x0c5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\x0c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\u{e9}: x\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /\tx HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a/#x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /caf\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\u{7f} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http:// HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:0 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT http://a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT u@a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:443/x HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        "OUTRIGGER-REFUSED / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(refused(head), 400, "{head:?}");
    }
}

#[test]
fn large_heads_are_refused_by_what_is_large() {
    assert_eq!(refused(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1100))), 414);
    assert_eq!(refused(&format!("GET /{}", "x".repeat(1100))), 414);
    assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(1100))), 431);
    assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(10))), 431);
}

#[test]
fn a_malformed_request_behind_a_good_one_lets_that_pass() {
    match inspect(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n") {
        Verdict::Refuse(27, Error::BadRequest(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn broken_chunks_are_noticed() {
    for body in [
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "-1\r\n",
        "\r\n",
        "0x3\r\nabc\r\n",
        "ffffffffffffffff\r\n",
        "3 3\r\nabc\r\n",
        "3 \r\nabc\r\n",
        "3\x0c;x\r\nabc\r\n",
        "0\r\nA: b\r\r\n\r\n",
        "3;\u{1}\r\nabc\r\n",
        "0\r\nbad trailer\r\n\r\n",
        "0\r\nA: b\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        assert!(matches!(inspect(text.as_bytes()), Verdict::Broken(..)), "{body:?}");
    }
}

proptest::proptest! {
    /// Where it says that a head is good, hyper's parser and `http::Uri` think so too.
    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let mut text = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let _ = inspect(&bytes);
        text.extend(&bytes);
        let _ = inspect(&text);
    }

    #[test]
    fn a_target_that_passes_is_a_uri(target in "/[!-~]{0,20}") {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        if matches!(inspect(head.as_bytes()), Verdict::Pass(n) if n == head.len()) {
            proptest::prop_assert!(target.parse::<http::Uri>().is_ok());
        }
    }
}
