//! The last reloads, for whoever looks at the dashboard: a bounded number of bounded ones.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::Status;

/// How many are kept.
const KEPT: usize = 10;
/// Lines that are kept of one.
const LINES: usize = 20;
/// The longest line that is kept. Characters.
const LONGEST: usize = 200;

/// The last reloads, the start of the process among them.
#[derive(Default)]
pub struct Past(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    /// Newest last.
    kept: VecDeque<Arc<Summary>>,
    /// How many there ever were: the number of the newest.
    count: u64,
}

/// What is kept of a reload.
#[derive(Debug)]
struct Summary {
    number: u64,
    at: SystemTime,
    cause: &'static str,
    took_effect: bool,
    /// What changed, or the problems, one a line.
    lines: Vec<String>,
    /// How many lines there were.
    all: usize,
}

impl Past {
    /// Keeps what matters of one, and forgets the oldest.
    pub(super) fn note(&self, status: &Status) {
        let took_effect = status.took_effect();
        let short = |line: String| match line.char_indices().nth(LONGEST) {
            Some((at, _)) => format!("{}…", &line[..at]),
            None => line,
        };
        let (lines, all): (Vec<String>, usize) = if took_effect {
            (status.changed.iter().take(LINES).cloned().map(short).collect(), status.changed.len())
        } else {
            let problems = status.problems.iter().take(LINES).map(ToString::to_string);
            (problems.map(short).collect(), status.problems.len())
        };
        let mut ring = self.lock();
        ring.count += 1;
        let number = ring.count;
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        let (at, cause) = (status.at, status.cause.as_str());
        ring.kept.push_back(Arc::new(Summary { number, at, cause, took_effect, lines, all }));
    }

    /// How many there ever were.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// As `GET /api/reloads` shows them, newest first.
    pub fn json(&self) -> Vec<Value> {
        let kept: Vec<_> = self.lock().kept.iter().rev().cloned().collect();
        kept.iter().map(|summary| summary.json()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Summary {
    fn json(&self) -> Value {
        let at = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        json!({
            "number": self.number,
            "at": at,
            "cause": self.cause,
            "result": if self.took_effect { "success" } else { "failure" },
            "lines": self.lines,
            "count": self.all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cause, sentence};
    use super::*;

    #[test]
    fn a_reload_is_kept_short_and_the_newest_comes_first() {
        let past = Past::default();
        past.note(&Status::start());
        past.note(&Status::took(Cause::Changed, vec!["ä".repeat(300); 30], Vec::new()));
        past.note(&Status::refused(Cause::Asked, vec![sentence("what".to_owned())]));
        let shown = past.json();
        assert_eq!((shown[0]["result"].as_str(), shown[0]["lines"][0].as_str()), (Some("failure"), Some("what")));
        let lines = shown[1]["lines"].as_array().unwrap();
        assert_eq!((lines.len(), shown[1]["count"].as_u64()), (LINES, Some(30)));
        assert_eq!(lines[0].as_str().unwrap().chars().count(), LONGEST + 1);
        assert_eq!((shown[2]["cause"].as_str(), shown[2]["count"].as_u64()), (Some("start"), Some(0)));
        for _ in 0..50 {
            past.note(&Status::start());
        }
        assert_eq!((past.json().len(), past.json()[0]["number"].as_u64(), past.count()), (KEPT, Some(53), 53));
    }
}
