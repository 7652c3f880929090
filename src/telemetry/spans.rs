//! A request as a trace: which requests are traced, what is noted of them on the way, and who takes it at the end. Nothing
//! here knows how spans leave the process; with no exporter there is no [`Tracer`], and a request carries one `None` more.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, Version};
use tokio::time::Instant;

use crate::error::Error;
use crate::origin::{Host, Origin};
use crate::telemetry::report::{RetryReason, Skipped};

/// The header that carries a trace on (W3C Trace Context section 3.1).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What an app's `traceparent` says (W3C Trace Context section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The trace, never 0.
    pub trace: u128,
    /// The app's span, never 0.
    pub span: u64,
    /// Whether the app exports its part.
    pub sampled: bool,
}

/// A `traceparent` of version 00.
pub fn traceparent(trace: u128, span: u64, sampled: bool) -> HeaderValue {
    let text = format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled));
    HeaderValue::try_from(text).expect("hexadecimal digits and dashes are a header value")
}

/// Which requests are traced, by the names of `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Whether an app's `traceparent` decides where there is one (`parentbased_…`).
    pub parent_based: bool,
    /// What decides otherwise.
    pub root: Share,
}

/// The share of traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Every trace.
    All,
    /// None.
    Nothing,
    /// Those whose id, as a number of 63 bits, is below this: every service decides alike.
    Below(u64),
}

impl Sampler {
    /// Whether this trace is exported.
    pub fn samples(self, trace: u128, parent: Option<Parent>) -> bool {
        match parent.filter(|_| self.parent_based) {
            Some(parent) => parent.sampled,
            None => match self.root {
                Share::All => true,
                Share::Nothing => false,
                Share::Below(bound) => (trace as u64) >> 1 < bound,
            },
        }
    }
}

impl Share {
    /// From a ratio of 0 to 1.
    pub fn of(ratio: f64) -> Share {
        if ratio >= 1.0 {
            Share::All
        } else if ratio <= 0.0 {
            Share::Nothing
        } else {
            Share::Below((ratio * (1_u64 << 63) as f64) as u64)
        }
    }
}

/// Takes finished traces. Never waits.
pub trait Sink: Send + Sync {
    /// Takes one, or counts it as dropped.
    fn take(&self, trace: Trace);

    /// Sends what it has, trying once. Called at the end of the process.
    fn flush(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Decides which requests are traced, and hands on what became of them.
pub struct Tracer {
    sampler: Sampler,
    sink: Arc<dyn Sink>,
}

impl Tracer {
    /// Traces what `sampler` says into `sink`.
    pub fn new(sampler: Sampler, sink: Arc<dyn Sink>) -> Tracer {
        Tracer { sampler, sink }
    }

    /// A request came, if it is traced.
    pub(crate) fn begin(&self, trace: u128, parent: Option<Parent>, version: Version) -> Option<Box<Draft>> {
        self.sampler.samples(trace, parent).then(|| {
            Box::new(Draft {
                trace,
                span: fastrand::u64(1..),
                parent: parent.map(|parent| parent.span),
                version,
                began: SystemTime::now(),
                origin: OnceLock::new(),
                announces: AtomicBool::new(false),
                attempts: Mutex::default(),
            })
        })
    }

    /// A request ended.
    pub(crate) fn end(&self, trace: Trace) {
        self.sink.take(trace);
    }

    /// Sends what is left.
    pub(crate) async fn flush(&self) {
        self.sink.flush().await;
    }
}

/// What is noted of a traced request while it is under way.
#[derive(Debug)]
pub struct Draft {
    /// Its trace.
    pub(crate) trace: u128,
    /// Its own span.
    pub(crate) span: u64,
    /// The app's span.
    pub(crate) parent: Option<u64>,
    /// What the app speaks.
    pub(crate) version: Version,
    /// The wall clock at its start.
    pub(crate) began: SystemTime,
    /// Where its words lead.
    pub(crate) origin: OnceLock<Origin>,
    /// Each attempt's span goes upstream in a `traceparent` of ours.
    pub(crate) announces: AtomicBool,
    attempts: Mutex<Vec<Attempt>>,
}

impl Draft {
    /// An attempt ended. An attempt that was cut off says no more than that.
    pub(crate) fn tried(&self, attempt: Attempt) {
        self.lock().push(attempt);
    }

    /// The last attempt is to be followed by another, after this long.
    pub(crate) fn again(&self, reason: RetryReason, after: Duration) {
        if let Some(last) = self.lock().last_mut() {
            last.again = Some((reason, after));
        }
    }

    /// The attempts that count. What Outrigger refused after all was none.
    pub(crate) fn attempts(&self, counted: u32) -> Vec<Attempt> {
        let mut attempts = std::mem::take(&mut *self.lock());
        attempts.truncate(counted as usize);
        attempts
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// Its span.
    pub span: u64,
    /// From the request's start to the attempt's.
    pub began: Duration,
    /// Until its response headers, or its failure.
    pub took: Duration,
    /// The wait for a token before it.
    pub token: Duration,
    /// The wait for a slot before it.
    pub slot: Duration,
    /// The wait in line for a connection, within it.
    pub in_line: Duration,
    /// The time that connecting took of it.
    pub connecting: Duration,
    /// Which of several `to` it went to.
    pub endpoint: Option<usize>,
    /// What the upstream spoke, where it answered.
    pub version: Option<Version>,
    /// The answer's status.
    pub status: Option<u16>,
    /// What happened instead: the error's code and its sentence.
    pub error: Option<(&'static str, String)>,
    /// It was sent a second time, on a new connection, since the pooled one was stale.
    pub replaced: bool,
    /// Why another one followed, and after what back-off.
    pub again: Option<(RetryReason, Duration)>,
}

impl Attempt {
    /// One that begins now and was not settled yet.
    pub(crate) fn begin(start: Instant, now: Instant, token: Duration, slot: Duration) -> Attempt {
        Attempt {
            span: fastrand::u64(1..),
            began: now.saturating_duration_since(start),
            took: Duration::ZERO,
            token,
            slot,
            in_line: Duration::ZERO,
            connecting: Duration::ZERO,
            endpoint: None,
            version: None,
            status: None,
            error: None,
            replaced: false,
            again: None,
        }
    }

    /// It ended without an answer.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.error = Some((error.code(), cut(&error.to_string())));
    }
}

/// What a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request and its answer.
    Request,
    /// A CONNECT.
    Tunnel,
}

/// Who is to blame for an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// [`Error::code`].
    pub code: &'static str,
    /// Its sentence.
    pub detail: String,
    /// The app did it.
    pub apps: bool,
    /// The upstream broke its answer after the headers.
    pub broken: bool,
}

/// A finished request with all its attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Its trace.
    pub trace: u128,
    /// Its own span.
    pub span: u64,
    /// The app's span.
    pub parent: Option<u64>,
    /// When it began.
    pub began: SystemTime,
    /// Until the end of its answer.
    pub took: Duration,
    /// What it was.
    pub kind: Kind,
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The route's name; empty for the upstream's own.
    pub route: Arc<str>,
    /// The app's method; empty where its head could not be read.
    pub method: String,
    /// What the app speaks.
    pub version: Version,
    /// `http` or `https`, as the app asked; `None` for a tunnel.
    pub scheme: Option<&'static str>,
    /// Host and port as the app asked.
    pub server: Option<(String, u16)>,
    /// The path, as the log shows it.
    pub path: Option<String>,
    /// The query, as the log shows it.
    pub query: Option<String>,
    /// What the app got; `None` where it hung up before.
    pub status: Option<u16>,
    /// What went wrong.
    pub fault: Option<Fault>,
    /// Body bytes from the app.
    pub bytes_in: u64,
    /// Body bytes to the app.
    pub bytes_out: u64,
    /// Attempts with where each went.
    pub attempts: Vec<(Attempt, Option<Origin>)>,
    /// Why a wanted retry was not made.
    pub no_retry: Option<Skipped>,
}

/// A host without the brackets of IPv6.
pub(crate) fn bare(host: &Host) -> String {
    match host {
        Host::Name(name) => name.to_string(),
        Host::Ip(IpAddr::V4(ip)) => ip.to_string(),
        Host::Ip(IpAddr::V6(ip)) => ip.to_string(),
    }
}

/// The longest text taken from a request into a span, in bytes, so that what waits to be sent stays small.
const MOST_TEXT: usize = 1024;

/// Cuts what is too long, at a character's end.
pub(crate) fn cut(text: &str) -> String {
    if text.len() <= MOST_TEXT {
        return text.to_owned();
    }
    let mut end = MOST_TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: Parent = Parent { trace: 7, span: 8, sampled: true };

    #[test]
    fn a_parent_decides_where_it_is_asked_and_the_share_otherwise() {
        let unsampled = Parent { sampled: false, ..SAMPLED };
        for (root, alone) in [(Share::All, true), (Share::Nothing, false)] {
            let asking = Sampler { parent_based: true, root };
            assert!(asking.samples(7, Some(SAMPLED)) && !asking.samples(7, Some(unsampled)));
            assert_eq!(asking.samples(7, None), alone);
            let deaf = Sampler { parent_based: false, root };
            assert_eq!((deaf.samples(7, Some(SAMPLED)), deaf.samples(7, Some(unsampled))), (alone, alone));
        }
    }

    #[test]
    fn a_ratio_takes_its_share_by_the_trace_id() {
        assert_eq!((Share::of(0.0), Share::of(1.0)), (Share::Nothing, Share::All));
        let half = Sampler { parent_based: false, root: Share::of(0.5) };
        assert!(half.samples(0, None) && !half.samples(u128::from(u64::MAX), None));
        let taken = (0..10_000_u64).filter(|&n| half.samples(u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)), None));
        assert!((4_500..5_500).contains(&taken.count()));
    }

    #[test]
    fn a_traceparent_says_whether_it_is_sampled() {
        assert_eq!(traceparent(0xab, 0xcd, true), "00-000000000000000000000000000000ab-00000000000000cd-01");
        assert_eq!(traceparent(0xab, 0xcd, false), "00-000000000000000000000000000000ab-00000000000000cd-00");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = cut(&"ä".repeat(MOST_TEXT));
        assert!(long.len() <= MOST_TEXT + 3 && long.ends_with('…'));
    }
}
