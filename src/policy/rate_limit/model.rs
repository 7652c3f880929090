//! The token bucket against a list of every token ever taken, and the line before it against a list of who waits.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use proptest::prelude::*;
use tokio::time::Instant;

use super::{Key, RateLimit, Settings};
use crate::error::Error;
use crate::policy::crowd::Crowd;
use crate::policy::rate_limit::tokens::Tokens;

fn settings(requests: u32, per: Duration, burst: u32, max_wait: Duration) -> Settings {
    Settings {
        requests: NonZeroU32::new(requests).unwrap(),
        per,
        burst: NonZeroU32::new(burst).unwrap(),
        max_wait,
        key: Key::Upstream,
        pause_on_retry_after: true,
    }
}

/// A bucket as the definition has it: from any moment on no more is taken than the bucket holds and what came since.
struct Model {
    settings: Settings,
    /// What the old bucket lacked at the last reload, in nanoseconds × `requests`, and when that was.
    owed: (u128, Instant),
    taken: Vec<Instant>,
}

impl Model {
    fn new(settings: Settings, now: Instant) -> Model {
        Model { settings, owed: (0, now), taken: Vec::new() }
    }

    fn per(&self) -> u128 {
        self.settings.per.as_nanos()
    }

    /// What is missing from a full bucket: the most, over all moments, of what was taken since and has not come back.
    fn missing(&self, now: Instant) -> u128 {
        let came = |since: Instant| (now - since).as_nanos() * u128::from(self.settings.requests.get());
        let from_start = self.owed.0 + self.taken.len() as u128 * self.per();
        let since_each = self
            .taken
            .iter()
            .enumerate()
            .map(|(before, since)| ((self.taken.len() - before) as u128 * self.per()).saturating_sub(came(*since)));
        since_each.chain([from_start.saturating_sub(came(self.owed.1))]).max().unwrap_or_default()
    }

    fn wait(&self, now: Instant) -> Duration {
        let most = self.per() * u128::from(self.settings.burst.get());
        let over = (self.missing(now) + self.per()).saturating_sub(most);
        Duration::from_nanos(over.div_ceil(u128::from(self.settings.requests.get())) as u64)
    }

    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        match self.wait(now) {
            Duration::ZERO => {
                self.taken.push(now);
                Ok(())
            }
            wait => Err(wait),
        }
    }

    fn left(&self, now: Instant) -> u64 {
        let most = self.per() * u128::from(self.settings.burst.get());
        ((most - self.missing(now)) / self.per()) as u64
    }

    fn reload(&mut self, settings: &Settings, now: Instant) {
        let owed = self.missing(now) * settings.per.as_nanos() / self.per();
        let owed = owed.min(settings.per.as_nanos() * u128::from(settings.burst.get()));
        *self = Model { settings: settings.clone(), owed: (owed, now), taken: Vec::new() };
    }
}

mod bucket {
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        /// Nanoseconds.
        Wait(u64),
        /// Another thread, which read the clock so many nanoseconds earlier, comes later.
        TakeLate(u64),
        Reload(Settings),
    }

    fn any_settings() -> impl Strategy<Value = Settings> {
        let per = prop_oneof![Just(1_u64), Just(7), Just(1_000), Just(60_000), 1..2_000_u64];
        (1..2_000_u32, per, 1..8_u32)
            .prop_map(|(requests, per, burst)| settings(requests, Duration::from_millis(per), burst, Duration::ZERO))
    }

    fn step() -> impl Strategy<Value = Step> {
        let wait = prop_oneof![
            Just(0),
            1..1_000_u64,
            1_000..5_000_000_u64,
            1_000_000..90_000_000_000_u64,
            Just(7_200_000_000_000)
        ];
        prop_oneof![
            8 => Just(Step::Take),
            4 => wait.prop_map(Step::Wait),
            1 => (1..5_000_000_u64).prop_map(Step::TakeLate),
            1 => any_settings().prop_map(Step::Reload),
        ]
    }

    proptest! {
        #![proptest_config(crate::policy::crowd::cases())]

        #[test]
        fn a_bucket_gives_what_its_definition_gives(
            first in any_settings(),
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let mut now = Instant::now();
            let mut tokens = Tokens::new(&first, now);
            let mut model = Model::new(first, now);
            for step in steps {
                match step {
                    Step::Take => prop_assert_eq!(tokens.take(now), model.take(now)),
                    Step::Wait(nanos) => now += Duration::from_nanos(nanos),
                    // The bucket's own clock never goes back.
                    Step::TakeLate(nanos) => {
                        let late = now.checked_sub(Duration::from_nanos(nanos)).unwrap_or(now);
                        prop_assert_eq!(tokens.take(late), model.take(now));
                    }
                    Step::Reload(settings) => {
                        tokens.reconfigure(&settings, now);
                        model.reload(&settings, now);
                    }
                }
                prop_assert_eq!(tokens.wait(now), model.wait(now));
                prop_assert_eq!(tokens.left(now), model.left(now));
            }
        }

        #[test]
        fn whatever_the_file_may_ask_for_a_bucket_can_be_made_and_drained_and_changed(
            requests in 1..=u32::MAX, seconds in 1..=366 * 86_400_u64, burst in 1..=u32::MAX, smaller in 1..=u32::MAX,
        ) {
            let now = Instant::now();
            let first = settings(requests, Duration::from_secs(seconds), burst, Duration::ZERO);
            let mut tokens = Tokens::new(&first, now);
            prop_assert_eq!(tokens.left(now), u64::from(burst));
            prop_assert_eq!(tokens.take(now), Ok(()));
            tokens.reconfigure(&settings(1, Duration::from_secs(366 * 86_400), smaller, Duration::ZERO), now);
            prop_assert_eq!(tokens.left(now), u64::from(smaller - 1));
            prop_assert_eq!(tokens.left(now + Duration::from_secs(400 * 86_400)), u64::from(smaller));
        }
    }

    #[test]
    fn the_largest_bucket_of_a_year_is_no_sum_that_runs_over() {
        let now = Instant::now();
        let most = settings(1, Duration::from_secs(366 * 86_400), u32::MAX, Duration::ZERO);
        let mut tokens = Tokens::new(&most, now);
        assert_eq!(tokens.take(now), Ok(()));
        tokens.reconfigure(&settings(u32::MAX, Duration::from_millis(1), u32::MAX, Duration::ZERO), now);
        assert_eq!(tokens.left(now), u64::from(u32::MAX - 1));
        tokens.reconfigure(&most, now);
        assert_eq!(tokens.left(now), u64::from(u32::MAX - 1));
    }

    #[test]
    fn reloads_in_a_row_keep_the_part_of_a_token_that_has_come() {
        let start = Instant::now();
        let settings = [1, 2].map(|burst| settings(1, Duration::from_secs(60), burst, Duration::ZERO));
        let mut tokens = Tokens::new(&settings[0], start);
        assert_eq!(tokens.take(start), Ok(()));
        for reload in 1..=12 {
            tokens.reconfigure(&settings[reload % 2], start + Duration::from_secs(5) * reload as u32);
        }
        assert_eq!(tokens.take(start + Duration::from_secs(60)), Ok(()));
    }
}

mod line {
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// A caller, with the ticks until its deadline.
        Ask(Option<u64>),
        /// One who takes a token only if there is one and nobody waits.
        Try,
        HangUp(usize),
        /// So many ticks, one after the other.
        Wait(u64),
        /// The machine slept: all at once.
        Jump(u64),
        /// So many ticks, and then one who tries before those who wait have run.
        Overtake(u64),
        /// A Retry-After of so many ticks.
        Pause(u64),
        Reload(Settings),
    }

    /// Every wait is a whole number of these.
    const TICK: Duration = Duration::from_millis(20);

    fn any_settings() -> impl Strategy<Value = Settings> {
        (1..5_u32, 1..4_u32, 0..15_u32).prop_map(|(ticks, burst, wait)| settings(1, TICK * ticks, burst, TICK * wait))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => prop::option::weighted(0.3, 0..12_u64).prop_map(Step::Ask),
            1 => Just(Step::Try),
            2 => (0..6_usize).prop_map(Step::HangUp),
            5 => (1..4_u64).prop_map(Step::Wait),
            1 => prop_oneof![1..20_u64, Just(500_000)].prop_map(Step::Jump),
            1 => (0..4_u64).prop_map(Step::Overtake),
            1 => (1..8_u64).prop_map(Step::Pause),
            1 => any_settings().prop_map(Step::Reload),
        ]
    }

    struct Waiting {
        id: u32,
        until: Instant,
    }

    struct Line {
        bucket: Model,
        paused_until: Instant,
        line: Vec<Waiting>,
        /// When the head looks again.
        looks: Option<Instant>,
    }

    #[derive(Debug, PartialEq)]
    enum Asked {
        Granted,
        Refused(Duration),
        Waits,
    }

    impl Line {
        fn take(&mut self, now: Instant) -> Result<(), Duration> {
            match self.paused_until.checked_duration_since(now).filter(|wait| !wait.is_zero()) {
                Some(wait) => Err(wait),
                None => self.bucket.take(now),
            }
        }

        fn next(&self, now: Instant) -> Duration {
            self.paused_until.saturating_duration_since(now).max(self.bucket.wait(now))
        }

        fn ask(&mut self, id: u32, deadline: Option<Instant>, now: Instant) -> Asked {
            let until = now + self.bucket.settings.max_wait;
            let until = deadline.map_or(until, |deadline| until.min(deadline));
            if self.line.is_empty() {
                return match self.take(now) {
                    Ok(()) => Asked::Granted,
                    Err(wait) if now + wait > until => Asked::Refused(wait),
                    Err(wait) => {
                        self.line.push(Waiting { id, until });
                        self.looks = Some(now + wait);
                        Asked::Waits
                    }
                };
            }
            if until <= now {
                return Asked::Refused(self.next(now));
            }
            self.line.push(Waiting { id, until });
            Asked::Waits
        }

        /// Everybody who can goes on, in the order in which they came. Who is first looks for a token; who is not gives up when
        /// its time is over.
        fn run(&mut self, now: Instant) -> Vec<(u32, Result<(), Duration>)> {
            let mut ended = Vec::new();
            let mut at = 0;
            while let Some(waiting) = self.line.get(at) {
                if at > 0 {
                    if waiting.until > now {
                        at += 1;
                        continue;
                    }
                    let next = self.next(now);
                    ended.push((self.line.remove(at).id, Err(next)));
                    continue;
                }
                if self.looks.is_some_and(|looks| looks > now) {
                    at += 1;
                    continue;
                }
                let (id, until) = (waiting.id, waiting.until);
                match self.take(now) {
                    Err(wait) if now + wait <= until => self.looks = Some(now + wait),
                    outcome => {
                        self.line.remove(0);
                        self.looks = None;
                        ended.push((id, outcome));
                    }
                }
            }
            ended
        }
    }

    type Outcome = (u32, Result<(), Duration>);

    fn waited(outcome: crate::error::Result<()>) -> Result<(), Duration> {
        outcome.map_err(|error| match error {
            Error::RateLimited(wait) => wait,
            other => panic!("{other:?} from a bucket"),
        })
    }

    async fn compare(first: Settings, steps: Vec<Step>) -> Result<(), TestCaseError> {
        let start = Instant::now();
        let limit = RateLimit::new(first.clone(), start);
        let mut model = Line { bucket: Model::new(first, start), paused_until: start, line: Vec::new(), looks: None };
        let mut crowd: Crowd<crate::error::Result<()>> = Crowd::new();
        let ask = |limit: &Arc<RateLimit>, deadline: Option<Instant>| {
            let (bucket, max_wait) = limit.bucket(&HeaderMap::new(), Instant::now(), || {});
            async move { bucket.acquire(max_wait, deadline).await }
        };
        for (id, step) in steps.into_iter().enumerate() {
            let (id, now) = (id as u32, Instant::now());
            let mut ticks = vec![];
            match step {
                Step::Ask(ticks) => {
                    let deadline = ticks.map(|ticks| now + TICK * ticks as u32);
                    let seen = match crowd.join(id, ask(&limit, deadline)).map(waited) {
                        Some(Ok(())) => Asked::Granted,
                        Some(Err(wait)) => Asked::Refused(wait),
                        None => Asked::Waits,
                    };
                    prop_assert_eq!(seen, model.ask(id, deadline, now));
                }
                Step::Try => {
                    let (bucket, _) = limit.bucket(&HeaderMap::new(), now, || {});
                    let expected = model.line.is_empty() && model.take(now).is_ok();
                    prop_assert_eq!(bucket.try_acquire(now), expected);
                }
                Step::HangUp(nth) if !model.line.is_empty() => {
                    let at = nth % model.line.len();
                    crowd.leave(model.line.remove(at).id);
                    if at == 0 {
                        model.looks = None;
                    }
                }
                Step::HangUp(_) => {}
                Step::Wait(count) => ticks = vec![TICK; count as usize],
                Step::Jump(count) => ticks = vec![TICK * count as u32],
                Step::Overtake(count) => {
                    tokio::time::advance(TICK * count as u32).await;
                    let now = Instant::now();
                    let (bucket, _) = limit.bucket(&HeaderMap::new(), now, || {});
                    let expected = model.line.is_empty() && model.take(now).is_ok();
                    prop_assert_eq!(bucket.try_acquire(now), expected);
                }
                Step::Pause(ticks) => {
                    let (bucket, _) = limit.bucket(&HeaderMap::new(), now, || {});
                    bucket.pause(TICK * ticks as u32, now);
                    model.paused_until = model.paused_until.max(now + TICK * ticks as u32);
                }
                Step::Reload(settings) => {
                    limit.reconfigure(&settings, now);
                    if model.bucket.settings != settings {
                        model.bucket.reload(&settings, now);
                        model.looks = None;
                    }
                }
            }
            for tick in std::iter::once(Duration::ZERO).chain(ticks) {
                tokio::time::advance(tick).await;
                let now = Instant::now();
                let seen: Vec<Outcome> =
                    crowd.settle().into_iter().map(|(id, outcome)| (id, waited(outcome))).collect();
                prop_assert_eq!(seen, model.run(now));
                let paused = model.paused_until.checked_duration_since(now).filter(|wait| !wait.is_zero());
                prop_assert_eq!(limit.status(now), (Some(model.bucket.left(now)), paused, model.line.len()));
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(crate::policy::crowd::cases())]

        #[test]
        fn the_line_is_served_as_a_list_would_be(
            first in any_settings(),
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(compare(first, steps))?;
        }
    }
}
