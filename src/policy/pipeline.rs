//! The order of the policies, and what happens to a request in it:
//!
//! request deadline → retry → circuit breaker → rate limit → concurrency → attempt timeout → connection
//!
//! So each attempt is counted by the breaker, takes a token and a slot; an open circuit costs neither; no wait outlives the
//! deadline. It is written straight through rather than as a stack of services, because the rules that matter
//! cross the layers: the deadline bounds every wait, admission is checked again just before sending, and a retry
//! that is refused hands back the answer before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Method, StatusCode, request};
use http_body::Body;
use tokio::time::Instant;

use crate::config::OwnState;
use crate::document::Reader;
use crate::error::{Error, Origin, Result};
use crate::message::{AppBody, Attempt, Exchange, Outbound, Phase};
use crate::policy::body::{AttemptBody, Gate};
use crate::policy::breaker::{Breaker, Override, Permit, Verdict};
use crate::policy::budget::Budget;
pub use crate::policy::carry::Carry;
use crate::policy::classify::Event;
use crate::policy::concurrency::{Concurrency, Slot};
use crate::policy::rate_limit::{Bucket, RateLimit};
use crate::policy::replay::{Replay, ReplayMemory};
use crate::policy::retry::{Decision, Facts, Outcome, Retry};
use crate::policy::timeout::{Clocks, Deadline};
use crate::policy::{Destination, Transport, breaker, concurrency, rate_limit, retry, retry_after, timeout};
use crate::telemetry::report::{AttemptResult, CircuitState, LaneReport, RetryReason, Skipped, UpstreamReport};

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

/// The live policies of one lane.
pub struct Policies {
    settings: Settings,
    retry: Option<Retry>,
    breaker: Option<Arc<Breaker>>,
    rate_limit: Option<Arc<RateLimit>>,
    concurrency: Option<Arc<Concurrency>>,
    replay: Arc<ReplayMemory>,
    upstream: Arc<UpstreamReport>,
    lane: Arc<LaneReport>,
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

/// Longest pause that a Retry-After may order where `retry` is off.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long an app's `Expect: 100-continue` waits for the upstream's word before the body is sent all the same.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// What is kept of a body that may only be sent again if nothing of it was sent: what a connection takes before its first
/// write fails. Bytes.
const UNSENT_BODY: u64 = 64 * 1024;

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
        if let Some(Retry { settings, budget: Some(budget) }) = &self.retry {
            if let Some(settings) = &settings.budget {
                budget.reconfigure(settings);
            }
        }
    }

    /// Sends a request by the lane's policies. The answer's body carries what must be given back when it ends.
    ///
    /// Dropping the future at any await gives everything back and counts as the app's hanging up.
    ///
    /// # Errors
    /// What happened instead of an answer. `exchange` says how many attempts there were and why no other was made.
    pub async fn request<T: Transport>(
        &self,
        outbound: Outbound,
        transport: &T,
        exchange: &Arc<Exchange>,
    ) -> Result<http::Response<Carry<T::Body>>> {
        let Outbound { mut head, body, origin, keep_host, expect_continue } = outbound;
        if let Some(retry) = &self.retry {
            retry.settings.add_key(&head.method, &mut head.headers);
        }
        let grpc = is_grpc(&head.headers);
        let repeatable = self.repeatable(&head.method, &head.headers);
        let mut call = Call {
            policies: self,
            transport,
            exchange,
            to: Destination { origin, keep_host },
            deadline: Deadline::new(&self.settings.timeouts, &head.headers, grpc),
            body: self.replay(body, repeatable, exchange),
            head,
            grpc,
            repeatable,
            expect_continue,
            endpoint: None,
        };
        let result = self.repeat(&mut call).await;
        if let Some(body) = &call.body {
            body.release();
        }
        result
    }

    /// Makes the connection of a tunnel: deadline, connection retries, breaker, a token, but no slot.
    ///
    /// # Errors
    /// As [`Policies::request`].
    pub async fn tunnel<C: Send>(
        &self,
        exchange: &Arc<Exchange>,
        dial: impl AsyncFn(&Attempt) -> Result<C>,
    ) -> Result<C> {
        let no_headers = HeaderMap::new();
        let deadline = Deadline::new(&self.settings.timeouts, &no_headers, false);
        let mut attempts = 0;
        let mut failed: Option<Error> = None;
        loop {
            let admission = match self.admit(&no_headers, exchange, deadline, false).await {
                Ok(admission) => admission,
                Err(refusal) => return Err(self.refuse(refusal, failed.take(), exchange)),
            };
            self.deposit(attempts);
            attempts += 1;
            exchange.attempts.store(attempts, Ordering::Relaxed);
            let attempt = Attempt::new(exchange.clone(), self.settings.timeouts.connect);
            let clocks = self.clocks(deadline, false);
            let mut running = Running::new(&self.lane, admission);
            let result = running.run(exchange, clocks, || attempt.phase(), dial(&attempt)).await;
            let verdict = match &result {
                Ok(_) => Verdict::Passing,
                Err(error) => self.judge_error(error),
            };
            running.settle(verdict, attempt_result(result.as_ref().map(|_| false)));
            let error = match result {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            // The request itself is never sent on a tunnel, so every failure here came before that.
            match self.decide(Outcome::Failure(&error), attempts, true, true, None, deadline, exchange) {
                None => return Err(error),
                Some((wait, reason)) => {
                    failed = Some(error);
                    self.back_off(wait, exchange).await;
                    self.upstream.retried(reason);
                }
            }
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
            paused_for,
            in_flight: slots.map(|(taken, _)| taken),
            queued: at_bucket + slots.map_or(0, |(_, waiting)| waiting),
        }
    }

    /// Orders the circuit; false where there is no breaker.
    pub fn order(&self, order: Override) -> bool {
        self.breaker.as_ref().map(|breaker| breaker.order(order)).is_some()
    }

    /// `timeouts.tunnel_idle`
    pub fn tunnel_idle(&self) -> Option<Duration> {
        self.settings.timeouts.tunnel_idle
    }

    /// `timeouts.idle`
    pub fn idle(&self) -> Option<Duration> {
        self.settings.timeouts.idle
    }

    /// The retry loop: attempt, decide, wait, again.
    async fn repeat<T: Transport>(&self, call: &mut Call<'_, T>) -> Result<http::Response<Carry<T::Body>>> {
        let mut attempts = 0;
        let mut last: Option<Result<http::Response<Carry<T::Body>>>> = None;
        loop {
            let admission = match self.admit(&call.head.headers, call.exchange, call.deadline, true).await {
                Ok(admission) => admission,
                Err(refusal) => return self.refuse_retry(refusal, last, call.exchange),
            };
            // An answer too long to be kept would hold its connection while the retry waits for one.
            let last_kept = last.take().filter(|last| last.as_ref().map_or(true, |answer| answer.body().is_kept()));
            self.deposit(attempts);
            attempts += 1;
            call.exchange.attempts.store(attempts, Ordering::Relaxed);
            let result = call.attempt(admission).await;
            if let Err(error) = &result {
                self.lane.attempt_failed(attempts, error);
                // Refused by ourselves after all, in line for a connection, say: the answer before stands.
                if error.origin() == Origin::Proxy {
                    call.exchange.attempts.store(attempts - 1, Ordering::Relaxed);
                    return self.refuse_retry(error.clone(), last_kept, call.exchange);
                }
            }
            let asked = result.as_ref().ok().and_then(|answer| asked_to_wait(answer.status(), answer.headers()));
            let outcome = match &result {
                Ok(answer) => Outcome::Answer(Event::of_answer(answer.status(), answer.headers(), call.grpc)),
                Err(error) => Outcome::Failure(error),
            };
            let replayable = call.body.as_ref().is_none_or(Replay::replayable);
            let again =
                self.decide(outcome, attempts, call.repeatable, replayable, asked, call.deadline, call.exchange);
            let Some((wait, reason)) = again else { return result };
            last = Some(self.hold(result, wait, call.exchange).await);
            self.upstream.retried(reason);
        }
    }

    /// Waits for the back-off, and meanwhile reads a short answer to its end.
    async fn hold<B: Body<Data = Bytes, Error = Error> + Unpin>(
        &self,
        mut result: Result<http::Response<Carry<B>>>,
        wait: Duration,
        exchange: &Exchange,
    ) -> Result<http::Response<Carry<B>>> {
        let back_off = self.back_off(wait, exchange);
        if let Ok(answer) = &mut result {
            answer.body_mut().give_slot_back();
            let kept = answer.body_mut().keep();
            let mut back_off = std::pin::pin!(back_off);
            tokio::select! {
                biased;
                () = kept => back_off.await,
                () = &mut back_off => {}
            }
        } else {
            back_off.await;
        }
        result
    }

    async fn back_off(&self, wait: Duration, exchange: &Exchange) {
        if !wait.is_zero() {
            let began = Instant::now();
            tokio::time::sleep(wait).await;
            Exchange::add(&exchange.waited, began.elapsed());
        }
    }

    /// Breaker, token and slot, in this order, and the breaker again if there was a wait in which it may have opened.
    async fn admit(
        &self,
        headers: &HeaderMap,
        exchange: &Exchange,
        deadline: Deadline,
        with_slot: bool,
    ) -> Result<Admission> {
        let mut admission = Admission { permit: None, bucket: None, slot: None };
        if let Some(breaker) = &self.breaker {
            admission.permit = Some(breaker.admit(Instant::now())?);
        }
        if self.rate_limit.is_none() && self.concurrency.is_none() {
            return Ok(admission);
        }
        let began = Instant::now();
        let until = deadline.at(exchange, began);
        if let Some(rate_limit) = &self.rate_limit {
            let (bucket, max_wait) = rate_limit.bucket(headers, began);
            let result = bucket.acquire(max_wait, until).await;
            self.upstream.token_waited(began.elapsed());
            result.inspect_err(|_| Exchange::add(&exchange.waited, began.elapsed()))?;
            admission.bucket = Some(bucket);
        }
        if let Some(concurrency) = self.concurrency.as_ref().filter(|_| with_slot) {
            let result = concurrency.acquire(until).await;
            admission.slot = Some(result.inspect_err(|_| Exchange::add(&exchange.waited, began.elapsed()))?);
        }
        let now = Instant::now();
        Exchange::add(&exchange.waited, now - began);
        // While this one waited for a slot, an answer may have shut the bucket: it would only earn its own 429.
        if let Some(wait) = admission.bucket.as_ref().and_then(|bucket| bucket.paused(now)) {
            return Err(Error::RateLimited(wait));
        }
        admission.check(now)?;
        Ok(admission)
    }

    /// Whether to send again, and after how long. Says why not where a retry was wanted.
    #[expect(clippy::too_many_arguments, reason = "the facts of one decision, gathered in one place")]
    fn decide(
        &self,
        outcome: Outcome<'_>,
        attempts: u32,
        repeatable: bool,
        replayable: bool,
        retry_after: Option<Duration>,
        deadline: Deadline,
        exchange: &Exchange,
    ) -> Option<(Duration, RetryReason)> {
        let retry = self.retry.as_ref()?;
        let now = Instant::now();
        let left = deadline.at(exchange, now).map(|at| at.saturating_duration_since(now));
        let (random, extra) = (fastrand::f64(), fastrand::f64());
        let facts = Facts { outcome, attempts, repeatable, replayable, retry_after, left, random, extra };
        match retry.decide(&facts, now) {
            Decision::Pass => None,
            Decision::Skip(reason) => {
                self.skip(reason, exchange);
                None
            }
            Decision::Again(wait, reason) => Some((wait, reason)),
        }
    }

    fn skip(&self, reason: Skipped, exchange: &Exchange) {
        exchange.no_retry.store(reason as u8, Ordering::Relaxed);
        self.upstream.retry_skipped(reason);
    }

    /// Outrigger itself refuses an attempt. A first one is refused; a later one ends the request with what was before.
    fn refuse(&self, refusal: Error, before: Option<Error>, exchange: &Exchange) -> Error {
        match (before, skipped(&refusal)) {
            (Some(before), Some(reason)) => {
                self.skip(reason, exchange);
                before
            }
            (Some(_), None) | (None, _) => refusal,
        }
    }

    fn refuse_retry<B>(
        &self,
        refusal: Error,
        last: Option<Result<http::Response<Carry<B>>>>,
        exchange: &Exchange,
    ) -> Result<http::Response<Carry<B>>> {
        match last {
            Some(Ok(answer)) => {
                if let Some(reason) = skipped(&refusal) {
                    self.skip(reason, exchange);
                }
                Ok(answer)
            }
            Some(Err(before)) => Err(self.refuse(refusal, Some(before), exchange)),
            None => Err(self.refuse(refusal, None, exchange)),
        }
    }

    /// What an error says about the upstream.
    fn judge_error(&self, error: &Error) -> Verdict {
        let Some(breaker) = &self.breaker else { return Verdict::Neutral };
        if let Error::Deadline { ran, .. } = error {
            if *ran < self.fair_time() {
                return Verdict::Neutral;
            }
        }
        match Event::of_error(error) {
            Some(event) if breaker.failures().contains(event) => Verdict::Failure,
            Some(_) | None => Verdict::Neutral,
        }
    }

    /// How long an attempt must have been given for a deadline that cuts it off to be the upstream's fault.
    fn fair_time(&self) -> Duration {
        let timeouts = &self.settings.timeouts;
        let attempts = self.retry.as_ref().map_or(1, |retry| retry.settings.max_attempts.get());
        let share = timeouts.request.map(|request| request / attempts);
        match (timeouts.attempt, share) {
            (Some(attempt), Some(share)) => attempt.min(share),
            (Some(time), None) | (None, Some(time)) => time,
            (None, None) => Duration::ZERO,
        }
    }

    fn judge_answer(&self, event: Event) -> Verdict {
        let Some(breaker) = &self.breaker else { return Verdict::Neutral };
        match event {
            event if breaker.failures().contains(event) => Verdict::Failure,
            Event::Status(status) if status < 400 => Verdict::Success,
            Event::Status(_) | Event::ConnectFailure | Event::Reset | Event::Timeout => Verdict::Passing,
        }
    }

    fn clocks(&self, deadline: Deadline, body: bool) -> Clocks {
        Clocks {
            attempt: self.settings.timeouts.attempt,
            deadline,
            idle: self.settings.timeouts.idle,
            slow_after: self.breaker.as_ref().and_then(|breaker| breaker.slow_after()),
            body,
        }
    }

    /// A request's first attempt feeds the budget. What an open circuit refuses does not: the upstream sees nothing of it.
    fn deposit(&self, attempts_before: u32) {
        let budget = self.retry.as_ref().and_then(|retry| retry.budget.as_ref());
        if let Some(budget) = budget.filter(|_| attempts_before == 0) {
            budget.deposit(Instant::now());
        }
    }

    /// With `retry: off` what HTTP itself declares idempotent still is (RFC 9110 section 9.2.2), for the replacement of a
    /// stale connection.
    fn repeatable(&self, method: &Method, headers: &HeaderMap) -> bool {
        match &self.retry {
            Some(retry) => retry.settings.repeatable(method, headers),
            None => method.is_idempotent(),
        }
    }

    fn replay(&self, body: AppBody, repeatable: bool, exchange: &Arc<Exchange>) -> Option<Replay> {
        if body.is_end_stream() {
            return None;
        }
        let cap = match &self.retry {
            Some(retry) if repeatable => retry.settings.max_body,
            Some(_) | None => UNSENT_BODY,
        };
        Some(Replay::new(body, cap, self.replay.clone(), exchange.clone()))
    }

    /// A 429 or 503 with Retry-After shuts the bucket for everybody, so that the others don't each earn their own.
    fn pause(&self, bucket: Option<&Arc<Bucket>>, asked: Option<Duration>, now: Instant) {
        let (Some(bucket), Some(asked), Some(rate_limit)) = (bucket, asked, &self.rate_limit) else { return };
        if rate_limit.pauses() {
            let longest = self.retry.as_ref().map_or(LONGEST_PAUSE, |retry| retry.settings.max_retry_after);
            bucket.pause(asked.min(longest), now);
        }
    }
}

/// One request on its way through the pipeline.
struct Call<'a, T> {
    policies: &'a Policies,
    transport: &'a T,
    exchange: &'a Arc<Exchange>,
    to: Destination,
    deadline: Deadline,
    head: request::Parts,
    /// `None` where there is no body.
    body: Option<Replay>,
    grpc: bool,
    repeatable: bool,
    expect_continue: bool,
    /// Which of several `to` the attempt before used.
    endpoint: Option<usize>,
}

impl<T: Transport> Call<'_, T> {
    /// One attempt: the clocks around the transport, one free replacement of a stale connection, and the verdict.
    async fn attempt(&mut self, admission: Admission) -> Result<http::Response<Carry<T::Body>>> {
        let policies = self.policies;
        let mut first = Attempt::new(self.exchange.clone(), policies.settings.timeouts.connect);
        first.avoid = self.endpoint;
        let mut second = Attempt::new(self.exchange.clone(), policies.settings.timeouts.connect);
        second.fresh = true;
        let attempts = [first, second];
        let current = AtomicUsize::new(0);
        let phase = || attempts[current.load(Ordering::Relaxed)].phase();

        let mut running = Running::new(&policies.lane, admission);
        let clocks = policies.clocks(self.deadline, self.body.is_some());
        let send = async {
            match self.send(&attempts[0]).await {
                Err(error) if self.is_stale(&error) => {
                    policies.upstream.retried(RetryReason::StaleConnection);
                    current.store(1, Ordering::Relaxed);
                    self.send(&attempts[1]).await
                }
                result => result,
            }
        };
        let result = running.run(self.exchange, clocks, phase, send).await;
        let now = Instant::now();
        let upload = &self.exchange.upload;
        upload.end(self.exchange.nanos(now));
        // Whatever the transport made of it: a body that the app broke off is the app's doing.
        let app_gone = upload.app_gone.load(Ordering::Relaxed);
        let result = result.map_err(|error| if app_gone { Error::AppGone } else { error });

        let used = attempts[current.load(Ordering::Relaxed)].endpoint();
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                running.settle(policies.judge_error(&error), attempt_result(Err(&error)));
                self.endpoint = used;
                return Err(error);
            }
        };
        let event = Event::of_answer(answer.status(), answer.headers(), self.grpc);
        let verdict = policies.judge_answer(event);
        let asked = asked_to_wait(answer.status(), answer.headers());
        policies.pause(running.admission.bucket.as_ref(), asked, now);
        let failed = verdict == Verdict::Failure || matches!(event, Event::Status(status) if status >= 500);
        running.settle(verdict, attempt_result(Ok(failed)));
        self.endpoint = used;
        self.exchange.touch(now);
        let Admission { permit, slot, .. } = running.finish();
        let breaker = permit.map(|permit| (permit.breaker().clone(), permit.generation()));
        let idle = policies.settings.timeouts.idle;
        Ok(answer.map(|body| Carry::new(body, self.exchange.clone(), idle, slot, breaker)))
    }

    async fn send(&self, attempt: &Attempt) -> Result<http::Response<T::Body>> {
        let mut head = self.head.clone();
        let mut body = match &self.body {
            Some(replay) => AttemptBody::replayed(replay.cursor()),
            None => AttemptBody::empty(),
        };
        if self.expect_continue {
            let gate = Arc::new(Gate::default());
            body = body.behind(gate.clone(), CONTINUE_PATIENCE);
            let mut request = http::Request::from_parts(head, ());
            hyper::ext::on_informational(&mut request, move |answer| {
                if answer.status() == StatusCode::CONTINUE {
                    gate.open();
                }
            });
            head = request.into_parts().0;
        }
        self.transport.send(head, body, &self.to, attempt).await
    }

    /// A pooled connection that closed before one byte of the answer, and sending again is safe.
    fn is_stale(&self, error: &Error) -> bool {
        match error {
            Error::Reset { sent, reused: true, answer_began: false, .. } => {
                let safe = *sent == crate::error::Sent::No || self.repeatable;
                let app_here = !self.exchange.upload.app_gone.load(Ordering::Relaxed);
                safe && app_here && self.body.as_ref().is_none_or(Replay::replayable)
            }
            _ => false,
        }
    }
}

/// Leave to send one attempt.
struct Admission {
    permit: Option<Permit>,
    bucket: Option<Arc<Bucket>>,
    slot: Option<Slot>,
}

impl Admission {
    /// Asks the breaker again where its state has changed since it was asked.
    fn check(&mut self, now: Instant) -> Result<()> {
        if let Some(permit) = self.permit.as_mut().filter(|permit| permit.is_stale()) {
            let breaker = permit.breaker().clone();
            *permit = breaker.admit(now)?;
        }
        Ok(())
    }
}

/// An attempt under way: counted when it ends, also when it is dropped.
struct Running<'a> {
    lane: &'a LaneReport,
    began: Instant,
    admission: Admission,
    counted: bool,
}

impl<'a> Running<'a> {
    fn new(lane: &'a LaneReport, admission: Admission) -> Running<'a> {
        Running { lane, began: Instant::now(), admission, counted: false }
    }

    /// Runs it under its clocks. Until it is handed to a connection, each step asks whether the circuit still lets it.
    async fn run<R>(
        &mut self,
        exchange: &Exchange,
        clocks: Clocks,
        phase: impl Fn() -> Phase,
        send: impl Future<Output = Result<R>>,
    ) -> Result<R> {
        let admission = std::cell::RefCell::new(&mut self.admission);
        let before_poll = || match phase() {
            Phase::Waiting | Phase::Connecting => admission.borrow_mut().check(Instant::now()),
            Phase::Sending => Ok(()),
        };
        let slow = |now| {
            if let Some(permit) = &mut admission.borrow_mut().permit {
                permit.settle(Verdict::Failure, now);
            }
        };
        clocks.run(exchange, &phase, send, before_poll, slow).await
    }

    fn settle(&mut self, verdict: Verdict, result: AttemptResult) {
        let now = Instant::now();
        if let Some(permit) = &mut self.admission.permit {
            permit.settle(verdict, now);
        }
        self.counted = true;
        self.lane.attempt(result, now - self.began);
    }

    fn finish(mut self) -> Admission {
        let nothing = Admission { permit: None, bucket: None, slot: None };
        std::mem::replace(&mut self.admission, nothing)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.counted {
            self.lane.attempt(AttemptResult::Cancelled, self.began.elapsed());
        }
    }
}

fn attempt_result(result: Result<bool, &Error>) -> AttemptResult {
    match result {
        Ok(false) => AttemptResult::Success,
        Ok(true) => AttemptResult::Failure,
        Err(error) => match Event::of_error(error) {
            Some(Event::ConnectFailure) => AttemptResult::ConnectFailure,
            Some(Event::Reset) => AttemptResult::Reset,
            Some(Event::Timeout) => AttemptResult::Timeout,
            Some(Event::Status(_)) | None => AttemptResult::Cancelled,
        },
    }
}

/// What a 429 or 503 asks for.
fn asked_to_wait(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            retry_after::parse(headers, SystemTime::now())
        }
        _ => None,
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// What a refusal of our own is called where it keeps a retry from being made.
fn skipped(refusal: &Error) -> Option<Skipped> {
    match refusal {
        Error::CircuitOpen(_) => Some(Skipped::CircuitOpen),
        Error::RateLimited(_) => Some(Skipped::RateLimited),
        Error::ConcurrencyLimited | Error::NoConnection | Error::Overloaded => Some(Skipped::Concurrency),
        _ => None,
    }
}
