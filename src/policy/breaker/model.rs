//! The circuit breaker against lists: of everything it was told, and of every permit that is out. Permits are settled late,
//! twice, or never; probes are forgotten; operators and reloads come in the middle; hours pass at once, or no time at all.

use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::{Breaker, FailureRate, Override, Permit, Settings, Verdict};
use crate::error::Error;
use crate::policy::classify::Events;
use crate::telemetry::report::{CircuitState, LaneReport};
use crate::units::Ratio;

#[derive(Clone, Debug)]
enum Step {
    Admit,
    Settle(usize, Verdict),
    /// The app hangs up.
    Drop(usize),
    /// A body breaks, of an attempt that was settled.
    BodyBreaks(usize),
    /// Milliseconds.
    Wait(u64),
    /// Until a little before, at, or after the next probe.
    WaitForProbe(i64),
    /// The next probe is waited for, sent, and answered well.
    Recover,
    Order(Override),
    Reload(Settings),
}

fn settings() -> impl Strategy<Value = Settings> {
    let rate = (prop::sample::select(vec![0.25, 0.5, 1.0]), prop::sample::select(vec![1, 10]), 1..7_u32);
    let consecutive = prop::option::weighted(0.7, 1..6_u32);
    let open = (prop::sample::select(vec![1, 1, 30]), prop::sample::select(vec![10, 100, 3_600]));
    (prop::option::weighted(0.7, rate), consecutive, open, 1..4_u32).prop_map(
        |(rate, consecutive, (open_for, max_open_for), probes)| Settings {
            consecutive_failures: consecutive.and_then(NonZeroU32::new),
            failure_rate: rate.map(|(threshold, window, least)| FailureRate {
                threshold: Ratio::new(threshold).unwrap(),
                window: Duration::from_secs(window),
                min_requests: NonZeroU32::new(least).unwrap(),
            }),
            failures: Events::default(),
            slow_after: None,
            open_for: Duration::from_secs(open_for),
            max_open_for: Duration::from_secs(max_open_for),
            half_open_requests: NonZeroU32::new(probes).unwrap(),
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![
        3 => Just(Verdict::Success),
        1 => Just(Verdict::Passing),
        5 => Just(Verdict::Failure),
        1 => Just(Verdict::Neutral),
    ];
    let wait = prop_oneof![Just(0), 1..300_u64, 300..12_000_u64, Just(301_000), Just(3_600_000), Just(36_000_000)];
    let order = prop_oneof![3 => Just(Override::Auto), 1 => Just(Override::Open), 1 => Just(Override::Closed)];
    prop_oneof![
        10 => Just(Step::Admit),
        10 => (0..6_usize, verdict).prop_map(|(nth, verdict)| Step::Settle(nth, verdict)),
        2 => (0..6_usize).prop_map(Step::Drop),
        1 => (0..6_usize).prop_map(Step::BodyBreaks),
        3 => wait.prop_map(Step::Wait),
        5 => prop_oneof![-1..2_i64, Just(0)].prop_map(Step::WaitForProbe),
        2 => Just(Step::Recover),
        1 => order.prop_map(Step::Order),
        1 => settings().prop_map(Step::Reload),
    ]
}

/// A permit that is out.
struct Out {
    permit: Permit,
    /// The state it is of, counted.
    era: u64,
    probe: bool,
    began: Instant,
    settled: bool,
    /// Its place is somebody else's: it was out for too long.
    forgotten: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Closed,
    Open { until: Instant, failed_probes: u32 },
    HalfOpen { failed_probes: u32 },
}

struct Model {
    settings: Settings,
    manual: Override,
    mode: Mode,
    era: u64,
    consecutive: u32,
    /// Of the closed circuit: when, and whether it failed.
    outcomes: Vec<(Instant, bool)>,
    /// What tenths of the window are counted from.
    epoch: Instant,
    span: Duration,
    out: Vec<Out>,
}

/// An opening that begins: how long it lasts at least, and at most.
struct Opening(Duration, Duration);

impl Model {
    fn shown(&self) -> CircuitState {
        match (self.manual, self.mode) {
            (Override::Open, _) => CircuitState::Open,
            (Override::Closed, _) => CircuitState::Closed,
            (Override::Auto, Mode::Closed) => CircuitState::Closed,
            (Override::Auto, Mode::Open { .. }) => CircuitState::Open,
            (Override::Auto, Mode::HalfOpen { .. }) => CircuitState::HalfOpen,
        }
    }

    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.era += 1;
    }

    /// As a probe or not, or how long until the next.
    fn admit(&mut self, now: Instant) -> Result<bool, Duration> {
        match (self.manual, self.mode) {
            (Override::Open, _) => return Err(Duration::from_secs(1)),
            (Override::Closed, _) | (Override::Auto, Mode::Closed) => return Ok(false),
            (Override::Auto, Mode::Open { until, .. }) if now < until => return Err(until - now),
            (Override::Auto, Mode::Open { failed_probes, .. }) => self.enter(Mode::HalfOpen { failed_probes }),
            (Override::Auto, Mode::HalfOpen { .. }) => {}
        }
        let lifetime = self.settings.max_open_for.max(Duration::from_secs(300));
        let era = self.era;
        for out in self.out.iter_mut().filter(|out| out.probe && out.era == era) {
            out.forgotten |= now - out.began >= lifetime;
        }
        let probing =
            self.out.iter().filter(|out| out.probe && out.era == era && !out.settled && !out.forgotten).count();
        if probing < self.settings.half_open_requests.get() as usize { Ok(true) } else { Err(Duration::from_secs(1)) }
    }

    fn tripped(&self, now: Instant) -> bool {
        if self.settings.consecutive_failures.is_some_and(|most| self.consecutive >= most.get()) {
            return true;
        }
        let Some(rate) = &self.settings.failure_rate else { return false };
        let tenth = |at: Instant| (at - self.epoch).as_nanos() / (self.span.as_nanos() / 10);
        let recent: Vec<bool> =
            self.outcomes.iter().filter(|(at, _)| tenth(*at) + 10 > tenth(now)).map(|(_, failed)| *failed).collect();
        let failed = recent.iter().filter(|failed| **failed).count();
        // The thresholds of this test are exact as floats.
        let threshold = f64::from(rate.threshold.parts_per_million()) / 1e6;
        recent.len() >= rate.min_requests.get() as usize && failed as f64 / recent.len() as f64 >= threshold
    }

    fn settle(&mut self, era: u64, probe: bool, verdict: Verdict, now: Instant) -> Option<Opening> {
        if era != self.era || self.manual != Override::Auto {
            return None;
        }
        match (self.mode, verdict) {
            (Mode::Open { .. }, _) | (_, Verdict::Neutral) | (Mode::Closed, Verdict::Passing) => None,
            (Mode::Closed, Verdict::Success) => {
                self.consecutive = 0;
                self.outcomes.push((now, false));
                None
            }
            (Mode::Closed, Verdict::Failure) => {
                self.consecutive += 1;
                self.outcomes.push((now, true));
                self.tripped(now).then(|| {
                    self.enter(Mode::Open { until: now, failed_probes: 0 });
                    Opening(self.settings.open_for, self.settings.open_for)
                })
            }
            (Mode::HalfOpen { .. }, Verdict::Success | Verdict::Passing) => {
                self.consecutive = 0;
                self.outcomes.clear();
                self.enter(Mode::Closed);
                None
            }
            (Mode::HalfOpen { .. }, Verdict::Failure) if !probe => None,
            (Mode::HalfOpen { failed_probes }, Verdict::Failure) => {
                let failed_probes = failed_probes + 1;
                let longest = self.settings.max_open_for.max(self.settings.open_for);
                let mut plain = self.settings.open_for;
                for _ in 0..failed_probes {
                    plain = longest.min(plain * 2);
                }
                self.enter(Mode::Open { until: now, failed_probes });
                Some(Opening(plain, plain.mul_f64(1.1)))
            }
        }
    }
}

static REPORT: LazyLock<Arc<LaneReport>> = LazyLock::new(LaneReport::for_test);

proptest! {
    #![proptest_config(crate::policy::crowd::cases())]

    #[test]
    fn it_opens_probes_and_closes_as_lists_of_outcomes_and_permits_say(
        first in settings(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let start = Instant::now();
        let mut now = start;
        let breaker = Breaker::new(first.clone(), REPORT.clone(), now);
        let span = first.failure_rate.as_ref().map_or(Duration::from_secs(10), |rate| rate.window);
        let mut model = Model {
            settings: first, manual: Override::Auto, mode: Mode::Closed, era: 0, consecutive: 0,
            outcomes: Vec::new(), epoch: now, span, out: Vec::new(),
        };
        let steps = steps.into_iter().flat_map(|step| match step {
            Step::Recover => vec![Step::WaitForProbe(0), Step::Admit, Step::Settle(0, Verdict::Success)],
            step => vec![step],
        });
        for step in steps {
            let mut opening = None;
            match step {
                Step::Admit => match (breaker.admit(now), model.admit(now)) {
                    (Ok(permit), Ok(probe)) => {
                        let era = model.era;
                        model.out.push(Out { permit, era, probe, began: now, settled: false, forgotten: false });
                    }
                    (Err(Error::CircuitOpen(wait)), Err(expected)) => prop_assert_eq!(wait, expected),
                    (seen, expected) => prop_assert!(false, "{:?} for {expected:?}", seen.err()),
                },
                Step::Settle(nth, verdict) if !model.out.is_empty() => {
                    // Mostly one that is still to be settled, the last first; now and then one that was.
                    let open: Vec<usize> = (0..model.out.len()).rev().filter(|at| !model.out[*at].settled).collect();
                    let nth = open.get(nth).copied().unwrap_or(nth % model.out.len());
                    let out = &mut model.out[nth];
                    out.permit.settle(verdict, now);
                    let (era, probe) = (out.era, out.probe);
                    // Only the first verdict counts.
                    if !std::mem::replace(&mut out.settled, true) {
                        let current = era == model.era;
                        opening = model.settle(era, probe, verdict, now);
                        if current && era != model.era && model.mode == Mode::Closed {
                            model.out[nth].era = model.era;
                        }
                    }
                }
                Step::Drop(nth) if !model.out.is_empty() => {
                    let nth = nth % model.out.len();
                    model.out.remove(nth);
                }
                Step::BodyBreaks(nth) => {
                    let settled: Vec<usize> = (0..model.out.len()).filter(|at| model.out[*at].settled).collect();
                    if let Some(at) = settled.get(nth % settled.len().max(1)) {
                        breaker.body_broke(model.out[*at].permit.generation(), now);
                        opening = model.settle(model.out[*at].era, false, Verdict::Failure, now);
                    }
                }
                Step::Settle(..) | Step::Drop(_) | Step::Recover => {}
                Step::Wait(millis) => now += Duration::from_millis(millis),
                Step::WaitForProbe(millis) => if let Mode::Open { until, .. } = model.mode {
                    let at = until.saturating_duration_since(start).as_nanos() as i64 + millis * 1_000_000;
                    now = now.max(start + Duration::from_nanos(at.max(0) as u64));
                },
                Step::Order(order) => {
                    breaker.order(order);
                    model.manual = order;
                }
                Step::Reload(settings) => {
                    breaker.reconfigure(&settings, now);
                    if let Some(rate) = &settings.failure_rate && rate.window != model.span {
                        (model.span, model.epoch) = (rate.window, now);
                        model.outcomes.clear();
                    }
                    model.settings = settings;
                }
            }
            let (shown, next, manual, consecutive) = breaker.status(now);
            prop_assert_eq!((shown, manual, consecutive), (model.shown(), model.manual, model.consecutive));
            if let (Some(Opening(least, most)), Mode::Open { until, .. }) = (opening, &mut model.mode) {
                // Some of it is chance: taken as it came, where it is within its bounds.
                let lasts = next.unwrap_or_default();
                prop_assert!(least <= lasts && lasts <= most, "{lasts:?} of {least:?} to {most:?}");
                *until = now + lasts;
            }
            let expected = match (model.manual, model.mode) {
                (Override::Auto, Mode::Open { until, .. }) => Some(until.saturating_duration_since(now)),
                (Override::Auto, Mode::Closed | Mode::HalfOpen { .. }) | (Override::Open | Override::Closed, _) => None,
            };
            prop_assert_eq!(next, expected);
            for out in &model.out {
                let stale = out.era != model.era || model.manual == Override::Open;
                prop_assert_eq!(out.permit.is_stale(), stale);
            }
        }
    }
}
