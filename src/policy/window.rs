//! Exact counts over a sliding window of time buckets. Not a moving average: that gives a tight burst almost no weight
//! and can hide a total outage.

use std::time::Duration;

use tokio::time::Instant;

/// Buckets that a window is made of.
const BUCKETS: u64 = 10;

/// Successes and failures of the last `span`, exact to a tenth of it.
#[derive(Debug)]
pub struct Window {
    span: Duration,
    epoch: Instant,
    newest: u64,
    buckets: [Bucket; BUCKETS as usize],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    total: u64,
    failures: u64,
}

impl Window {
    /// An empty window.
    pub fn new(span: Duration, now: Instant) -> Window {
        Window { span, epoch: now, newest: 0, buckets: [Bucket::default(); BUCKETS as usize] }
    }

    /// What it spans.
    pub fn span(&self) -> Duration {
        self.span
    }

    /// Counts one outcome.
    pub fn record(&mut self, failure: bool, now: Instant) {
        self.advance(now);
        let bucket = &mut self.buckets[(self.newest % BUCKETS) as usize];
        bucket.total += 1;
        bucket.failures += u64::from(failure);
    }

    /// Outcomes and failures among them, now.
    pub fn counts(&mut self, now: Instant) -> (u64, u64) {
        self.advance(now);
        self.buckets.iter().fold((0, 0), |(total, failures), b| (total + b.total, failures + b.failures))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets = [Bucket::default(); BUCKETS as usize];
    }

    fn advance(&mut self, now: Instant) {
        let width = (self.span.as_nanos() / u128::from(BUCKETS)).max(1);
        let number = (now.saturating_duration_since(self.epoch).as_nanos() / width) as u64;
        let number = number.max(self.newest);
        for step in 1..=(number - self.newest).min(BUCKETS) {
            self.buckets[((self.newest + step) % BUCKETS) as usize] = Bucket::default();
        }
        self.newest = number;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_counts_what_a_list_of_all_outcomes_counts(
            steps in proptest::collection::vec((0u64..3_000, any::<bool>()), 1..200)
        ) {
            let start = Instant::now();
            let mut window = Window::new(Duration::from_secs(10), start);
            let mut all = Vec::new();
            let mut at = 0;
            for (pause, failure) in steps {
                at += pause;
                let now = start + Duration::from_millis(at);
                window.record(failure, now);
                all.push((at / 1_000, failure));
                let recent = all.iter().filter(|(second, _)| second + BUCKETS > at / 1_000);
                let expected = recent.fold((0, 0), |(t, f), (_, failure)| (t + 1, f + u64::from(*failure)));
                prop_assert_eq!(window.counts(now), expected);
            }
        }
    }
}
