//! Durations, sizes and ratios as a configuration writes them, and back.

use std::time::Duration;

/// A share from 0 to 1, kept in parts per million so that sums are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(u32);

impl Ratio {
    /// One part in a million.
    pub const SCALE: u32 = 1_000_000;

    /// From a number between 0 and 1; `None` outside.
    pub fn new(value: f64) -> Option<Ratio> {
        (value.is_finite() && (0.0..=1.0).contains(&value))
            .then(|| Ratio((value * f64::from(Ratio::SCALE)).round() as u32))
    }

    /// In parts per million.
    pub fn parts_per_million(self) -> u32 {
        self.0
    }
}

/// Parses `250ms`, `2s`, `1m30s`, `1h`, `1d`, and `0`.
///
/// # Errors
/// A sentence that says what would be right.
pub fn parse_duration(_text: &str) -> Result<Duration, String> {
    todo!()
}

/// Parses `512B`, `64KiB`, `10MB`, and `0`. In bytes.
///
/// # Errors
/// A sentence that says what would be right.
pub fn parse_size(_text: &str) -> Result<u64, String> {
    todo!()
}

/// A duration as a configuration would write it: `1m30s`, `250ms`.
pub fn show_duration(_duration: Duration) -> String {
    todo!()
}

/// A size as a configuration would write it: `64KiB`.
pub fn show_size(_bytes: u64) -> String {
    todo!()
}
