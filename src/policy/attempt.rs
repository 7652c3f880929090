//! One attempt: the clocks around the transport, one free replacement of a stale connection, the verdict on the upstream.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::header::HeaderMap;
use http::{StatusCode, request};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::message::{Attempt, Exchange, Phase};
use crate::policy::body::{AttemptBody, Gate};
use crate::policy::breaker::{Permit, Verdict};
use crate::policy::carry::Carry;
use crate::policy::classify::Event;
use crate::policy::concurrency::Slot;
use crate::policy::policies::Policies;
use crate::policy::rate_limit::Bucket;
use crate::policy::replay::Replay;
use crate::policy::timeout::{Clocks, Deadline, Supervised};
use crate::policy::{Destination, Transport, retry, retry_after};
use crate::telemetry::report::{AttemptResult, LaneReport, RetryReason};
use crate::telemetry::spans::{self, Draft};

/// Longest pause that a Retry-After may order where `retry` is off.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long an app's `Expect: 100-continue` waits for the upstream's word before the body is sent all the same.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// One request on its way through the pipeline.
pub(super) struct Call<'a, T> {
    pub(super) policies: &'a Policies,
    pub(super) transport: &'a T,
    pub(super) exchange: &'a Arc<Exchange>,
    pub(super) to: Destination,
    pub(super) deadline: Deadline,
    pub(super) head: request::Parts,
    /// `None` where there is no body.
    pub(super) body: Option<Replay>,
    pub(super) grpc: bool,
    pub(super) repeatable: bool,
    pub(super) expect_continue: bool,
    /// Which of several `to` the attempt before used.
    pub(super) endpoint: Option<usize>,
    /// When the last attempt ended.
    pub(super) ended: Instant,
}

impl<T: Transport> Call<'_, T> {
    /// One attempt: the clocks around the transport, one free replacement of a stale connection, and the verdict.
    pub(super) async fn attempt(&mut self, admission: Admission) -> Result<http::Response<Box<Carry<T::Body>>>> {
        let policies = self.policies;
        let connect = policies.settings.timeouts.connect;
        let attempt = Attempt::new(self.exchange.clone(), connect).avoiding(self.endpoint);
        let mut running = Running::new(&policies.lane, self.exchange, &attempt, admission);
        let span = running.span();
        let clocks = policies.clocks(self.deadline, self.body.is_some());
        let result = {
            let send = pin!(async {
                match self.send(&attempt, span).await {
                    Err(error) if self.is_stale(&error) => {
                        policies.upstream.retried(RetryReason::StaleConnection);
                        attempt.renew();
                        // Rare: boxed it takes no room in every request's future.
                        Box::pin(self.send(&attempt, span)).await
                    }
                    result => result,
                }
            });
            let result = running.run(self.exchange, clocks, || attempt.phase(), send).await;
            if let Err(Error::AttemptTimeout { .. } | Error::Deadline { .. }) = &result {
                // Before `send` is dropped: its connection wants to know why.
                attempt.time_out();
            }
            result
        };
        let now = Instant::now();
        self.ended = now;
        let upload = &self.exchange.upload;
        upload.end(self.exchange.nanos(now));
        // Whatever the transport made of it: a body that the app broke off is the app's doing.
        let app_gone = upload.app_gone.load(Ordering::Relaxed);
        let result = result.map_err(|error| if app_gone { Error::AppGone } else { error });

        let used = attempt.endpoint();
        running.note(|span| {
            span.endpoint = used;
            span.replaced = attempt.is_renewed();
            span.version = attempt.version();
            match &result {
                Ok(answer) => span.status = Some(answer.status().as_u16()),
                Err(error) => span.failed(error),
            }
        });
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                running.settle(running.judge_error(policies, &error), attempt_result(Err(&error)), now);
                self.endpoint = used;
                return Err(error);
            }
        };
        let event = Event::of_answer(answer.status(), answer.headers(), self.grpc);
        let verdict = policies.judge_answer(event);
        let asked = asked_to_wait(answer.status(), answer.headers());
        policies.pause(running.admission.bucket.as_ref(), asked, now);
        let failed = verdict == Verdict::Failure || matches!(event, Event::Status(status) if status >= 500);
        running.settle(verdict, attempt_result(Ok(failed)), now);
        if answer.status() == StatusCode::TOO_MANY_REQUESTS && !failed {
            policies.lane.limited();
        }
        self.endpoint = used;
        self.exchange.touch(now);
        let Admission { permit, slot, .. } = running.finish();
        let breaker = permit.map(|permit| (permit.breaker().clone(), permit.generation()));
        let idle = policies.settings.timeouts.idle;
        // Boxed here, since it is handed through several layers on its way to the app.
        Ok(answer.map(|body| Box::new(Carry::new(body, self.exchange.clone(), idle, slot, breaker))))
    }

    async fn send(&self, attempt: &Attempt, span: Option<u64>) -> Result<http::Response<T::Body>> {
        let mut head = self.head.clone();
        if let (Some(draft), Some(span)) = (&self.exchange.draft, span)
            && draft.announces.load(Ordering::Relaxed)
        {
            // In the place of the one that is there. What the upstream does is a part of this very attempt.
            head.headers.insert(spans::TRACEPARENT, spans::traceparent(draft.trace, span, true));
        }
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
                let app_here = !self.exchange.upload.app_gone.load(Ordering::Relaxed);
                let replayable = self.body.as_ref().is_none_or(Replay::replayable);
                app_here && retry::replaces_stale(*sent, self.repeatable, replayable)
            }
            _ => false,
        }
    }
}

/// Leave to send one attempt.
pub(super) struct Admission {
    pub(super) permit: Option<Permit>,
    pub(super) bucket: Option<Arc<Bucket>>,
    pub(super) slot: Option<Slot>,
    /// When it was given.
    pub(super) at: Instant,
    /// It had to wait, so that things may have changed meanwhile.
    pub(super) waited: bool,
    /// How long it waited for its token.
    pub(super) token_wait: Duration,
    /// How long it waited for its slot.
    pub(super) slot_wait: Duration,
}

impl Admission {
    /// Leave to do nothing yet.
    pub(super) fn at(now: Instant) -> Admission {
        let (token_wait, slot_wait) = (Duration::ZERO, Duration::ZERO);
        Admission { permit: None, bucket: None, slot: None, at: now, waited: false, token_wait, slot_wait }
    }

    /// Asks the breaker again where its state has changed since it was asked.
    pub(super) fn check(&mut self, now: Instant) -> Result<()> {
        if let Some(permit) = self.permit.as_mut().filter(|permit| permit.is_stale()) {
            let breaker = permit.breaker().clone();
            *permit = breaker.admit(now)?;
        }
        Ok(())
    }
}

/// An attempt under way: counted when it ends, also when it is dropped.
pub(super) struct Running<'a> {
    lane: &'a LaneReport,
    began: Instant,
    admission: Admission,
    /// How long it waited in line for a connection.
    in_line: Duration,
    counted: bool,
    /// Where it is traced.
    span: Option<Box<Span<'a>>>,
}

/// What an attempt's span needs to tell of it.
struct Span<'a> {
    draft: &'a Draft,
    exchange: &'a Exchange,
    attempt: &'a Attempt,
    /// The exchange's time of connecting when it began. Nanoseconds.
    connecting_before: u64,
    facts: spans::Attempt,
}

impl<'a> Running<'a> {
    pub(super) fn new(
        lane: &'a LaneReport,
        exchange: &'a Exchange,
        attempt: &'a Attempt,
        admission: Admission,
    ) -> Running<'a> {
        let began = admission.at;
        let span = exchange.draft.as_ref().map(|draft| {
            let facts = spans::Attempt::begin(exchange.start, began, admission.token_wait, admission.slot_wait);
            let connecting_before = exchange.connecting.load(Ordering::Relaxed);
            Box::new(Span { draft, exchange, attempt, connecting_before, facts })
        });
        Running { lane, began, admission, in_line: Duration::ZERO, counted: false, span }
    }

    /// The id of its span, where it is traced.
    pub(super) fn span(&self) -> Option<u64> {
        self.span.as_ref().map(|span| span.facts.span)
    }

    /// Adds to what its span tells.
    pub(super) fn note(&mut self, tell: impl FnOnce(&mut spans::Attempt)) {
        if let Some(span) = &mut self.span {
            tell(&mut span.facts);
        }
    }

    /// Runs it under its clocks. Until it is handed to a connection, each step asks whether the circuit still lets it.
    pub(super) async fn run<R>(
        &mut self,
        exchange: &Exchange,
        clocks: Clocks,
        phase: impl Fn() -> Phase,
        send: Pin<&mut impl Future<Output = Result<R>>>,
    ) -> Result<R> {
        clocks
            .run(
                exchange,
                self.began,
                send,
                &mut Supervisor {
                    admission: &mut self.admission,
                    in_line: &mut self.in_line,
                    began: self.began,
                    phase,
                },
            )
            .await
    }

    /// What an error says about the upstream. A clock that ran out says nothing where most of the time went by in line.
    pub(super) fn judge_error(&self, policies: &Policies, error: &Error) -> Verdict {
        let mostly_in_line = self.in_line * 2 > self.began.elapsed();
        match error {
            Error::AttemptTimeout { .. } | Error::Deadline { .. } if mostly_in_line => Verdict::Neutral,
            error => policies.judge_error(error),
        }
    }

    pub(super) fn settle(&mut self, verdict: Verdict, result: AttemptResult, now: Instant) {
        if let Some(permit) = &mut self.admission.permit {
            permit.settle(verdict, now);
        }
        self.count(result, now);
    }

    fn count(&mut self, result: AttemptResult, now: Instant) {
        self.counted = true;
        let took = now.saturating_duration_since(self.began);
        self.lane.attempt(result, took);
        if let Some(span) = self.span.take() {
            let Span { draft, exchange, attempt, connecting_before, mut facts } = *span;
            let connecting = exchange.connecting.load(Ordering::Relaxed);
            facts.took = took;
            facts.in_line = self.in_line;
            facts.connecting = Duration::from_nanos(connecting.saturating_sub(connecting_before));
            facts.endpoint = facts.endpoint.or(attempt.endpoint());
            draft.tried(facts);
        }
    }

    fn finish(mut self) -> Admission {
        let given = self.admission.at;
        std::mem::replace(&mut self.admission, Admission::at(given))
    }
}

struct Supervisor<'a, P> {
    admission: &'a mut Admission,
    in_line: &'a mut Duration,
    began: Instant,
    phase: P,
}

impl<P: Fn() -> Phase> Supervised for Supervisor<'_, P> {
    fn phase(&self) -> Phase {
        (self.phase)()
    }

    fn before_poll(&mut self, began: bool) -> Result<()> {
        match self.phase() {
            // It was admitted just now.
            Phase::Waiting if began => Ok(()),
            Phase::Waiting => {
                let now = Instant::now();
                *self.in_line = now.saturating_duration_since(self.began);
                self.admission.check(now)
            }
            Phase::Connecting => self.admission.check(Instant::now()),
            Phase::Sending => Ok(()),
        }
    }

    fn slow(&mut self, now: Instant) {
        if let Some(permit) = &mut self.admission.permit {
            permit.settle(Verdict::Failure, now);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.counted {
            self.count(AttemptResult::Cancelled, Instant::now());
        }
    }
}

impl Policies {
    /// What an error says about the upstream.
    pub(super) fn judge_error(&self, error: &Error) -> Verdict {
        let Some(breaker) = &self.breaker else { return Verdict::Neutral };
        if let Error::Deadline { ran, .. } = error
            && *ran < self.fair_time()
        {
            return Verdict::Neutral;
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

    pub(super) fn clocks(&self, deadline: Deadline, body: bool) -> Clocks {
        Clocks {
            attempt: self.settings.timeouts.attempt,
            deadline,
            idle: self.settings.timeouts.idle,
            slow_after: self.breaker.as_ref().and_then(|breaker| breaker.slow_after()),
            body,
        }
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

pub(super) fn attempt_result(result: Result<bool, &Error>) -> AttemptResult {
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
pub(super) fn asked_to_wait(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            retry_after::parse(headers, SystemTime::now())
        }
        _ => None,
    }
}
