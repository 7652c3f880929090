//! What happens, one method each: it counts, and logs where an operator wants to read of it. Call sites stay one line.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{ConnectFailure, Error};

/// Why a wanted retry was not made; `no-retry=` of `Proxy-Status` and the label of `outrigger_retries_skipped_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Skipped {
    /// The budget is spent.
    Budget = 1,
    /// It could not start in time.
    Deadline,
    /// The method may not be repeated and the request has no key.
    NotIdempotent,
    /// The body did not fit the replay buffer.
    BodyTooLarge,
    /// Retry-After asks for more than `max_retry_after` or the deadline allow.
    RetryAfterTooLong,
    /// It met an open circuit.
    CircuitOpen,
    /// It met an empty bucket.
    RateLimited,
    /// It met a full queue.
    Concurrency,
}

impl Skipped {
    /// All of them, for metrics.
    pub const ALL: [Skipped; 8] = [
        Skipped::Budget,
        Skipped::Deadline,
        Skipped::NotIdempotent,
        Skipped::BodyTooLarge,
        Skipped::RetryAfterTooLong,
        Skipped::CircuitOpen,
        Skipped::RateLimited,
        Skipped::Concurrency,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Skipped::Budget => "budget",
            Skipped::Deadline => "deadline",
            Skipped::NotIdempotent => "not_idempotent",
            Skipped::BodyTooLarge => "body_too_large",
            Skipped::RetryAfterTooLong => "retry_after_too_long",
            Skipped::CircuitOpen => "circuit_open",
            Skipped::RateLimited => "rate_limited",
            Skipped::Concurrency => "concurrency",
        }
    }
}

/// What was refused; the label of `outrigger_rejected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejected {
    /// An open circuit.
    CircuitOpen,
    /// No token in time.
    RateLimited,
    /// No slot or connection in time.
    Concurrency,
    /// Not allowed.
    Denied,
    /// At `limits`.
    Overloaded,
    /// Leads back here.
    Loop,
    /// Malformed.
    BadRequest,
}

impl Rejected {
    /// All of them, for metrics.
    pub const ALL: [Rejected; 7] = [
        Rejected::CircuitOpen,
        Rejected::RateLimited,
        Rejected::Concurrency,
        Rejected::Denied,
        Rejected::Overloaded,
        Rejected::Loop,
        Rejected::BadRequest,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Rejected::CircuitOpen => "circuit_open",
            Rejected::RateLimited => "rate_limited",
            Rejected::Concurrency => "concurrency",
            Rejected::Denied => "denied",
            Rejected::Overloaded => "overloaded",
            Rejected::Loop => "loop",
            Rejected::BadRequest => "bad_request",
        }
    }
}

/// A circuit's state, as metrics number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    /// Traffic flows.
    Closed = 0,
    /// Probes only.
    HalfOpen = 1,
    /// Nothing flows.
    Open = 2,
}

impl CircuitState {
    /// The label of transitions, and the word in logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            CircuitState::Closed => "closed",
            CircuitState::HalfOpen => "half_open",
            CircuitState::Open => "open",
        }
    }
}

/// Why an attempt was made again; the label of `outrigger_retries_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// An event of `on`.
    ConnectFailure,
    /// An event of `on`, or the request was never sent.
    Reset,
    /// An event of `on`.
    Timeout,
    /// An answer with this status.
    Status(u16),
    /// The free replacement of a stale pooled connection.
    StaleConnection,
}

/// How an attempt ended; the label of `outrigger_attempts_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// An answer that is not a failure.
    Success,
    /// An answer that is, by status.
    Failure,
    /// See `Event`.
    ConnectFailure,
    /// See `Event`.
    Reset,
    /// See `Event`.
    Timeout,
    /// The app hung up, or Outrigger itself refused.
    Cancelled,
}

/// What happens to one upstream.
pub struct UpstreamReport {}

impl UpstreamReport {
    /// For tests: counts into a registry of its own.
    pub fn for_test(_name: &str) -> Arc<UpstreamReport> {
        Arc::new(UpstreamReport {})
    }

    /// A connection was made: DNS, TCP and TLS together took this long.
    pub fn connected(&self, _took: Duration) {}

    /// A connection could not be made.
    pub fn connect_failed(&self, _failure: ConnectFailure, _detail: &str) {}

    /// A request was sent again.
    pub fn retried(&self, _reason: RetryReason) {}

    /// A wanted retry was not made.
    pub fn retry_skipped(&self, _reason: Skipped) {}

    /// The app's own SDK announces that this is a retry of its own.
    pub fn client_retry(&self, _source: &'static str) {}

    /// A request was refused by Outrigger.
    pub fn rejected(&self, _reason: Rejected) {}

    /// An attempt waited this long for its token.
    pub fn token_waited(&self, _waited: Duration) {}

    /// Body bytes: to the upstream (`sent`) and from it (`received`).
    pub fn bytes(&self, _sent: u64, _received: u64) {}

    /// A request is in flight until the guard is dropped.
    pub fn in_flight(self: &Arc<Self>) -> Gauge {
        Gauge {}
    }

    /// An attempt is queued (for a token, a slot or a connection) until the guard is dropped.
    pub fn queued(self: &Arc<Self>) -> Gauge {
        Gauge {}
    }

    /// A tunnel is open until the guard is dropped.
    pub fn tunnel(self: &Arc<Self>) -> Gauge {
        Gauge {}
    }
}

/// What happens on one lane: an upstream's own, or one of its routes'.
pub struct LaneReport {}

impl LaneReport {
    /// For tests: counts into a registry of its own.
    pub fn for_test() -> Arc<LaneReport> {
        Arc::new(LaneReport {})
    }

    /// A request ended; 499 where the app hung up.
    pub fn request(&self, _method: &http::Method, _code: u16, _took: Duration) {}

    /// An attempt ended (`took` runs to its response headers).
    pub fn attempt(&self, _result: AttemptResult, _took: Duration) {}

    /// An attempt failed with this error: logged at `debug`.
    pub fn attempt_failed(&self, _number: u32, _error: &Error) {}

    /// The circuit changed.
    pub fn circuit(&self, _to: CircuitState, _open_for: Option<Duration>) {}
}

/// Counts one up until it is dropped.
pub struct Gauge {}
