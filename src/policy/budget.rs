//! The retry budget.

#[cfg(test)]
mod model;

use std::num::NonZeroU32;

use crate::document::Reader;
use crate::units::Ratio;

/// `retry.budget`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Retries as a share of requests over 10 s.
    pub ratio: Ratio,
    /// The floor, times 10 s, all there at the start.
    pub min_per_second: NonZeroU32,
}

impl Settings {
    /// Reads the block.
    pub fn read(reader: &mut Reader<'_>) -> Settings {
        Settings {
            ratio: reader.ratio("ratio"),
            min_per_second: reader
                .count("min_per_second", "`retry: off` switches retries off, `budget: off` the bound"),
        }
    }
}

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What the ratio is taken over.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Slots of one second that are looked at: one more than the window has seconds, since the newest is never whole, so that no
/// ten seconds see more than the window allows.
const SLOTS: usize = WINDOW.as_secs() as usize + 1;

/// A retry budget: at any time the retries of the last 10 s are at most `ratio` of that time's requests, plus the floor.
/// Counted in whole retries, decided before the back-off, so that a thousand simultaneous failures can't all
/// decide to wait and then all fire.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    /// When slot 0 of all time began.
    epoch: Instant,
    /// The number of the newest slot, counted from the epoch.
    newest: u64,
    slots: [Slot; SLOTS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u64,
    retries: u64,
}

impl Budget {
    /// A budget with its whole floor.
    pub fn new(settings: Settings, now: Instant) -> Budget {
        let state = State { settings, epoch: now, newest: 0, slots: [Slot::default(); SLOTS] };
        Budget { state: Mutex::new(state) }
    }

    /// A reload changed the settings; what was spent stays spent.
    pub fn reconfigure(&self, settings: &Settings) {
        self.lock().settings = settings.clone();
    }

    /// A request begins.
    pub fn deposit(&self, now: Instant) {
        self.lock().slot(now).requests += 1;
    }

    /// A retry is decided. False: there is none left.
    pub fn withdraw(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.slot(now);
        if state.remaining() == 0 {
            return false;
        }
        state.slot(now).retries += 1;
        true
    }

    /// How many retries may be decided now.
    pub fn remaining(&self, now: Instant) -> u64 {
        let mut state = self.lock();
        state.slot(now);
        state.remaining()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The slot of `now`, after clearing those that time has left behind.
    fn slot(&mut self, now: Instant) -> &mut Slot {
        let number = now.saturating_duration_since(self.epoch).as_secs().max(self.newest);
        let passed = (number - self.newest).min(SLOTS as u64);
        for step in 1..=passed {
            self.slots[((self.newest + step) % SLOTS as u64) as usize] = Slot::default();
        }
        // Where more than a whole round passed, the cleared slots are all of them, whatever their numbers.
        self.newest = number;
        &mut self.slots[(number % SLOTS as u64) as usize]
    }

    fn remaining(&self) -> u64 {
        let scale = u64::from(Ratio::SCALE);
        let (mut requests, mut retries) = (0, 0);
        for slot in &self.slots {
            requests += slot.requests;
            retries += slot.retries;
        }
        let floor = u64::from(self.settings.min_per_second.get()) * WINDOW.as_secs();
        let allowed = requests * u64::from(self.settings.ratio.parts_per_million()) / scale + floor;
        allowed.saturating_sub(retries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(ratio: f64, floor: u32, now: Instant) -> Budget {
        let min_per_second = NonZeroU32::new(floor).unwrap();
        Budget::new(Settings { ratio: Ratio::new(ratio).unwrap(), min_per_second }, now)
    }

    fn drain(budget: &Budget, now: Instant) -> u64 {
        (0..).take_while(|_| budget.withdraw(now)).count() as u64
    }

    #[test]
    fn the_floor_is_there_at_the_start() {
        let now = Instant::now();
        assert_eq!(drain(&budget(0.2, 1, now), now), 10);
    }

    #[test]
    fn odd_ratios_are_exact() {
        for (ratio, expected) in [(0.2, 200), (0.3, 300), (0.6, 600), (0.7, 700), (1.0, 1000)] {
            let now = Instant::now();
            let budget = budget(ratio, 1, now);
            (0..1000).for_each(|_| budget.deposit(now));
            assert_eq!(drain(&budget, now), expected + 10, "{ratio}");
        }
    }

    #[test]
    fn what_was_spent_comes_back_after_the_window() {
        let now = Instant::now();
        let budget = budget(0.2, 1, now);
        assert_eq!(drain(&budget, now), 10);
        assert_eq!(budget.remaining(now + Duration::from_millis(10_999)), 0);
        assert_eq!(budget.remaining(now + Duration::from_secs(11)), 10);
        assert_eq!(budget.remaining(now + Duration::from_secs(1_000_000)), 10);
    }

    #[test]
    fn a_total_outage_is_amplified_by_no_more_than_the_ratio() {
        let start = Instant::now();
        let budget = budget(0.2, 1, start);
        let mut retries = 0;
        for request in 0..12_000u64 {
            let now = start + Duration::from_millis(request * 5);
            budget.deposit(now);
            retries += (0..2).filter(|_| budget.withdraw(now)).count();
        }
        // One minute at 200/s: a fifth, plus the floor of 1/s.
        assert!(retries <= 2_400 + 60, "{retries}");
        assert!(retries >= 2_300, "{retries}");
    }

    #[test]
    fn no_ten_seconds_see_more_than_the_ratio_and_one_floor() {
        let start = Instant::now();
        let budget = budget(0.2, 1, start);
        let mut retries = Vec::new();
        for request in 0..6_000u64 {
            let now = start + Duration::from_millis(request * 5);
            budget.deposit(now);
            retries.extend((0..2).filter(|_| budget.withdraw(now)).map(|_| request * 5));
        }
        assert!(retries.iter().filter(|at| **at < 10_000).count() <= 400 + 10);
        for from in (0..20_000).step_by(250) {
            let seen = retries.iter().filter(|at| (from..from + 10_000).contains(*at)).count();
            assert!(seen <= 440 + 10, "{seen} from {from} ms");
        }
    }

    #[test]
    fn new_settings_keep_what_was_spent() {
        let now = Instant::now();
        let budget = budget(0.2, 1, now);
        drain(&budget, now);
        let two = NonZeroU32::new(2).unwrap();
        budget.reconfigure(&Settings { ratio: Ratio::new(0.2).unwrap(), min_per_second: two });
        assert_eq!(budget.remaining(now), 10);
    }
}
