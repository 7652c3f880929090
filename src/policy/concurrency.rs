//! The concurrency limit and its bounded queue.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::document::Reader;

/// `concurrency`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Slots.
    pub max_in_flight: NonZeroU32,
    /// How many may wait for one.
    pub max_queue: NonZeroU32,
    /// How long they wait; 0 rejects at once.
    pub max_wait: Duration,
}

impl Settings {
    /// Reads the block; `None` where `max_in_flight` is not given.
    pub fn read(reader: &mut Reader<'_>) -> Option<Settings> {
        let max_in_flight = reader.optional_count("max_in_flight");
        let max_queue = reader.count("max_queue", "`max_wait: 0` rejects at once");
        let max_wait = reader.duration_or_zero("max_wait");
        Some(Settings { max_in_flight: max_in_flight?, max_queue, max_wait })
    }
}
