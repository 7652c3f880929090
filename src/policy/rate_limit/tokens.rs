//! The tokens of one bucket, exactly: no fraction of one is lost or won by rounding, by looking, or by a reload.

use std::time::Duration;

use tokio::time::Instant;

use crate::policy::rate_limit::Settings;

/// A bucket as what is missing from a full one. Time pays it off; what is taken adds to it.
///
/// Counted in nanoseconds × `requests`, so that everything is whole: a token is worth `per`, and a nanosecond pays `requests`.
/// The largest that a configuration can ask for, a year times 2³², is far from the end of a `u128`.
#[derive(Debug)]
pub(super) struct Tokens {
    /// How fast the missing is paid off.
    requests: u32,
    /// Nanoseconds; what a token is worth.
    per: u128,
    burst: u32,
    missing: u128,
    /// When `missing` was right.
    at: Instant,
}

impl Tokens {
    /// A full bucket.
    pub(super) fn new(settings: &Settings, now: Instant) -> Tokens {
        let (requests, per, burst) = (settings.requests.get(), settings.per.as_nanos(), settings.burst.get());
        Tokens { requests, per, burst, missing: 0, at: now }
    }

    /// As many tokens are missing as were, parts of one included, but never more than a bucket holds.
    pub(super) fn reconfigure(&mut self, settings: &Settings, now: Instant) {
        self.settle(now);
        let fresh = Tokens::new(settings, now);
        let (whole, part) = (self.missing / self.per, self.missing % self.per);
        // Apart, since their product would not always fit.
        let missing = whole * fresh.per + part * fresh.per / self.per;
        *self = Tokens { missing: missing.min(fresh.capacity()), ..fresh };
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long until there is one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let wait = self.wait(now);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.missing += self.per;
        Ok(())
    }

    /// How long until there is one.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        self.settle(now);
        let over = (self.missing + self.per).saturating_sub(self.capacity());
        // At most `per`, which is at most a year.
        Duration::from_nanos(over.div_ceil(u128::from(self.requests)) as u64)
    }

    /// How many there are.
    pub(super) fn left(&mut self, now: Instant) -> u64 {
        self.settle(now);
        ((self.capacity() - self.missing) / self.per) as u64
    }

    fn capacity(&self) -> u128 {
        self.per * u128::from(self.burst)
    }

    fn settle(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        self.missing = self.missing.saturating_sub(passed * u128::from(self.requests));
        self.at = self.at.max(now);
    }
}
