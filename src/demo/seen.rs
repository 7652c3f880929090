//! What an upstream saw: how many requests of which kind, how many it failed, and which came again.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Sub;

use http::{HeaderMap, Method};

/// The header that makes a POST repeatable.
pub const KEY: &str = "idempotency-key";

/// Requests that are remembered to notice that one comes again: many more than come within the time a retry takes.
const REMEMBERED: usize = 10_000;

/// What an upstream saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Connections that it accepted.
    pub connections: u64,
    /// Requests other than POST and PATCH.
    pub reads: Count,
    /// POST and PATCH with an `Idempotency-Key`.
    pub keyed: Count,
    /// POST and PATCH without.
    pub unkeyed: Count,
}

impl Seen {
    /// Requests of all kinds.
    pub fn requests(&self) -> u64 {
        self.reads.requests + self.keyed.requests + self.unkeyed.requests
    }
}

/// Of one kind of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many came.
    pub requests: u64,
    /// How many of them it failed: refused, broke or never answered.
    pub failed: u64,
    /// How many of them had come before: the same key, or without one the same method, path and body.
    pub repeated: u64,
}

impl Sub for Seen {
    type Output = Seen;

    fn sub(self, before: Seen) -> Seen {
        Seen {
            connections: self.connections - before.connections,
            reads: self.reads - before.reads,
            keyed: self.keyed - before.keyed,
            unkeyed: self.unkeyed - before.unkeyed,
        }
    }
}

impl Sub for Count {
    type Output = Count;

    fn sub(self, before: Count) -> Count {
        Count {
            requests: self.requests - before.requests,
            failed: self.failed - before.failed,
            repeated: self.repeated - before.repeated,
        }
    }
}

/// Of which kind a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything but POST and PATCH.
    Read,
    /// POST or PATCH with an `Idempotency-Key`.
    Keyed,
    /// POST or PATCH without.
    Unkeyed,
}

/// What tells a request from all others.
pub(super) struct Call {
    kind: Kind,
    identity: Identity,
}

#[derive(Hash)]
enum Identity {
    Key(Vec<u8>),
    Whole(String, String, Vec<u8>),
}

impl Call {
    pub(super) fn new(method: &Method, path: &str, headers: &HeaderMap, body: &[u8]) -> Call {
        let whole = || Identity::Whole(method.to_string(), path.to_owned(), body.to_vec());
        let unsafe_method = method == Method::POST || method == Method::PATCH;
        match headers.get(KEY).filter(|_| unsafe_method) {
            Some(key) => Call { kind: Kind::Keyed, identity: Identity::Key(key.as_bytes().to_vec()) },
            None if unsafe_method => Call { kind: Kind::Unkeyed, identity: whole() },
            None => Call { kind: Kind::Read, identity: whole() },
        }
    }
}

/// Counts.
#[derive(Default)]
pub(super) struct Ledger {
    seen: Seen,
    hasher: RandomState,
    known: HashSet<u64>,
    /// The same, oldest first.
    order: VecDeque<u64>,
}

impl Ledger {
    pub(super) fn seen(&self) -> Seen {
        self.seen
    }

    pub(super) fn connected(&mut self) {
        self.seen.connections += 1;
    }

    pub(super) fn note(&mut self, call: Call, answered: bool) {
        let identity = self.hasher.hash_one(&call.identity);
        let fresh = self.known.insert(identity);
        if fresh {
            self.order.push_back(identity);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
        let count = match call.kind {
            Kind::Read => &mut self.seen.reads,
            Kind::Keyed => &mut self.seen.keyed,
            Kind::Unkeyed => &mut self.seen.unkeyed,
        };
        count.requests += 1;
        count.failed += u64::from(!answered);
        count.repeated += u64::from(!fresh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(key: Option<&'static str>, body: &str) -> Call {
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            headers.insert(KEY, key.parse().unwrap());
        }
        Call::new(&Method::POST, "/orders", &headers, body.as_bytes())
    }

    #[test]
    fn what_came_before_is_told_by_its_key_or_by_all_of_it() {
        let mut ledger = Ledger::default();
        for call in [post(Some("a"), "1"), post(Some("a"), "1"), post(Some("b"), "1"), post(None, "1"), post(None, "2")]
        {
            ledger.note(call, true);
        }
        assert_eq!(ledger.seen().keyed, Count { requests: 3, failed: 0, repeated: 1 });
        assert_eq!(ledger.seen().unkeyed, Count { requests: 2, failed: 0, repeated: 0 });
        ledger.note(post(None, "1"), false);
        assert_eq!(ledger.seen().unkeyed, Count { requests: 3, failed: 1, repeated: 1 });
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut ledger = Ledger::default();
        for n in 0..REMEMBERED + 5 {
            ledger.note(post(None, &n.to_string()), true);
        }
        assert_eq!((ledger.known.len(), ledger.order.len()), (REMEMBERED, REMEMBERED));
        assert_eq!(ledger.seen().unkeyed.repeated, 0);
    }
}
