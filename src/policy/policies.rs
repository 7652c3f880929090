//! The live policies of one lane: their settings, their state and where it comes from, how they stand.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use tokio::time::Instant;

use crate::document::Reader;
use crate::policy::breaker::{Breaker, Override};
use crate::policy::budget::Budget;
use crate::policy::concurrency::Concurrency;
use crate::policy::rate_limit::RateLimit;
use crate::policy::replay::ReplayMemory;
use crate::policy::retry::Retry;
use crate::policy::{breaker, concurrency, rate_limit, retry, timeout};
use crate::telemetry::report::{CircuitState, LaneReport, UpstreamReport};

/// The policy blocks of one lane, merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `timeouts`
    pub timeouts: timeout::Settings,
    /// `retry`; `None` is `off`.
    pub retry: Option<retry::Settings>,
    /// `circuit_breaker`; `None` is `off`.
    pub circuit_breaker: Option<breaker::Settings>,
    /// `rate_limit`; `None` is `off`.
    pub rate_limit: Option<rate_limit::Settings>,
    /// `concurrency`; `None` is `off`.
    pub concurrency: Option<concurrency::Settings>,
}

impl Settings {
    /// Reads the policy blocks of a merged mapping (an upstream's or a route's).
    pub fn read(reader: &mut Reader<'_>) -> Settings {
        Settings {
            timeouts: reader.shared_block("timeouts", timeout::Settings::read).unwrap_or(timeout::Settings {
                connect: None,
                attempt: None,
                request: None,
                idle: None,
                tunnel_idle: None,
            }),
            retry: reader.shared_block("retry", retry::Settings::read),
            circuit_breaker: reader.shared_block("circuit_breaker", breaker::Settings::read),
            rate_limit: reader.shared_block("rate_limit", rate_limit::Settings::read).flatten(),
            concurrency: reader.shared_block("concurrency", concurrency::Settings::read).flatten(),
        }
    }
}

/// The live policies of one lane.
pub struct Policies {
    pub(super) settings: Settings,
    pub(super) retry: Option<Retry>,
    pub(super) breaker: Option<Arc<Breaker>>,
    pub(super) rate_limit: Option<Arc<RateLimit>>,
    pub(super) concurrency: Option<Arc<Concurrency>>,
    pub(super) replay: Arc<ReplayMemory>,
    pub(super) upstream: Arc<UpstreamReport>,
    pub(super) lane: Arc<LaneReport>,
}

/// Which blocks a route writes itself, so that their state is its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnState {
    /// `circuit_breaker`
    pub breaker: bool,
    /// `rate_limit`
    pub rate_limit: bool,
    /// `concurrency`
    pub concurrency: bool,
    /// `retry.budget`
    pub budget: bool,
}

/// What a lane's state comes from, when a configuration is made live.
pub struct Heritage<'a> {
    /// The same lane before the reload, and which states were its own.
    pub old: Option<(&'a Policies, OwnState)>,
    /// The upstream's own lane, for a route: what the route does not write, it shares.
    pub parent: Option<&'a Policies>,
    /// Which blocks the route writes; all of them for an upstream's own lane.
    pub own: OwnState,
}

impl Heritage<'_> {
    /// *Share* the upstream's state where the route writes no block of its own, else *carry* what was the lane's own before;
    /// `None` is a new one.
    fn state<S>(&self, own: impl Fn(OwnState) -> bool, of: impl Fn(&Policies) -> Option<S>) -> Option<S> {
        match self.parent {
            Some(parent) if !own(self.own) => of(parent),
            Some(_) | None => self.old.filter(|(_, old)| own(*old)).and_then(|(lane, _)| of(lane)),
        }
    }
}

impl Policies {
    /// From settings, with the state that still has meaning. Changes nothing that is live: [`Policies::take_over`] does,
    /// once the configuration is in place.
    pub fn new(
        settings: Settings,
        heritage: &Heritage<'_>,
        replay: Arc<ReplayMemory>,
        upstream: Arc<UpstreamReport>,
        lane: Arc<LaneReport>,
        now: Instant,
    ) -> Policies {
        let breaker = settings.circuit_breaker.clone().map(|settings| {
            let inherited = heritage.state(|own| own.breaker, |lane| lane.breaker.clone());
            inherited.unwrap_or_else(|| Breaker::new(settings, lane.clone(), now))
        });
        let rate_limit = settings.rate_limit.clone().map(|settings| {
            let inherited = heritage.state(|own| own.rate_limit, |lane| lane.rate_limit.clone());
            inherited.unwrap_or_else(|| RateLimit::new(settings, now))
        });
        let concurrency = settings.concurrency.clone().map(|settings| {
            let inherited = heritage.state(|own| own.concurrency, |lane| lane.concurrency.clone());
            inherited.unwrap_or_else(|| Concurrency::new(settings))
        });
        let retry = settings.retry.clone().map(|settings| {
            let budget = settings.budget.clone().map(|settings| {
                let inherited = heritage.state(|own| own.budget, |lane| lane.retry.as_ref()?.budget.clone());
                inherited.unwrap_or_else(|| Arc::new(Budget::new(settings, now)))
            });
            Retry { settings, budget }
        });
        Policies { settings, retry, breaker, rate_limit, concurrency, replay, upstream, lane }
    }

    /// The configuration is in place: state that was taken over goes by its settings from now on.
    pub fn take_over(&self, now: Instant) {
        if let (Some(breaker), Some(settings)) = (&self.breaker, &self.settings.circuit_breaker) {
            breaker.reconfigure(settings, now);
        }
        if let (Some(rate_limit), Some(settings)) = (&self.rate_limit, &self.settings.rate_limit) {
            rate_limit.reconfigure(settings, now);
        }
        if let (Some(concurrency), Some(settings)) = (&self.concurrency, &self.settings.concurrency) {
            concurrency.reconfigure(settings);
        }
        if let Some(Retry { settings, budget: Some(budget) }) = &self.retry
            && let Some(settings) = &settings.budget
        {
            budget.reconfigure(settings);
        }
    }

    /// How it stands.
    pub fn status(&self, now: Instant) -> Status {
        let circuit = self.breaker.as_ref().map(|breaker| {
            let (state, next_probe, manual, consecutive_failures) = breaker.status(now);
            Circuit { state, next_probe, manual, consecutive_failures }
        });
        let budget = self.retry.as_ref().and_then(|retry| retry.budget.as_ref());
        let (tokens, paused_for, at_bucket) =
            self.rate_limit.as_ref().map_or((None, None, 0), |rate_limit| rate_limit.status(now));
        let slots = self.concurrency.as_ref().map(|concurrency| concurrency.status());
        Status {
            circuit,
            budget_remaining: budget.map(|budget| budget.remaining(now)),
            tokens,
            burst: self.settings.rate_limit.as_ref().map(|settings| settings.burst.get()),
            paused_for,
            slots: self.settings.concurrency.as_ref().map(|settings| settings.max_in_flight.get()),
            in_flight: slots.map(|(taken, _)| taken),
            queued: at_bucket + slots.map_or(0, |(_, waiting)| waiting),
        }
    }

    /// The circuit's state, and a number that grows with each change of it.
    #[cfg(test)]
    pub(crate) fn circuit(&self, now: Instant) -> Option<(CircuitState, u64)> {
        self.breaker.as_ref().map(|breaker| (breaker.status(now).0, breaker.generation()))
    }

    /// Whether the circuit has a place for one request now. It is given back at once.
    #[cfg(test)]
    pub(crate) fn would_admit(&self, now: Instant) -> bool {
        self.breaker.as_ref().is_none_or(|breaker| breaker.admit(now).is_ok())
    }

    /// Orders the circuit; false where there is no breaker.
    pub fn order(&self, order: Override) -> bool {
        self.breaker.as_ref().map(|breaker| breaker.order(order)).is_some()
    }

    /// What `retry` calls an idempotency header; none where it is `off`.
    pub fn idempotency_headers(&self) -> &[HeaderName] {
        self.settings.retry.as_ref().map_or(&[], |retry| &retry.idempotency_headers)
    }

    /// `timeouts.tunnel_idle`
    pub fn tunnel_idle(&self) -> Option<Duration> {
        self.settings.timeouts.tunnel_idle
    }

    /// `timeouts.idle`
    pub fn idle(&self) -> Option<Duration> {
        self.settings.timeouts.idle
    }
}

/// How a lane's policies stand, for the admin endpoints and metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The breaker; `None` is `off`.
    pub circuit: Option<Circuit>,
    /// Retries that the budget allows now; `None` where there is no budget or no retry.
    pub budget_remaining: Option<u64>,
    /// Tokens in the bucket now; `None` where there is no limit, or a bucket for each key.
    pub tokens: Option<u64>,
    /// How many a bucket holds; `None` where there is no limit.
    pub burst: Option<u32>,
    /// For how long the bucket is shut by a Retry-After.
    pub paused_for: Option<Duration>,
    /// How many slots there are; `None` where there is no limit.
    pub slots: Option<u32>,
    /// Slots taken; `None` where there is no limit.
    pub in_flight: Option<usize>,
    /// Attempts waiting for a slot or a token.
    pub queued: usize,
}

/// How a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Circuit {
    /// Its state.
    pub state: CircuitState,
    /// Until the next probe, where it is open by itself.
    pub next_probe: Option<Duration>,
    /// What the operator ordered.
    pub manual: Override,
    /// Failures in a row.
    pub consecutive_failures: u32,
}
