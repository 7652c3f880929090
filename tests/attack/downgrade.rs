//! HTTP/2 from an app, HTTP/1 to the upstream: no byte of a field becomes a line, a field or a request of its own. The frames are
//! made by hand, since no library sends such.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::frames::{DATA, END_STREAM, GOAWAY, HEADERS, Peer, RST_STREAM, block, data, frame, headers};
use crate::frames::{END_HEADERS, request as pseudo};
use crate::requests::Rig;
use crate::strict::{Read, Request, request};

type Fields<'a> = Vec<(&'a [u8], &'a [u8])>;

/// What an app is told about a stream.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Status(u16),
    Reset,
    Goaway,
}

/// What a stream comes to.
async fn said(peer: &mut Peer, stream: u32) -> Said {
    loop {
        match peer.next().await {
            Some(frame) if frame.kind == HEADERS && frame.stream == stream => return Said::Status(frame.status()),
            Some(frame) if frame.kind == RST_STREAM && frame.stream == stream => return Said::Reset,
            Some(frame) if frame.kind == GOAWAY => return Said::Goaway,
            Some(_) => {}
            None => return Said::Goaway,
        }
    }
}

/// Sends frames on stream 1 of a new connection: what the app is told, and what reached the upstream. A good request behind
/// them is answered, where the connection lives on.
async fn send(rig: &Rig, frames: &[u8]) -> (Said, Vec<Request>) {
    let first = rig.witness.count();
    let mut peer = Peer::app(rig.proxy.address("proxy")).await;
    peer.send(frames).await;
    let said = said(&mut peer, 1).await;
    if said != Said::Goaway {
        peer.send(headers(3, END_STREAM, &pseudo("GET", "/follow-up"))).await;
        while let Some(frame) = peer.next().await {
            match (frame.kind, frame.stream) {
                (HEADERS, 3) => break,
                (GOAWAY, _) | (RST_STREAM, 3) => panic!("the good request was refused: {frame:?}"),
                _ => {}
            }
        }
    }
    let mut seen = rig.witness.since(first);
    if said != Said::Goaway {
        assert_eq!(seen.pop().map(|last| last.target).as_deref(), Some("/follow-up"));
    }
    (said, seen)
}

fn get<'a>(change: impl FnOnce(&mut Fields<'a>)) -> Fields<'a> {
    let mut fields: Fields<'a> =
        vec![(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"up.test"), (b":path", b"/x")];
    change(&mut fields);
    fields
}

fn with<'a>(name: &'a [u8], value: &'a [u8]) -> Fields<'a> {
    get(|fields| fields.push((name, value)))
}

fn instead<'a>(name: &'a [u8], value: &'a [u8]) -> Fields<'a> {
    get(|fields| fields.iter_mut().filter(|field| field.0 == name).for_each(|field| field.1 = value))
}

fn without<'a>(name: &[u8]) -> Fields<'a> {
    get(|fields| fields.retain(|field| field.0 != name))
}

fn on_stream_1(fields: &Fields<'_>) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, block(fields))
}

/// Heads that are refused, and of which nothing reaches the upstream.
async fn are_refused<'a>(cases: impl IntoIterator<Item = (impl std::fmt::Display, Fields<'a>)>) {
    let rig = Rig::start().await;
    let mut failed = Vec::new();
    for (name, fields) in cases {
        match send(&rig, &on_stream_1(&fields)).await {
            (Said::Reset | Said::Goaway | Said::Status(400), seen) if seen.is_empty() => {}
            other => failed.push(format!("{name}: {other:?}")),
        }
    }
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n"));
    rig.finish(0).await;
}

#[tokio::test]
async fn no_byte_of_an_http2_field_begins_a_line_a_field_or_a_request_of_http1() {
    let mut cases: Vec<(String, Fields<'_>)> = Vec::new();
    let values: [&[u8]; 14] = [
        b"a\r\nX: y",
        b"a\nX: y",
        b"a\rX: y",
        b"a\0X: y",
        b"\r\n",
        b"\n",
        b"\0",
        b"a\r\n\r\nGET /evil HTTP/1.1\r\nHost: up.test\r\n\r\n",
        b"a HTTP/1.1\r\nHost: up.test\r\n\r\nGET /evil HTTP/1.1\r\nX: y",
        b"a\n\nGET /evil HTTP/1.1\nHost: up.test\n\n",
        b"\r\nTransfer-Encoding: chunked",
        b"a\r\nContent-Length: 5",
        b"\x01",
        b"\x7f",
    ];
    for value in values {
        let shown = String::from_utf8_lossy(value);
        for name in [&b"x"[..], b"host", b"cookie", b"content-type"] {
            cases.push((format!("{}: {shown:?}", String::from_utf8_lossy(name)), with(name, value)));
        }
        for name in [&b":method"[..], b":scheme", b":authority", b":path"] {
            cases.push((format!("{}: {shown:?}", String::from_utf8_lossy(name)), instead(name, value)));
        }
        cases.push((format!("the name {shown:?}"), with(value, b"1")));
    }
    for name in [
        &b""[..],
        b" x",
        b"x ",
        b"x y",
        b"x:",
        b"x: y",
        b"x:y",
        b"X",
        b"Transfer-Encoding",
        b"x\ty",
        b"x\xe9",
        b"x(",
        b"x\"",
        b"x,y",
        b":",
        b":evil",
        b":status",
        b": path",
    ] {
        cases.push((format!("the name {:?}", String::from_utf8_lossy(name)), with(name, b"1")));
    }
    for (name, value) in [
        (&b":method"[..], &b""[..]),
        (b":method", b"GET /evil HTTP/1.1"),
        (b":method", b"GET "),
        (b":method", b"G:T"),
        (b":method", b"G\xe9T"),
        (b":scheme", b""),
        (b":scheme", b"http://up.test/evil"),
        (b":scheme", b"ftp"),
        (b":scheme", b"ht tp"),
        (b":scheme", b"http:"),
        (b":authority", b"up.test evil"),
        (b":authority", b"up.test/evil"),
        (b":authority", b"up.test/ HTTP/1.1"),
        (b":authority", b"u@up.test"),
        (b":authority", b"u:p@up.test"),
        (b":authority", b"up.test:0"),
        (b":authority", b"up.test:x"),
        (b":authority", b"up.test:80:80"),
        (b":authority", b"up.test?x"),
        (b":authority", b"up.test#x"),
        (b":authority", b"up.test, up.test"),
        (b":authority", b"\xfcp.test"),
        (b":authority", b"up%2etest"),
        (b":path", b""),
        (b":path", b"x"),
        (b":path", b"x y"),
        (b":path", b"/x y"),
        (b":path", b"/ HTTP/1.1"),
        (b":path", b"/\t"),
        (b":path", b"?x"),
        (b":path", b"*"),
        (b":path", b"http://evil.test/"),
        (b":path", b"http://up.test/"),
        (b":path", b"@evil.test/"),
        (b":path", b":80/"),
        (b":path", b"/\xe9"),
        (b":path", b"/\xc3\xa9"),
    ] {
        let shown = String::from_utf8_lossy(value);
        cases.push((format!("{} {shown:?}", String::from_utf8_lossy(name)), instead(name, value)));
    }
    are_refused(cases).await;
}

#[tokio::test]
async fn what_http2_forbids_is_refused_and_never_translated() {
    are_refused([
        ("connection", with(b"connection", b"close")),
        ("connection that names", with(b"connection", b"authorization")),
        ("keep-alive", with(b"keep-alive", b"timeout=5")),
        ("proxy-connection", with(b"proxy-connection", b"keep-alive")),
        ("transfer-encoding", with(b"transfer-encoding", b"chunked")),
        ("transfer-encoding identity", with(b"transfer-encoding", b"identity")),
        ("upgrade", with(b"upgrade", b"websocket")),
        ("te", with(b"te", b"gzip")),
        ("te with more", with(b"te", b"trailers, gzip")),
        ("a leading space", with(b"x", b" a")),
        ("a trailing tab", with(b"x", b"a\t")),
        ("a space before the length", with(b"content-length", b" 0")),
        ("another host", with(b"host", b"evil.test")),
        ("the same host at another port", with(b"host", b"up.test:81")),
        ("two hosts", get(|f| f.extend([(&b"host"[..], &b"up.test"[..]), (b"host", b"up.test")]))),
        ("a host that is none", with(b"host", b"up.test/x")),
        ("a host with a space", with(b"host", b"up.test evil")),
        ("two methods", get(|f| f.insert(1, (b":method", b"POST")))),
        ("two paths", get(|f| f.insert(1, (b":path", b"/evil")))),
        ("two authorities", get(|f| f.insert(1, (b":authority", b"evil.test")))),
        ("a pseudo field behind a field", get(|f| f.insert(1, (b"x", b"y")))),
        ("no method", without(b":method")),
        ("no scheme", without(b":scheme")),
        ("no path", without(b":path")),
        ("no authority and no host", without(b":authority")),
        ("a protocol without CONNECT", get(|f| f.insert(0, (b":protocol", b"websocket")))),
        ("CONNECT with a path", instead(b":method", b"CONNECT")),
        ("CONNECT without a port", vec![(b":method", b"CONNECT"), (b":authority", b"up.test")]),
        ("CONNECT without an authority", vec![(b":method", b"CONNECT")]),
        ("CONNECT with a split", vec![(b":method", b"CONNECT"), (b":authority", b"up.test:80\r\nX: y")]),
        (
            "extended CONNECT",
            get(|f| {
                f[0].1 = b"CONNECT";
                f.insert(1, (b":protocol", b"websocket"));
            }),
        ),
        ("a length and no body", with(b"content-length", b"5")),
        ("two lengths", get(|f| f.extend([(&b"content-length"[..], &b"0"[..]), (b"content-length", b"0")]))),
        ("a list of lengths", with(b"content-length", b"0, 0")),
        ("a signed length", with(b"content-length", b"+0")),
        ("a hexadecimal length", with(b"content-length", b"0x0")),
        ("an empty length", with(b"content-length", b"")),
        ("a huge length", with(b"content-length", b"18446744073709551616")),
    ])
    .await;
}

#[tokio::test]
async fn what_http2_allows_arrives_with_one_meaning() {
    let rig = Rig::start().await;
    for (name, fields, line, field) in [
        ("plain", get(|_| {}), ("GET", "/x"), None),
        ("the same host", with(b"host", b"UP.test:80"), ("GET", "/x"), None),
        ("te: trailers", with(b"te", b"trailers"), ("GET", "/x"), Some(("te", &b"trailers"[..]))),
        ("colons and spaces in a value", with(b"x", b"a: b\tc"), ("GET", "/x"), Some(("x", b"a: b\tc"))),
        ("other letters in a value", with(b"x", b"\xff\xe9"), ("GET", "/x"), Some(("x", b"\xff\xe9"))),
        ("a fragment, which is nobody's but the app's", instead(b":path", b"/x?y#/evil"), ("GET", "/x?y"), None),
        ("percent signs", instead(b":path", b"/%0d%0aX:y"), ("GET", "/%0d%0aX:y"), None),
        ("a URL inside a path", instead(b":path", b"//evil.test/@x:1"), ("GET", "//evil.test/@x:1"), None),
        ("everything", get(|f| (f[0].1, f[3].1) = (b"OPTIONS", b"*")), ("OPTIONS", "*"), None),
        ("http2-settings", with(b"http2-settings", b"AAM"), ("GET", "/x"), None),
        ("proxy-authorization", with(b"proxy-authorization", b"Basic x"), ("GET", "/x"), None),
        (
            "the pieces of a cookie",
            get(|f| f.extend([(&b"cookie"[..], &b"a=1"[..]), (b"x", b"y"), (b"cookie", b"b=2")])),
            ("GET", "/x"),
            Some(("cookie", b"a=1; b=2")),
        ),
    ] {
        let (said, seen) = send(&rig, &on_stream_1(&fields)).await;
        assert_eq!(said, Said::Status(200), "{name}");
        let [seen] = &seen[..] else { panic!("{name}: {seen:?}") };
        assert_eq!((&*seen.method, &*seen.target), line, "{name}");
        assert_eq!(seen.message.all("host"), [b"up.test"], "{name}");
        assert!(seen.message.all("http2-settings").is_empty() && seen.message.all("proxy-authorization").is_empty());
        if let Some((field, value)) = field {
            assert_eq!(seen.message.all(field), [value], "{name}");
        }
    }
    rig.finish(0).await;
}

#[tokio::test]
async fn a_body_over_http2_is_as_long_as_its_head_says_or_never_whole() {
    let rig = Rig::start().await;
    let post = |length: &'static str| {
        let mut fields = pseudo("POST", "/x").to_vec();
        fields.push(("content-length", length));
        headers(1, 0, &fields)
    };
    // Too short, too long at once, too long later, and trailers instead of the rest.
    let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&[("x-t", "1")]));
    for (name, length, rest, whole) in [
        ("right", "2", data(1, END_STREAM, "hi"), true),
        ("nothing, as said", "0", data(1, END_STREAM, ""), true),
        ("short", "5", data(1, END_STREAM, "hi"), false),
        ("empty", "5", data(1, END_STREAM, ""), false),
        ("long", "2", data(1, END_STREAM, "hiGET /evil HTTP/1.1\r\nHost: up.test\r\n\r\n"), false),
        (
            "long, though nothing was said to come",
            "0",
            data(1, END_STREAM, "GET /evil HTTP/1.1\r\nHost: up.test\r\n\r\n"),
            false,
        ),
        ("short, with trailers", "5", [data(1, 0, "hi"), trailers.clone()].concat(), false),
        ("right, with trailers", "2", [data(1, 0, "hi"), trailers].concat(), true),
    ] {
        let (said, seen) = send(&rig, &[post(length), rest].concat()).await;
        if whole {
            assert_eq!((said, seen.len()), (Said::Status(200), 1), "{name}");
            assert_eq!(seen[0].message.body.len().to_string(), length, "{name}");
        } else {
            // Where nothing was said to come, the request was whole before more came.
            let early = length == "0" && seen.len() == 1 && seen[0].message.body.is_empty();
            assert!(said != Said::Status(200) && seen.is_empty() || early, "{name}: {said:?} {seen:?}");
        }
    }
    rig.finish(8).await;
}

#[tokio::test]
async fn a_body_that_goes_on_behind_its_length_is_cut_there() {
    let rig = Rig::start().await;
    let mut fields = pseudo("POST", "/x").to_vec();
    fields.push(("content-length", "2"));
    let evil = "GET /evil HTTP/1.1\r\nHost: up.test\r\n\r\n";
    let frames = [headers(1, 0, &fields), data(1, 0, "hi"), data(1, DATA | END_STREAM, evil)].concat();
    let (_, seen) = send(&rig, &frames).await;
    assert!(seen.iter().all(|seen| seen.message.body == b"hi") && seen.len() <= 1, "{seen:?}");
    rig.finish(1).await;
}

/// What a careless translation of these fields would write.
fn careless(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let of = |name: &[u8]| fields.iter().find(|field| field.0 == name).map_or(&b""[..], |field| &field.1);
    let mut bytes = [of(b":method"), b" ", of(b":path"), b" HTTP/1.1\r\nHost: ", of(b":authority"), b"\r\n"].concat();
    for (name, value) in fields.iter().filter(|field| !field.0.starts_with(b":")) {
        bytes.extend([name, &b": "[..], value, b"\r\n"].concat());
    }
    bytes.extend(b"\r\n");
    bytes
}

#[test]
fn whatever_an_app_writes_into_http2_fields_arrives_as_one_request_that_says_the_same_or_not_at_all() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let rig = runtime.block_on(Rig::start());
    let odd = || {
        prop_oneof![
            4 => "[a-z0-9.:/?=%-]{0,8}".prop_map(String::into_bytes),
            1 => proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(0), Just(b' '), Just(b'\t'), Just(b':'), Just(b'#'), Just(b'@'), any::<u8>()], 1..4),
        ]
    };
    let joined = |prefix: &'static [u8], odd: Vec<u8>| [prefix, &odd].concat();
    let fields = (
        odd().prop_map(move |odd| joined(b"/", odd)),
        prop_oneof![8 => Just(vec![]), 1 => odd()].prop_map(move |odd| joined(b"up.test", odd)),
        prop_oneof![8 => Just(vec![]), 1 => odd()].prop_map(move |odd| joined(b"GET", odd)),
        proptest::collection::vec((odd().prop_map(move |odd| joined(b"x-", odd)), odd()), 0..3),
    )
        .prop_map(|(path, authority, method, more)| {
            let mut fields: Vec<(Vec<u8>, Vec<u8>)> = vec![
                (b":method".to_vec(), method),
                (b":scheme".to_vec(), b"http".to_vec()),
                (b":authority".to_vec(), authority),
                (b":path".to_vec(), path),
            ];
            fields.extend(more);
            fields
        });
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let (forwarded, refused) = (Cell::new(0), Cell::new(0));
    let run = TestRunner::new(config).run(&fields, |fields| {
        let frames = frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&fields));
        let (said, seen) = runtime.block_on(send(&rig, &frames));
        let meant = match request(&careless(&fields)) {
            Read::Whole(request, length) if length == careless(&fields).len() => Some(request),
            _ => None,
        };
        match (&said, &seen[..]) {
            (Said::Status(200), [seen]) => {
                forwarded.set(forwarded.get() + 1);
                // The app's own fragment is its own business.
                let fragment = fields[3].1.contains(&b'#');
                let Some(meant) = meant else {
                    prop_assert!(fragment, "forwarded what is none: {seen:?}");
                    return Ok(());
                };
                prop_assert_eq!((&seen.method, &seen.target), (&meant.method, &meant.target));
                let fields = |request: &Request| {
                    let mut fields: Vec<_> = request
                        .message
                        .fields
                        .iter()
                        .filter(|field| !field.name.eq_ignore_ascii_case("host"))
                        .cloned()
                        .collect();
                    fields.sort_by(|a, b| a.name.cmp(&b.name));
                    fields
                };
                prop_assert_eq!(fields(seen), fields(&meant));
            }
            (_, []) => refused.set(refused.get() + 1),
            other => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    });
    run.unwrap();
    assert!(forwarded.get() > 50 && refused.get() > 50, "{forwarded:?} {refused:?}");
    runtime.block_on(rig.finish(0));
}
