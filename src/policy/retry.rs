//! Whether and when a request is sent again. Decided by how far the *request* got and by what it is, never by a status
//! alone: an attempt that the upstream may have processed is repeated only where the method or a key says that it may be.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::time::Instant;

use crate::document::Reader;
use crate::error::{ConnectFailure, Error, Sent};
use crate::policy::budget::Budget;
use crate::policy::classify::{Event, Events};
use crate::policy::{backoff, budget};
use crate::telemetry::report::{RetryReason, Skipped};

/// `retry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The first one included; 1 switches retries off.
    pub max_attempts: NonZeroU32,
    /// What is retried.
    pub on: Events,
    /// Methods that may be repeated.
    pub methods: Vec<Method>,
    /// A request with one of these may be retried whatever its method.
    pub idempotency_headers: Vec<HeaderName>,
    /// POST and PATCH without a key get one.
    pub generate_idempotency_key: bool,
    /// The waits between attempts.
    pub backoff: backoff::Settings,
    /// Longest Retry-After that is waited for.
    pub max_retry_after: Duration,
    /// Retries as a share of requests; `None` is `off`.
    pub budget: Option<budget::Settings>,
    /// Larger request bodies are streamed, and not retried once sent. Bytes.
    pub max_body: u64,
}

impl Settings {
    /// Reads the block.
    pub fn read(reader: &mut Reader<'_>) -> Settings {
        Settings {
            max_attempts: reader.count("max_attempts", "1 switches retries off"),
            on: Events::read(reader, "on"),
            methods: reader.list("methods", method),
            idempotency_headers: reader
                .list("idempotency_headers", |word| word.parse().map_err(|_| format!("`{word}` is not a header name"))),
            generate_idempotency_key: reader.boolean("generate_idempotency_key"),
            backoff: reader
                .block("backoff", backoff::Settings::read)
                .unwrap_or(backoff::Settings { base: Duration::ZERO, max: Duration::from_secs(1) }),
            max_retry_after: reader.duration_or_zero("max_retry_after"),
            budget: reader.block("budget", budget::Settings::read),
            max_body: reader.size("max_body"),
        }
    }
}

/// The methods of RFC 9110 and RFC 5789 that an upstream may be asked by, for proposals; any other is taken too.
pub const METHODS: &[&str] = &["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "CONNECT"];

/// Reads a method as a configuration writes it.
///
/// # Errors
/// A sentence that says what would be right. A method in lower case is another one, which nobody means.
pub fn method(text: &str) -> Result<Method, String> {
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) if text.bytes().any(|b| b.is_ascii_lowercase()) => {
            Err(format!("methods are case-sensitive: write `{}`", method.as_str().to_ascii_uppercase()))
        }
        Ok(method) => Ok(method),
        Err(_) => Err(format!("`{text}` is not an HTTP method")),
    }
}

/// With `retry: off` a body is only sent again over a stale connection's replacement, so what is kept is what a connection
/// takes before that shows. Bytes.
const UNSENT_BODY: u64 = 64 * 1024;

/// With `retry: off`: the headers that make a request repeatable by default.
const KEYS: [HeaderName; 2] =
    [HeaderName::from_static("idempotency-key"), HeaderName::from_static("x-idempotency-key")];

/// Whether the request may be repeated although the upstream may have seen it. With `retry: off` what HTTP itself declares
/// idempotent still may (RFC 9110 section 9.2.2), and so may what carries a key: for the replacement of a stale connection.
pub(crate) fn repeatable(settings: Option<&Settings>, method: &Method, headers: &HeaderMap) -> bool {
    match settings {
        Some(settings) => settings.repeatable(method, headers),
        None => method.is_idempotent() || KEYS.iter().any(|key| headers.contains_key(key)),
    }
}

/// The largest body that is kept to be sent again. Bytes.
pub(crate) fn largest_body(settings: Option<&Settings>) -> u64 {
    settings.map_or(UNSENT_BODY, |settings| settings.max_body)
}

/// Whether a pooled connection that broke before one byte of the answer is replaced by a new one for free: where sending
/// again is safe.
pub(crate) fn replaces_stale(sent: Sent, repeatable: bool, replayable: bool) -> bool {
    (sent == Sent::No || repeatable) && replayable
}

/// What a decision is taken on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// How the attempt ended.
    pub outcome: Outcome<'a>,
    /// Attempts made so far.
    pub attempts: u32,
    /// The method or a key says that the request may be repeated.
    pub repeatable: bool,
    /// The body's bytes are all at hand.
    pub replayable: bool,
    /// What a 429 or 503 asks for.
    pub retry_after: Option<Duration>,
    /// Time to the deadline.
    pub left: Option<Duration>,
    /// Chance, from 0 to 1: for the back-off…
    pub random: f64,
    /// …and for the jitter on top of a Retry-After.
    pub extra: f64,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// With an answer.
    Answer(Event),
    /// Without.
    Failure(&'a Error),
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it is not in `on`, or all attempts are made.
    Pass,
    /// A retry is wanted but must not be made.
    Skip(Skipped),
    /// Send it again after this long.
    Again(Duration, RetryReason),
}

/// A 429 that does not say how long to wait is left alone for at least this long.
pub(crate) const SHORTEST_AFTER_429: Duration = Duration::from_secs(1);

impl Settings {
    /// Whether the method or an idempotency header says that the request may be repeated.
    pub fn repeatable(&self, method: &Method, headers: &HeaderMap) -> bool {
        self.methods.contains(method) || self.has_key(headers)
    }

    /// Gives a POST or PATCH without a key one, where that is switched on. The key is 122 random bits.
    pub fn add_key(&self, method: &Method, headers: &mut HeaderMap) {
        let Some(name) = self.key_to_add(method, headers) else { return };
        let mut bytes = [0; 16];
        // Without random numbers there is no key, and so no retry: the safe side.
        if aws_lc_rs::rand::fill(&mut bytes).is_ok() {
            headers.insert(name.clone(), uuid(bytes));
        }
    }

    /// The header that a generated key is sent in; `None` where none is generated.
    pub(crate) fn key_to_add(&self, method: &Method, headers: &HeaderMap) -> Option<&HeaderName> {
        let wants = self.generate_idempotency_key && (method == Method::POST || method == Method::PATCH);
        self.idempotency_headers.first().filter(|_| wants && !self.has_key(headers))
    }

    fn has_key(&self, headers: &HeaderMap) -> bool {
        self.idempotency_headers.iter().any(|name| headers.get(name).is_some_and(|value| !value.is_empty()))
    }

    /// Whether such an end might be retried at all. Most are not.
    pub(crate) fn is_about(&self, outcome: &Outcome<'_>) -> bool {
        match outcome {
            Outcome::Answer(event) => self.on.contains(*event),
            Outcome::Failure(_) => true,
        }
    }

    /// Decides; the budget is asked separately, since asking takes.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let (wanted, reason, sent) = match facts.outcome {
            Outcome::Answer(event) => (self.on.contains(event), reason(event), Sent::Maybe),
            // A certificate does not get valid by asking again.
            Outcome::Failure(Error::Connect { failure: ConnectFailure::Certificate, .. }) => return Decision::Pass,
            Outcome::Failure(error) => match Event::of_error(error) {
                Some(event) => (self.on.contains_error(error), reason(event), error.sent()),
                None => return Decision::Pass,
            },
        };
        if !wanted || facts.attempts >= self.max_attempts.get() {
            return Decision::Pass;
        }
        if sent == Sent::Maybe && !facts.repeatable {
            return Decision::Skip(Skipped::NotIdempotent);
        }
        if !facts.replayable {
            return Decision::Skip(Skipped::BodyTooLarge);
        }
        let backoff = self.backoff.wait(facts.attempts, facts.random);
        let wait = match (facts.retry_after, reason) {
            (Some(asked), RetryReason::Status(_)) => {
                if asked > self.max_retry_after || facts.left.is_some_and(|left| asked >= left) {
                    return Decision::Skip(Skipped::RetryAfterTooLong);
                }
                // Upwards only: who comes early is refused again. And never past the deadline for the jitter's sake.
                let jitter = (asked / 10).min(Duration::from_secs(1)).mul_f64(facts.extra.clamp(0.0, 1.0));
                let room = facts.left.map_or(jitter, |left| (left - asked) / 2);
                backoff.max(asked + jitter.min(room))
            }
            (None, RetryReason::Status(429)) => backoff.max(SHORTEST_AFTER_429),
            (
                _,
                RetryReason::Status(_)
                | RetryReason::ConnectFailure
                | RetryReason::Reset
                | RetryReason::Timeout
                | RetryReason::StaleConnection,
            ) => backoff,
        };
        if facts.left.is_some_and(|left| wait >= left) {
            return Decision::Skip(Skipped::Deadline);
        }
        Decision::Again(wait, reason)
    }
}

fn reason(event: Event) -> RetryReason {
    match event {
        Event::ConnectFailure => RetryReason::ConnectFailure,
        Event::Reset => RetryReason::Reset,
        Event::Timeout => RetryReason::Timeout,
        Event::Status(status) => RetryReason::Status(status),
    }
}

/// A version 4 UUID (RFC 9562 section 5.4).
fn uuid(mut bytes: [u8; 16]) -> HeaderValue {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    HeaderValue::from_str(&text).expect("hexadecimal digits and dashes are a header value")
}

/// A lane's retries, live.
#[derive(Debug)]
pub struct Retry {
    /// The rules.
    pub settings: Settings,
    /// What bounds retries over all requests; `None` is `off`.
    pub budget: Option<Arc<Budget>>,
}

impl Retry {
    /// Decides, and takes a retry from the budget where one is made.
    pub fn decide(&self, facts: &Facts<'_>, now: Instant) -> Decision {
        match self.settings.decide(facts) {
            Decision::Again(..) if self.budget.as_ref().is_some_and(|budget| !budget.withdraw(now)) => {
                Decision::Skip(Skipped::Budget)
            }
            decision => decision,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let mut on = Events::default();
        for word in ["connect_failure", "reset", "timeout", "429", "503"] {
            on.add(word).unwrap();
        }
        Settings {
            max_attempts: NonZeroU32::new(3).unwrap(),
            on,
            methods: vec![Method::GET, Method::PUT],
            idempotency_headers: vec![HeaderName::from_static("idempotency-key")],
            generate_idempotency_key: true,
            backoff: backoff::Settings { base: Duration::from_millis(100), max: Duration::from_secs(5) },
            max_retry_after: Duration::from_secs(30),
            budget: None,
            max_body: 1 << 20,
        }
    }

    fn facts(outcome: Outcome<'_>) -> Facts<'_> {
        Facts {
            outcome,
            attempts: 1,
            repeatable: true,
            replayable: true,
            retry_after: None,
            left: Some(Duration::from_secs(60)),
            random: 1.0,
            extra: 0.0,
        }
    }

    const UNAVAILABLE: Outcome<'static> = Outcome::Answer(Event::Status(503));

    fn again(ms: u64, reason: RetryReason) -> Decision {
        Decision::Again(Duration::from_millis(ms), reason)
    }

    #[test]
    fn what_may_have_been_processed_is_repeated_only_where_that_is_safe() {
        let reset = |sent| Error::Reset { sent, reused: true, answer_began: false, detail: String::new() };
        let connect = |failure| Error::Connect { failure, detail: String::new() };
        for (error, expected) in [
            (reset(Sent::Maybe), Decision::Skip(Skipped::NotIdempotent)),
            (reset(Sent::No), again(100, RetryReason::Reset)),
            (Error::AttemptTimeout { sent: Sent::Maybe }, Decision::Skip(Skipped::NotIdempotent)),
            (Error::AttemptTimeout { sent: Sent::No }, again(100, RetryReason::Timeout)),
            (connect(ConnectFailure::Refused), again(100, RetryReason::ConnectFailure)),
            (connect(ConnectFailure::Certificate), Decision::Pass),
            (Error::BadAnswer(String::new()), Decision::Skip(Skipped::NotIdempotent)),
            (Error::AppGone, Decision::Pass),
            (Error::ConcurrencyLimited, Decision::Pass),
        ] {
            let facts = Facts { repeatable: false, ..facts(Outcome::Failure(&error)) };
            assert_eq!(settings().decide(&facts), expected, "{error:?}");
        }
        let post = Facts { repeatable: false, ..facts(UNAVAILABLE) };
        assert_eq!(settings().decide(&post), Decision::Skip(Skipped::NotIdempotent));
    }

    #[test]
    fn the_last_attempt_and_what_is_not_listed_are_passed_on_unmarked() {
        assert_eq!(settings().decide(&Facts { attempts: 3, ..facts(UNAVAILABLE) }), Decision::Pass);
        assert_eq!(settings().decide(&facts(Outcome::Answer(Event::Status(500)))), Decision::Pass);
        assert_eq!(settings().decide(&facts(Outcome::Answer(Event::Status(200)))), Decision::Pass);
    }

    #[test]
    fn retry_after_is_waited_for_and_jitter_only_adds() {
        let asked = |s, extra| Facts { retry_after: Some(Duration::from_secs(s)), extra, ..facts(UNAVAILABLE) };
        assert_eq!(settings().decide(&asked(5, 0.0)), again(5_000, RetryReason::Status(503)));
        assert_eq!(settings().decide(&asked(5, 1.0)), again(5_500, RetryReason::Status(503)));
        assert_eq!(settings().decide(&asked(0, 0.0)), again(100, RetryReason::Status(503)));
        assert_eq!(settings().decide(&asked(31, 0.0)), Decision::Skip(Skipped::RetryAfterTooLong));
        let late = Facts { left: Some(Duration::from_secs(5)), ..asked(5, 0.0) };
        assert_eq!(settings().decide(&late), Decision::Skip(Skipped::RetryAfterTooLong));
    }

    #[test]
    fn a_429_without_retry_after_waits_a_second() {
        let facts = facts(Outcome::Answer(Event::Status(429)));
        assert_eq!(settings().decide(&facts), again(1_000, RetryReason::Status(429)));
    }

    #[test]
    fn a_retry_that_could_not_start_in_time_is_not_started() {
        let left = Some(Duration::from_millis(100));
        assert_eq!(settings().decide(&Facts { left, ..facts(UNAVAILABLE) }), Decision::Skip(Skipped::Deadline));
    }

    #[test]
    fn a_body_that_was_let_go_is_not_sent_again() {
        let facts = Facts { replayable: false, ..facts(UNAVAILABLE) };
        assert_eq!(settings().decide(&facts), Decision::Skip(Skipped::BodyTooLarge));
    }

    #[test]
    fn a_key_makes_a_post_repeatable_and_is_made_only_where_there_is_none() {
        let settings = settings();
        let mut headers = HeaderMap::new();
        assert!(!settings.repeatable(&Method::POST, &headers));
        settings.add_key(&Method::GET, &mut headers);
        assert!(headers.is_empty());
        settings.add_key(&Method::POST, &mut headers);
        let key = headers["idempotency-key"].clone();
        assert_eq!(key.len(), 36);
        assert!(settings.repeatable(&Method::POST, &headers));
        settings.add_key(&Method::POST, &mut headers);
        assert_eq!(headers["idempotency-key"], key);
    }
}
