//! The connections of one of the two listeners: a bounded number. One more takes the seat of the oldest, so that a probe is
//! answered however many others hang on without a word.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

/// Connections at once.
const SEATS: usize = 256;

/// All that are taken, oldest first. Some may be free again.
#[derive(Default)]
pub(super) struct Seats(VecDeque<Seat>);

/// One connection's.
#[derive(Clone, Default)]
pub(super) struct Seat {
    /// Cuts the connection off; cancelled, too, once it ended.
    pub(super) cut: CancellationToken,
    /// It has a stream of events, whose number is bounded elsewhere, and keeps its seat.
    stays: Arc<AtomicBool>,
}

impl Seats {
    /// A seat for a new connection; `None` where all are kept.
    pub(super) fn take(&mut self) -> Option<Seat> {
        if self.0.len() >= SEATS {
            self.0.retain(|seat| !seat.cut.is_cancelled());
        }
        if self.0.len() >= SEATS {
            let oldest = self.0.iter().position(|seat| !seat.stays.load(Ordering::Relaxed))?;
            self.0.remove(oldest)?.cut.cancel();
        }
        let seat = Seat::default();
        self.0.push_back(seat.clone());
        Some(seat)
    }
}

impl Seat {
    /// It is not given to another as long as it is taken.
    pub(super) fn keep(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_takes_a_free_seat_or_that_of_the_oldest_who_has_no_stream() {
        let mut seats = Seats::default();
        let taken: Vec<_> = (0..SEATS).filter_map(|_| seats.take()).collect();
        assert_eq!(taken.len(), SEATS);
        taken[9].cut.cancel();
        taken[0].keep();
        let cut = || taken.iter().map(|seat| seat.cut.is_cancelled()).collect::<Vec<_>>();
        assert!(seats.take().is_some());
        assert!(!cut()[0] && !cut()[1]);
        assert!(seats.take().is_some());
        assert!(!cut()[0] && cut()[1] && !cut()[2]);
        assert_eq!(seats.0.len(), SEATS);
        for seat in &seats.0 {
            seat.keep();
        }
        assert!(seats.take().is_none());
    }
}
