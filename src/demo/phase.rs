//! The phases: what the upstream does in each, and for how long.

use std::time::Duration;

use http::StatusCode;

use crate::demo::behaviour::{Behaviour, Fault};

/// How long a well upstream takes to answer, as one across a network does.
pub(super) const LATENCY: Duration = Duration::from_millis(20);

/// One part of the demonstration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All is well.
    Healthy,
    /// Some requests fail.
    Flaky,
    /// All fail.
    Down,
    /// None is answered.
    Slow,
    /// More is asked than the upstream allows.
    RateLimited,
    /// All is well again.
    Recovered,
}

/// Which of the two upstreams a phase is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Main,
    Quota,
}

impl Api {
    /// Its name in the configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Api::Main => "api",
            Api::Quota => "quota",
        }
    }

    /// What the app calls it.
    pub(super) fn host(self) -> &'static str {
        match self {
            Api::Main => "api.test",
            Api::Quota => "quota.test",
        }
    }
}

/// What the upstream does for a while.
pub(super) struct Step {
    pub(super) behaviour: Behaviour,
    pub(super) latency: Duration,
    pub(super) lasts: Duration,
}

fn step(behaviour: Behaviour, latency: Duration, seconds: u64) -> Step {
    Step { behaviour, latency, lasts: Duration::from_secs(seconds) }
}

impl Phase {
    /// In their order.
    pub const ALL: [Phase; 6] =
        [Phase::Healthy, Phase::Flaky, Phase::Down, Phase::Slow, Phase::RateLimited, Phase::Recovered];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Healthy => "healthy",
            Phase::Flaky => "flaky",
            Phase::Down => "down",
            Phase::Slow => "slow",
            Phase::RateLimited => "rate-limited",
            Phase::Recovered => "recovered",
        }
    }

    /// What the upstream does.
    pub(super) fn story(self) -> &'static str {
        match self {
            Phase::Healthy => "the API answers within 20 ms",
            Phase::Flaky => "3 of 10 requests fail: a 503, or a connection that is reset",
            Phase::Down => "every request fails: 503 after 300 ms, then refused connections",
            Phase::Slow => "requests are taken and never answered",
            Phase::RateLimited => "another API allows 120 requests in 2 s, then 429 with Retry-After",
            Phase::Recovered => "the first API is well again",
        }
    }

    pub(super) fn api(self) -> Api {
        match self {
            Phase::Healthy | Phase::Flaky | Phase::Down | Phase::Slow | Phase::Recovered => Api::Main,
            Phase::RateLimited => Api::Quota,
        }
    }

    /// Whether the circuit must be closed before it begins, since what it shows would not be seen through an open one.
    pub(super) fn needs_closed_circuit(self) -> bool {
        match self {
            Phase::Healthy | Phase::Flaky | Phase::Down | Phase::Slow => true,
            Phase::RateLimited | Phase::Recovered => false,
        }
    }

    pub(super) fn steps(self) -> Vec<Step> {
        match self {
            Phase::Healthy => vec![step(Behaviour::Healthy, LATENCY, 4)],
            Phase::Flaky => {
                let faults = vec![Fault::Status(StatusCode::SERVICE_UNAVAILABLE), Fault::Reset];
                vec![step(Behaviour::Flaky { share: 0.3, faults }, LATENCY, 8)]
            }
            Phase::Down => {
                let unavailable = Behaviour::Failing(Fault::Status(StatusCode::SERVICE_UNAVAILABLE));
                vec![step(unavailable, Duration::from_millis(300), 5), step(Behaviour::Refusing, LATENCY, 1)]
            }
            Phase::Slow => vec![step(Behaviour::Failing(Fault::Hang), LATENCY, 6)],
            Phase::RateLimited => {
                let limited = Behaviour::RateLimited { requests: 120, per: Duration::from_secs(2) };
                vec![step(limited, LATENCY, 8)]
            }
            Phase::Recovered => vec![step(Behaviour::Healthy, LATENCY, 4)],
        }
    }

    /// What it lasts, without waiting for the last answers.
    pub(super) fn lasts(self) -> Duration {
        self.steps().iter().map(|step| step.lasts).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_phases_together_leave_time_for_the_waits_between_them() {
        let all: Duration = Phase::ALL.iter().map(|phase| phase.lasts()).sum();
        assert!(all <= Duration::from_secs(40), "{all:?}");
    }
}
