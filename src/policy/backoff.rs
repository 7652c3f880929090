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
