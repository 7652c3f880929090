//! All policies together, over an upstream that answers at once. No sockets, and nothing waits.

use std::convert::Infallible;
use std::hint::black_box;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header, request};
use http_body::Body;
use http_body_util::combinators::MapErr;
use http_body_util::{BodyExt, Full};
use outrigger::error::{Error, Result};
use outrigger::message::{AppBody, Attempt, Exchange, Outbound, Phase};
use outrigger::origin::{Host, Origin, Scheme};
use outrigger::policy::body::AttemptBody;
use outrigger::policy::{Destination, Transport};
use tokio::runtime::{Builder, EnterGuard, Runtime};
use tokio::time::Instant;

use super::configuration::{Surroundings, config, upstreams};
use super::policies::head;
use super::{Part, at_once};

pub fn parts() -> Vec<Part> {
    vec![
        Part::new("pipeline/no-policies", 2_000, || pipeline(OFF, Method::GET, 0, false)),
        Part::new("pipeline/all-policies", 2_000, || pipeline("", Method::GET, 0, false)),
        Part::new("pipeline/all-policies/post-16k", 1_000, || pipeline("", Method::POST, 16 << 10, false)),
        Part::new("pipeline/all-policies/one-retry", 1_000, || pipeline(AGAIN, Method::GET, 0, true)),
    ]
}

/// Nothing but clocks can't be switched off as a block.
const OFF: &str = "    timeouts: {connect: off, attempt: off, request: off, idle: off}
    retry: {max_attempts: 1, budget: off}
    circuit_breaker: off
    rate_limit: off
    concurrency: off
";

/// A retry each time, and nothing that minds.
const AGAIN: &str = "    retry: {backoff: {base: 0}, budget: off}
    circuit_breaker: {failure_rate: off}
";

/// Answers at once: 200, or 503 and 200 in turn.
struct AtOnce {
    fails_first: bool,
}

type Answer = MapErr<Full<Bytes>, fn(Infallible) -> Error>;

impl Transport for AtOnce {
    type Body = Answer;

    async fn send(
        &self,
        head: request::Parts,
        mut body: AttemptBody,
        _to: &Destination,
        attempt: &Attempt,
    ) -> Result<http::Response<Answer>> {
        attempt.reached(Phase::Sending);
        while let Some(frame) = body.frame().await {
            black_box(frame?);
        }
        black_box(head);
        let mut answer =
            http::Response::new(Full::from("{}").map_err((|never| match never {}) as fn(Infallible) -> Error));
        if self.fails_first && attempt.exchange.attempts.load(std::sync::atomic::Ordering::Relaxed) == 1 {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("2"));
        Ok(answer)
    }
}

/// Clocks need one to be set.
fn runtime() -> EnterGuard<'static> {
    let runtime: &'static Runtime =
        Box::leak(Box::new(Builder::new_current_thread().enable_time().build().expect("a runtime without I/O")));
    runtime.enter()
}

fn pipeline(more: &str, method: Method, body: usize, fails_first: bool) -> impl FnMut() + use<> {
    let entered = runtime();
    let config = config(&upstreams(1, 80, more));
    let table = Surroundings::new(&config).table(None, config);
    let transport = AtOnce { fails_first };
    let mut request = http::Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = "/v1/charges?limit=10".parse().expect("a target");
    *request.headers_mut() = head();
    let (head, ()) = request.into_parts();
    let origin = Origin { scheme: Scheme::Http, host: Host::parse("api-0000.test").expect("a host"), port: 80 };
    let bytes = Bytes::from(vec![b'x'; body]);
    move || {
        let _ = &entered;
        let body = match bytes.is_empty() {
            true => AppBody::Empty,
            false => AppBody::Boxed(Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync()),
        };
        let outbound =
            Outbound { head: head.clone(), body, origin: origin.clone(), keep_host: true, expect_continue: false };
        let exchange = Exchange::new(Instant::now());
        let policies = &table.upstreams[0].lane.policies;
        let answer = at_once(policies.request(Box::new(outbound), &transport, &exchange)).expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        let mut body = answer.into_body();
        while let Some(frame) = at_once(body.frame()) {
            black_box(frame.expect("nothing breaks it"));
        }
        assert!(body.is_end_stream());
    }
}
