//! The last requests that failed, for whoever looks at the dashboard: the facts of their access lines, a bounded number of
//! bounded ones. Header values, bodies and query values never.
//!
//! A flood of the same failure (an open circuit refuses hundreds a second) takes half of the room at most where there is
//! anything else to show, so that what led to it can still be read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::telemetry::report::Skipped;

/// How many are kept.
pub const KEPT: usize = 50;
/// From how many alike on they make room among themselves.
const ALIKE: usize = KEPT / 2;
/// The longest text of an entry that is kept. Bytes.
const LONGEST: usize = 200;

/// A request that failed: the app got 429, 5xx or an answer of Outrigger's own, hung up, or its answer broke off.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it ended.
    pub at: SystemTime,
    /// Upstream's name.
    pub upstream: Arc<str>,
    /// Route's name; empty for the upstream's own.
    pub route: Arc<str>,
    /// The app's method.
    pub method: String,
    /// Host (and port where it is not the scheme's own) as the app asked.
    pub host: String,
    /// Path and query as the access log shows them; `None` where `log.path` is `off`.
    pub path: Option<String>,
    /// What the app got; 499 where it hung up.
    pub status: u16,
    /// [`crate::error::Error::code`]; `None` where the upstream's own answer was passed on.
    pub error: Option<&'static str>,
    /// The error's sentence.
    pub detail: Option<String>,
    /// Attempts made.
    pub attempts: u32,
    /// Why a wanted retry was not made.
    pub no_retry: Option<Skipped>,
    /// From the app's head to the end.
    pub total: Duration,
    /// The trace id.
    pub trace: u128,
}

/// The last of them.
#[derive(Default)]
pub struct Failures(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    /// With their numbers, newest last.
    kept: VecDeque<(u64, Arc<Failure>)>,
    /// How many there ever were: the number of the newest.
    count: u64,
}

impl Failures {
    /// Keeps one, and forgets the oldest. Texts that are too long are cut.
    pub fn note(&self, mut failure: Failure) {
        for text in
            [&mut failure.method, &mut failure.host].into_iter().chain(&mut failure.path).chain(&mut failure.detail)
        {
            cut(text);
        }
        let failure = Arc::new(failure);
        let mut ring = self.lock();
        // What falls out is freed once the lock is.
        let _oldest = ring.make_room(&failure);
        ring.count += 1;
        let number = ring.count;
        ring.kept.push_back((number, failure));
        drop(ring);
    }

    /// How many there ever were.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// Those after number `seen` that are still kept, each with its number, oldest first.
    pub fn after(&self, seen: u64) -> Vec<(u64, Arc<Failure>)> {
        self.lock().kept.iter().filter(|(number, _)| *number > seen).cloned().collect()
    }

    /// The numbers of those that are kept, oldest first.
    pub fn numbers(&self) -> Vec<u64> {
        self.lock().kept.iter().map(|(number, _)| *number).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// Takes out the oldest, or the oldest like `new` where there are many of them.
    fn make_room(&mut self, new: &Failure) -> Option<(u64, Arc<Failure>)> {
        if self.kept.len() < KEPT {
            return None;
        }
        let mut alike = self.kept.iter().enumerate().filter(|(_, (_, one))| one.is_like(new)).map(|(at, _)| at);
        let first = alike.next();
        let many = alike.count() + 1 >= ALIKE;
        self.kept.remove(first.filter(|_| many).unwrap_or(0))
    }
}

impl Failure {
    /// Asked of all that are kept, for each that fails: most have the very same name.
    fn is_like(&self, other: &Failure) -> bool {
        let same_upstream = || Arc::ptr_eq(&self.upstream, &other.upstream) || self.upstream == other.upstream;
        self.status == other.status && self.error == other.error && same_upstream()
    }
}

/// Cuts a text that is too long, with a sign that it was.
fn cut(text: &mut String) {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: u16) -> Failure {
        Failure {
            at: SystemTime::UNIX_EPOCH,
            upstream: "a".into(),
            route: "".into(),
            method: "GET".into(),
            host: "a.test".into(),
            path: Some("/x".into()),
            status,
            error: None,
            detail: None,
            attempts: 1,
            no_retry: None,
            total: Duration::ZERO,
            trace: 1,
        }
    }

    #[test]
    fn the_oldest_makes_room_and_numbers_go_on() {
        let failures = Failures::default();
        assert!(failures.after(0).is_empty());
        for status in 500..560 {
            failures.note(failure(status));
        }
        let all = failures.after(0);
        assert_eq!((all.len(), all[0].0, all[0].1.status), (KEPT, 11, 510));
        let new: Vec<_> = failures.after(58).iter().map(|(number, one)| (*number, one.status)).collect();
        assert_eq!(new, [(59, 558), (60, 559)]);
        assert!(failures.after(failures.count()).is_empty());
    }

    #[test]
    fn a_flood_of_the_same_failure_leaves_what_led_to_it() {
        let failures = Failures::default();
        let refused = |status| Failure { error: Some("circuit_open"), ..failure(status) };
        (0..30).for_each(|_| failures.note(failure(500)));
        (0..1000).for_each(|_| failures.note(refused(503)));
        let all = failures.after(0);
        assert_eq!(all.len(), KEPT);
        assert_eq!(all.iter().filter(|(_, one)| one.error.is_none()).count(), KEPT - ALIKE);
        assert_eq!((all[KEPT - 1].0, failures.numbers()[KEPT - 1]), (1030, 1030));
        // Alone it has all the room.
        let failures = Failures::default();
        (0..60).for_each(|_| failures.note(refused(503)));
        assert_eq!(failures.after(0).len(), KEPT);
        assert_eq!(failures.numbers()[0], 11);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let failures = Failures::default();
        let long = "ü".repeat(5000);
        failures.note(Failure {
            host: long.clone(),
            path: Some(format!("/{long}")),
            detail: Some("x".repeat(201)),
            method: "M".repeat(200),
            ..failure(502)
        });
        let (_, one) = failures.after(0).remove(0);
        assert_eq!((one.host.len(), one.method.len()), (203, 200));
        assert!(one.path.as_ref().unwrap().ends_with('…') && one.path.as_ref().unwrap().len() <= 203);
        assert_eq!(one.detail.as_ref().unwrap().len(), 203);
    }
}
