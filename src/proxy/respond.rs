//! An error as the app gets it (interface section 7). The only place that turns an error into an answer.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use crate::error::{Error, Origin};
use crate::telemetry::report::Skipped;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// A `details` or `grpc-message` longer than this helps nobody and breaks parsers.
const MAX_DETAIL: usize = 500;
/// Most answers fit into so much. Bytes.
const COMMON_PROBLEM: usize = 512;

/// What the app asked, as far as its answer depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    /// A HEAD gets no body.
    pub(crate) head: bool,
    /// A gRPC caller gets a gRPC status.
    pub(crate) grpc: bool,
    /// The connection is HTTP/1, so that it can be told to close.
    pub(crate) http1: bool,
}

/// Where a request had got to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress<'a> {
    /// The upstream's name.
    pub(crate) upstream: &'a str,
    /// The route's name; empty for the upstream's own.
    pub(crate) route: &'a str,
    /// Attempts made.
    pub(crate) attempts: u32,
    /// Why a wanted retry was not made.
    pub(crate) no_retry: Option<Skipped>,
}

/// RFC 9457.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    upstream: &'a str,
    route: &'a str,
    attempts: u32,
}

/// The answer for an error.
pub(crate) fn answer(error: &Error, asked: Asked, progress: Progress<'_>) -> Response<Bytes> {
    let detail = error.to_string();
    // 499 is for logs. Where somebody does read it, the request was broken off.
    let status = match error.status() {
        499 => StatusCode::BAD_REQUEST,
        status => StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
    };
    let mut headers = HeaderMap::with_capacity(6);
    let body = if asked.grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(status.as_u16())));
        headers.insert(GRPC_MESSAGE, grpc_message(&detail));
        Bytes::new()
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let problem = Problem {
            r#type: format!("urn:outrigger:error:{}", error.code()),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: &detail,
            upstream: progress.upstream,
            route: progress.route,
            attempts: progress.attempts,
        };
        let mut text = Vec::with_capacity(COMMON_PROBLEM);
        // It has nothing that JSON can't tell.
        let _ = serde_json::to_writer(&mut text, &problem);
        Bytes::from(text)
    };
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let mut proxy_status = format!("outrigger; error={}; details={}", error.proxy_status(), sf_string(&detail));
    push_progress(&mut proxy_status, progress);
    if let Ok(value) = HeaderValue::try_from(proxy_status) {
        headers.insert(PROXY_STATUS, value);
    }
    if let Some(seconds) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if asked.http1 && closes(error) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let mut response = Response::new(if asked.head { Bytes::new() } else { body });
    *response.status_mut() = if asked.grpc { StatusCode::OK } else { status };
    *response.headers_mut() = headers;
    response
}

/// Tells of retries in an upstream's own answer: where there were any, or one was wanted and not made.
pub(crate) fn mark(headers: &mut HeaderMap, status: StatusCode, progress: Progress<'_>) {
    if progress.attempts <= 1 && progress.no_retry.is_none() {
        return;
    }
    let mut text = format!("outrigger; received-status={}", status.as_u16());
    push_progress(&mut text, progress);
    if let Ok(value) = HeaderValue::try_from(text) {
        let _ = headers.try_append(PROXY_STATUS, value);
    }
}

fn push_progress(text: &mut String, progress: Progress<'_>) {
    use std::fmt::Write;
    if progress.attempts > 0 {
        // Writing to a String does not fail.
        let _ = write!(text, "; attempts={}", progress.attempts);
    }
    if let Some(reason) = progress.no_retry {
        let _ = write!(text, "; no-retry={}", reason.as_str());
    }
}

/// After what is wrong with the app's own message nothing on its connection can be trusted.
fn closes(error: &Error) -> bool {
    match error {
        Error::Overloaded(_) | Error::ShuttingDown | Error::AppSilent | Error::AppGone => true,
        Error::Expectation | Error::Misdirected => false,
        Error::BadRequest(_) | Error::UriTooLong | Error::HeadersTooLarge(_) => true,
        Error::Loop
        | Error::Denied(_)
        | Error::CircuitOpen(_)
        | Error::RateLimited(_)
        | Error::ConcurrencyLimited
        | Error::NoConnection
        | Error::Connect { .. }
        | Error::Reset { .. }
        | Error::BadAnswer(_)
        | Error::AttemptTimeout { .. }
        | Error::Deadline { .. }
        | Error::UpstreamSilent
        | Error::Panic => {
            debug_assert_ne!(error.origin(), Origin::App);
            false
        }
    }
}

/// A string of RFC 8941 section 3.3.3: printable ASCII, quoted.
fn sf_string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars().take(MAX_DETAIL) {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            ' '..='~' => quoted.push(c),
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    quoted
}

/// What a status is to a gRPC caller.
fn grpc_status(status: u16) -> u16 {
    match status {
        502 | 503 => 14,
        504 => 4,
        429 => 8,
        403 => 7,
        400..500 => 3,
        // UNKNOWN
        _ => 2,
    }
}

/// Percent-encoded as gRPC over HTTP/2 has it.
fn grpc_message(text: &str) -> HeaderValue {
    let mut message = String::with_capacity(text.len());
    for byte in text.bytes().take(MAX_DETAIL) {
        match byte {
            b'%' => message.push_str("%25"),
            b' '..=b'~' => message.push(char::from(byte)),
            _ => message.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(message).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ConnectFailure, Denial, Overload};
    use std::time::Duration;

    fn refused() -> Error {
        Error::Connect { failure: ConnectFailure::Refused, detail: "10.0.0.1:443 said \"no\"\u{e9}".into() }
    }

    const PROGRESS: Progress<'_> =
        Progress { upstream: "stripe", route: "charges", attempts: 3, no_retry: Some(Skipped::Budget) };

    #[test]
    fn an_error_is_a_problem_with_a_proxy_status() {
        let answer = answer(&refused(), Asked { http1: true, ..Asked::default() }, PROGRESS);
        assert_eq!(answer.status(), 502);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert_eq!(
            answer.headers()["proxy-status"],
            "outrigger; error=connection_refused; details=\"the upstream refused the connection: 10.0.0.1:443 said \\\"no\\\"?\"; attempts=3; no-retry=budget"
        );
        assert!(!answer.headers().contains_key("connection"));
        let problem: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(problem["type"], "urn:outrigger:error:connection_refused");
        assert_eq!(problem["status"], 502);
        assert_eq!(problem["upstream"], "stripe");
        assert_eq!(problem["route"], "charges");
        assert_eq!(problem["attempts"], 3);
    }

    #[test]
    fn a_head_gets_the_same_headers_and_no_body() {
        let full = answer(&refused(), Asked::default(), PROGRESS);
        let head = answer(&refused(), Asked { head: true, ..Asked::default() }, PROGRESS);
        assert_eq!(full.headers(), head.headers());
        assert!(head.body().is_empty());
    }

    #[test]
    fn our_own_refusals_say_when_to_come_back() {
        let answer = answer(&Error::CircuitOpen(Duration::from_millis(1500)), Asked::default(), Progress::default());
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &HeaderValue::from(2)));
    }

    #[test]
    fn a_malformed_request_ends_its_connection() {
        let asked = Asked { http1: true, ..Asked::default() };
        let bad = answer(&Error::BadRequest("x"), asked, Progress::default());
        assert_eq!(bad.headers()["connection"], "close");
        let bad = answer(&Error::BadRequest("x"), Asked::default(), Progress::default());
        assert!(!bad.headers().contains_key("connection"));
    }

    #[test]
    fn grpc_callers_get_a_grpc_status() {
        let asked = Asked { grpc: true, ..Asked::default() };
        for (error, status) in [
            (refused(), "14"),
            (Error::Overloaded(Overload::Connections), "14"),
            (Error::UpstreamSilent, "4"),
            (Error::RateLimited(Duration::ZERO), "8"),
            (Error::Denied(Denial::Unmatched), "7"),
            (Error::BadRequest("100 %"), "3"),
        ] {
            let answer = answer(&error, asked, Progress::default());
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["grpc-status"], status, "{error:?}");
            assert!(answer.body().is_empty());
        }
        assert_eq!(grpc_message("100 %\u{e9}"), "100 %25%C3%A9");
    }

    #[test]
    fn an_upstreams_answer_is_marked_beside_its_own_proxy_status() {
        let mut headers = HeaderMap::new();
        headers.insert(PROXY_STATUS, HeaderValue::from_static("cdn; hit"));
        mark(&mut headers, StatusCode::OK, Progress { attempts: 1, ..Progress::default() });
        assert_eq!(headers.get_all(PROXY_STATUS).iter().count(), 1);
        mark(&mut headers, StatusCode::SERVICE_UNAVAILABLE, Progress { attempts: 1, ..PROGRESS });
        let all: Vec<_> = headers.get_all(PROXY_STATUS).iter().collect();
        assert_eq!(all, ["cdn; hit", "outrigger; received-status=503; attempts=1; no-retry=budget"]);
    }
}
