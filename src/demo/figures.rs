//! What the app saw: how many calls of which kind, how they ended, how long they took.

use std::time::Duration;

use tokio::time::Instant;

use crate::demo::seen::Kind;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 200 with its whole body.
    Answered,
    /// Outrigger answered by itself that the call was not made.
    Refused,
    /// Any other answer, a broken one, or none.
    Failed,
}

/// What the app saw.
#[derive(Clone, Debug)]
pub struct Figures {
    /// GET.
    pub reads: Tally,
    /// POST with an `Idempotency-Key`.
    pub keyed: Tally,
    /// POST without.
    pub unkeyed: Tally,
    /// What each thread waits for, and since when.
    open: Vec<Option<(Kind, Instant)>>,
}

/// Of one kind of calls.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many ended, or were given up.
    pub calls: u64,
    /// How many of them did not succeed, for whatever reason.
    pub failed: u64,
    /// How many of them Outrigger refused by itself.
    pub refused: u64,
    /// How many of them were given up without an answer.
    pub unanswered: u64,
    /// How long each took, in no order.
    waits: Vec<Duration>,
}

/// How long calls took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Half of the calls took at most this.
    pub typical: Duration,
    /// Whether the call that this is the time of has no answer yet, so that it takes longer.
    pub typical_open: bool,
    /// The longest.
    pub longest: Duration,
    /// As `typical_open`.
    pub longest_open: bool,
}

/// A call that is under way longer than this is told of, as a wait without an end.
const STUCK: Duration = Duration::from_millis(500);

impl Figures {
    pub(super) fn new(threads: usize) -> Figures {
        Figures {
            reads: Tally::default(),
            keyed: Tally::default(),
            unkeyed: Tally::default(),
            open: vec![None; threads],
        }
    }

    /// A thread begins to wait.
    pub(super) fn begin(&mut self, thread: usize, kind: Kind, now: Instant) {
        self.open[thread] = Some((kind, now));
    }

    /// What the thread waited for has ended.
    pub(super) fn end(&mut self, thread: usize, outcome: Outcome, now: Instant) {
        let Some((kind, since)) = self.open[thread].take() else { return };
        let tally = self.tally(kind);
        tally.calls += 1;
        tally.failed += u64::from(outcome != Outcome::Answered);
        tally.refused += u64::from(outcome == Outcome::Refused);
        tally.waits.push(now - since);
    }

    /// Nobody waits any longer.
    pub(super) fn give_up(&mut self, now: Instant) {
        for thread in 0..self.open.len() {
            if let Some((kind, since)) = self.open[thread].take() {
                let tally = self.tally(kind);
                tally.calls += 1;
                tally.failed += 1;
                tally.unanswered += 1;
                tally.waits.push(now - since);
            }
        }
    }

    /// How many calls of all kinds were made.
    pub fn calls(&self) -> u64 {
        self.reads.calls + self.keyed.calls + self.unkeyed.calls
    }

    /// How many calls are under way.
    pub fn waiting(&self) -> usize {
        self.open.iter().flatten().count()
    }

    /// Calls of all kinds that were given up, and those that have waited for long.
    pub fn stuck(&self, now: Instant) -> u64 {
        let given_up = self.reads.unanswered + self.keyed.unanswered + self.unkeyed.unanswered;
        let waiting = self.open.iter().flatten().filter(|(_, since)| now.saturating_duration_since(*since) > STUCK);
        given_up + waiting.count() as u64
    }

    /// How long calls of all kinds took. What was given up, and what has waited for long, took at least as long as it
    /// waited.
    pub fn waits(&self, now: Instant) -> Waits {
        let mut all: Vec<(Duration, bool)> = Vec::new();
        for tally in [&self.reads, &self.keyed, &self.unkeyed] {
            let given_up = tally.waits.len() - usize::try_from(tally.unanswered).unwrap_or(0);
            all.extend(tally.waits.iter().enumerate().map(|(at, wait)| (*wait, at >= given_up)));
        }
        let waiting = self.open.iter().flatten().map(|(_, since)| (now.saturating_duration_since(*since), true));
        all.extend(waiting.filter(|(wait, _)| *wait > STUCK));
        all.sort_unstable();
        let (Some(longest), Some(typical)) = (all.last(), all.get(all.len().saturating_sub(1) / 2)) else {
            return Waits::default();
        };
        Waits { typical: typical.0, typical_open: typical.1, longest: longest.0, longest_open: longest.1 }
    }

    fn tally(&mut self, kind: Kind) -> &mut Tally {
        match kind {
            Kind::Read => &mut self.reads,
            Kind::Keyed => &mut self.keyed,
            Kind::Unkeyed => &mut self.unkeyed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_kind_and_end() {
        let mut figures = Figures::new(2);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for (n, (kind, outcome)) in [
            (Kind::Read, Outcome::Answered),
            (Kind::Read, Outcome::Failed),
            (Kind::Read, Outcome::Refused),
            (Kind::Keyed, Outcome::Answered),
            (Kind::Unkeyed, Outcome::Failed),
        ]
        .into_iter()
        .enumerate()
        {
            figures.begin(0, kind, at(0));
            figures.end(0, outcome, at(10 * (n as u64 + 1)));
        }
        assert_eq!((figures.reads.calls, figures.reads.failed, figures.reads.refused), (3, 2, 1));
        assert_eq!((figures.keyed.failed, figures.unkeyed.failed, figures.calls()), (0, 1, 5));
        let waits = figures.waits(at(100));
        assert_eq!((waits.typical, waits.longest), (Duration::from_millis(30), Duration::from_millis(50)));
        assert!(!waits.typical_open && !waits.longest_open);
    }

    #[test]
    fn who_hangs_is_shown_while_it_hangs_and_counted_when_it_is_given_up() {
        let mut figures = Figures::new(2);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        figures.begin(0, Kind::Read, at(0));
        figures.begin(1, Kind::Read, at(2900));
        assert_eq!((figures.calls(), figures.stuck(at(3000))), (0, 1));
        let waits = figures.waits(at(3000));
        assert_eq!((waits.longest, waits.longest_open), (Duration::from_secs(3), true));
        figures.end(1, Outcome::Answered, at(3000));
        figures.give_up(at(5000));
        assert_eq!((figures.reads.calls, figures.reads.failed, figures.reads.unanswered), (2, 1, 1));
        let waits = figures.waits(at(9000));
        assert_eq!((waits.longest, waits.longest_open, waits.typical_open), (Duration::from_secs(5), true, false));
    }
}
