//! What an app says on the proxy port over HTTP/1, and what its upstream then hears: exactly the requests that a careful reader
//! finds in the app's bytes, and nothing else.

use std::cell::RefCell;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::fields;
use super::rig::{End, Notes, Rig, script};
use super::strict::{self, Field, Message, Read};

const UPSTREAMS: &str = r#"
trace: {send: true}
upstreams:
  up:
    hosts: [up.test, "*.up.test", "127.0.0.1"]
    to: ["http://{origin}"]
    allow_addresses: [loopback]
    retry: off
    circuit_breaker: off
    routes: [{name: keyed, match: {path: "/keyed/*"}, retry: {max_attempts: 1, idempotency_headers: [X-Own-Key]}}]
"#;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Origin: yes\r\n\r\nok";
const BARE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Origin: yes\r\n\r\n";

/// What passes one connection only.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// What `Connection` may name in vain.
const KEPT: [&str; 9] = [
    "authorization",
    "cookie",
    "content-type",
    "idempotency-key",
    "range",
    "expect",
    "if-match",
    "trailer",
    "traceparent",
];

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new(UPSTREAMS));
}

/// The upstream: reads strictly, answers each request, and writes down what it read.
pub async fn upstream(mut stream: TcpStream, notes: Notes<Result<Message, String>>) {
    let mut held = Vec::new();
    loop {
        match strict::request(&held, false) {
            Read::Whole(request, length) => {
                let answer = if request.first == "HEAD" { BARE } else { ANSWER };
                held.drain(..length);
                notes.add(Ok(request));
                if stream.write_all(answer).await.is_err() {
                    return;
                }
                continue;
            }
            Read::Short => {}
            Read::Bad(why) => {
                notes.add(Err(format!("the upstream can't read {why} in {:?}", String::from_utf8_lossy(&held))));
                return;
            }
        }
        match stream.read_buf(&mut held).await {
            Ok(n) if n > 0 => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// What a careful reader finds in the app's bytes, and whether it found anything else behind that.
fn expected(bytes: &[u8]) -> (Vec<Message>, bool) {
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        match strict::request(&bytes[at..], true) {
            Read::Whole(request, length) => {
                at += length;
                let last = request.first == "CONNECT";
                found.push(request);
                if last {
                    return (found, false);
                }
            }
            Read::Short | Read::Bad(_) => return (found, false),
        }
    }
    (found, true)
}

/// An app may say anything: its upstream hears each request of it once, unchanged but for what concerns one connection, or not
/// at all; every request is answered or its connection closed; every connection ends.
pub fn requests(data: &[u8]) {
    // That is another target.
    if data.starts_with(b"PRI * HTTP/2.0") {
        return;
    }
    RIG.with_borrow_mut(|rig| {
        let notes = Notes::new();
        let log = notes.clone();
        let proxy = rig.address("proxy");
        rig.run(
            |app| {
                let notes = notes.clone();
                async move {
                    notes.take();
                    let mut dialogue = app.say(data).await;
                    let open = dialogue.end == End::Open;
                    let answers = dialogue.heard.clone();
                    dialogue.finish().await?;
                    let (asked, alone) = expected(data);
                    let mut heard = Vec::new();
                    for note in notes.take() {
                        heard.push(note?);
                    }
                    delivered(&asked, &heard, &proxy.to_string())?;
                    let found = answered(&asked, &dialogue.heard, dialogue.end)?;
                    if alone && open && found < asked.len() {
                        let answers = String::from_utf8_lossy(&answers);
                        return Err(format!("{} requests wait for ever; there is {answers:?}", asked.len() - found));
                    }
                    Ok(())
                }
            },
            || {
                let log = log.clone();
                script(move |stream| upstream(stream, log.clone()))
            },
        );
    });
}

/// What the upstream heard is a part of what was asked, in that order.
fn delivered(asked: &[Message], heard: &[Message], proxy: &str) -> Result<(), String> {
    let mut rest = asked.iter();
    for request in heard {
        clean(request)?;
        let Some(of) = rest.find(|of| same(of, request).is_ok()) else {
            let why: Vec<_> = asked.iter().map(|of| same(of, request).unwrap_err()).collect();
            return Err(format!("nobody asked for {request:?} in {asked:?}: {why:?}"));
        };
        let host = host(of).ok_or_else(|| format!("a request without a host was passed on: {of:?}"))?;
        let name = host.rsplit_once(':').map_or(&*host, |(name, _)| name);
        let ours = name == "up.test" || name.ends_with(".up.test") || name == "127.0.0.1";
        if !ours || host == proxy {
            return Err(format!("a request for {host} was passed on"));
        }
    }
    Ok(())
}

/// Nothing in it concerns another connection.
pub fn clean(request: &Message) -> Result<(), String> {
    let bad = |what: &str| Err(format!("{what} reached the upstream: {request:?}"));
    if request.first == "CONNECT" {
        return bad("a CONNECT");
    }
    let asterisk = request.second == "*" && request.first == "OPTIONS";
    if !request.second.starts_with('/') && !asterisk {
        return bad("a target that is no path");
    }
    if request.all("host").count() != 1 {
        return bad("not one Host");
    }
    let upgrade = request.all("upgrade").count() > 0;
    for (name, value) in &request.fields {
        let right = match &*name.to_ascii_lowercase() {
            "connection" => upgrade && value == b"Upgrade",
            "upgrade" => request.all("connection").count() == 1,
            "te" => value == b"trailers",
            "transfer-encoding" => value == b"chunked",
            name => !HOP_BY_HOP.contains(&name),
        };
        if !right {
            return bad(name);
        }
    }
    Ok(())
}

/// The host that a request is for, as all would read it.
fn host(request: &Message) -> Option<String> {
    let text = match request.second.split_once("://") {
        Some((_, rest)) => rest.split(['/', '?', '#']).next()?.to_owned(),
        None => String::from_utf8(request.all("host").next()?.to_vec()).ok()?,
    };
    let text = text.to_ascii_lowercase();
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name.to_owned(), Some(port.parse::<u16>().ok()?)),
        None => (text, None),
    };
    let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
    let secure = request.second.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
    Some(match port.filter(|port| *port != if secure { 443 } else { 80 }) {
        Some(port) => format!("{name}:{port}"),
        None => name,
    })
}

fn path(request: &Message) -> String {
    let Some((_, rest)) = request.second.split_once("://").filter(|_| !request.second.starts_with('/')) else {
        return request.second.clone();
    };
    match rest.find(['/', '?']) {
        None => "/".to_owned(),
        Some(at) if rest[at..].starts_with('/') => rest[at..].to_owned(),
        Some(at) => format!("/{}", &rest[at..]),
    }
}

/// Whether this is that request as a proxy passes it on.
fn same(asked: &Message, heard: &Message) -> Result<(), String> {
    let equal = |what: &str, ok: bool| if ok { Ok(()) } else { Err(format!("another {what}")) };
    equal("method", asked.first == heard.first)?;
    equal("path", path(asked) == path(heard) || asked.first == "OPTIONS" && path(asked) == "/" && heard.second == "*")?;
    equal("host", host(asked) == host(heard))?;
    equal("body", asked.body == heard.body)?;
    let named = asked.tokens("connection");
    let gone = |name: &str| {
        let named = named.iter().any(|token| token == name) && !KEPT.contains(&name);
        HOP_BY_HOP.contains(&name) || named
    };
    let framing = ["host", "content-length", "transfer-encoding"];
    let kept = |fields: &[Field]| -> Vec<Field> {
        let kept = fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), name, value));
        let kept = kept.filter(|(lower, ..)| !gone(lower) && !framing.contains(&&**lower));
        let mut kept: Vec<_> = kept.map(|(lower, name, value)| (lower, (name.clone(), value.clone()))).collect();
        kept.sort_by(|(one, _), (other, _)| one.cmp(other));
        kept.into_iter().map(|(_, field)| field).collect()
    };
    let (before, mut after) = (kept(&asked.fields), kept(&heard.fields));
    if asked.all("traceparent").next().is_none() {
        // One is made here, and is one by the letter (W3C Trace Context section 3.2).
        let traced = after.iter().position(|(name, _)| name.eq_ignore_ascii_case("traceparent"));
        let traced = traced.map(|at| after.remove(at).1).unwrap_or_default();
        let shape = traced.iter().map(|b| if matches!(b, b'0'..=b'9' | b'a'..=b'f') { b'0' } else { *b });
        let right = b"00-00000000000000000000000000000000-0000000000000000-00";
        equal("trace", shape.eq(right.iter().copied()) && traced.starts_with(b"00-"))?;
    }
    equal(&format!("set of fields, {before:?} {after:?}"), before == after)?;
    equal("set of trailers", heard.trailers.iter().all(|trailer| asked.trailers.iter().any(|of| of.1 == trailer.1)))?;
    for (name, _) in &heard.trailers {
        let name = name.to_ascii_lowercase();
        let framing = framing.contains(&&*name) || HOP_BY_HOP.contains(&&*name) || KEPT.contains(&&*name);
        equal("trailer", !framing)?;
    }
    Ok(())
}

/// Reads what the app got: answers to its requests in their order, and at most one more for what was none.
pub fn answered(asked: &[Message], heard: &[u8], end: End) -> Result<usize, String> {
    let (mut at, mut found) = (0, 0);
    while at < heard.len() {
        let method = asked.get(found).map(|request| &*request.first);
        let read = |method| strict::answer(&heard[at..], method, end == End::Closed);
        let read = match (method, read(method.unwrap_or("GET"))) {
            // It may be half a HEAD that is answered.
            (None, Read::Short) => read("HEAD"),
            (_, read) => read,
        };
        match read {
            Read::Whole(answer, length) => {
                at += length;
                if answer.status() == 100 {
                    continue;
                }
                found += 1;
                fields::check(&answer)?;
                if answer.all("x-origin").next().is_none() && answer.all("proxy-status").next().is_none() {
                    return Err(format!("nobody says who answered: {answer:?}"));
                }
                if found > asked.len() + 1 {
                    return Err(format!("there are more answers than requests: {answer:?}"));
                }
            }
            Read::Short if end == End::Open => break,
            Read::Short => return Err(format!("an answer is cut off: {:?}", String::from_utf8_lossy(&heard[at..]))),
            Read::Bad(why) => {
                return Err(format!("{why} of an answer is no HTTP: {:?}", String::from_utf8_lossy(&heard[at..])));
            }
        }
    }
    Ok(found)
}
