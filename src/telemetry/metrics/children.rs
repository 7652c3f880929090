//! Children that are looked up once and then held: a status or a method costs an index, not a hash.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Method;

use super::{IntCounter, IntCounterVec};

/// Methods with a label of their own; all others share the last one.
pub(in crate::telemetry) const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "OTHER"];

/// The method's index in [`METHODS`].
pub(in crate::telemetry) fn method_index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::POST => 2,
        Method::PUT => 3,
        Method::DELETE => 4,
        Method::CONNECT => 5,
        Method::OPTIONS => 6,
        Method::TRACE => 7,
        Method::PATCH => 8,
        _ => 9,
    }
}

/// The lowest status there is.
const FIRST: u16 = 100;
/// The highest.
const LAST: u16 = 999;

/// A counter for each status from 100 to 999, made when it is first met. A table of a hundred is made at once, so that
/// a lane whose upstream answers 2xx and 5xx holds two of them.
pub(in crate::telemetry) struct Codes([OnceLock<Box<[OnceLock<IntCounter>; 100]>>; 9]);

impl Codes {
    pub(in crate::telemetry) fn new() -> Codes {
        Codes(Default::default())
    }

    /// The child of a status; `make` resolves it by its label. Numbers that are no status count as the nearest one.
    pub(in crate::telemetry) fn get(&self, code: u16, make: impl FnOnce(&str) -> IntCounter) -> &IntCounter {
        let code = code.clamp(FIRST, LAST);
        let at = usize::from(code - FIRST);
        self.0[at / 100].get_or_init(|| Box::new([const { OnceLock::new() }; 100]))[at % 100]
            .get_or_init(|| make(&code.to_string()))
    }

    /// Every status that was met, with its count.
    pub(in crate::telemetry) fn each(&self, mut act: impl FnMut(u16, u64)) {
        for (hundred, table) in (FIRST..).step_by(100).zip(&self.0) {
            let counters = table.get().into_iter().flat_map(|table| table.iter());
            for (code, counter) in (hundred..).zip(counters) {
                if let Some(counter) = counter.get() {
                    act(code, counter.get());
                }
            }
        }
    }
}

/// Makes children late, and stops to when their upstream is gone, so that a request which outlives its upstream doesn't
/// bring the series back.
pub(in crate::telemetry) struct Lazy {
    retired: AtomicBool,
}

impl Lazy {
    pub(in crate::telemetry) fn new() -> Lazy {
        Lazy { retired: AtomicBool::new(false) }
    }

    /// From now on children count into nothing.
    pub(in crate::telemetry) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// The child of these labels.
    pub(in crate::telemetry) fn child(&self, vec: &IntCounterVec, labels: &[&str]) -> IntCounter {
        if self.retired.load(Ordering::Relaxed) {
            return IntCounter::default();
        }
        vec.with_label_values(labels)
    }

    /// Whether the upstream is gone.
    pub(in crate::telemetry) fn retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }
}
