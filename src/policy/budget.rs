//! The retry budget.

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
