//! What an app says on the proxy port over HTTP/1, and what its upstream then hears: exactly the requests that a careful reader
//! finds in the app's bytes, and nothing else.

use std::cell::RefCell;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::fields;
use super::rig::{End, Notes, Rig, script};
use super::strict::{Asked, Field, Read, Request, answer, framed_request, request};

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
pub async fn upstream(mut stream: TcpStream, notes: Notes<Result<Request, String>>) {
    let mut held = Vec::new();
    loop {
        match request(&held) {
            Read::Whole(request, _) if request.http10 => {
                notes.add(Err(format!("the upstream was asked in HTTP/1.0: {request:?}")));
                return;
            }
            Read::Whole(request, length) => {
                let answer = if request.method == "HEAD" { BARE } else { ANSWER };
                held.drain(..length);
                notes.add(Ok(request));
                if stream.write_all(answer).await.is_err() {
                    return;
                }
                continue;
            }
            Read::Part(_) => {}
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
fn expected(bytes: &[u8]) -> (Vec<Request>, bool) {
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        match framed_request(&bytes[at..]) {
            Read::Whole(request, length) => {
                at += length;
                let last = request.method == "CONNECT";
                found.push(request);
                if last {
                    return (found, false);
                }
            }
            Read::Part(_) | Read::Bad(_) => return (found, false),
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
fn delivered(asked: &[Request], heard: &[Request], proxy: &str) -> Result<(), String> {
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
pub fn clean(request: &Request) -> Result<(), String> {
    let bad = |what: &str| Err(format!("{what} reached the upstream: {request:?}"));
    if request.method == "CONNECT" {
        return bad("a CONNECT");
    }
    let asterisk = request.target == "*" && request.method == "OPTIONS";
    if !request.target.starts_with('/') && !asterisk {
        return bad("a target that is no path");
    }
    if request.message.all("host").len() != 1 {
        return bad("not one Host");
    }
    let upgrade = !request.message.all("upgrade").is_empty();
    for Field { name, value } in &request.message.fields {
        let right = match &*name.to_ascii_lowercase() {
            "connection" => upgrade && value == b"Upgrade",
            "upgrade" => request.message.all("connection").len() == 1,
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
fn host(request: &Request) -> Option<String> {
    let text = match url(request) {
        Some(rest) => rest.split(['/', '?', '#']).next()?.to_owned(),
        None => String::from_utf8(request.message.all("host").first()?.to_vec()).ok()?,
    };
    let text = text.to_ascii_lowercase();
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name.to_owned(), Some(port.parse::<u16>().ok()?)),
        None => (text, None),
    };
    let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
    let secure = request.target.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
    Some(match port.filter(|port| *port != if secure { 443 } else { 80 }) {
        Some(port) => format!("{name}:{port}"),
        None => name,
    })
}

/// What follows the scheme, where the target is a URL. A path may have one inside.
pub fn url(request: &Request) -> Option<&str> {
    let (_, rest) = request.target.split_once("://").filter(|_| !request.target.starts_with('/'))?;
    Some(rest)
}

fn path(request: &Request) -> String {
    let Some(rest) = url(request) else { return request.target.clone() };
    match rest.find(['/', '?']) {
        None => "/".to_owned(),
        Some(at) if rest[at..].starts_with('/') => rest[at..].to_owned(),
        Some(at) => format!("/{}", &rest[at..]),
    }
}

/// Whether this is that request as a proxy passes it on.
fn same(asked: &Request, heard: &Request) -> Result<(), String> {
    let equal = |what: &str, ok: bool| if ok { Ok(()) } else { Err(format!("another {what}")) };
    equal("method", asked.method == heard.method)?;
    equal(
        "path",
        path(asked) == path(heard) || asked.method == "OPTIONS" && path(asked) == "/" && heard.target == "*",
    )?;
    equal("host", host(asked) == host(heard))?;
    equal("body", asked.message.body == heard.message.body)?;
    let named = asked.message.list("connection");
    let gone = |name: &str| {
        let named = named.iter().any(|token| token == name) && !KEPT.contains(&name);
        HOP_BY_HOP.contains(&name) || named
    };
    let framing = ["host", "content-length", "transfer-encoding"];
    let kept = |fields: &[Field]| -> Vec<Field> {
        let kept = fields.iter().map(|field| (field.name.to_ascii_lowercase(), field));
        let kept = kept.filter(|(lower, _)| !gone(lower) && !framing.contains(&&**lower));
        let mut kept: Vec<_> = kept.map(|(lower, field)| (lower, field.clone())).collect();
        kept.sort_by(|(one, _), (other, _)| one.cmp(other));
        kept.into_iter().map(|(_, field)| field).collect()
    };
    let (before, mut after) = (kept(&asked.message.fields), kept(&heard.message.fields));
    if asked.message.all("traceparent").is_empty() {
        // One is made here, and is one by the letter (W3C Trace Context section 3.2).
        let traced = after.iter().position(|field| field.name.eq_ignore_ascii_case("traceparent"));
        let traced = traced.map(|at| after.remove(at).value).unwrap_or_default();
        let shape = traced.iter().map(|b| if matches!(b, b'0'..=b'9' | b'a'..=b'f') { b'0' } else { *b });
        let right = b"00-00000000000000000000000000000000-0000000000000000-00";
        equal("trace", shape.eq(right.iter().copied()) && traced.starts_with(b"00-"))?;
    }
    equal(&format!("set of fields, {before:?} {after:?}"), before == after)?;
    let sent = |trailer: &Field| asked.message.trailers.iter().any(|of| of.value == trailer.value);
    equal("set of trailers", heard.message.trailers.iter().all(sent))?;
    for trailer in &heard.message.trailers {
        let name = trailer.name.to_ascii_lowercase();
        let framing = framing.contains(&&*name) || HOP_BY_HOP.contains(&&*name) || KEPT.contains(&&*name);
        equal("trailer", !framing)?;
    }
    Ok(())
}

/// Reads what the app got: answers to its requests in their order, and at most one more for what was none.
pub fn answered(asked: &[Request], heard: &[u8], end: End) -> Result<usize, String> {
    let (mut at, mut found) = (0, 0);
    while at < heard.len() {
        let method = asked.get(found).map(|request| Asked::by(&request.method));
        let read = |method| answer(&heard[at..], method, end == End::Closed);
        let read = match (method, read(method.unwrap_or(Asked::Other))) {
            // It may be half a HEAD that is answered.
            (None, Read::Part(_)) => read(Asked::Head),
            (_, read) => read,
        };
        match read {
            Read::Whole(answer, length) => {
                at += length;
                if answer.status == 100 {
                    continue;
                }
                found += 1;
                fields::check(&answer)?;
                if answer.message.all("x-origin").is_empty() && answer.message.all("proxy-status").is_empty() {
                    return Err(format!("nobody says who answered: {answer:?}"));
                }
                if found > asked.len() + 1 {
                    return Err(format!("there are more answers than requests: {answer:?}"));
                }
            }
            Read::Part(_) if end == End::Open => break,
            Read::Part(_) => return Err(format!("an answer is cut off: {:?}", String::from_utf8_lossy(&heard[at..]))),
            Read::Bad(why) => {
                return Err(format!("{why} of an answer is no HTTP: {:?}", String::from_utf8_lossy(&heard[at..])));
            }
        }
    }
    Ok(found)
}
