//! What series are told apart by: one enum a label, so that a value is written in one way only.

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
    /// All of them, for metrics.
    pub const ALL: [CircuitState; 3] = [CircuitState::Closed, CircuitState::HalfOpen, CircuitState::Open];

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

impl AttemptResult {
    /// All of them, for metrics.
    pub const ALL: [AttemptResult; 6] = [
        AttemptResult::Success,
        AttemptResult::Failure,
        AttemptResult::ConnectFailure,
        AttemptResult::Reset,
        AttemptResult::Timeout,
        AttemptResult::Cancelled,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            AttemptResult::Success => "success",
            AttemptResult::Failure => "failure",
            AttemptResult::ConnectFailure => "connect_failure",
            AttemptResult::Reset => "reset",
            AttemptResult::Timeout => "timeout",
            AttemptResult::Cancelled => "cancelled",
        }
    }
}

/// How the TLS handshake of an app whose CONNECT is intercepted ended; the label of `outrigger_intercept_handshakes_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It was made.
    Success,
    /// It was made for another host than CONNECT named, so all that is asked for is refused.
    Strayed,
    /// The app refused the certificate.
    Rejected,
    /// It did not end in time.
    Timeout,
    /// Anything else.
    Failed,
}

impl Handshake {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Handshake::Success => "success",
            Handshake::Strayed => "strayed",
            Handshake::Rejected => "rejected",
            Handshake::Timeout => "timeout",
            Handshake::Failed => "failed",
        }
    }
}
