//! What happened, counted; and what must not happen, told.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Of which so many are told in full.
const TOLD: usize = 20;

#[derive(Default)]
pub(crate) struct Tally {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    counts: BTreeMap<(&'static str, String), u64>,
    wrong: Vec<String>,
    more: usize,
    /// How often each POST without a key reached an upstream.
    posts: HashMap<u64, u32>,
}

impl Tally {
    /// One more of `who` ended like this.
    pub(crate) fn ended(&self, who: &'static str, how: impl Into<String>) {
        self.count(who, how, 1);
    }

    pub(crate) fn count(&self, who: &'static str, how: impl Into<String>, times: u64) {
        *self.lock().counts.entry((who, how.into())).or_default() += times;
    }

    /// A promise was broken.
    pub(crate) fn broken(&self, what: String) {
        let mut state = self.lock();
        if state.wrong.len() < TOLD {
            println!("BROKEN: {what}");
            state.wrong.push(what);
        } else {
            state.more += 1;
        }
    }

    /// A POST without a key reached an upstream.
    pub(crate) fn post(&self, id: u64) {
        let times = {
            let mut state = self.lock();
            let times = state.posts.entry(id).or_default();
            *times += 1;
            *times
        };
        if times > 1 {
            self.broken(format!("POST {id} without a key was delivered {times} times"));
        }
    }

    /// Requests of apps.
    pub(crate) fn total(&self) -> u64 {
        self.lock().counts.iter().filter(|((who, _), _)| !who.starts_with("upstream")).map(|(_, count)| count).sum()
    }

    pub(crate) fn table(&self) -> String {
        let state = self.lock();
        let mut table = String::new();
        let mut last = "";
        for ((who, how), count) in &state.counts {
            let shown = if *who == last { "" } else { who };
            let _ = writeln!(table, "{shown:<22}{how:<44}{count:>9}");
            last = who;
        }
        let _ = writeln!(
            table,
            "{:<66}{:>9}",
            "POSTs without a key that reached an upstream, each once",
            state.posts.len()
        );
        table
    }

    pub(crate) fn wrong(&self) -> Vec<String> {
        let state = self.lock();
        let mut wrong = state.wrong.clone();
        if state.more > 0 {
            wrong.push(format!("and {} more", state.more));
        }
        wrong
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
