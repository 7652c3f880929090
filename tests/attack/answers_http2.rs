//! Upstreams that lie over HTTP/2, to an app that speaks HTTP/1: one well-formed answer, or one that is visibly broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::answers::{Got, final_answer};
use crate::frames::{END_HEADERS, END_STREAM, HEADERS, Peer, block, data, frame};
use crate::strict::Asked;
use crate::support::{Origin, Proxy};

const POLICIES: &str =
    "    retry: off\n    circuit_breaker: off\n    connections: {http: 2}\n    timeouts: {attempt: 2s, idle: 2s}\n";

/// What is sent on a request's stream.
type Frames = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// Answers the first request with these frames, and all others well.
async fn lying(frames: Frames) -> Origin {
    let state = Arc::new((frames, AtomicBool::new(false)));
    Origin::scripted(move |conn| {
        let state = Arc::clone(&state);
        async move {
            let mut peer = Peer::upstream(conn.stream, &[]).await;
            while let Some(got) = peer.next().await {
                if got.kind != HEADERS {
                    continue;
                }
                let answer = if state.1.swap(true, Ordering::Relaxed) {
                    [
                        head(got.stream, 0, &[(":status", "200"), ("content-length", "4")]),
                        data(got.stream, END_STREAM, "good"),
                    ]
                    .concat()
                } else {
                    (state.0)(got.stream)
                };
                peer.send(answer).await;
            }
        }
    })
    .await
}

fn head<N: AsRef<[u8]>, V: AsRef<[u8]>>(stream: u32, flags: u8, fields: &[(N, V)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, block(fields))
}

/// A 200 with one more field, and the body `ok`.
fn with(name: &'static [u8], value: &'static [u8]) -> Frames {
    Box::new(move |stream| {
        [head(stream, 0, &[(&b":status"[..], &b"200"[..]), (name, value)]), data(stream, END_STREAM, "ok")].concat()
    })
}

/// A head of these fields, and the body `ok`.
fn of(fields: &'static [(&'static str, &'static str)]) -> Frames {
    Box::new(move |stream| [head(stream, 0, fields), data(stream, END_STREAM, "ok")].concat())
}

fn say(say: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> Frames {
    Box::new(say)
}

const OK: &[(&str, &str)] = &[(":status", "200")];
const TWO: &[(&str, &str)] = &[(":status", "200"), ("content-length", "2")];

#[tokio::test]
async fn what_an_upstream_lies_over_http2_is_one_answer_of_http1_or_visibly_broken() {
    let cases: Vec<(&str, &str, Frames)> = vec![
        ("plain", "200", with(b"x", b"y")),
        ("a value with CRLF", "502", with(b"x", b"a\r\nSet-Cookie: evil=1")),
        ("a value with LF", "502", with(b"x", b"a\nSet-Cookie: evil=1")),
        ("a value with CR", "502", with(b"x", b"a\rSet-Cookie: evil=1")),
        ("a value with a zero byte", "502", with(b"x", b"a\0")),
        (
            "a value that is another answer",
            "502",
            with(b"x", b"a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        ),
        ("a name with CRLF", "502", with(b"x: y\r\nset-cookie", b"evil=1")),
        ("a name with a colon", "502", with(b"x: y", b"z")),
        ("a name with a space", "502", with(b"x ", b"z")),
        ("a name with a quotation mark", "502", with(b"x\"", b"z")),
        ("a name in capitals", "502", with(b"X", b"z")),
        ("no name", "502", with(b"", b"z")),
        ("a field of the connection", "502", with(b"connection", b"close")),
        ("a coding", "502", with(b"transfer-encoding", b"chunked")),
        ("an upgrade", "502", with(b"upgrade", b"websocket")),
        ("keep-alive", "502", with(b"keep-alive", b"timeout=5")),
        // h2 takes no notice of it, and so nobody behind it does.
        ("a pseudo field of requests", "200", with(b":path", b"/")),
        ("a pseudo field of nobody", "502", with(b":evil", b"/")),
        ("another status behind", "502", with(b":status", b"204")),
        ("white space around a value", "200", with(b"x", b" y\t")),
        ("no status", "502", of(&[("x", "y")])),
        ("a status of two digits", "502", of(&[(":status", "20")])),
        ("a status of four digits", "502", of(&[(":status", "2000")])),
        ("a status of letters", "502", of(&[(":status", "abc")])),
        ("a status with a split", "502", of(&[(":status", "200 OK\r\nX: y")])),
        ("status 099", "502", of(&[(":status", "099")])),
        ("a status behind a field", "502", of(&[("x", "y"), (":status", "200")])),
        ("a switch", "502", of(&[(":status", "101")])),
        ("a length that is short", "broken", of(&[(":status", "200"), ("content-length", "5")])),
        ("a length that is long", "broken", of(&[(":status", "200"), ("content-length", "1")])),
        ("differing lengths", "502", of(&[(":status", "200"), ("content-length", "2"), ("content-length", "3")])),
        ("a list of lengths", "502", of(&[(":status", "200"), ("content-length", "2, 3")])),
        ("an empty length", "502", of(&[(":status", "200"), ("content-length", "")])),
        ("a signed length", "502", of(&[(":status", "200"), ("content-length", "+2")])),
        ("the same length twice", "200", of(&[(":status", "200"), ("content-length", "2"), ("content-length", "2")])),
        ("204 with a body", "204", of(&[(":status", "204")])),
        ("204 with a length and a body", "204", of(&[(":status", "204"), ("content-length", "2")])),
        ("304 with a body", "304", of(&[(":status", "304")])),
        (
            "a body before the head",
            "502",
            say(|stream| [data(stream, 0, "evil"), head(stream, END_STREAM, OK)].concat()),
        ),
        (
            "informational answers",
            "200",
            say(|stream| {
                let early = head(stream, 0, &[(":status", "103"), ("link", "</x>")]).repeat(50);
                [early, head(stream, 0, TWO), data(stream, END_STREAM, "ok")].concat()
            }),
        ),
        ("an informational answer that ends it", "502", say(|stream| head(stream, END_STREAM, &[(":status", "103")]))),
        (
            "two heads",
            "broken",
            say(|stream| {
                [head(stream, 0, OK), data(stream, 0, "ok"), head(stream, 0, OK), data(stream, END_STREAM, "evil")]
                    .concat()
            }),
        ),
        ("a body that stops", "broken", say(|stream| [head(stream, 0, TWO), data(stream, 0, "o")].concat())),
        (
            "trailers that are another head",
            "200",
            say(|stream| {
                let trailers =
                    head(stream, END_STREAM, &[("content-length", "4"), ("set-cookie", "evil=1"), ("x\"", "y")]);
                [
                    head(stream, 0, &[(":status", "200"), ("trailer", "content-length, set-cookie")]),
                    data(stream, 0, "ok"),
                    trailers,
                ]
                .concat()
            }),
        ),
        (
            "trailers with a coding",
            "broken",
            say(|stream| {
                [
                    head(stream, 0, OK),
                    data(stream, 0, "ok"),
                    head(stream, END_STREAM, &[("transfer-encoding", "chunked")]),
                ]
                .concat()
            }),
        ),
        (
            "trailers with a split",
            "broken",
            say(|stream| {
                [
                    head(stream, 0, OK),
                    data(stream, 0, "ok"),
                    head(stream, END_STREAM, &[("x", "a\r\n\r\nHTTP/1.1 200")]),
                ]
                .concat()
            }),
        ),
    ];
    let mut failed = Vec::new();
    for (name, want, frames) in cases {
        let origin = lying(frames).await;
        let proxy = Proxy::for_origin(&origin, POLICIES).await;
        let (mut app, mut held) = (proxy.connect().await, Vec::new());
        let asks = "GET http://up.test/ HTTP/1.1\r\nHost: up.test\r\nTE: trailers\r\n\r\n";
        app.send(asks).await;
        let (got, open) = final_answer(&mut app, &mut held, Asked::Other).await;
        let good = match &got {
            Got::Whole(answer) => {
                let broken = want == "broken" && answer.status == 502;
                let body = if want == "200" { &b"ok"[..] } else { b"" };
                broken
                    || answer.status.to_string() == want
                        && (want == "502" || answer.message.body == body)
                        && answer.message.trailers.is_empty()
            }
            Got::Broken => want == "broken",
            Got::Nonsense(_) => false,
        };
        if !good || open && !held.is_empty() {
            failed.push(format!("{name}: {want} expected, but {got:?}, {:?}", String::from_utf8_lossy(&held)));
        }
        if !open {
            (app, held) = (proxy.connect().await, Vec::new());
        }
        app.send(asks).await;
        match final_answer(&mut app, &mut held, Asked::Other).await {
            (Got::Whole(answer), _) if answer.message.body == b"good" && held.is_empty() => {}
            (got, _) => failed.push(format!("{name}: then {got:?}")),
        }
        proxy.stop().await;
    }
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n"));
}
