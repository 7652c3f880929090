//! Runs over many seeds. `OUTRIGGER_SIM_SEED=n` replays one, `OUTRIGGER_SIM_SEEDS=n` makes each test run so many.

#![cfg(test)]

use crate::simulation::scenario::Scenario;
use crate::simulation::world::{Run, run};

/// Runs of each test. There are ten.
const SEEDS: u64 = 1000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What a failed run says of itself.
fn story(seed: u64, run: &Run) -> String {
    let mut text = format!("seed {seed} breaks promises:\n");
    for violation in &run.violations {
        text.push_str(&format!("  {violation}\n"));
    }
    let Scenario { mood, first, apps, acts, drain_at } = &run.scenario;
    text.push_str(&format!("{mood:?}, configuration {first}, drain at {drain_at:?}\n"));
    apps.iter().for_each(|app| text.push_str(&format!("{app:?}\n")));
    acts.iter().for_each(|act| text.push_str(&format!("{act:?}\n")));
    let most = if number("OUTRIGGER_SIM_SEED").is_some() { usize::MAX } else { 60 };
    let skipped = run.events.len().saturating_sub(most);
    if skipped > 0 {
        text.push_str(&format!("({skipped} events before these)\n"));
    }
    for (at, event) in &run.events[skipped..] {
        text.push_str(&format!("{at:>7} ms  {event:?}\n"));
    }
    text.push_str(&format!(
        "replay: OUTRIGGER_SIM_SEED={seed} cargo test --lib simulation::tests::replay -- --nocapture\n"
    ));
    text
}

fn part(number_of_part: u64) {
    if number("OUTRIGGER_SIM_SEED").is_some() {
        return;
    }
    let seeds = number("OUTRIGGER_SIM_SEEDS").unwrap_or(SEEDS);
    let from = number_of_part * 1_000_000;
    let mut failed = Vec::new();
    for seed in from..from + seeds {
        let run = run(seed);
        if !run.violations.is_empty() {
            if failed.is_empty() {
                eprint!("{}", story(seed, &run));
            }
            failed.push((seed, run.violations[0].clone()));
            if failed.len() >= 20 {
                break;
            }
        }
    }
    assert!(failed.is_empty(), "{} seeds fail: {failed:#?}", failed.len());
}

#[test]
fn replay() {
    let Some(seed) = number("OUTRIGGER_SIM_SEED") else { return };
    let run = run(seed);
    println!("{}", story(seed, &run));
    assert!(run.violations.is_empty());
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let (one, two) = (run(seed), run(seed));
        for (first, second) in one.events.iter().zip(&two.events) {
            assert_eq!(first, second, "seed {seed}");
        }
        assert_eq!(one.events.len(), two.events.len(), "seed {seed}");
    }
}

macro_rules! parts {
    ($($name:ident: $part:literal),*) => {
        $(
            #[test]
            fn $name() {
                part($part);
            }
        )*
    };
}

parts! {
    promises_hold_by_chance_0: 0,
    promises_hold_by_chance_1: 1,
    promises_hold_by_chance_2: 2,
    promises_hold_by_chance_3: 3,
    promises_hold_by_chance_4: 4,
    promises_hold_by_chance_5: 5,
    promises_hold_by_chance_6: 6,
    promises_hold_by_chance_7: 7,
    promises_hold_by_chance_8: 8,
    promises_hold_by_chance_9: 9
}
