//! The order of the policies, and what happens to a request in it:
//!
//! request deadline → retry → circuit breaker → rate limit → concurrency → attempt timeout → connection
//!
//! So each attempt is counted by the breaker, takes a token and a slot; an open circuit costs neither; no wait outlives the
//! deadline. It is written straight through rather than as a stack of services, because the rules that matter
//! cross the layers: the deadline bounds every wait, admission is checked again just before sending, and a retry
//! that is refused hands back the answer before it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http_body::Body;
use tokio::time::Instant;

use crate::error::{Error, Origin, Result};
use crate::message::{AppBody, Attempt, Exchange, Outbound};
use crate::policy::attempt::{Admission, Call, Running, asked_to_wait, attempt_result};
use crate::policy::breaker::Verdict;
use crate::policy::carry::Carry;
use crate::policy::classify::Event;
use crate::policy::policies::Policies;
use crate::policy::replay::Replay;
use crate::policy::retry::{Decision, Facts, Outcome};
use crate::policy::timeout::Deadline;
use crate::policy::{Destination, Dial, Transport, retry};
use crate::telemetry::report::{RetryReason, Skipped};

/// How an attempt ended, its answer held for the app.
type Ended<B> = Result<http::Response<Box<Carry<B>>>>;

impl Policies {
    /// Sends a request by the lane's policies. The answer's body carries what must be given back when it ends.
    ///
    /// Dropping the future at any await gives everything back and counts as the app's hanging up.
    ///
    /// # Errors
    /// What happened instead of an answer. `exchange` says how many attempts there were and why no other was made.
    pub fn request<'a, T: Transport>(
        &'a self,
        outbound: Box<Outbound>,
        transport: &'a T,
        exchange: &'a Arc<Exchange>,
    ) -> impl Future<Output = Result<http::Response<Box<Carry<T::Body>>>>> + Send + use<'a, T> {
        let Outbound { mut head, body, origin, keep_host, expect_continue } = *outbound;
        if let Some(retry) = &self.retry {
            retry.settings.add_key(&head.method, &mut head.headers);
        }
        let grpc = is_grpc(&head.headers);
        let repeatable = retry::repeatable(self.settings.retry.as_ref(), &head.method, &head.headers);
        let mut call = Call {
            policies: self,
            transport,
            exchange,
            to: Destination { origin, keep_host },
            deadline: Deadline::new(&self.settings.timeouts, &head.headers, grpc),
            body: self.replay(body, exchange),
            head,
            grpc,
            repeatable,
            expect_continue,
            endpoint: None,
            ended: exchange.start,
        };
        async move {
            let result = self.repeat(&mut call).await;
            if let Some(body) = &call.body {
                body.release();
            }
            result
        }
    }

    /// Makes the connection of a tunnel: deadline, connection retries, breaker, a token, but no slot.
    ///
    /// # Errors
    /// As [`Policies::request`].
    pub async fn tunnel<D: Dial>(&self, exchange: &Arc<Exchange>, way: &D) -> Result<D::Connection> {
        let no_headers = HeaderMap::new();
        let deadline = Deadline::new(&self.settings.timeouts, &no_headers, false);
        let mut attempts = 0;
        let mut failed: Option<Error> = None;
        let mut again = None;
        loop {
            let admission = match self.admit(&no_headers, exchange, deadline, false, Instant::now()).await {
                Ok(admission) => admission,
                Err(refusal) => return Err(self.refuse(refusal, failed.take(), exchange)),
            };
            again.take().into_iter().for_each(|reason| self.upstream.retried(reason));
            self.deposit(attempts, admission.at);
            attempts += 1;
            exchange.attempts.store(attempts, Ordering::Relaxed);
            let attempt = Attempt::new(exchange.clone(), self.settings.timeouts.connect);
            let clocks = self.clocks(deadline, false);
            let mut running = Running::new(&self.lane, exchange, &attempt, admission);
            let result = running.run(exchange, clocks, || attempt.phase(), pin!(way.dial(&attempt))).await;
            let verdict = match &result {
                Ok(_) => Verdict::Passing,
                Err(error) => self.judge_error(error),
            };
            running.note(|span| {
                if let Err(error) = &result {
                    span.failed(error);
                }
            });
            let now = Instant::now();
            running.settle(verdict, attempt_result(result.as_ref().map(|_| false)), now);
            let error = match result {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            // Refused by ourselves after all: nothing was dialled, and the failure before stands.
            if error.origin() == Origin::Proxy {
                exchange.attempts.store(attempts - 1, Ordering::Relaxed);
                return Err(self.refuse(error, failed.take(), exchange));
            }
            // The request itself is never sent on a tunnel, so every failure here came before that.
            match self.decide(Outcome::Failure(&error), attempts, true, true, None, deadline, exchange, now) {
                None => return Err(error),
                Some((wait, reason)) => {
                    failed = Some(error);
                    again = Some(reason);
                    self.back_off(wait, exchange).await;
                }
            }
        }
    }

    /// The retry loop: attempt, decide, wait, again.
    async fn repeat<T: Transport>(&self, call: &mut Call<'_, T>) -> Result<http::Response<Box<Carry<T::Body>>>> {
        let mut attempts = 0;
        let mut last: Option<Box<Ended<T::Body>>> = None;
        let mut again = None;
        loop {
            let now = Instant::now();
            let admission = match self.admit(&call.head.headers, call.exchange, call.deadline, true, now).await {
                Ok(admission) => admission,
                Err(refusal) => return self.refuse_retry(refusal, last, call.exchange),
            };
            // An answer too long to be kept would hold its connection while the retry waits for one.
            let last_kept = last.take().filter(|last| (**last).as_ref().map_or(true, |answer| answer.body().is_kept()));
            again.take().into_iter().for_each(|reason| self.upstream.retried(reason));
            self.deposit(attempts, admission.at);
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
            let decision = self.decide(
                outcome,
                attempts,
                call.repeatable,
                replayable,
                asked,
                call.deadline,
                call.exchange,
                call.ended,
            );
            let Some((wait, reason)) = decision else { return result };
            // Off the path that most requests take, so it takes no room in their future.
            last = Some(Box::pin(self.hold(Box::new(result), wait, call.exchange)).await);
            again = Some(reason);
        }
    }

    /// Waits for the back-off, and meanwhile reads a short answer to its end.
    async fn hold<B: Body<Data = Bytes, Error = Error> + Unpin>(
        &self,
        mut result: Box<Result<http::Response<Box<Carry<B>>>>>,
        wait: Duration,
        exchange: &Exchange,
    ) -> Box<Result<http::Response<Box<Carry<B>>>>> {
        let back_off = self.back_off(wait, exchange);
        if let Ok(answer) = &mut *result {
            answer.body_mut().give_slot_back();
            let kept = answer.body_mut().keep();
            let mut back_off = pin!(back_off);
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
        began: Instant,
    ) -> Result<Admission> {
        let mut admission = Admission::at(began);
        if let Some(breaker) = &self.breaker {
            admission.permit = Some(breaker.admit(began)?);
        }
        if self.rate_limit.is_none() && self.concurrency.is_none() {
            return Ok(admission);
        }
        let until = deadline.at(exchange, began);
        if let Some(rate_limit) = &self.rate_limit {
            let (bucket, max_wait) = rate_limit.bucket(headers, began, || self.upstream.bucket_forgotten());
            if !bucket.try_acquire(began) {
                // Waiting is rare; boxed it takes no room in every request's future.
                let result = Box::pin(self.in_line(bucket.acquire(max_wait, until))).await;
                admission.waited = true;
                admission.at = Instant::now();
                admission.token_wait = admission.at - began;
                self.upstream.token_waited(admission.token_wait);
                result.inspect_err(|_| Exchange::add(&exchange.waited, began.elapsed()))?;
            } else {
                self.upstream.token_waited(Duration::ZERO);
            }
            admission.bucket = Some(bucket);
        }
        if let Some(concurrency) = self.concurrency.as_ref().filter(|_| with_slot) {
            admission.slot = concurrency.try_acquire();
            if admission.slot.is_none() {
                let queued = admission.at;
                let result = Box::pin(self.in_line(concurrency.acquire(until))).await;
                admission.waited = true;
                admission.at = Instant::now();
                admission.slot_wait = admission.at - queued;
                admission.slot = Some(result.inspect_err(|_| Exchange::add(&exchange.waited, began.elapsed()))?);
            }
        }
        if admission.waited {
            let now = admission.at;
            Exchange::add(&exchange.waited, now - began);
            // While this one waited for a slot, an answer may have shut the bucket: it would only earn its own 429.
            if let Some(wait) = admission.bucket.as_ref().and_then(|bucket| bucket.paused(now)) {
                return Err(Error::RateLimited(wait));
            }
            admission.check(now)?;
        }
        Ok(admission)
    }

    /// Counts as queued whoever waits like this.
    async fn in_line<R>(&self, wait: impl Future<Output = R>) -> R {
        let _queued = self.upstream.queued();
        wait.await
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
        now: Instant,
    ) -> Option<(Duration, RetryReason)> {
        let retry = self.retry.as_ref()?;
        if !retry.settings.is_about(&outcome) {
            return None;
        }
        let left = deadline.at(exchange, now).map(|at| at.saturating_duration_since(now));
        let (random, extra) = (fastrand::f64(), fastrand::f64());
        let facts = Facts { outcome, attempts, repeatable, replayable, retry_after, left, random, extra };
        match retry.decide(&facts, now) {
            Decision::Pass => None,
            Decision::Skip(reason) => {
                self.skip(reason, exchange);
                None
            }
            Decision::Again(wait, reason) => {
                if let Some(draft) = &exchange.draft {
                    draft.again(reason, wait);
                }
                Some((wait, reason))
            }
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
        last: Option<Box<Ended<B>>>,
        exchange: &Exchange,
    ) -> Result<http::Response<Box<Carry<B>>>> {
        match last.map(|last| *last) {
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

    /// A request's first attempt feeds the budget. What an open circuit refuses does not: the upstream sees nothing of it.
    fn deposit(&self, attempts_before: u32, now: Instant) {
        let budget = self.retry.as_ref().and_then(|retry| retry.budget.as_ref());
        if let Some(budget) = budget.filter(|_| attempts_before == 0) {
            budget.deposit(now);
        }
    }

    fn replay(&self, body: AppBody, exchange: &Arc<Exchange>) -> Option<Replay> {
        if body.is_end_stream() {
            return None;
        }
        // Also where the request may not be repeated: HTTP/2 may refuse a stream that took some of it already.
        let cap = retry::largest_body(self.settings.retry.as_ref());
        Some(Replay::new(body, cap, self.replay.clone(), exchange.clone()))
    }
}

/// Whether the request is a gRPC one.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// What a refusal of our own is called where it keeps a retry from being made.
fn skipped(refusal: &Error) -> Option<Skipped> {
    match refusal {
        Error::CircuitOpen(_) => Some(Skipped::CircuitOpen),
        Error::RateLimited(_) => Some(Skipped::RateLimited),
        Error::ConcurrencyLimited | Error::NoConnection | Error::Overloaded(_) => Some(Skipped::Concurrency),
        _ => None,
    }
}
