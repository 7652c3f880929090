//! A scripted upstream on paused time, for testing policies together.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, request};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::Instant;

use crate::error::{ConnectFailure, Error, Result, Sent};
use crate::message::{AppBody, Attempt, Exchange, Outbound, Phase};
use crate::origin::{Host, Origin, Scheme};
use crate::policy::body::AttemptBody;
use crate::policy::carry::Carry;
use crate::policy::classify::Events;
use crate::policy::policies::{Heritage, OwnState, Policies, Settings};
use crate::policy::replay::ReplayMemory;
use crate::policy::{Destination, Transport, backoff, breaker, budget, retry, timeout};
use crate::telemetry::report::{LaneReport, UpstreamReport};
use crate::units::Ratio;

/// What the upstream does with one attempt.
#[derive(Clone)]
pub(crate) enum Step {
    /// Answers with this status and body after reading the request.
    Answer(u16, &'static str),
    /// The same, with a header.
    AnswerWith(u16, &'static str, &'static str),
    /// Answers 200 with a body that breaks after its first bytes.
    BrokenBody,
    /// Takes the request and closes.
    Reset,
    /// A pooled connection that turns out to be closed, before or after bytes were written.
    Stale(Sent),
    /// A new connection that closes before a byte was written.
    Unsent,
    /// Can't be connected to.
    Refused,
    /// Takes the request and never answers.
    Hang,
    /// Takes the request and meets a bug of ours.
    Panic,
    /// Waits this long, then goes on.
    After(Duration, Box<Step>),
}

/// One attempt as the upstream saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) fresh: bool,
}

/// A scripted upstream: each attempt takes the next step, and the last is repeated.
pub(crate) struct Script {
    steps: Mutex<VecDeque<Step>>,
    seen: Mutex<Vec<Seen>>,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Arc<Script> {
        let steps = Mutex::new(steps.into_iter().collect());
        Arc::new(Script { steps, seen: Mutex::new(Vec::new()) })
    }

    /// The attempts that reached it.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn next(&self) -> Step {
        let mut steps = self.steps.lock().unwrap();
        if steps.len() > 1 { steps.pop_front().unwrap() } else { steps[0].clone() }
    }
}

pub(crate) type TestBody = UnsyncBoxBody<Bytes, Error>;

impl Transport for Script {
    type Body = TestBody;

    async fn send(
        &self,
        head: request::Parts,
        body: AttemptBody,
        _to: &Destination,
        attempt: &Attempt,
    ) -> Result<http::Response<TestBody>> {
        let mut step = self.next();
        attempt.reached(Phase::Connecting);
        while let Step::After(wait, then) = step {
            tokio::time::sleep(wait).await;
            step = *then;
        }
        let reset = |sent, reused| Error::Reset { sent, reused, answer_began: false, detail: String::new() };
        match &step {
            Step::Refused => {
                return Err(Error::Connect { failure: ConnectFailure::Refused, detail: String::new() });
            }
            Step::Stale(Sent::No) => return Err(reset(Sent::No, true)),
            Step::Unsent => return Err(reset(Sent::No, false)),
            _ => {}
        }
        attempt.reached(Phase::Sending);
        let body = body.collect().await?.to_bytes();

        self.seen.lock().unwrap().push(Seen { headers: head.headers, body, fresh: attempt.is_renewed() });
        let (status, header, body) = match step {
            Step::Answer(status, body) => (status, None, body),
            Step::AnswerWith(status, name, value) => (status, Some((name, value)), ""),
            Step::BrokenBody => {
                let frames = [Ok(http_body::Frame::data(Bytes::from_static(b"half"))), Err(reset(Sent::Maybe, false))];
                let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
                return Ok(http::Response::new(body));
            }
            Step::Hang => return std::future::pending().await,
            Step::Panic => panic!("a bug"),
            Step::Stale(_) => return Err(reset(Sent::Maybe, true)),
            Step::Reset | Step::Unsent | Step::Refused | Step::After(..) => return Err(reset(Sent::Maybe, false)),
        };
        let mut answer = http::Response::builder().status(status);
        if let Some((name, value)) = header {
            answer = answer.header(name, value);
        }
        let body = Full::new(Bytes::from_static(body.as_bytes())).map_err(|never| match never {}).boxed_unsync();
        Ok(answer.body(body).unwrap())
    }
}

/// The built-in defaults, without jitter.
pub(crate) fn settings() -> Settings {
    let events = |words: &[&str]| {
        let mut events = Events::default();
        words.iter().for_each(|word| events.add(word).unwrap());
        events
    };
    let seconds = Duration::from_secs;
    Settings {
        timeouts: timeout::Settings {
            connect: Some(seconds(2)),
            attempt: Some(seconds(10)),
            request: Some(seconds(30)),
            idle: Some(seconds(60)),
            tunnel_idle: Some(seconds(3600)),
        },
        retry: Some(retry::Settings {
            max_attempts: 3.try_into().unwrap(),
            on: events(&["connect_failure", "reset", "timeout", "429", "500", "502", "503", "504"]),
            methods: vec![Method::GET, Method::PUT],
            idempotency_headers: vec!["idempotency-key".parse().unwrap()],
            generate_idempotency_key: false,
            backoff: backoff::Settings { base: Duration::ZERO, max: seconds(5) },
            max_retry_after: seconds(30),
            budget: Some(budget::Settings { ratio: Ratio::new(0.2).unwrap(), min_per_second: 1.try_into().unwrap() }),
            max_body: 1 << 20,
        }),
        circuit_breaker: Some(breaker::Settings {
            consecutive_failures: Some(5.try_into().unwrap()),
            failure_rate: None,
            failures: events(&["connect_failure", "reset", "timeout", "500", "502", "503", "504"]),
            slow_after: None,
            open_for: seconds(30),
            max_open_for: seconds(300),
            half_open_requests: 1.try_into().unwrap(),
        }),
        rate_limit: None,
        concurrency: None,
    }
}

/// A lane, an upstream's script, and an app.
pub(crate) struct Bench {
    pub(crate) policies: Arc<Policies>,
    pub(crate) script: Arc<Script>,
    pub(crate) replay: Arc<ReplayMemory>,
    pub(crate) upstream: Arc<UpstreamReport>,
}

/// What an app got, and what the exchange noted.
pub(crate) struct Got {
    pub(crate) result: Result<http::Response<Box<Carry<TestBody>>>>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) took: Duration,
}

impl Got {
    /// The status that the app sees.
    pub(crate) fn status(&self) -> u16 {
        self.result.as_ref().map_or_else(Error::status, |answer| answer.status().as_u16())
    }

    /// The error's code; `""` for an answer.
    pub(crate) fn code(&self) -> &'static str {
        self.result.as_ref().map_or_else(Error::code, |_| "")
    }

    pub(crate) fn no_retry(&self) -> u8 {
        self.exchange.no_retry.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) async fn text(self) -> Result<String> {
        let bytes = self.result?.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }
}

impl Bench {
    pub(crate) fn new(settings: Settings, steps: impl IntoIterator<Item = Step>) -> Bench {
        let replay = ReplayMemory::new(64 << 20);
        let heritage = Heritage { old: None, parent: None, own: OwnState::default() };
        let (upstream, lane) = (UpstreamReport::for_test("test"), LaneReport::for_test());
        let policies = Policies::new(settings, &heritage, replay.clone(), upstream.clone(), lane, Instant::now());
        Bench { policies: Arc::new(policies), script: Script::new(steps), replay, upstream }
    }

    pub(crate) async fn get(&self) -> Got {
        self.send(Method::GET, &[], "").await
    }

    pub(crate) async fn send(&self, method: Method, headers: &[(&'static str, &str)], body: &'static str) -> Got {
        let mut request = http::Request::builder().method(method).uri("/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            "" => AppBody::Empty,
            text => AppBody::Boxed(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()),
        };
        let outbound = Outbound {
            head: request.body(()).unwrap().into_parts().0,
            body,
            origin: Origin { scheme: Scheme::Http, host: Host::parse("api.test").unwrap(), port: 80 },
            keep_host: true,
            expect_continue: false,
        };
        let start = Instant::now();
        let exchange = Exchange::new(start);
        let result = self.policies.request(Box::new(outbound), &*self.script, &exchange).await;
        Got { result, exchange, took: start.elapsed() }
    }
}
