//! The connections to one origin: those at rest, those that are shared, and who waits for one. What a lane may do with the
//! upstream's places is decided above it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Key;
use crate::origin::Scheme;

/// A connection that carries one request at a time.
pub(in crate::upstream) trait Solo {
    /// It is closed, or about to be.
    fn is_closed(&self) -> bool;
}

/// A connection that carries many.
pub(in crate::upstream) trait Multi: Clone {
    /// It takes no new streams.
    fn is_closed(&self) -> bool;
    /// How many streams it takes at once.
    fn room(&self) -> usize;
    /// Whether `room` is known already.
    fn is_settled(&self) -> bool;
}

/// What a lane speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Speaks {
    /// Not known yet, and HTTP/2 is possible: one dial at a time, until it is known.
    Unknown,
    /// A connection for each request.
    Http1,
    /// Shared connections.
    Http2,
}

pub(super) struct Idle<S> {
    pub(super) link: S,
    pub(super) since: Instant,
    pub(super) expires: Option<Instant>,
    pub(super) used: bool,
}

pub(super) struct Member<M> {
    pub(super) id: u64,
    pub(super) link: M,
    pub(super) streams: usize,
    pub(super) used: bool,
    pub(super) idle_since: Instant,
    pub(super) expires: Option<Instant>,
}

pub(super) struct Waiting<W> {
    pub(super) ticket: u64,
    pub(super) fresh: bool,
    pub(super) limit: Option<Duration>,
    pub(super) told: bool,
    pub(super) who: W,
}

pub(super) struct Lane<S, M, W> {
    pub(super) speaks: Speaks,
    /// Least recently used first.
    pub(super) idle: VecDeque<Idle<S>>,
    pub(super) shared: Vec<Member<M>>,
    pub(super) waiting: VecDeque<Waiting<W>>,
    pub(super) dials: usize,
    /// Solo connections that carry a request.
    pub(super) busy: usize,
    /// Streams of an HTTP/2 connection here, as last seen.
    pub(super) room: usize,
}

impl<S: Solo, M: Multi, W: Clone> Lane<S, M, W> {
    pub(super) fn new(speaks: Speaks) -> Self {
        Lane {
            speaks,
            idle: VecDeque::new(),
            shared: Vec::new(),
            waiting: VecDeque::new(),
            dials: 0,
            busy: 0,
            room: 100,
        }
    }

    /// How many of those who wait can count on a connection that is being made.
    pub(super) fn covered(&self) -> usize {
        let unsettled = self.shared.iter().any(|member| !member.link.is_settled() && !member.link.is_closed());
        let each = match self.speaks {
            Speaks::Unknown => usize::MAX,
            Speaks::Http1 => 1,
            Speaks::Http2 => self.room.max(1),
        };
        if unsettled && self.waiting.iter().all(|waiting| !waiting.fresh) {
            return usize::MAX;
        }
        self.dials.saturating_mul(each)
    }

    /// The first of those who can't.
    pub(super) fn blocked(&self) -> Option<&Waiting<W>> {
        self.waiting.get(self.covered())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.idle.is_empty() && self.shared.is_empty() && self.waiting.is_empty() && self.dials == 0 && self.busy == 0
    }
}

pub(super) fn is_over(expires: Option<Instant>, now: Instant) -> bool {
    expires.is_some_and(|expires| now >= expires)
}

/// Whether HTTP/2 is possible there, before anything is known.
pub(in crate::upstream) fn first_guess(key: &Key, http: crate::config::HttpVersion) -> Speaks {
    use crate::config::HttpVersion;
    match http {
        _ if key.http1 => Speaks::Http1,
        HttpVersion::Http1 => Speaks::Http1,
        HttpVersion::Http2 => Speaks::Http2,
        HttpVersion::Auto => match key.origin.scheme {
            Scheme::Http => Speaks::Http1,
            Scheme::Https => Speaks::Unknown,
        },
    }
}
