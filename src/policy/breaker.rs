//! The circuit breaker.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::document::Reader;
use crate::policy::classify::Events;
use crate::units::Ratio;

/// `circuit_breaker`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This many failures in a row open the circuit.
    pub consecutive_failures: Option<NonZeroU32>,
    /// So does this share of failures.
    pub failure_rate: Option<FailureRate>,
    /// What counts as a failure.
    pub failures: Events,
    /// An attempt without response headers by then is a failure.
    pub slow_after: Option<Duration>,
    /// How long the first opening lasts; doubles for each failed probe.
    pub open_for: Duration,
    /// The longest opening.
    pub max_open_for: Duration,
    /// How many probes may be under way at once.
    pub half_open_requests: NonZeroU32,
}

/// `circuit_breaker.failure_rate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureRate {
    /// The share at which the circuit opens.
    pub threshold: Ratio,
    /// Over this long.
    pub window: Duration,
    /// And at least so many attempts.
    pub min_requests: NonZeroU32,
}

impl Settings {
    /// Reads the block.
    pub fn read(reader: &mut Reader<'_>) -> Settings {
        Settings {
            consecutive_failures: reader.count_or_off("consecutive_failures"),
            failure_rate: reader.block("failure_rate", |reader| FailureRate {
                threshold: reader.ratio("threshold"),
                window: reader.duration("window"),
                min_requests: reader.count("min_requests", "`failure_rate: off` switches the rate off"),
            }),
            failures: Events::read(reader, "failures"),
            slow_after: reader.clock("slow_after"),
            open_for: reader.duration("open_for"),
            max_open_for: reader.duration("max_open_for"),
            half_open_requests: reader.count("half_open_requests", "`circuit_breaker: off` switches the breaker off"),
        }
    }
}

/// What an operator ordered by `POST /api/upstreams/NAME/circuit`. Survives a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Override {
    /// The breaker decides.
    Auto,
    /// Held open.
    Open,
    /// Held closed.
    Closed,
}
