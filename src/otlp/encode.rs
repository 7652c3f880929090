//! Spans by the semantic conventions for HTTP (version 1.37): a SERVER span for the app's request, and below it a CLIENT
//! span for each attempt. Names are made of the method and of what the configuration calls the upstream and its route, never
//! of a path: they stay few, whatever apps ask for.

use std::time::{Duration, SystemTime};

use http::Version;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, SpanFlags, Status};

use crate::origin::Origin;
use crate::telemetry::report::RetryReason;
use crate::telemetry::spans::{self, Attempt, Kind, Trace};

/// Which edition of the conventions the attributes follow.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";

/// Shorter waits are not told.
const LEAST_WAIT: Duration = Duration::from_micros(100);

/// What a post carries.
pub(super) fn request(resource: &[(String, String)], spans: Vec<Span>) -> ExportTraceServiceRequest {
    let attributes = resource.iter().map(|(key, value)| text(key, value.clone())).collect();
    let scope = InstrumentationScope {
        name: "outrigger".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA.to_owned() }],
            schema_url: String::new(),
        }],
    }
}

/// How many spans a request comes to.
pub(super) fn count(trace: &Trace) -> usize {
    1 + trace.attempts.len()
}

/// The request's span and those of its attempts.
pub(super) fn spans(trace: &Trace, out: &mut Vec<Span>) {
    out.push(server(trace));
    for at in 0..trace.attempts.len() {
        out.push(client(trace, at));
    }
}

fn server(trace: &Trace) -> Span {
    let mut attributes = common(trace);
    if let Some(status) = trace.status {
        attributes.push(number("http.response.status_code", i64::from(status)));
    }
    if let Some((host, port)) = &trace.server {
        attributes.push(text("server.address", host.clone()));
        attributes.push(number("server.port", i64::from(*port)));
    }
    if let Some(scheme) = trace.scheme {
        attributes.push(text("url.scheme", scheme.to_owned()));
    }
    if let Some(path) = &trace.path {
        attributes.push(text("url.path", path.clone()));
    }
    if let Some(query) = &trace.query {
        attributes.push(text("url.query", query.clone()));
    }
    attributes.push(text("network.protocol.version", version(trace.version).to_owned()));
    attributes.push(number("outrigger.attempts", trace.attempts.len() as i64));
    if let Some(reason) = trace.no_retry {
        attributes.push(text("outrigger.no_retry", reason.as_str().to_owned()));
    }
    match trace.kind {
        Kind::Request => {
            attributes.push(number("http.request.body.size", bytes(trace.bytes_in)));
            attributes.push(number("http.response.body.size", bytes(trace.bytes_out)));
        }
        Kind::Tunnel => {
            attributes.push(number("outrigger.tunnel.sent", bytes(trace.bytes_in)));
            attributes.push(number("outrigger.tunnel.received", bytes(trace.bytes_out)));
        }
    }
    // A status of 4xx is the app's error, so the span of who served it is none; 5xx is.
    let status = match &trace.fault {
        Some(fault) => {
            attributes.push(text("error.type", fault.code.to_owned()));
            let failed = !fault.apps && (fault.broken || trace.status.is_none_or(|status| status >= 500));
            if failed { error(&fault.detail) } else { Status::default() }
        }
        None => match trace.status {
            Some(status) if status >= 500 => {
                attributes.push(text("error.type", status.to_string()));
                error("")
            }
            Some(_) | None => Status::default(),
        },
    };
    Span {
        trace_id: trace.trace.to_be_bytes().to_vec(),
        span_id: trace.span.to_be_bytes().to_vec(),
        parent_span_id: trace.parent.map_or_else(Vec::new, |parent| parent.to_be_bytes().to_vec()),
        flags: flags(trace.parent.is_some()),
        name: name(known(&trace.method).unwrap_or("HTTP"), trace),
        kind: SpanKind::Server as i32,
        start_time_unix_nano: nanos(trace.began),
        end_time_unix_nano: nanos(trace.began + trace.took),
        attributes,
        status: Some(status),
        ..Span::default()
    }
}

fn client(trace: &Trace, at: usize) -> Span {
    let (attempt, origin) = &trace.attempts[at];
    let last = at + 1 == trace.attempts.len();
    let mut attributes = match trace.kind {
        Kind::Request => common(trace),
        // No request is sent to make a tunnel's connection.
        Kind::Tunnel => named(trace),
    };
    if let Some(origin) = origin {
        attributes.push(text("server.address", spans::bare(&origin.host)));
        attributes.push(number("server.port", i64::from(origin.port)));
        if trace.kind == Kind::Request {
            attributes.push(text("url.full", url(origin, trace)));
        }
    }
    if let Some(spoken) = attempt.version {
        attributes.push(text("network.protocol.version", version(spoken).to_owned()));
    }
    if let Some(status) = attempt.status {
        attributes.push(number("http.response.status_code", i64::from(status)));
    }
    attributes.push(number("outrigger.attempt", at as i64 + 1));
    if at > 0 && trace.kind == Kind::Request {
        attributes.push(number("http.request.resend_count", at as i64));
    }
    for (key, time) in [
        ("outrigger.wait.token_ms", attempt.token),
        ("outrigger.wait.slot_ms", attempt.slot),
        ("outrigger.wait.connection_ms", attempt.in_line),
        ("outrigger.connecting_ms", attempt.connecting),
    ] {
        // Whoever need not wait is in line for some microseconds.
        if time >= LEAST_WAIT {
            attributes.push(millis(key, time));
        }
    }
    if attempt.replaced {
        attributes.push(truth("outrigger.stale_connection"));
    }
    match attempt.again {
        Some((reason, after)) if !last => {
            attributes.push(text("outrigger.retry.reason", retried(reason)));
            attributes.push(millis("outrigger.retry.backoff_ms", after));
        }
        Some(_) | None => {}
    }
    if let Some(reason) = trace.no_retry.filter(|_| last) {
        attributes.push(text("outrigger.no_retry", reason.as_str().to_owned()));
    }
    let status = outcome(trace, attempt, last, &mut attributes);
    let began = trace.began + attempt.began;
    Span {
        trace_id: trace.trace.to_be_bytes().to_vec(),
        span_id: attempt.span.to_be_bytes().to_vec(),
        parent_span_id: trace.span.to_be_bytes().to_vec(),
        flags: flags(false),
        name: match trace.kind {
            Kind::Request => name(known(&trace.method).unwrap_or("HTTP"), trace),
            Kind::Tunnel => name("connect", trace),
        },
        kind: SpanKind::Client as i32,
        start_time_unix_nano: nanos(began),
        end_time_unix_nano: nanos(began + attempt.took),
        attributes,
        status: Some(status),
        ..Span::default()
    }
}

/// How an attempt ended: anything from 400 on, and anything that is no answer, is an error of who called.
fn outcome(trace: &Trace, attempt: &Attempt, last: bool, attributes: &mut Vec<KeyValue>) -> Status {
    let broke = trace.fault.as_ref().filter(|fault| last && fault.broken && !fault.apps);
    let (kind, detail) = match (&attempt.error, attempt.status, broke) {
        (Some((code, detail)), _, _) => ((*code).to_owned(), &**detail),
        (None, Some(status), _) if status >= 400 => (status.to_string(), ""),
        (None, Some(_), Some(fault)) => (fault.code.to_owned(), &*fault.detail),
        (None, Some(_), None) => return Status::default(),
        (None, None, _) if trace.kind == Kind::Tunnel && !(last && cut_short(trace)) => return Status::default(),
        // Nobody waited for it to end.
        (None, None, _) => {
            let why = trace.fault.as_ref().map_or("cancelled", |fault| fault.code);
            (why.to_owned(), "it was cut short before its end")
        }
    };
    attributes.push(text("error.type", kind));
    error(detail)
}

/// Whether a tunnel ended before it was open.
fn cut_short(trace: &Trace) -> bool {
    trace.status != Some(200)
}

fn common(trace: &Trace) -> Vec<KeyValue> {
    let mut attributes = named(trace);
    match known(&trace.method) {
        Some(method) => attributes.push(text("http.request.method", method.to_owned())),
        None => {
            attributes.push(text("http.request.method", "_OTHER".to_owned()));
            if !trace.method.is_empty() {
                attributes.push(text("http.request.method_original", trace.method.clone()));
            }
        }
    }
    attributes
}

fn named(trace: &Trace) -> Vec<KeyValue> {
    // As many as most spans have.
    let mut attributes = Vec::with_capacity(16);
    attributes.push(text("outrigger.upstream", trace.upstream.to_string()));
    if !trace.route.is_empty() {
        attributes.push(text("outrigger.route", trace.route.to_string()));
    }
    attributes
}

fn name(method: &str, trace: &Trace) -> String {
    if trace.route.is_empty() {
        format!("{method} {}", trace.upstream)
    } else {
        format!("{method} {}/{}", trace.upstream, trace.route)
    }
}

/// Methods that the conventions know: those of RFC 9110, and PATCH.
fn known(method: &str) -> Option<&'static str> {
    const NAMES: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
    NAMES.into_iter().find(|name| *name == method)
}

/// Where an attempt went, with path and query as the log shows them.
fn url(origin: &Origin, trace: &Trace) -> String {
    let mut url = format!("{}://{}", origin.scheme.as_str(), origin.authority());
    if let Some(path) = &trace.path {
        url.push_str(path);
    }
    if let Some(query) = &trace.query {
        url.push('?');
        url.push_str(query);
    }
    url
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        // Foreign and non-exhaustive; nothing else is spoken here.
        _ => "1.1",
    }
}

fn retried(reason: RetryReason) -> String {
    match reason {
        RetryReason::ConnectFailure => "connect_failure".to_owned(),
        RetryReason::Reset => "reset".to_owned(),
        RetryReason::Timeout => "timeout".to_owned(),
        RetryReason::StaleConnection => "stale_connection".to_owned(),
        RetryReason::Status(status) => status.to_string(),
    }
}

/// Sampled, and whether the parent is another process's.
fn flags(remote: bool) -> u32 {
    const SAMPLED: u32 = 1;
    let known = SpanFlags::ContextHasIsRemoteMask as u32;
    SAMPLED | known | if remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 }
}

fn error(detail: &str) -> Status {
    Status { message: detail.to_owned(), code: StatusCode::Error as i32 }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(key: &str, value: String) -> KeyValue {
    attribute(key, Value::StringValue(value))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn truth(key: &str) -> KeyValue {
    attribute(key, Value::BoolValue(true))
}

/// Milliseconds to the microsecond, as in the access log.
fn millis(key: &str, time: Duration) -> KeyValue {
    attribute(key, Value::DoubleValue(time.as_micros() as f64 / 1000.0))
}
