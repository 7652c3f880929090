//! Tests of the policies together: what an app gets and what its upstream sees, on paused time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use tokio::time::Instant;

use crate::error::{ConnectFailure, Error, Result, Sent};
use crate::message::{Attempt, Exchange};
use crate::policy::Dial;
use crate::policy::rate_limit;
use crate::policy::testing::{Bench, Step, settings};
use crate::policy::{budget, concurrency};
use crate::proxy::unwind::CatchUnwind;
use crate::telemetry::report::{CircuitState, Skipped};
use crate::units::Ratio;

const OK: Step = Step::Answer(200, "fine");

#[tokio::test(start_paused = true)]
async fn two_failures_then_success_is_a_success_of_three_attempts() {
    let bench = Bench::new(settings(), [Step::Answer(503, "no"), Step::Reset, OK]);
    let got = bench.get().await;
    assert_eq!((got.status(), got.exchange.attempts.load(Ordering::Relaxed)), (200, 3));
    assert_eq!(got.text().await.unwrap(), "fine");
    assert_eq!(bench.script.seen().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_post_without_a_key_reaches_the_upstream_once_whatever_breaks() {
    for step in [Step::Answer(503, ""), Step::Reset, Step::Hang, Step::Stale(Sent::Maybe), Step::Answer(429, "")] {
        let bench = Bench::new(settings(), [step, OK]);
        let got = bench.send(Method::POST, &[], "pay").await;
        assert_ne!(got.status(), 200);
        assert_eq!(bench.script.seen().len(), 1);
        assert_eq!(got.no_retry(), Skipped::NotIdempotent as u8);
    }
}

#[tokio::test(start_paused = true)]
async fn a_post_that_was_never_sent_is_sent_again() {
    for step in [Step::Refused, Step::Stale(Sent::No)] {
        let bench = Bench::new(settings(), [step, OK]);
        assert_eq!(bench.send(Method::POST, &[], "pay").await.status(), 200);
        let seen = bench.script.seen();
        assert_eq!((seen.len(), &seen[0].body[..]), (1, &b"pay"[..]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_keyed_post_is_repeated_with_the_same_key_and_bytes() {
    let bench = Bench::new(settings(), [Step::Answer(500, ""), Step::Reset, OK]);
    assert_eq!(bench.send(Method::POST, &[("idempotency-key", "k1")], "pay").await.status(), 200);
    let seen = bench.script.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|call| call.body == "pay" && call.headers["idempotency-key"] == "k1"));
    assert_eq!(bench.replay.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_generated_key_stays_the_same_over_all_attempts() {
    let mut settings = settings();
    settings.retry.as_mut().unwrap().generate_idempotency_key = true;
    let bench = Bench::new(settings, [Step::Answer(500, ""), OK]);
    assert_eq!(bench.send(Method::POST, &[], "pay").await.status(), 200);
    let seen = bench.script.seen();
    assert_eq!(seen[0].headers["idempotency-key"], seen[1].headers["idempotency-key"]);
}

#[tokio::test(start_paused = true)]
async fn a_stale_connection_is_replaced_for_free_once_also_with_retries_off() {
    let mut settings = settings();
    settings.retry = None;
    let bench = Bench::new(settings, [Step::Stale(Sent::Maybe), OK]);
    let got = bench.get().await;
    assert_eq!((got.status(), got.exchange.attempts.load(Ordering::Relaxed)), (200, 1));
    assert!(bench.script.seen()[1].fresh);

    let mut settings = self::settings();
    settings.retry = None;
    let bench = Bench::new(settings, [Step::Stale(Sent::Maybe)]);
    assert_eq!(bench.get().await.status(), 502);
    assert_eq!(bench.script.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_last_real_answer_is_returned_whole_when_the_budget_is_spent() {
    let mut settings = settings();
    settings.circuit_breaker = None;
    let bench = Bench::new(settings, [Step::Answer(503, "overloaded")]);
    let mut upstream = 0;
    for request in 0..100 {
        let got = bench.get().await;
        if request == 99 {
            assert_eq!(got.no_retry(), Skipped::Budget as u8);
        }
        upstream += got.exchange.attempts.load(Ordering::Relaxed);
        assert_eq!(got.text().await.unwrap(), "overloaded");
    }
    // A fifth of the requests, and the floor of ten.
    assert!((125..=130).contains(&upstream), "{upstream}");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_kept_over_attempts_and_waits() {
    let mut settings = settings();
    settings.timeouts.request = Some(Duration::from_secs(2));
    settings.timeouts.attempt = Some(Duration::from_millis(900));
    settings.retry.as_mut().unwrap().max_attempts = 10.try_into().unwrap();
    let bench = Bench::new(settings, [Step::Hang]);
    let got = bench.get().await;
    assert_eq!((got.status(), got.code()), (504, "deadline"));
    assert_eq!(got.took.as_millis(), 2000);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_that_is_too_long_passes_the_answer_on_as_it_came() {
    let bench = Bench::new(settings(), [Step::AnswerWith(503, "retry-after", "31"), OK]);
    let got = bench.get().await;
    assert_eq!((got.status(), got.no_retry()), (503, Skipped::RetryAfterTooLong as u8));
    assert_eq!(got.result.as_ref().unwrap().headers()["retry-after"], "31");
    let bench = Bench::new(settings(), [Step::AnswerWith(503, "retry-after", "3"), OK]);
    let got = bench.get().await;
    assert_eq!(got.status(), 200);
    assert!((3.0..=3.3).contains(&got.took.as_secs_f64()), "{:?}", got.took);
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_lets_nothing_through_and_then_one_probe() {
    let mut settings = settings();
    settings.retry = None;
    let bench = Bench::new(settings, [Step::Answer(500, "")]);
    for _ in 0..5 {
        bench.get().await;
    }
    for _ in 0..100 {
        let got = bench.get().await;
        assert_eq!((got.status(), got.code()), (503, "circuit_open"));
    }
    assert_eq!(bench.script.seen().len(), 5);
    tokio::time::advance(Duration::from_secs(30)).await;
    for _ in 0..100 {
        bench.get().await;
    }
    assert_eq!(bench.script.seen().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_hangs_up_gives_back_its_probe_and_its_slot() {
    let mut settings = settings();
    settings.retry = None;
    settings.concurrency = Some(concurrency::Settings {
        max_in_flight: 1.try_into().unwrap(),
        max_queue: 1.try_into().unwrap(),
        max_wait: Duration::ZERO,
    });
    let steps = std::iter::repeat_n(Step::Answer(500, ""), 5).chain([Step::Hang, Step::Hang, OK]);
    let bench = Bench::new(settings, steps);
    for _ in 0..5 {
        bench.get().await;
    }
    tokio::time::advance(Duration::from_secs(30)).await;
    for _ in 0..2 {
        assert!(tokio::time::timeout(Duration::from_secs(1), bench.get()).await.is_err());
        let status = bench.policies.status(Instant::now());
        assert_eq!(status.in_flight, Some(0));
    }
    assert_eq!(bench.get().await.status(), 200);
    assert_eq!(bench.policies.status(Instant::now()).circuit.unwrap().state, CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_panic_gives_back_the_probe_the_slot_and_the_kept_body() {
    let mut settings = settings();
    settings.retry.as_mut().unwrap().max_attempts = NonZeroU32::MIN;
    settings.concurrency = Some(concurrency::Settings {
        max_in_flight: 1.try_into().unwrap(),
        max_queue: 1.try_into().unwrap(),
        max_wait: Duration::ZERO,
    });
    let steps = std::iter::repeat_n(Step::Answer(500, ""), 5).chain([Step::Panic, Step::Panic, OK]);
    let bench = Bench::new(settings, steps);
    for _ in 0..5 {
        bench.get().await;
    }
    tokio::time::advance(Duration::from_secs(30)).await;
    for _ in 0..2 {
        {
            let request = std::pin::pin!(bench.send(Method::PUT, &[], "kept"));
            assert!(CatchUnwind(request).await.is_err());
        }
        assert_eq!(bench.policies.status(Instant::now()).in_flight, Some(0));
        assert_eq!(bench.replay.held(), 0);
    }
    assert_eq!(bench.get().await.status(), 200, "the next probe goes");
    assert_eq!(bench.policies.status(Instant::now()).circuit.unwrap().state, CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_slot_or_a_token_is_shown_as_queued() {
    let mut waits_for_slot = settings();
    waits_for_slot.concurrency = Some(concurrency::Settings {
        max_in_flight: 1.try_into().unwrap(),
        max_queue: 1.try_into().unwrap(),
        max_wait: Duration::from_secs(1),
    });
    let mut waits_for_token = settings();
    waits_for_token.rate_limit = Some(rate_limit::Settings {
        requests: 1.try_into().unwrap(),
        per: Duration::from_secs(10),
        burst: 1.try_into().unwrap(),
        max_wait: Duration::from_secs(20),
        key: rate_limit::Key::Upstream,
        pause_on_retry_after: true,
    });
    for settings in [waits_for_slot, waits_for_token] {
        let bench = Bench::new(settings, [OK]);
        let _held = bench.get().await;
        assert_eq!(bench.upstream.now().queued, 0);
        assert!(
            tokio::time::timeout(Duration::from_millis(500), async {
                tokio::join!(bench.get(), async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    assert_eq!(bench.upstream.now().queued, 1);
                })
            })
            .await
            .is_err()
        );
        assert_eq!(bench.upstream.now().queued, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_held_until_the_answers_body_ends_and_not_during_a_retrys_wait() {
    let mut settings = settings();
    settings.concurrency = Some(concurrency::Settings {
        max_in_flight: 1.try_into().unwrap(),
        max_queue: 1.try_into().unwrap(),
        max_wait: Duration::ZERO,
    });
    let bench = Bench::new(settings, [Step::Answer(503, "no"), OK]);
    let got = bench.get().await;
    assert_eq!(got.status(), 200, "the answer that is held back holds no slot");
    assert_eq!(bench.get().await.code(), "concurrency");
    assert_eq!(got.text().await.unwrap(), "fine");
    assert_eq!(bench.get().await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_meets_an_open_circuit_returns_the_answer_before_it() {
    let mut settings = settings();
    settings.circuit_breaker.as_mut().unwrap().consecutive_failures = Some(1.try_into().unwrap());
    let bench = Bench::new(settings, [Step::Answer(503, "sorry")]);
    let got = bench.get().await;
    assert_eq!((got.status(), got.no_retry()), (503, Skipped::CircuitOpen as u8));
    assert_eq!(got.text().await.unwrap(), "sorry");
    assert_eq!(bench.script.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_waited_for_a_slot_while_the_circuit_opened_is_not_sent() {
    let mut settings = settings();
    settings.retry = None;
    settings.concurrency = Some(concurrency::Settings {
        max_in_flight: 1.try_into().unwrap(),
        max_queue: 100.try_into().unwrap(),
        max_wait: Duration::from_secs(60),
    });
    let slow_failure = Step::After(Duration::from_millis(100), Box::new(Step::Answer(500, "")));
    let bench = Arc::new(Bench::new(settings, [slow_failure]));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let bench = bench.clone();
        tasks.spawn(async move {
            let got = bench.get().await;
            let code = got.code();
            let _ = got.text().await;
            code
        });
    }
    let codes = tasks.join_all().await;
    assert_eq!(bench.script.seen().len(), 5);
    assert_eq!(codes.iter().filter(|code| **code == "circuit_open").count(), 45);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_takes_no_time_is_one_all_the_same() {
    let mut settings = settings();
    settings.retry = None;
    settings.circuit_breaker.as_mut().unwrap().consecutive_failures = Some(1.try_into().unwrap());
    settings.concurrency = Some(concurrency::Settings {
        max_in_flight: 1.try_into().unwrap(),
        max_queue: 1.try_into().unwrap(),
        max_wait: Duration::from_secs(1),
    });
    let takes = Duration::from_millis(10);
    let bench = Bench::new(settings, [Step::After(takes, Box::new(Step::Answer(503, ""))), OK]);
    let second = async {
        tokio::time::sleep(takes).await;
        bench.get().await
    };
    // The second gets in line in the moment in which the first fails, opens the circuit and gives its slot back.
    let (second, ()) = tokio::join!(biased; second, async { drop(bench.get().await) });
    assert_eq!((second.code(), bench.script.seen().len()), ("circuit_open", 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_still_connecting_when_the_circuit_opens_is_not_sent() {
    let mut settings = settings();
    settings.retry = None;
    let slow = Step::After(Duration::from_millis(500), Box::new(OK));
    let bench = Arc::new(Bench::new(settings, [slow, Step::Refused]));
    let connecting = tokio::spawn({
        let bench = bench.clone();
        async move { bench.get().await.code() }
    });
    tokio::task::yield_now().await;
    for _ in 0..5 {
        bench.get().await;
    }
    assert_eq!(connecting.await.unwrap(), "circuit_open");
    assert!(bench.script.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn retry_after_shuts_the_bucket_for_everybody() {
    let mut settings = settings();
    settings.retry = None;
    settings.rate_limit = Some(rate_limit::Settings {
        requests: 100.try_into().unwrap(),
        per: Duration::from_secs(1),
        burst: 100.try_into().unwrap(),
        max_wait: Duration::ZERO,
        key: rate_limit::Key::Upstream,
        pause_on_retry_after: true,
    });
    let bench = Bench::new(settings, [Step::AnswerWith(429, "retry-after", "7"), OK]);
    assert_eq!(bench.get().await.status(), 429);
    let got = bench.get().await;
    assert_eq!(got.code(), "rate_limited");
    assert_eq!(got.result.err().unwrap().retry_after(), Some(7));
    tokio::time::advance(Duration::from_secs(7)).await;
    assert_eq!(bench.get().await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_is_passed_on_broken_and_is_one_failure() {
    let mut settings = settings();
    settings.circuit_breaker.as_mut().unwrap().consecutive_failures = Some(1.try_into().unwrap());
    let bench = Bench::new(settings, [Step::BrokenBody]);
    let got = bench.get().await;
    assert_eq!(got.status(), 200);
    let mut body = got.result.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    assert!(body.frame().await.unwrap().is_err());
    assert_eq!(bench.policies.status(Instant::now()).circuit.unwrap().state, CircuitState::Open);
    assert_eq!(bench.script.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_deadline_cut_short_counts_only_where_it_had_a_fair_time() {
    for (attempt_ms, expected) in [(10_000, CircuitState::Open), (0, CircuitState::Open)] {
        let mut settings = settings();
        settings.timeouts.request = Some(Duration::from_secs(3));
        settings.timeouts.attempt = (attempt_ms > 0).then(|| Duration::from_millis(attempt_ms));
        settings.circuit_breaker.as_mut().unwrap().consecutive_failures = Some(1.try_into().unwrap());
        let bench = Bench::new(settings, [Step::Hang]);
        assert_eq!(bench.get().await.code(), "deadline");
        assert_eq!(bench.policies.status(Instant::now()).circuit.unwrap().state, expected);
    }
    // A gRPC caller that gives 100 ms where a third of the request is 10 s says nothing about the upstream.
    let mut settings = settings();
    settings.circuit_breaker.as_mut().unwrap().consecutive_failures = Some(1.try_into().unwrap());
    let bench = Bench::new(settings, [Step::Hang]);
    let headers = [("content-type", "application/grpc"), ("grpc-timeout", "100m")];
    let got = bench.send(Method::POST, &headers, "").await;
    assert_eq!((got.code(), got.took.as_millis()), ("deadline", 100));
    assert_eq!(bench.policies.status(Instant::now()).circuit.unwrap().state, CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn slowness_is_a_failure_also_when_the_app_gives_up_on_it() {
    let mut settings = settings();
    settings.circuit_breaker.as_mut().unwrap().slow_after = Some(Duration::from_secs(2));
    let bench = Bench::new(settings, [Step::Hang]);
    for _ in 0..5 {
        assert!(tokio::time::timeout(Duration::from_secs(3), bench.get()).await.is_err());
    }
    assert_eq!(bench.get().await.code(), "circuit_open");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_falls_silent_ends_by_the_idle_clock() {
    let bench = Bench::new(settings(), [OK]);
    let answer = bench.get().await.result.unwrap();
    let hanging = answer.map(|_| ()).into_parts().0;
    let body =
        http_body_util::StreamBody::new(futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>>>());
    let exchange = Exchange::new(Instant::now());
    let idle = Some(Duration::from_secs(60));
    let carry = crate::policy::carry::Carry::new(body.boxed_unsync(), exchange, idle, None, None);
    let start = Instant::now();
    let mut answer = http::Response::from_parts(hanging, carry);
    assert_eq!(answer.body_mut().frame().await.unwrap().unwrap_err().code(), "upstream_silent");
    assert_eq!(start.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_retried_and_judged_by_its_connection() {
    let mut settings = settings();
    settings.retry.as_mut().unwrap().budget =
        Some(budget::Settings { ratio: Ratio::new(1.0).unwrap(), min_per_second: 10.try_into().unwrap() });
    let bench = Bench::new(settings, [OK]);
    let exchange = Exchange::new(Instant::now());
    let way = Way { dials: AtomicU32::new(0), refused: 2 };
    assert_eq!(bench.policies.tunnel(&exchange, &way).await.unwrap(), 3);
    assert_eq!(bench.policies.status(Instant::now()).circuit.unwrap().consecutive_failures, 2);
    let way = Way { dials: AtomicU32::new(0), refused: 3 };
    assert_eq!(bench.policies.tunnel(&exchange, &way).await.unwrap_err().code(), "connection_refused");
    assert_eq!(way.dials.load(Ordering::Relaxed), 3);
    assert_eq!(bench.policies.tunnel(&exchange, &way).await.unwrap_err().code(), "circuit_open");
}

/// Refuses the first connections.
struct Way {
    dials: AtomicU32,
    refused: u32,
}

impl Dial for Way {
    type Connection = u32;

    async fn dial(&self, _attempt: &Attempt) -> Result<u32> {
        let dials = self.dials.fetch_add(1, Ordering::Relaxed) + 1;
        let refused = Error::Connect { failure: ConnectFailure::Refused, detail: String::new() };
        if dials <= self.refused { Err(refused) } else { Ok(dials) }
    }
}
