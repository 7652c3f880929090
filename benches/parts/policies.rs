//! The policies one by one, and what is taken out of heads. Time is passed in: a millisecond goes by each time.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, Full};
use outrigger::fields::Fields;
use outrigger::message::{AppBody, Exchange};
use outrigger::policy::body::AttemptBody;
use outrigger::policy::breaker::{Breaker, Override, Verdict};
use outrigger::policy::budget::Budget;
use outrigger::policy::concurrency::Concurrency;
use outrigger::policy::policies::Settings;
use outrigger::policy::rate_limit::{Key, RateLimit};
use outrigger::policy::replay::{Replay, ReplayMemory};
use outrigger::proxy::headers;
use outrigger::telemetry::metrics::Metrics;
use tokio::time::Instant;

use super::configuration::{config, upstreams};
use super::{Part, at_once};

/// The most that a keyed limit keeps.
const KEYS: usize = 10_000;

pub fn parts() -> Vec<Part> {
    vec![
        Part::new("headers/nothing-to-remove", 2_000, || hygiene(&[])),
        Part::new("headers/hop-by-hop", 2_000, || {
            hygiene(&[
                ("connection", "keep-alive, x-own"),
                ("keep-alive", "timeout=5"),
                ("x-own", "1"),
                ("te", "trailers"),
            ])
        }),
        Part::new("breaker/closed", 4_000, breaker),
        Part::new("breaker/open", 4_000, open_breaker),
        Part::new("bucket/keys/1", 10_000, || buckets(1)),
        Part::new("bucket/keys/10000", 10_000, || buckets(KEYS)),
        Part::new("budget", 4_000, budget),
        Part::new("slot", 4_000, slot),
        Part::new("replay/16k", 1_000, || replay(1)),
        Part::new("replay/16k/sent-twice", 1_000, || replay(2)),
    ]
}

fn settings() -> Settings {
    config(&upstreams(1, 80, "")).upstreams[0].policies.clone()
}

/// The clock of a part.
fn clock() -> impl FnMut() -> Instant {
    let mut now = Instant::now();
    move || {
        now += Duration::from_millis(1);
        now
    }
}

/// The head of an ordinary request. What is removed is removed from a copy, and the figure has both.
pub fn head() -> HeaderMap {
    let fields = [
        ("host", "api-0000.test"),
        ("user-agent", "an-app/1.2.3 (linux; x86_64)"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip, br"),
        ("authorization", "Bearer 0123456789abcdef0123456789abcdef"),
        ("content-type", "application/json"),
        ("x-request-id", "5f0c2b9e-7b0c-4d6a-9c53-0d8f6b1f2a3c"),
    ];
    fields.iter().map(|(name, value)| field(name, value)).collect()
}

fn field(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_static(value))
}

fn hygiene(more: &[(&'static str, &'static str)]) -> impl FnMut() + use<> {
    let mut head = head();
    head.extend(more.iter().map(|(name, value)| field(name, value)));
    move || {
        let mut copy = black_box(&head).clone();
        let fields = Fields::of(&copy);
        headers::remove_hop_by_hop(&mut copy, fields, false, &[]);
        black_box(copy);
    }
}

fn breaker() -> impl FnMut() {
    let breaker = new_breaker();
    let mut clock = clock();
    move || {
        let mut permit = breaker.admit(clock()).expect("it is closed");
        permit.settle(Verdict::Success, clock());
        black_box(permit);
    }
}

fn open_breaker() -> impl FnMut() {
    let breaker = new_breaker();
    breaker.order(Override::Open);
    let mut clock = clock();
    move || assert!(black_box(breaker.admit(clock())).is_err())
}

fn new_breaker() -> Arc<Breaker> {
    let settings = settings().circuit_breaker.expect("it is on");
    Breaker::new(settings, Metrics::new().lane("api-0000", ""), Instant::now())
}

/// One bucket after the other; all of them are there already.
fn buckets(count: usize) -> impl FnMut() {
    let mut settings = settings().rate_limit.expect("it is on");
    let name = HeaderName::from_static("x-customer");
    settings.key = Key::Header(name.clone());
    let heads: Vec<HeaderMap> = (0..count)
        .map(|n| {
            let mut head = head();
            head.insert(name.clone(), HeaderValue::from(n));
            head
        })
        .collect();
    let limit = RateLimit::new(settings, Instant::now());
    let mut clock = clock();
    for head in &heads {
        limit.bucket(head, clock(), || ());
    }
    let mut turns = (0..count).cycle();
    move || {
        let (head, now) = (&heads[turns.next().expect("it has no end")], clock());
        let (bucket, _) = limit.bucket(head, now, || panic!("there is room for all of them"));
        assert!(bucket.try_acquire(now));
        black_box(bucket);
    }
}

/// A request, and every fifth time a retry.
fn budget() -> impl FnMut() {
    let settings = settings().retry.and_then(|retry| retry.budget).expect("it is on");
    let budget = Budget::new(settings, Instant::now());
    let mut clock = clock();
    let mut turns = (0..5).cycle();
    move || {
        let now = clock();
        budget.deposit(now);
        if turns.next() == Some(0) {
            black_box(budget.withdraw(now));
        }
    }
}

fn slot() -> impl FnMut() {
    let slots = Concurrency::new(settings().concurrency.expect("it is on"));
    move || {
        black_box(slots.try_acquire().expect("one is free"));
    }
}

/// A body of 16 KiB that is there already, on its way through the replay buffer.
fn replay(attempts: u32) -> impl FnMut() {
    let memory = ReplayMemory::new(64 << 20);
    let bytes = Bytes::from(vec![b'x'; 16 << 10]);
    let exchange = Exchange::new(Instant::now());
    move || {
        let body = Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync();
        let replay = Replay::new(AppBody::Boxed(body), 1 << 20, memory.clone(), exchange.clone());
        for _ in 0..attempts {
            let body = AttemptBody::replayed(replay.cursor());
            let sent = at_once(body.collect()).expect("nothing breaks it");
            assert_eq!(sent.to_bytes().len(), bytes.len());
        }
        replay.release();
        drop(replay);
    }
}
