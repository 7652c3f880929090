//! Two readers of the same bytes: the proxy, and the strict one. Streams of requests that are good, or nearly, arrive at the
//! upstream as the strict reader reads them, or do not arrive.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::answers::{Got, final_answer};
use crate::requests::{Door, FOLLOW_UP, Rig};
use crate::strict::{Asked, Read, answer};
use crate::support::{Origin, Proxy};

/// Bytes that mean something to somebody.
const MEANING: &[&[u8]] = &[
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b":",
    b" ",
    b"\t",
    b",",
    b";",
    b"\x0b",
    b"\x0c",
    b"\x7f",
    b"\x85",
    b"\xa0",
    b"\xff",
    b"0",
    b"\r\n\r\n",
    b"\r\n ",
    b"chunked",
    b"#",
    b"\"",
];

/// One slip of the pen.
#[derive(Clone, Debug)]
enum Slip {
    Insert(prop::sample::Index, &'static [u8]),
    Delete(prop::sample::Index),
    Replace(prop::sample::Index, u8),
    Double(prop::sample::Index),
}

impl Slip {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Slip::Insert(at, what) => {
                let at = at.index(bytes.len() + 1);
                drop(bytes.splice(at..at, what.iter().copied()));
            }
            Slip::Delete(at) => drop(bytes.remove(at.index(bytes.len()))),
            Slip::Replace(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            // A line again.
            Slip::Double(at) => {
                let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                let at = at.index(lines.len());
                *bytes = [&lines[..=at], &lines[at..]].concat().concat();
            }
        }
    }
}

fn slip() -> impl Strategy<Value = Slip> {
    let place = || any::<prop::sample::Index>();
    prop_oneof![
        4 => (place(), prop::sample::select(MEANING)).prop_map(|(at, what)| Slip::Insert(at, what)),
        2 => place().prop_map(Slip::Delete),
        2 => (place(), any::<u8>()).prop_map(|(at, byte)| Slip::Replace(at, byte)),
        1 => place().prop_map(Slip::Double),
    ]
}

fn line(name: &str, value: impl std::fmt::Display) -> String {
    format!("{name}: {value}\r\n")
}

/// A field, good or odd.
fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => ("[A-Za-z][A-Za-z0-9-]{0,6}", "[!-~]([ -~]{0,10}[!-~])?").prop_map(|(name, value)| line(&format!("X-{name}"), value)),
        1 => prop::sample::select(&["close", "keep-alive", "X-A", "Host, Cookie, TE", "upgrade", "content-length"][..])
            .prop_map(|value| line("Connection", value)),
        1 => prop::sample::select(&["X-A: 1\r\n", "TE: trailers\r\n", "Upgrade: websocket\r\n", "Upgrade: h2c\r\n", "Cookie: a=1\r\n", "Keep-Alive: 5\r\n"][..])
            .prop_map(str::to_owned),
    ]
}

#[derive(Clone, Debug)]
enum Body {
    None,
    Length(Vec<u8>),
    Chunks(Vec<Vec<u8>>, bool),
}

impl Body {
    /// Says among the fields of a head how it is framed. What follows the head.
    fn framed(self, fields: &mut Vec<String>, at: prop::sample::Index) -> Vec<u8> {
        match self {
            Body::None => Vec::new(),
            Body::Length(bytes) => {
                fields.insert(at.index(fields.len()), line("Content-Length", bytes.len()));
                bytes
            }
            Body::Chunks(chunks, trailer) => {
                fields.insert(at.index(fields.len()), line("Transfer-Encoding", "chunked"));
                let mut bytes = Vec::new();
                for chunk in &chunks {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
                }
                bytes.extend(if trailer { &b"0\r\nX-T: 1\r\n\r\n"[..] } else { b"0\r\n\r\n" });
                bytes
            }
        }
    }
}

fn body() -> impl Strategy<Value = Body> {
    // What is in a body may look like a request, or the end of one.
    let bytes = prop_oneof![
        2 => proptest::collection::vec(any::<u8>(), 1..12),
        1 => Just(b"GET /evil HTTP/1.1\r\nHost: up.test\r\n\r\n".to_vec()),
        1 => Just(b"0\r\n\r\n".to_vec()),
    ];
    prop_oneof![
        3 => Just(Body::None),
        2 => bytes.clone().prop_map(Body::Length),
        2 => (proptest::collection::vec(bytes, 0..3), any::<bool>()).prop_map(|(chunks, trailer)| Body::Chunks(chunks, trailer)),
    ]
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = prop::sample::select(&["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PROPFIND"][..]);
    let target = prop_oneof![
        "/[a-z0-9/?&=%._~-]{0,8}",
        "http://up\\.test(:80)?/[a-z]{0,4}",
        Just("http://UP.test?x".to_owned()),
        Just("http://up.test".to_owned()),
    ];
    let version = prop_oneof![9 => Just("1.1"), 1 => Just("1.0")];
    (method, target, version, proptest::collection::vec(field(), 0..4), body(), any::<prop::sample::Index>()).prop_map(
        |(method, target, version, mut fields, body, at)| {
            fields.push(line("Host", "up.test"));
            let rest = body.framed(&mut fields, at);
            [format!("{method} {target} HTTP/{version}\r\n{}\r\n", fields.concat()).into_bytes(), rest].concat()
        },
    )
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    (
        proptest::collection::vec(request(), 1..4),
        prop_oneof![1 => Just(0_usize), 3 => 1..4_usize],
        proptest::collection::vec(slip(), 3),
    )
        .prop_map(|(requests, count, slips)| {
            let mut bytes = requests.concat();
            slips.iter().take(count).for_each(|slip| slip.apply(&mut bytes));
            bytes.extend(FOLLOW_UP);
            bytes
        })
}

#[test]
fn whatever_an_app_sends_arrives_as_the_requests_that_a_strict_reader_reads_in_it_or_not_at_all() {
    let cases = std::env::var("OUTRIGGER_CASES").map_or(1500, |cases| cases.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let rig = runtime.block_on(Rig::start());
    let (forwarded, refused) = (Cell::new(0), Cell::new(0));
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() };
    let run = TestRunner::new(config).run(&stream(), |bytes| {
        let outcome = runtime.block_on(rig.judge(&Door::Proxy, &bytes)).map_err(TestCaseError::fail)?;
        forwarded.set(forwarded.get() + outcome.forwarded);
        refused.set(refused.get() + outcome.statuses.iter().filter(|status| **status == 400).count());
        Ok(())
    });
    run.unwrap();
    let cases = cases as usize;
    assert!(forwarded.get() > cases / 2 && refused.get() > cases / 8, "{forwarded:?} {refused:?} of {cases}");
    runtime.block_on(rig.finish(cases));
}

/// A field with a byte somewhere: from the byte, the field's name and its value.
type Place = fn(&[u8], &str, &str) -> Vec<u8>;

/// Everywhere that a byte can stand around a field that frames: before its name, behind it, around its value, and hidden in
/// another field.
#[tokio::test]
async fn no_byte_beside_a_framing_field_makes_two_requests_of_one() {
    let places: [Place; 10] = [
        |byte, name, value| [byte, name.as_bytes(), b": ", value.as_bytes()].concat(),
        |byte, name, value| [name.as_bytes(), byte, b": ", value.as_bytes()].concat(),
        |byte, name, value| [name.as_bytes(), b":", byte, value.as_bytes()].concat(),
        |byte, name, value| [name.as_bytes(), b": ", value.as_bytes(), byte].concat(),
        |byte, name, value| [b"X: X", byte, name.as_bytes(), b": ", value.as_bytes()].concat(),
        |byte, name, value| [name.as_bytes(), b": ", value.as_bytes(), byte, b"X: X"].concat(),
        |byte, name, value| [b"X: X\r", byte, name.as_bytes(), b": ", value.as_bytes()].concat(),
        |byte, name, value| [b"X: X", byte, b"\n", name.as_bytes(), b": ", value.as_bytes()].concat(),
        |byte, name, value| [name.as_bytes(), b": ", value.as_bytes(), b"\r", byte, b"X: X"].concat(),
        |byte, name, value| [name.as_bytes(), byte, b":", byte, value.as_bytes(), byte].concat(),
    ];
    let bytes: Vec<u8> = (0..=0x20)
        .chain([b'"', b'\'', b',', b':', b';', b'\\', b'_'])
        .chain(0x7f..=0x86)
        .chain([0xa0, 0xad, 0xfe, 0xff])
        .collect();
    let other =
        [("Transfer-Encoding", "chunked", "Content-Length: 5\r\n", "0\r\n\r\n"), ("Content-Length", "5", "", "hello")];
    // Each lane has a proxy of its own, since what reaches an upstream is counted.
    let lanes = (0..4).map(|lane| {
        let bytes = bytes.clone();
        async move {
            let rig = Rig::start().await;
            let mut count = 0;
            for (at, byte) in bytes.iter().enumerate().filter(|(at, _)| at % 4 == lane) {
                for (which, place) in places.iter().enumerate() {
                    // Two fields, by turns, so that every byte meets both over the places.
                    let (name, value, beside, body) = other[(at / 4 + which) % 2];
                    let field = place(&[*byte], name, value);
                    let head =
                        [b"POST / HTTP/1.1\r\nHost: up.test\r\n", beside.as_bytes(), &field, b"\r\n\r\n"].concat();
                    let sent = [&head, body.as_bytes(), FOLLOW_UP].concat();
                    if let Err(what) = rig.judge(&Door::Proxy, &sent).await {
                        panic!("byte {byte:#04x}: {what}");
                    }
                    count += 1;
                }
            }
            rig.finish(count).await;
        }
    });
    futures_util::future::join_all(lanes).await;
}

/// An answer of an upstream's, good but for a slip or two.
fn lie() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let status = prop::sample::select(
        &["200 OK", "404 Not Found", "204 No Content", "304 Not Modified", "200 ", "103 Early Hints"][..],
    );
    let version = prop_oneof![9 => Just("1.1"), 1 => Just("1.0")];
    let answer = (
        status,
        version,
        proptest::collection::vec(field(), 0..3),
        body(),
        any::<prop::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(|(status, version, mut fields, body, at, more)| {
            if let Body::None = body {
                fields.insert(0, line("Content-Length", 0));
            }
            fields.push("X-Last: 1\r\n".to_owned());
            let mut rest = body.framed(&mut fields, at);
            if more {
                rest.extend(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
            }
            [format!("HTTP/{version} {status}\r\n{}\r\n", fields.concat()).into_bytes(), rest].concat()
        });
    (answer, 0..3_usize, proptest::collection::vec(slip(), 2), any::<bool>()).prop_map(
        |(mut bytes, count, slips, head)| {
            slips.iter().take(count).for_each(|slip| slip.apply(&mut bytes));
            (bytes, head)
        },
    )
}

#[test]
fn whatever_an_upstream_answers_is_one_answer_to_the_app_or_visibly_broken_and_the_next_is_its_own() {
    let cases = std::env::var("OUTRIGGER_CASES").map_or(500, |cases| cases.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lie_told = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&lie_told);
    let (proxy, origin) = runtime.block_on(async move {
        let origin = Origin::scripted(move |mut conn| {
            let told = Arc::clone(&told);
            async move {
                while let Some(seen) = conn.request().await {
                    if seen.line().contains("/good") {
                        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
                        continue;
                    }
                    let bytes = told.lock().unwrap().clone();
                    if conn.try_send(&bytes).await.is_err() {
                        return;
                    }
                    // What it promised and didn't send will not come; but for that the connection stays.
                    let whole = |asked| matches!(answer(&bytes, asked, false), Read::Whole(ref answer, _) if answer.status >= 200);
                    if !whole(if seen.line().starts_with("HEAD") { Asked::Head } else { Asked::Other }) {
                        return;
                    }
                }
            }
        })
        .await;
        let policies = "    retry: off\n    circuit_breaker: off\n    connections: {http: 1}\n";
        (Proxy::for_origin(&origin, policies).await, origin)
    });
    let (passed, refused) = (Cell::new(0), Cell::new(0));
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() };
    let run = TestRunner::new(config).run(&lie(), |(bytes, head)| {
        *lie_told.lock().unwrap() = bytes.clone();
        let (method, asked) = if head { ("HEAD", Asked::Head) } else { ("GET", Asked::Other) };
        runtime.block_on(async {
            let (mut app, mut held) = (proxy.connect().await, Vec::new());
            app.send(format!("{method} http://up.test/lie HTTP/1.1\r\nHost: up.test\r\nTE: trailers\r\n\r\n")).await;
            let (got, open) = final_answer(&mut app, &mut held, asked).await;
            match (&got, answer(&bytes, asked, true)) {
                (Got::Nonsense(_), _) => return Err(TestCaseError::fail(format!("{got:?}"))),
                (Got::Whole(got), Read::Whole(told, _)) if got.status != 502 && told.status >= 200 => {
                    prop_assert_eq!(got.status, told.status);
                    prop_assert_eq!(&got.message.body, &told.message.body);
                    passed.set(passed.get() + 1);
                }
                (Got::Whole(_) | Got::Broken, _) => refused.set(refused.get() + 1),
            }
            prop_assert!(!open || held.is_empty(), "more than an answer: {:?}", held);
            for _ in 0..2 {
                if !open {
                    (app, held) = (proxy.connect().await, Vec::new());
                }
                app.send("GET http://up.test/good HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
                let (next, _) = final_answer(&mut app, &mut held, Asked::Other).await;
                let good = matches!(&next, Got::Whole(answer) if answer.message.body == b"good") && held.is_empty();
                prop_assert!(good, "then {:?} {:?}", next, held);
            }
            Ok(())
        })
    });
    run.unwrap();
    assert!(passed.get() > cases / 6 && refused.get() > cases / 6, "{passed:?} {refused:?} of {cases}");
    assert!(!origin.seen().iter().any(|seen| seen.line().contains("evil")));
    runtime.block_on(proxy.stop());
}
