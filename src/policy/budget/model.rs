//! The retry budget against a list of everything that ever happened.

use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::{Budget, Settings};
use crate::units::Ratio;

#[derive(Clone, Debug)]
enum Step {
    Deposit(u32),
    Withdraw,
    /// Milliseconds.
    Wait(u64),
    /// Another thread, which read the clock a little earlier, comes later.
    Late(u64),
    Reload(Settings),
}

fn settings() -> impl Strategy<Value = Settings> {
    (prop::sample::select(vec![0.000_001, 0.1, 0.2, 0.3, 0.6, 1.0]), 1..4_u32).prop_map(|(ratio, floor)| Settings {
        ratio: Ratio::new(ratio).unwrap(),
        min_per_second: NonZeroU32::new(floor).unwrap(),
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..30_u32).prop_map(Step::Deposit),
        8 => Just(Step::Withdraw),
        4 => prop_oneof![0..1_500_u64, 9_000..12_000_u64, Just(3_600_000)].prop_map(Step::Wait),
        1 => (1..2_500_u64).prop_map(Step::Late),
        1 => settings().prop_map(Step::Reload),
    ]
}

/// Every request and retry with its second, counted from the start; nothing is ever forgotten.
struct Model {
    settings: Settings,
    requests: Vec<u64>,
    retries: Vec<u64>,
}

impl Model {
    /// Of the second that runs and the ten before it.
    fn remaining(&self, second: u64) -> u64 {
        let recent = |all: &[u64]| all.iter().filter(|at| **at + 10 >= second).count() as u64;
        let share = recent(&self.requests) * u64::from(self.settings.ratio.parts_per_million()) / 1_000_000;
        let floor = 10 * u64::from(self.settings.min_per_second.get());
        (share + floor).saturating_sub(recent(&self.retries))
    }
}

proptest! {
    #![proptest_config(crate::policy::crowd::cases())]

    #[test]
    fn it_allows_what_a_list_of_all_requests_and_retries_allows(
        first in settings(),
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let start = Instant::now();
        let budget = Budget::new(first.clone(), start);
        let mut model = Model { settings: first, requests: Vec::new(), retries: Vec::new() };
        let mut millis = 0;
        let mut latest = 0;
        let mut late = 0;
        for step in steps {
            let now = start + Duration::from_millis(millis - std::mem::take(&mut late));
            // The clock of the budget never goes back.
            latest = latest.max((now - start).as_secs());
            match step {
                Step::Deposit(times) => for _ in 0..times {
                    budget.deposit(now);
                    model.requests.push(latest);
                },
                Step::Withdraw => {
                    let expected = model.remaining(latest) > 0;
                    prop_assert_eq!(budget.withdraw(now), expected);
                    if expected {
                        model.retries.push(latest);
                    }
                }
                Step::Wait(wait) => millis += wait,
                Step::Late(by) => late = by.min(millis),
                Step::Reload(settings) => {
                    budget.reconfigure(&settings);
                    model.settings = settings;
                }
            }
            prop_assert_eq!(budget.remaining(now), model.remaining(latest));
        }
    }

    /// The promise in its own words, whatever the slots are: looked at ten seconds at a time, from anywhere.
    #[test]
    fn no_ten_seconds_see_more_retries_than_ratio_and_floor_allow(
        settings in settings(),
        steps in prop::collection::vec((0..400_u64, 0..8_u32, 0..8_u32), 1..120),
    ) {
        let start = Instant::now();
        let budget = Budget::new(settings.clone(), start);
        let (mut requests, mut retries) = (Vec::new(), Vec::new());
        let mut at = 0;
        for (wait, asked, tried) in steps {
            at += wait;
            let now = start + Duration::from_millis(at);
            for _ in 0..asked {
                budget.deposit(now);
                requests.push(at);
            }
            retries.extend((0..tried).filter(|_| budget.withdraw(now)).map(|_| at));
        }
        for end in &retries {
            // A slot is a second wide, so requests of up to eleven seconds may stand behind the retries of ten.
            let within = |all: &[u64], span: u64| all.iter().filter(|at| **at <= *end && **at + span > *end).count() as u64;
            let share = within(&requests, 11_000) * u64::from(settings.ratio.parts_per_million()) / 1_000_000;
            let floor = 10 * u64::from(settings.min_per_second.get());
            prop_assert!(within(&retries, 10_000) <= share + floor);
        }
    }
}
