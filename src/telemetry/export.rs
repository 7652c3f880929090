//! What becomes of spans, one method each: it counts, and logs what an operator wants to read of it. A collector that is gone
//! costs a line a minute.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::metrics::{Families, IntCounter};

/// How often a trouble that lasts is told.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What becomes of spans.
pub struct SpanReport {
    exported: IntCounter,
    queue_full: IntCounter,
    failed: IntCounter,
    trouble: Mutex<Trouble>,
}

impl SpanReport {
    pub(super) fn new(families: &Families) -> SpanReport {
        let of = |result| families.spans.with_label_values(&[result]);
        SpanReport {
            exported: of("exported"),
            queue_full: of("queue_full"),
            failed: of("failed"),
            trouble: Mutex::default(),
        }
    }

    /// The collector took them.
    pub fn exported(&self, spans: u64) {
        self.exported.inc_by(spans);
        if let Some(dropped) = self.trouble().over() {
            tracing::info!(dropped, "the collector takes spans again");
        }
    }

    /// They were dropped, since too many wait already.
    pub fn queue_full(&self, spans: u64) {
        self.queue_full.inc_by(spans);
        let mut trouble = self.trouble();
        trouble.dropped += spans;
        if tells(&mut trouble.full, Instant::now()) {
            let dropped = trouble.dropped;
            tracing::warn!(dropped, "too many spans wait for the collector, more are dropped");
        }
    }

    /// The collector did not take them, and they were given up.
    pub fn failed(&self, spans: u64) {
        self.failed.inc_by(spans);
        self.trouble().dropped += spans;
    }

    /// A post to the collector failed.
    pub fn refused(&self, reason: &str) {
        let mut trouble = self.trouble();
        let dropped = trouble.dropped;
        if tells(&mut trouble.refused, Instant::now()) {
            tracing::warn!(dropped, reason, "the collector does not take spans");
        } else {
            tracing::debug!(dropped, reason, "the collector does not take spans");
        }
    }

    /// No more spans come.
    pub fn ended(&self) {
        if let Some(dropped) = self.trouble().over().filter(|dropped| *dropped > 0) {
            tracing::warn!(dropped, "the last spans were dropped, the collector does not take them");
        }
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time in which spans don't get through.
#[derive(Debug, Default)]
struct Trouble {
    /// When it was last told that too many wait.
    full: Option<Instant>,
    /// When it was last told that the collector takes none.
    refused: Option<Instant>,
    /// Spans lost in it so far.
    dropped: u64,
}

impl Trouble {
    /// How many spans were lost, where there was a trouble.
    fn over(&mut self) -> Option<u64> {
        let Trouble { full, refused, dropped } = std::mem::take(self);
        full.or(refused).map(|_| dropped)
    }
}

/// Whether it is time to tell something that was last told then.
fn tells(told: &mut Option<Instant>, now: Instant) -> bool {
    let tells = told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
    if tells {
        *told = Some(now);
    }
    tells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_once_a_minute_and_once_when_it_is_over() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        assert_eq!(trouble.over(), None);
        assert!(tells(&mut trouble.refused, start) && tells(&mut trouble.full, start));
        trouble.dropped += 5;
        assert!(!tells(&mut trouble.refused, start + Duration::from_secs(59)));
        assert!(tells(&mut trouble.refused, start + Duration::from_secs(60)));
        assert_eq!(trouble.over(), Some(5));
        assert_eq!(trouble.over(), None);
    }
}
