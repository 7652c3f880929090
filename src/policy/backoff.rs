//! Exponential back-off with full jitter.

use std::time::Duration;

use crate::document::Reader;

/// `retry.backoff`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Upper bound of the first wait; 0 switches waiting off.
    pub base: Duration,
    /// Upper bound of any wait.
    pub max: Duration,
}

impl Settings {
    /// Reads the block.
    pub fn read(reader: &mut Reader<'_>) -> Settings {
        Settings { base: reader.duration_or_zero("base"), max: reader.duration("max") }
    }
}

impl Settings {
    /// The wait before retry number `retry` (from 1): evenly spread over 0 to `base` × 2^(`retry` − 1), at most `max`
    /// ("full jitter"). `random` is from 0 to 1.
    pub fn wait(&self, retry: u32, random: f64) -> Duration {
        let doublings = retry.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_maximum() {
        let settings = Settings { base: Duration::from_millis(100), max: Duration::from_secs(1) };
        let bounds: Vec<u128> = (1..=6).map(|retry| settings.wait(retry, 1.0).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(settings.wait(40, 1.0), Duration::from_secs(1));
    }

    #[test]
    fn the_jitter_is_full() {
        let settings = Settings { base: Duration::from_millis(100), max: Duration::from_secs(1) };
        assert_eq!(settings.wait(1, 0.0), Duration::ZERO);
        assert_eq!(settings.wait(1, 0.25), Duration::from_millis(25));
    }
}
