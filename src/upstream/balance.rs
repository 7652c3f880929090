//! Which of several `to` an attempt uses: the less loaded of two random ones, without those that just failed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long an endpoint is avoided after it failed to connect; doubles with each failure in a row.
const AVOID: Duration = Duration::from_secs(5);
/// And at most so long.
const AVOID_MAX: Duration = Duration::from_secs(60);

/// The endpoints of one upstream.
pub(super) struct Balance {
    endpoints: Vec<Endpoint>,
}

#[derive(Default)]
struct Endpoint {
    /// Requests on their way, bodies included.
    load: AtomicUsize,
    trouble: Mutex<Trouble>,
}

#[derive(Default)]
struct Trouble {
    failures: u32,
    until: Option<Instant>,
}

impl Balance {
    /// For `count` endpoints, at least one.
    pub(super) fn new(count: usize) -> Arc<Balance> {
        Arc::new(Balance { endpoints: (0..count).map(|_| Endpoint::default()).collect() })
    }

    /// The only one.
    pub(super) fn only(self: &Arc<Balance>) -> Load {
        self.endpoints[0].load.fetch_add(1, Ordering::Relaxed);
        Load { balance: self.clone(), index: 0 }
    }

    /// Chooses by the random number `chance`, and takes a place there. Where every endpoint is to be avoided, any will do.
    pub(super) fn pick(self: &Arc<Balance>, avoid: Option<usize>, chance: u64, now: Instant) -> Load {
        let well = |index: &usize| !self.endpoints[*index].is_avoided(now);
        let all = || 0..self.endpoints.len();
        let other = |index: &usize| Some(*index) != avoid;
        let mut candidates: Vec<usize> = all().filter(well).filter(other).collect();
        // One that answered, if badly, is better than one that could not be connected to.
        if candidates.is_empty() {
            candidates = all().filter(well).collect();
        }
        if candidates.is_empty() {
            candidates = all().filter(other).collect();
        }
        if candidates.is_empty() {
            candidates = all().collect();
        }
        let count = candidates.len() as u64;
        let first = candidates[(chance % count) as usize];
        let second = candidates[((chance % count + 1 + (chance >> 32) % (count - 1).max(1)) % count) as usize];
        let load = |index: usize| self.endpoints[index].load.load(Ordering::Relaxed);
        let index = if load(second) < load(first) { second } else { first };
        self.endpoints[index].load.fetch_add(1, Ordering::Relaxed);
        Load { balance: self.clone(), index }
    }
}

impl Endpoint {
    fn is_avoided(&self, now: Instant) -> bool {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).until.is_some_and(|until| now < until)
    }
}

/// A place at an endpoint until it is dropped.
pub(super) struct Load {
    balance: Arc<Balance>,
    /// Which one.
    pub(super) index: usize,
}

impl Load {
    /// It could not be connected to: others are preferred for a while.
    pub(super) fn failed(&self, now: Instant) {
        let mut trouble = self.trouble();
        let wait = AVOID.saturating_mul(1 << trouble.failures.min(8)).min(AVOID_MAX);
        // Attempts that fail together are one failure.
        if trouble.until.is_none_or(|until| now >= until) {
            trouble.failures = trouble.failures.saturating_add(1);
            trouble.until = Some(now + wait);
        }
    }

    /// It answered.
    pub(super) fn succeeded(&self) {
        let mut trouble = self.trouble();
        if trouble.failures > 0 {
            *trouble = Trouble::default();
        }
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Trouble> {
        self.balance.endpoints[self.index].trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.balance.endpoints[self.index].load.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let balance = Balance::new(2);
        let now = Instant::now();
        let loads: Vec<Load> = (0..100).map(|chance| balance.pick(None, chance * 7919, now)).collect();
        assert_eq!(loads.iter().filter(|load| load.index == 0).count(), 50);
    }

    #[test]
    fn every_endpoint_gets_its_share() {
        let balance = Balance::new(5);
        let now = Instant::now();
        let mut random = fastrand::Rng::with_seed(7);
        let loads: Vec<Load> = (0..500).map(|_| balance.pick(None, random.u64(..), now)).collect();
        for index in 0..5 {
            let count = loads.iter().filter(|load| load.index == index).count();
            assert!((90..=110).contains(&count), "{index}: {count}");
        }
    }

    #[test]
    fn one_that_failed_to_connect_is_avoided_for_a_growing_while() {
        let balance = Balance::new(2);
        let mut now = Instant::now();
        let load = (0..).map(|chance| balance.pick(None, chance, now)).find(|load| load.index == 1).unwrap();
        for seconds in [5, 10, 20, 40, 60, 60] {
            load.failed(now);
            assert!(balance.endpoints[1].is_avoided(now + Duration::from_secs(seconds - 1)));
            assert!((0..20).all(|chance| balance.pick(None, chance, now).index == 0));
            now += Duration::from_secs(seconds);
            assert!(!balance.endpoints[1].is_avoided(now));
        }
        load.failed(now);
        load.succeeded();
        assert!(!balance.endpoints[1].is_avoided(now));
    }

    #[test]
    fn a_retry_prefers_another_one_and_takes_the_same_where_there_is_no_other() {
        let now = Instant::now();
        let two = Balance::new(2);
        assert!((0..20).all(|chance| two.pick(Some(0), chance, now).index == 1));
        assert_eq!(Balance::new(1).pick(Some(0), 3, now).index, 0);
    }

    #[test]
    fn a_retry_does_not_prefer_one_that_can_not_be_connected_to() {
        let now = Instant::now();
        let two = Balance::new(2);
        let down = (0..).map(|chance| two.pick(None, chance, now)).find(|load| load.index == 1).unwrap();
        down.failed(now);
        assert!((0..20).all(|chance| two.pick(Some(0), chance, now).index == 0));
    }

    #[test]
    fn where_all_failed_any_will_do() {
        let balance = Balance::new(1);
        let now = Instant::now();
        balance.pick(None, 0, now).failed(now);
        assert_eq!(balance.pick(None, 0, now).index, 0);
    }
}
