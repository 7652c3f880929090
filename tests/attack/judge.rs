//! What an app sent, what the upstream was sent, what the app got: whether they belong together.
//!
//! The strict reader says how many requests the app's bytes are. Each must have reached the upstream once, with one and the
//! same meaning, or have been refused by an answer of the proxy's own; nothing else may have reached it; and each answer must
//! be that of its request.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::strict::{Answer, Asked, Field, Read, Request, absolute, answer, request};
use crate::support::PATIENCE;
use crate::witness::SERIAL;

/// What the app's bytes are, to the strict reader.
#[derive(Debug)]
pub(crate) struct Sent {
    /// The requests, in order.
    pub(crate) requests: Vec<Request>,
    /// What is behind them.
    pub(crate) tail: Tail,
    /// That begins as a HEAD does, so that an answer to it has no body.
    head_behind: bool,
}

/// What stands behind the last whole request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing, or what comes too late: the request before was the connection's last.
    End,
    /// The beginning of a request; whether its head is there.
    Part(bool),
    /// No request.
    Bad(&'static str),
}

/// Reads what an app sends.
pub(crate) fn sent(bytes: &[u8]) -> Sent {
    let mut requests: Vec<Request> = Vec::new();
    let mut at = 0;
    let tail = loop {
        // RFC 9112 section 2.2 lets empty lines stand before a request; the proxy takes four.
        let empty = bytes[at..].chunks(2).take(4).take_while(|two| two == b"\r\n").count();
        at += 2 * empty;
        match request(&bytes[at..]) {
            Read::Whole(request, length) => {
                at += length;
                let last = is_last(&request);
                requests.push(request);
                if last || at == bytes.len() {
                    break Tail::End;
                }
            }
            Read::Part(_) if at == bytes.len() => break Tail::End,
            Read::Part(head) => break Tail::Part(head),
            Read::Bad(what) => break Tail::Bad(what),
        }
    };
    let head_behind = bytes[at.min(bytes.len())..].starts_with(b"HEAD ");
    Sent { requests, tail, head_behind }
}

/// Whether the connection ends with it (RFC 9112 section 9.3).
fn is_last(request: &Request) -> bool {
    let connection = request.message.list("connection");
    connection.iter().any(|one| one == "close") || request.http10 && !connection.iter().any(|one| one == "keep-alive")
}

/// How an exchange came out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The statuses that the app got.
    pub(crate) statuses: Vec<u16>,
    /// How many of the requests reached the upstream.
    pub(crate) forwarded: usize,
}

/// Which Host the upstream has to see where the app's request has no URL.
#[derive(Clone, Debug)]
pub(crate) enum Host {
    /// The app's own.
    Kept,
    /// This one.
    Set(String),
}

/// Sends everything and reads to the end. What the app got, and whether it ended as it should.
pub(crate) async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8], sent: &Sent) -> Vec<u8> {
    // Some are refused before all was sent.
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut got = Vec::new();
    let mut told = false;
    loop {
        if !told
            && matches!(sent.tail, Tail::Part(_) | Tail::End)
            && answers(&got, sent, false).0.len() >= sent.requests.len()
        {
            // Nothing more will come of what was sent: the proxy waits for the rest.
            let _ = stream.shutdown().await;
            told = true;
        }
        match timeout(PATIENCE, stream.read_buf(&mut got)).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(Ok(_) | Err(_)) => return got,
            Err(_) => {
                panic!("silence; sent {:?}, got {:?}", String::from_utf8_lossy(bytes), String::from_utf8_lossy(&got))
            }
        }
    }
}

/// The final answers in some bytes, and what is behind them.
fn answers(got: &[u8], sent: &Sent, closed: bool) -> (Vec<Answer>, Result<usize, String>) {
    let mut answers = Vec::new();
    let mut at = 0;
    loop {
        let asked = match sent.requests.get(answers.len()) {
            Some(request) => Asked::by(&request.method),
            // A head that is refused is nobody's method yet; the connection ends behind its answer.
            None if sent.head_behind && !matches!(answer(&got[at..], Asked::Other, false), Read::Whole(..)) => {
                Asked::Head
            }
            None => Asked::Other,
        };
        match answer(&got[at..], asked, closed) {
            _ if at == got.len() => return (answers, Ok(0)),
            Read::Whole(answer, length) => {
                at += length;
                if answer.status >= 200 {
                    answers.push(answer);
                }
            }
            Read::Part(_) => return (answers, Ok(got.len() - at)),
            Read::Bad(what) => return (answers, Err(what.to_owned())),
        }
    }
}

/// Whether it all belongs together. `seen`: what reached the upstream meanwhile, whose first has the serial `first`.
///
/// # Errors
/// What does not.
pub(crate) fn judge(sent: &Sent, seen: &[Request], first: usize, got: &[u8], host: &Host) -> Result<Outcome, String> {
    let (answers, rest) = answers(got, sent, true);
    match rest {
        Ok(0) => {}
        Ok(n) => return Err(format!("the last answer is not whole: {n} bytes")),
        Err(what) => return Err(format!("the app got something that is no answer: {what}")),
    }
    let mut next = 0;
    let mut refused = false;
    for (at, answer) in answers.iter().enumerate() {
        if at > sent.requests.len() {
            return Err("an answer behind the last".to_owned());
        }
        let serial = answer.message.all(SERIAL).first().map(|serial| String::from_utf8_lossy(serial).into_owned());
        match (serial, sent.requests.get(at)) {
            (Some(serial), Some(request)) => {
                let Some(arrived) = seen.get(next).filter(|_| serial == (first + next).to_string()) else {
                    return Err(format!("answer {at} is that of another request: {serial}, not {}", first + next));
                };
                same(request, arrived, host)
                    .map_err(|what| format!("request {at} changed: {what}\n{request:?}\n{arrived:?}"))?;
                next += 1;
                refused = false;
            }
            (Some(serial), None) => return Err(format!("an upstream's answer ({serial}) to what is no request")),
            (None, asked) => {
                let own = answer.message.all("proxy-status").iter().any(|value| value.starts_with(b"outrigger"));
                if !own || answer.status < 400 {
                    return Err(format!("answer {at} is neither the upstream's nor a refusal: {answer:?}"));
                }
                if asked.is_none() && sent.tail == Tail::End {
                    return Err(format!("an answer to nothing: {answer:?}"));
                }
                refused = true;
            }
        }
    }
    if next != seen.len() {
        return Err(format!("the upstream was sent what was never answered: {:?}", &seen[next..]));
    }
    let wanted = sent.requests.len() + usize::from(matches!(sent.tail, Tail::Bad(_)));
    if answers.len() < wanted && !refused {
        return Err(format!("{} answers where there should be {wanted}", answers.len()));
    }
    Ok(Outcome { statuses: answers.iter().map(|answer| answer.status).collect(), forwarded: next })
}

/// Whether what arrived is what was sent, less what concerns one connection.
fn same(sent: &Request, arrived: &Request, host: &Host) -> Result<(), String> {
    let url = absolute(&sent.target);
    let target = match url {
        Some((_, "")) if sent.method == "OPTIONS" => "*".to_owned(),
        Some((_, path)) if path.starts_with('/') => path.to_owned(),
        Some((_, path)) => format!("/{path}"),
        None => sent.target.clone(),
    };
    if (&sent.method, &target, false) != (&arrived.method, &arrived.target, arrived.http10) {
        return Err("the request line".to_owned());
    }
    let authority = match (url, host) {
        (Some((authority, _)), _) => normal(authority),
        (None, Host::Kept) => String::from_utf8_lossy(sent.message.all("host")[0]).into_owned(),
        (None, Host::Set(host)) => host.clone(),
    };
    if arrived.message.all("host") != [authority.as_bytes()] {
        return Err("Host".to_owned());
    }
    if sent.message.body != arrived.message.body {
        return Err("the body".to_owned());
    }
    if sent.message.chunked != arrived.message.chunked {
        return Err("the framing".to_owned());
    }
    let (expected, arrived_fields) = (passed_on(sent), fields(&arrived.message.fields));
    if expected != arrived_fields {
        return Err(format!("the fields: {expected:?} became {arrived_fields:?}"));
    }
    if let Some(trailer) = arrived.message.trailers.iter().find(|trailer| !sent.message.trailers.contains(trailer)) {
        return Err(format!("a trailer that was not sent: {trailer:?}"));
    }
    Ok(())
}

/// An authority as the proxy writes it: lower case, no trailing dot, no port that is http's own.
fn normal(authority: &str) -> String {
    let lower = authority.to_ascii_lowercase();
    let (host, port) = match lower.rfind(':').filter(|colon| !lower[*colon..].contains(']')) {
        Some(colon) => (&lower[..colon], lower[colon + 1..].trim_start_matches('0')),
        None => (&*lower, "80"),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if port == "80" { host.to_owned() } else { format!("{host}:{port}") }
}

/// Names and values, but for Host: grouped by name, since the order of different names means nothing.
fn fields(fields: &[Field]) -> Vec<(String, Vec<u8>)> {
    let mut list: Vec<_> = fields
        .iter()
        .filter(|field| !field.name.eq_ignore_ascii_case("host"))
        .map(|field| (field.name.to_ascii_lowercase(), field.value.clone()))
        .collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

/// RFC 9110 section 7.6.1, and what `Connection` can't take away.
fn passed_on(sent: &Request) -> Vec<(String, Vec<u8>)> {
    const KEPT: &[&str] = &[
        "authorization",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "expect",
        "host",
        "idempotency-key",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "range",
        "traceparent",
        "trailer",
        "x-idempotency-key",
    ];
    let named = sent.message.list("connection");
    let upgrade = !sent.http10
        && named.iter().any(|one| one == "upgrade")
        && !sent.message.all("upgrade").is_empty()
        && !sent.message.list("upgrade").iter().any(|one| one == "h2c");
    let mut list = Vec::new();
    for (name, value) in fields(&sent.message.fields) {
        let value = match &*name {
            "transfer-encoding" => b"chunked".to_vec(),
            "connection" if upgrade && !list.iter().any(|(name, _)| name == "connection") => b"Upgrade".to_vec(),
            "upgrade" if upgrade => value,
            "te" if sent.message.list("te").iter().any(|one| one == "trailers")
                && !list.iter().any(|(name, _)| name == "te") =>
            {
                b"trailers".to_vec()
            }
            "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "upgrade"
            | "http2-settings" => continue,
            other if named.iter().any(|one| one == other) && !KEPT.contains(&other) => continue,
            _ => value,
        };
        list.push((name, value));
    }
    list
}
