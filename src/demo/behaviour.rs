//! How an upstream misbehaves, and which request it hits: plain decisions, with time and chance from outside.

use std::time::Duration;

use fastrand::Rng;
use http::StatusCode;
use tokio::time::Instant;

use crate::demo::seen::{Call, Ledger, Seen};

/// How an upstream treats requests.
#[derive(Clone, Debug, PartialEq)]
pub enum Behaviour {
    /// Answers each with 200.
    Healthy,
    /// A share of the requests, from 0 to 1, fails by one of these faults, all equally likely.
    Flaky {
        /// From 0 to 1.
        share: f64,
        /// At least one.
        faults: Vec<Fault>,
    },
    /// Every request fails so.
    Failing(Fault),
    /// Nothing listens: connections are refused, and those that were open are closed.
    Refusing,
    /// Answers so many requests in each window, and 429 with Retry-After to the rest.
    RateLimited {
        /// How many a window.
        requests: u32,
        /// How long a window is; it begins with the first request.
        per: Duration,
    },
}

/// How one request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An answer with this status.
    Status(StatusCode),
    /// The connection is reset before a byte of the answer.
    Reset,
    /// No answer for as long as the connection lasts.
    Hang,
    /// A 200 that breaks off in the middle of its body.
    CutShort,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Answer,
    /// 429
    Limited {
        /// Seconds.
        retry_after: u64,
    },
    Fault(Fault),
}

/// What an upstream is like now, and what it has seen.
pub(super) struct State {
    /// How long each answer takes at least.
    pub(super) latency: Duration,
    behaviour: Behaviour,
    rng: Rng,
    /// Since when the rate limit's window runs, and how many were answered in it.
    window: Option<(Instant, u32)>,
    ledger: Ledger,
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        State {
            latency: Duration::ZERO,
            behaviour: Behaviour::Healthy,
            rng: Rng::with_seed(seed),
            window: None,
            ledger: Ledger::default(),
        }
    }

    pub(super) fn behave(&mut self, behaviour: Behaviour) {
        self.behaviour = behaviour;
        self.window = None;
    }

    pub(super) fn connected(&mut self) {
        self.ledger.connected();
    }

    pub(super) fn seen(&self) -> Seen {
        self.ledger.seen()
    }

    /// Decides what a request gets, and counts it.
    pub(super) fn judge(&mut self, call: Call, now: Instant) -> Verdict {
        let verdict = match &self.behaviour {
            // A request that was under way when it went down.
            Behaviour::Refusing => Verdict::Fault(Fault::Reset),
            Behaviour::Healthy => Verdict::Answer,
            Behaviour::Failing(fault) => Verdict::Fault(*fault),
            Behaviour::Flaky { share, faults } => {
                let fails = self.rng.f64() < *share;
                let which = self.rng.usize(..faults.len().max(1));
                match faults.get(which) {
                    Some(fault) if fails => Verdict::Fault(*fault),
                    Some(_) | None => Verdict::Answer,
                }
            }
            Behaviour::RateLimited { requests, per } => {
                let (since, taken) = match self.window {
                    Some((since, taken)) if now.saturating_duration_since(since) < *per => (since, taken),
                    Some(_) | None => (now, 0),
                };
                let left = *per - now.saturating_duration_since(since).min(*per);
                self.window = Some((since, taken.saturating_add(1).min(*requests)));
                if taken < *requests {
                    Verdict::Answer
                } else {
                    // Whole seconds, upwards: who comes then finds a new window.
                    Verdict::Limited { retry_after: left.as_secs() + u64::from(left.subsec_nanos() > 0) }
                }
            }
        };
        self.ledger.note(call, verdict == Verdict::Answer);
        verdict
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;

    fn get(path: &str) -> Call {
        Call::new(&Method::GET, path, &HeaderMap::new(), b"")
    }

    fn verdicts(seed: u64, behaviour: Behaviour, n: usize) -> Vec<Verdict> {
        let mut state = State::new(seed);
        state.behave(behaviour);
        let now = Instant::now();
        (0..n).map(|i| state.judge(get(&format!("/{i}")), now)).collect()
    }

    #[test]
    fn equal_seeds_fail_the_same_requests_and_about_the_share_that_was_asked_for() {
        let flaky =
            || Behaviour::Flaky { share: 0.3, faults: vec![Fault::Reset, Fault::Status(StatusCode::BAD_GATEWAY)] };
        let one = verdicts(7, flaky(), 10_000);
        assert_eq!(one, verdicts(7, flaky(), 10_000));
        assert_ne!(one, verdicts(8, flaky(), 10_000));
        let count = |wanted| one.iter().filter(|verdict| **verdict == wanted).count();
        let (resets, statuses) =
            (count(Verdict::Fault(Fault::Reset)), count(Verdict::Fault(Fault::Status(StatusCode::BAD_GATEWAY))));
        assert!((2800..3200).contains(&(resets + statuses)), "{resets} {statuses}");
        assert!(resets.abs_diff(statuses) < 300, "{resets} {statuses}");
    }

    #[test]
    fn who_waits_as_retry_after_says_finds_a_new_window() {
        let mut state = State::new(1);
        state.behave(Behaviour::RateLimited { requests: 2, per: Duration::from_millis(1500) });
        let start = Instant::now();
        let mut at = |ms| state.judge(get("/"), start + Duration::from_millis(ms));
        assert_eq!((at(0), at(10)), (Verdict::Answer, Verdict::Answer));
        assert_eq!(at(400), Verdict::Limited { retry_after: 2 });
        assert_eq!(at(900), Verdict::Limited { retry_after: 1 });
        assert_eq!((at(1900), at(1901)), (Verdict::Answer, Verdict::Answer));
        assert_eq!(at(1902), Verdict::Limited { retry_after: 2 });
        assert_eq!(state.seen().reads.failed, 3);
    }
}
