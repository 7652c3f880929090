//! The slots and the line for them against a list of who holds and a list of who waits. Callers hang up at any moment, also
//! between being handed a slot and learning of it; reloads come in the middle.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::{Concurrency, Settings, Slot};
use crate::policy::crowd::Crowd;

#[derive(Clone, Debug)]
enum Step {
    /// A caller, with the ticks until its deadline.
    Ask(Option<u64>),
    /// One who takes a slot only if there is one.
    Try,
    HangUp(usize),
    GiveBack(usize),
    /// So many ticks pass.
    Wait(u64),
    Reload(Settings),
    /// Those who were woken go on.
    Run,
}

const TICK: Duration = Duration::from_millis(50);

fn settings() -> impl Strategy<Value = Settings> {
    (1..5_u32, 1..4_u32, 0..6_u32).prop_map(|(max_in_flight, max_queue, max_wait)| Settings {
        max_in_flight: NonZeroU32::new(max_in_flight).unwrap(),
        max_queue: NonZeroU32::new(max_queue).unwrap(),
        max_wait: TICK * max_wait,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::option::weighted(0.3, 0..5_u64).prop_map(Step::Ask),
        1 => Just(Step::Try),
        2 => (0..6_usize).prop_map(Step::HangUp),
        4 => (0..6_usize).prop_map(Step::GiveBack),
        2 => (0..4_u64).prop_map(Step::Wait),
        1 => settings().prop_map(Step::Reload),
        4 => Just(Step::Run),
    ]
}

struct Waiting {
    id: u32,
    until: Instant,
    /// Was handed a slot and hasn't run since.
    handed: bool,
}

struct Model {
    settings: Settings,
    held: Vec<u32>,
    line: Vec<Waiting>,
}

#[derive(Debug, PartialEq)]
enum Asked {
    Granted,
    Refused,
    Waits,
}

impl Model {
    fn taken(&self) -> usize {
        self.held.len() + self.line.iter().filter(|waiting| waiting.handed).count()
    }

    fn free(&self) -> bool {
        self.taken() < self.settings.max_in_flight.get() as usize
    }

    fn ask(&mut self, id: u32, deadline: Option<Instant>, now: Instant) -> Asked {
        if self.free() {
            self.held.push(id);
            return Asked::Granted;
        }
        if self.settings.max_wait.is_zero() || self.line.len() >= self.settings.max_queue.get() as usize {
            return Asked::Refused;
        }
        let until = now + self.settings.max_wait;
        let until = deadline.map_or(until, |deadline| until.min(deadline));
        if until <= now {
            return Asked::Refused;
        }
        self.line.push(Waiting { id, until, handed: false });
        Asked::Waits
    }

    /// Free slots go to those who wait longest.
    fn hand_out(&mut self) {
        while self.free() {
            let Some(next) = self.line.iter_mut().find(|waiting| !waiting.handed) else { return };
            next.handed = true;
        }
    }

    fn hang_up(&mut self, at: usize) -> u32 {
        let gone = self.line.remove(at);
        // What it was handed goes to the next in line before it is anybody's to give back.
        if gone.handed
            && let Some(next) = self.line.iter_mut().find(|waiting| !waiting.handed)
        {
            next.handed = true;
        }
        self.hand_out();
        gone.id
    }

    /// Everybody who can goes on: who has a slot, and whose time is over. In the order in which they came.
    fn run(&mut self, now: Instant) -> Vec<(u32, bool)> {
        let mut ended = Vec::new();
        while let Some(at) = self.line.iter().position(|waiting| waiting.handed || waiting.until <= now) {
            let waiting = self.line.remove(at);
            if waiting.handed {
                self.held.push(waiting.id);
            }
            ended.push((waiting.id, waiting.handed));
        }
        ended
    }
}

async fn compare(first: Settings, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let slots = Concurrency::new(first.clone());
    let mut model = Model { settings: first, held: Vec::new(), line: Vec::new() };
    let mut crowd: Crowd<crate::error::Result<Slot>> = Crowd::new();
    let mut held: Vec<(u32, Slot)> = Vec::new();
    let ask = |slots: &Arc<Concurrency>, deadline: Option<Instant>| {
        let slots = slots.clone();
        async move { slots.acquire(deadline).await }
    };
    for (id, step) in steps.into_iter().enumerate() {
        let (id, now) = (id as u32, Instant::now());
        match step {
            Step::Ask(ticks) => {
                let deadline = ticks.map(|ticks| now + TICK * ticks as u32);
                let seen = match crowd.join(id, ask(&slots, deadline)) {
                    Some(Ok(slot)) => {
                        held.push((id, slot));
                        Asked::Granted
                    }
                    Some(Err(_)) => Asked::Refused,
                    None => Asked::Waits,
                };
                prop_assert_eq!(seen, model.ask(id, deadline, now));
            }
            Step::Try => {
                let slot = slots.try_acquire();
                prop_assert_eq!(slot.is_some(), model.free());
                if let Some(slot) = slot {
                    held.push((id, slot));
                    model.held.push(id);
                }
            }
            Step::HangUp(nth) if !model.line.is_empty() => {
                let gone = model.hang_up(nth % model.line.len());
                crowd.leave(gone);
            }
            Step::GiveBack(nth) if !held.is_empty() => {
                let (id, slot) = held.remove(nth % held.len());
                drop(slot);
                model.held.retain(|other| *other != id);
                model.hand_out();
            }
            Step::HangUp(_) | Step::GiveBack(_) => {}
            Step::Wait(ticks) => tokio::time::advance(TICK * ticks as u32).await,
            Step::Reload(settings) => {
                slots.reconfigure(&settings);
                model.settings = settings;
                model.hand_out();
            }
            Step::Run => {
                let mut seen = Vec::new();
                for (id, outcome) in crowd.settle() {
                    seen.push((id, outcome.is_ok()));
                    held.extend(outcome.ok().map(|slot| (id, slot)));
                }
                prop_assert_eq!(seen, model.run(now));
            }
        }
        prop_assert_eq!(slots.status(), (model.taken(), model.line.len()));
    }
    // Whatever happened: once everybody is gone, all slots are there and no more.
    drop((crowd, held));
    prop_assert_eq!(slots.status(), (0, 0));
    let all: Vec<Slot> = std::iter::from_fn(|| slots.try_acquire()).collect();
    prop_assert_eq!(all.len(), model.settings.max_in_flight.get() as usize);
    Ok(())
}

proptest! {
    #![proptest_config(crate::policy::crowd::cases())]

    #[test]
    fn slots_and_line_are_those_of_two_lists(first in settings(), steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(compare(first, steps))?;
    }
}
