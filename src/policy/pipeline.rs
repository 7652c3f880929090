//! The order of the policies, and what happens to a request in it.

use crate::document::Reader;
use crate::policy::{breaker, concurrency, rate_limit, retry, timeout};

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
            timeouts: reader.block("timeouts", timeout::Settings::read).unwrap_or(timeout::Settings {
                connect: None,
                attempt: None,
                request: None,
                idle: None,
                tunnel_idle: None,
            }),
            retry: reader.block("retry", retry::Settings::read),
            circuit_breaker: reader.block("circuit_breaker", breaker::Settings::read),
            rate_limit: reader.block("rate_limit", rate_limit::Settings::read).flatten(),
            concurrency: reader.block("concurrency", concurrency::Settings::read).flatten(),
        }
    }
}

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::message::{Attempt, Exchange, Outbound};
use crate::policy::Transport;
use crate::policy::breaker::Override;
use crate::policy::replay::ReplayMemory;
use crate::telemetry::report::{CircuitState, LaneReport, UpstreamReport};

/// The live policies of one lane.
pub struct Policies {}

/// How a lane's policies stand, for the admin endpoints and metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The breaker; `None` is `off`.
    pub circuit: Option<Circuit>,
    /// Retries that the budget allows now; `None` where there is no budget or no retry.
    pub budget_remaining: Option<u64>,
    /// Tokens in the bucket now; `None` where there is no limit, or a bucket for each key.
    pub tokens: Option<u64>,
    /// For how long the bucket is shut by a Retry-After.
    pub paused_for: Option<Duration>,
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

impl Policies {
    /// From settings alone.
    pub fn new(
        _settings: &Settings,
        _replay: Arc<ReplayMemory>,
        _upstream: Arc<UpstreamReport>,
        _lane: Arc<LaneReport>,
    ) -> Policies {
        todo!()
    }

    /// Sends a request by the lane's policies: request deadline → retry → circuit breaker → rate limit → concurrency →
    /// attempt timeout → `transport`. The answer's body carries what must be given back when it ends.
    ///
    /// Dropping the future at any await gives everything back and counts as the app's hanging up.
    ///
    /// # Errors
    /// What happened instead of an answer. `exchange` says how many attempts there were and why no other was made.
    pub async fn request<T: Transport>(
        &self,
        _outbound: Outbound,
        _transport: &T,
        _exchange: &Arc<Exchange>,
    ) -> Result<http::Response<Carry<T::Body>>> {
        todo!()
    }

    /// Makes the connection of a tunnel: deadline, connection retries, breaker, a token, but no slot.
    ///
    /// # Errors
    /// As [`Policies::request`].
    pub async fn tunnel<C>(
        &self,
        _exchange: &Arc<Exchange>,
        _dial: impl AsyncFnMut(&Attempt) -> Result<C>,
    ) -> Result<C> {
        todo!()
    }

    /// How it stands.
    pub fn status(&self, _now: Instant) -> Status {
        todo!()
    }

    /// Orders the circuit; false where there is no breaker.
    pub fn order(&self, _order: Override, _now: Instant) -> bool {
        todo!()
    }

    /// `timeouts.tunnel_idle`
    pub fn tunnel_idle(&self) -> Option<Duration> {
        todo!()
    }
}

/// An answer's body under the policies: the idle clock, the slot, and the breaker's interest in a body that breaks.
/// For an upgraded stream it is kept (unread) as long as the stream lives.
pub struct Carry<B> {
    _body: B,
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for Carry<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        todo!()
    }
}
