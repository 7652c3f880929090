//! The pool's decisions, without sockets, tasks or locks: who gets which connection, when one is dialled, which one is
//! closed. Time is passed in; what is to be done about a decision comes out as `Effects`.
//!
//! An upstream has `connections.max` places. A connection takes one from the start of its dial until it is closed; a request
//! that finds no connection waits in its lane (the connections to one origin), and all lanes wait for places in the order in
//! which their requests came.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::origin::{Host, Origin, Scheme};

/// Which connections can stand in for each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Where it leads.
    pub(super) origin: Origin,
    /// What TLS verifies.
    pub(super) server: Host,
    /// HTTP/1.1 only, for an Upgrade.
    pub(super) http1: bool,
}

/// A connection that carries one request at a time.
pub(super) trait Solo {
    /// It is closed, or about to be.
    fn is_closed(&self) -> bool;
}

/// A connection that carries many.
pub(super) trait Multi: Clone {
    /// It takes no new streams.
    fn is_closed(&self) -> bool;
    /// How many streams it takes at once.
    fn room(&self) -> usize;
    /// Whether `room` is known already.
    fn is_settled(&self) -> bool;
}

/// The settings that matter here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// `connections.max`
    pub(super) max: usize,
    /// `connections.max_idle`
    pub(super) max_idle: usize,
    /// `connections.idle_timeout`
    pub(super) idle_timeout: Option<Duration>,
    /// Whether lanes outlive their connections: there are few, and what they speak is worth remembering.
    pub(super) keep_lanes: bool,
}

/// What a lane speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// Not known yet, and HTTP/2 is possible: one dial at a time, until it is known.
    Unknown,
    /// A connection for each request.
    Http1,
    /// Shared connections.
    Http2,
}

/// A connection for a request.
#[derive(Debug)]
pub(super) enum Grant<S, M> {
    /// Its own until given back.
    Solo {
        /// The connection.
        link: S,
        /// When it is too old.
        expires: Option<Instant>,
        /// It carried a request before.
        reused: bool,
    },
    /// A stream of a shared one.
    Stream {
        /// The connection.
        link: M,
        /// Which one, for [`Places::stream_ended`].
        id: u64,
        /// It carried a request before.
        reused: bool,
    },
}

/// What a decision asks for. Carried out after the lock is given back.
pub(super) struct Effects<S, M, W> {
    /// These wait no longer.
    pub(super) granted: Vec<(W, Grant<S, M>)>,
    /// For these a dial failed.
    pub(super) failed: Vec<(W, Error)>,
    /// For these a connection is being made now.
    pub(super) told: Vec<W>,
    /// Dial there, within `timeouts.connect`.
    pub(super) dials: Vec<(Arc<Key>, Option<Duration>)>,
    /// Close these.
    pub(super) solos: Vec<S>,
    /// And these.
    pub(super) multis: Vec<M>,
}

impl<S, M, W> Default for Effects<S, M, W> {
    fn default() -> Self {
        Effects {
            granted: Vec::new(),
            failed: Vec::new(),
            told: Vec::new(),
            dials: Vec::new(),
            solos: Vec::new(),
            multis: Vec::new(),
        }
    }
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// What the lane probably speaks, where nothing is known.
    pub(super) speaks: Speaks,
    /// Nothing but a new connection.
    pub(super) fresh: bool,
    /// `timeouts.connect`, for the dial that it may cause.
    pub(super) limit: Option<Duration>,
}

struct Idle<S> {
    link: S,
    since: Instant,
    expires: Option<Instant>,
    used: bool,
}

struct Member<M> {
    id: u64,
    link: M,
    streams: usize,
    used: bool,
    idle_since: Instant,
    expires: Option<Instant>,
}

struct Waiting<W> {
    ticket: u64,
    fresh: bool,
    limit: Option<Duration>,
    told: bool,
    who: W,
}

struct Lane<S, M, W> {
    speaks: Speaks,
    /// Least recently used first.
    idle: VecDeque<Idle<S>>,
    shared: Vec<Member<M>>,
    waiting: VecDeque<Waiting<W>>,
    dials: usize,
    /// Solo connections that carry a request.
    busy: usize,
    /// Streams of an HTTP/2 connection here, as last seen.
    room: usize,
}

/// How many connections there are, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) active: usize,
    pub(super) idle: usize,
    pub(super) connecting: usize,
}

/// All lanes of one upstream.
pub(super) struct Places<S, M, W> {
    limits: Limits,
    lanes: HashMap<Arc<Key>, Lane<S, M, W>>,
    /// Places taken: dials, idle, shared and busy connections.
    open: usize,
    /// Connections without a request.
    idle: usize,
    /// Requests in line.
    waiting: usize,
    tickets: u64,
    members: u64,
    retired: bool,
}

fn is_over(expires: Option<Instant>, now: Instant) -> bool {
    expires.is_some_and(|expires| now >= expires)
}

impl<S: Solo, M: Multi, W: Clone> Lane<S, M, W> {
    fn new(speaks: Speaks) -> Self {
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
    fn covered(&self) -> usize {
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
    fn blocked(&self) -> Option<&Waiting<W>> {
        self.waiting.get(self.covered())
    }

    fn is_empty(&self) -> bool {
        self.idle.is_empty() && self.shared.is_empty() && self.waiting.is_empty() && self.dials == 0 && self.busy == 0
    }
}

impl<S: Solo, M: Multi, W: Clone> Places<S, M, W> {
    /// No connection, nobody waiting.
    pub(super) fn new(limits: Limits) -> Self {
        Places { limits, lanes: HashMap::new(), open: 0, idle: 0, waiting: 0, tickets: 0, members: 0, retired: false }
    }

    /// A connection that is there and free: the one used last, so that the others can go.
    pub(super) fn take(&mut self, key: &Key, now: Instant, fx: &mut Effects<S, M, W>) -> Option<Grant<S, M>> {
        let lane = self.lanes.get_mut(key)?;
        let idle_timeout = self.limits.idle_timeout;
        while let Some(idle) = lane.idle.pop_back() {
            self.idle -= 1;
            let too_long = idle_timeout.is_some_and(|limit| now >= idle.since + limit);
            if idle.link.is_closed() || too_long || is_over(idle.expires, now) {
                self.open -= 1;
                fx.solos.push(idle.link);
                continue;
            }
            lane.busy += 1;
            return Some(Grant::Solo { link: idle.link, expires: idle.expires, reused: idle.used });
        }
        self.stream(key, now, fx)
    }

    /// A stream of a shared connection that has room.
    fn stream(&mut self, key: &Key, now: Instant, fx: &mut Effects<S, M, W>) -> Option<Grant<S, M>> {
        self.sweep_shared(key, now, fx);
        let lane = self.lanes.get_mut(key)?;
        let member = lane.shared.iter_mut().find(|member| {
            !member.link.is_closed() && !is_over(member.expires, now) && member.streams < member.link.room()
        })?;
        if member.streams == 0 {
            self.idle -= 1;
        }
        member.streams += 1;
        let reused = std::mem::replace(&mut member.used, true);
        Some(Grant::Stream { link: member.link.clone(), id: member.id, reused })
    }

    /// Closes the shared connections of a lane that carry nothing and may not carry more.
    fn sweep_shared(&mut self, key: &Key, now: Instant, fx: &mut Effects<S, M, W>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let idle_timeout = self.limits.idle_timeout;
        let retired = self.retired;
        let (mut gone, mut at) = (0, 0);
        while at < lane.shared.len() {
            let member = &lane.shared[at];
            let idle_too_long = idle_timeout.is_some_and(|limit| now >= member.idle_since + limit);
            let over = member.link.is_closed() || is_over(member.expires, now) || retired || idle_too_long;
            if member.streams == 0 && over {
                fx.multis.push(lane.shared.swap_remove(at).link);
                gone += 1;
            } else {
                at += 1;
            }
        }
        self.open -= gone;
        self.idle -= gone;
    }

    /// Gets in line. The ticket is for [`Places::leave`].
    pub(super) fn wait(&mut self, key: &Arc<Key>, want: Want, who: W, now: Instant, fx: &mut Effects<S, M, W>) -> u64 {
        let Want { speaks, fresh, limit } = want;
        self.tickets += 1;
        let ticket = self.tickets;
        self.waiting += 1;
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| Lane::new(speaks));
        lane.waiting.push_back(Waiting { ticket, fresh, limit, told: false, who });
        self.plan(now, fx);
        if let Some(lane) = self.lanes.get_mut(key) {
            tell(lane, fx);
        }
        ticket
    }

    /// Gives up waiting. A dial that was begun goes on: what it makes is for the next one.
    pub(super) fn leave(&mut self, key: &Key, ticket: u64) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if let Some(at) = lane.waiting.iter().position(|waiting| waiting.ticket == ticket) {
            lane.waiting.remove(at);
            self.waiting -= 1;
        }
        self.tidy(key);
    }

    /// Starts dials for those who wait and can't count on one, oldest first, as far as there are places.
    fn plan(&mut self, now: Instant, fx: &mut Effects<S, M, W>) {
        while self.waiting > 0 {
            let oldest = self
                .lanes
                .iter()
                .filter_map(|(key, lane)| lane.blocked().map(|waiting| (waiting.ticket, waiting.limit, key)))
                .min_by_key(|(ticket, ..)| *ticket)
                .map(|(_, limit, key)| (key.clone(), limit));
            let Some((key, limit)) = oldest else { return };
            if self.open >= self.limits.max && !self.evict(fx) {
                return;
            }
            self.open += 1;
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.dials += 1;
                tell(lane, fx);
            }
            fx.dials.push((key, limit));
        }
        let _ = now;
    }

    /// Closes the least recently used idle connection of all lanes; false where none is idle.
    fn evict(&mut self, fx: &mut Effects<S, M, W>) -> bool {
        let oldest = self
            .lanes
            .iter()
            .filter_map(|(key, lane)| {
                let solo = lane.idle.front().map(|idle| (idle.since, None));
                let shared = lane
                    .shared
                    .iter()
                    .filter(|member| member.streams == 0)
                    .map(|member| (member.idle_since, Some(member.id)))
                    .min_by_key(|(since, _)| *since);
                let (since, id) = match (solo, shared) {
                    (Some(solo), Some(shared)) => {
                        if solo.0 <= shared.0 {
                            solo
                        } else {
                            shared
                        }
                    }
                    (Some(one), None) | (None, Some(one)) => one,
                    (None, None) => return None,
                };
                Some((since, id, key))
            })
            .min_by_key(|(since, ..)| *since)
            .map(|(_, id, key)| (id, key.clone()));
        let Some((id, key)) = oldest else { return false };
        if let Some(lane) = self.lanes.get_mut(&key) {
            match id {
                None => fx.solos.extend(lane.idle.pop_front().map(|idle| idle.link)),
                Some(id) => {
                    if let Some(at) = lane.shared.iter().position(|member| member.id == id) {
                        fx.multis.push(lane.shared.swap_remove(at).link);
                    }
                }
            }
        }
        self.open -= 1;
        self.idle -= 1;
        self.tidy(&key);
        true
    }

    /// A dial made a connection for one request at a time.
    pub(super) fn dialled_solo(
        &mut self,
        key: &Arc<Key>,
        link: S,
        expires: Option<Instant>,
        now: Instant,
        fx: &mut Effects<S, M, W>,
    ) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.dials -= 1;
        lane.speaks = Speaks::Http1;
        if let Some(first) = lane.waiting.pop_front() {
            self.waiting -= 1;
            lane.busy += 1;
            fx.granted.push((first.who, Grant::Solo { link, expires, reused: false }));
        } else {
            self.rest(key, Idle { link, since: now, expires, used: false }, fx);
        }
        self.plan(now, fx);
        self.tidy(key);
    }

    /// A dial made a connection to share.
    pub(super) fn dialled_multi(
        &mut self,
        key: &Arc<Key>,
        link: M,
        expires: Option<Instant>,
        now: Instant,
        fx: &mut Effects<S, M, W>,
    ) -> u64 {
        self.members += 1;
        let id = self.members;
        let Some(lane) = self.lanes.get_mut(key) else { return id };
        lane.dials -= 1;
        lane.speaks = Speaks::Http2;
        // Whoever insists on a new connection is served by this one before the others share it.
        let first = lane.waiting.iter().position(|waiting| waiting.fresh).unwrap_or(0);
        let mut member = Member { id, link, streams: 0, used: false, idle_since: now, expires };
        if let Some(first) = lane.waiting.remove(first) {
            self.waiting -= 1;
            member.streams = 1;
            member.used = true;
            fx.granted.push((first.who, Grant::Stream { link: member.link.clone(), id, reused: false }));
        } else {
            self.idle += 1;
        }
        lane.shared.push(member);
        self.serve(key, now, fx);
        self.trim(fx);
        self.plan(now, fx);
        id
    }

    /// A dial failed. Its error goes to those who can't count on another one.
    pub(super) fn dial_failed(&mut self, key: &Arc<Key>, error: &Error, now: Instant, fx: &mut Effects<S, M, W>) {
        self.open -= 1;
        if let Some(lane) = self.lanes.get_mut(key) {
            let covered_before = lane.covered();
            lane.dials -= 1;
            let covered = lane.covered();
            let lost = lane.waiting.len().min(covered_before).saturating_sub(covered);
            for _ in 0..lost {
                if let Some(first) = lane.waiting.pop_front() {
                    self.waiting -= 1;
                    fx.failed.push((first.who, error.clone()));
                }
            }
        }
        self.plan(now, fx);
        self.tidy(key);
    }

    /// A request's connection is free again: its answer was read to a clean end.
    pub(super) fn give_back(
        &mut self,
        key: &Arc<Key>,
        link: S,
        expires: Option<Instant>,
        now: Instant,
        fx: &mut Effects<S, M, W>,
    ) {
        if self.retired || link.is_closed() || is_over(expires, now) {
            fx.solos.push(link);
            self.closed(key, now, fx);
            return;
        }
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.busy -= 1;
        if self.waiting == 0 {
            self.rest(key, Idle { link, since: now, expires, used: true }, fx);
            return;
        }
        let own = lane.waiting.iter().position(|waiting| !waiting.fresh);
        let ticket = own.map(|at| lane.waiting[at].ticket);
        let older = self.lanes.iter().any(|(other, lane)| {
            other != key && lane.blocked().is_some_and(|waiting| ticket.is_none_or(|ticket| waiting.ticket < ticket))
        });
        if older {
            // Somebody in another lane has waited longer for a place: it is theirs.
            self.open -= 1;
            fx.solos.push(link);
            self.plan(now, fx);
            self.tidy(key);
            return;
        }
        let first =
            self.lanes.get_mut(key).and_then(|lane| own.and_then(|at| lane.waiting.remove(at).map(|w| (lane, w))));
        match first {
            Some((lane, first)) => {
                lane.busy += 1;
                self.waiting -= 1;
                fx.granted.push((first.who, Grant::Solo { link, expires, reused: true }));
            }
            None => {
                self.rest(key, Idle { link, since: now, expires, used: true }, fx);
                self.plan(now, fx);
            }
        }
    }

    /// A request's connection is closed.
    pub(super) fn closed(&mut self, key: &Arc<Key>, now: Instant, fx: &mut Effects<S, M, W>) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.busy -= 1;
            self.open -= 1;
        }
        self.plan(now, fx);
        self.tidy(key);
    }

    /// A stream of a shared connection ended.
    pub(super) fn stream_ended(&mut self, key: &Arc<Key>, id: u64, now: Instant, fx: &mut Effects<S, M, W>) {
        if let Some(member) =
            self.lanes.get_mut(key).and_then(|lane| lane.shared.iter_mut().find(|member| member.id == id))
        {
            member.streams -= 1;
            if member.streams == 0 {
                member.idle_since = now;
                self.idle += 1;
            }
        }
        self.shared_changed(key, now, fx);
    }

    /// The SETTINGS of a shared connection came, or it takes no streams any more.
    pub(super) fn shared_changed(&mut self, key: &Arc<Key>, now: Instant, fx: &mut Effects<S, M, W>) {
        self.sweep_shared(key, now, fx);
        if let Some(lane) = self.lanes.get_mut(key)
            && let Some(member) = lane.shared.iter().find(|member| member.link.is_settled())
        {
            lane.room = member.link.room();
        }
        self.serve(key, now, fx);
        self.trim(fx);
        self.plan(now, fx);
        self.tidy(key);
    }

    /// Connections that were closed while they were idle are taken out.
    pub(super) fn reap(&mut self, key: &Arc<Key>, now: Instant, fx: &mut Effects<S, M, W>) {
        if let Some(lane) = self.lanes.get_mut(key) {
            let mut at = 0;
            while at < lane.idle.len() {
                if lane.idle[at].link.is_closed() {
                    fx.solos.extend(lane.idle.remove(at).map(|idle| idle.link));
                    self.open -= 1;
                    self.idle -= 1;
                } else {
                    at += 1;
                }
            }
        }
        self.plan(now, fx);
        self.tidy(key);
    }

    /// Closes what has been idle or has lived too long. When there is something to close next; `None` where nothing idles.
    pub(super) fn expire(&mut self, now: Instant, fx: &mut Effects<S, M, W>) -> Option<Instant> {
        let keys: Vec<Arc<Key>> = self.lanes.keys().cloned().collect();
        let mut next: Option<Instant> = None;
        for key in keys {
            self.sweep_shared(&key, now, fx);
            if let Some(lane) = self.lanes.get_mut(&key) {
                let idle_timeout = self.limits.idle_timeout;
                let end = |since: Instant, expires: Option<Instant>| {
                    [idle_timeout.map(|limit| since + limit), expires].into_iter().flatten().min()
                };
                let mut at = 0;
                while at < lane.idle.len() {
                    let idle = &lane.idle[at];
                    let ends = end(idle.since, idle.expires);
                    if idle.link.is_closed() || is_over(ends, now) {
                        fx.solos.extend(lane.idle.remove(at).map(|idle| idle.link));
                        self.open -= 1;
                        self.idle -= 1;
                    } else {
                        next = [next, ends].into_iter().flatten().min();
                        at += 1;
                    }
                }
                for member in lane.shared.iter().filter(|member| member.streams == 0) {
                    next = [next, end(member.idle_since, member.expires)].into_iter().flatten().min();
                }
            }
            self.tidy(&key);
        }
        self.plan(now, fx);
        next
    }

    /// A newer pool has taken over: idle ones are closed now, the others when their request is over.
    pub(super) fn retire(&mut self, now: Instant, fx: &mut Effects<S, M, W>) {
        self.retired = true;
        while self.evict(fx) {}
        self.plan(now, fx);
    }

    /// Whether anything idles, so that somebody must sweep.
    pub(super) fn has_idle(&self) -> bool {
        self.idle > 0
    }

    /// How many there are.
    pub(super) fn census(&self) -> Census {
        let connecting = self.lanes.values().map(|lane| lane.dials).sum();
        Census { active: self.open - self.idle - connecting, idle: self.idle, connecting }
    }

    fn rest(&mut self, key: &Arc<Key>, idle: Idle<S>, fx: &mut Effects<S, M, W>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if self.retired {
            self.open -= 1;
            fx.solos.push(idle.link);
            return;
        }
        lane.idle.push_back(idle);
        self.idle += 1;
        self.trim(fx);
    }

    fn trim(&mut self, fx: &mut Effects<S, M, W>) {
        while self.idle > self.limits.max_idle && self.evict(fx) {}
    }

    /// Streams to those who wait, as far as there is room.
    fn serve(&mut self, key: &Arc<Key>, now: Instant, fx: &mut Effects<S, M, W>) {
        loop {
            let Some(lane) = self.lanes.get(key) else { return };
            let Some(at) = lane.waiting.iter().position(|waiting| !waiting.fresh) else { return };
            let Some(grant) = self.stream(key, now, fx) else { return };
            if let Some(first) = self.lanes.get_mut(key).and_then(|lane| lane.waiting.remove(at)) {
                self.waiting -= 1;
                fx.granted.push((first.who, grant));
            }
        }
    }

    /// Forgets a lane that is empty, unless its knowledge is to be kept.
    fn tidy(&mut self, key: &Key) {
        if !self.limits.keep_lanes && self.lanes.get(key).is_some_and(Lane::is_empty) {
            self.lanes.remove(key);
        }
    }
}

/// Those who can count on a dial now are told, once: they are connecting, not waiting.
fn tell<S: Solo, M: Multi, W: Clone>(lane: &mut Lane<S, M, W>, fx: &mut Effects<S, M, W>) {
    let covered = lane.covered();
    for waiting in lane.waiting.iter_mut().take(covered).filter(|waiting| !waiting.told) {
        waiting.told = true;
        fx.told.push(waiting.who.clone());
    }
}

/// Whether HTTP/2 is possible there, before anything is known.
pub(super) fn first_guess(key: &Key, http: crate::config::HttpVersion) -> Speaks {
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::config::HttpVersion;
    use crate::error::ConnectFailure;

    #[derive(Clone, Debug)]
    struct Fake(Rc<FakeState>);

    #[derive(Debug)]
    struct FakeState {
        number: u32,
        closed: Cell<bool>,
        room: Cell<usize>,
        settled: Cell<bool>,
    }

    impl Fake {
        fn new(number: u32, room: usize) -> Fake {
            Fake(Rc::new(FakeState {
                number,
                closed: Cell::new(false),
                room: Cell::new(room),
                settled: Cell::new(true),
            }))
        }
    }

    impl Solo for Fake {
        fn is_closed(&self) -> bool {
            self.0.closed.get()
        }
    }

    impl Multi for Fake {
        fn is_closed(&self) -> bool {
            self.0.closed.get()
        }

        fn room(&self) -> usize {
            self.0.room.get()
        }

        fn is_settled(&self) -> bool {
            self.0.settled.get()
        }
    }

    type Fx = Effects<Fake, Fake, u32>;

    fn key(name: &str) -> Arc<Key> {
        let host = Host::parse(name).unwrap();
        Arc::new(Key {
            origin: Origin { scheme: Scheme::Https, host: host.clone(), port: 443 },
            server: host,
            http1: false,
        })
    }

    /// The core with its effects, so that a test reads as a story.
    struct Story {
        places: Places<Fake, Fake, u32>,
        fx: Fx,
        now: Instant,
        speaks: Speaks,
    }

    impl Story {
        fn new(max: usize, max_idle: usize, speaks: Speaks) -> Story {
            let idle_timeout = Some(Duration::from_secs(15));
            let places = Places::new(Limits { max, max_idle, idle_timeout, keep_lanes: false });
            Story { places, fx: Fx::default(), now: Instant::now(), speaks }
        }

        fn take(&mut self, key: &Arc<Key>) -> Option<Grant<Fake, Fake>> {
            self.places.take(key, self.now, &mut self.fx)
        }

        fn wait(&mut self, key: &Arc<Key>, who: u32) -> u64 {
            self.wait_for(key, who, false)
        }

        fn wait_for(&mut self, key: &Arc<Key>, who: u32, fresh: bool) -> u64 {
            let want = Want { speaks: self.speaks, fresh, limit: None };
            self.places.wait(key, want, who, self.now, &mut self.fx)
        }

        fn dialled(&mut self, key: &Arc<Key>, number: u32) -> Fake {
            let fake = Fake::new(number, 0);
            self.places.dialled_solo(key, fake.clone(), None, self.now, &mut self.fx);
            fake
        }

        fn shared(&mut self, key: &Arc<Key>, number: u32, room: usize) -> Fake {
            let fake = Fake::new(number, room);
            self.places.dialled_multi(key, fake.clone(), None, self.now, &mut self.fx);
            fake
        }

        fn give_back(&mut self, key: &Arc<Key>, link: Fake) {
            self.places.give_back(key, link, None, self.now, &mut self.fx);
        }

        fn dials(&mut self) -> usize {
            std::mem::take(&mut self.fx.dials).len()
        }

        /// Who was granted what, since last asked.
        fn granted(&mut self) -> Vec<(u32, u32)> {
            let number = |grant: &Grant<Fake, Fake>| match grant {
                Grant::Solo { link, .. } | Grant::Stream { link, .. } => link.0.number,
            };
            std::mem::take(&mut self.fx.granted).iter().map(|(who, grant)| (*who, number(grant))).collect()
        }

        fn closed(&mut self) -> Vec<u32> {
            let links = std::mem::take(&mut self.fx.solos).into_iter().chain(std::mem::take(&mut self.fx.multis));
            links.map(|link| link.0.number).collect()
        }
    }

    #[test]
    fn the_line_is_first_in_first_out() {
        let (mut story, a) = (Story::new(1, 9, Speaks::Http1), key("a"));
        for who in 0..4 {
            story.wait(&a, who);
        }
        assert_eq!(story.dials(), 1);
        let link = story.dialled(&a, 7);
        for who in 0..4 {
            assert_eq!(story.granted(), [(who, 7)]);
            story.give_back(&a, link.clone());
        }
        assert_eq!(story.places.census(), Census { active: 0, idle: 1, connecting: 0 });
    }

    #[test]
    fn a_connection_that_becomes_free_serves_one_whose_dial_goes_on() {
        let (mut story, a) = (Story::new(9, 9, Speaks::Http1), key("a"));
        story.wait(&a, 0);
        let first = story.dialled(&a, 1);
        story.wait(&a, 1);
        assert_eq!(story.dials(), 2);
        story.granted();
        story.give_back(&a, first);
        assert_eq!(story.granted(), [(1, 1)]);
        story.dialled(&a, 2);
        assert!(story.granted().is_empty());
        assert_eq!(story.places.census(), Census { active: 1, idle: 1, connecting: 0 });
    }

    #[test]
    fn an_idle_connection_of_another_lane_makes_room_at_the_cap() {
        let (mut story, a, b) = (Story::new(2, 9, Speaks::Http1), key("a"), key("b"));
        let links = [1, 2].map(|number| {
            story.wait(&a, number);
            story.dialled(&a, number)
        });
        for link in links {
            story.now += Duration::from_secs(1);
            story.give_back(&a, link);
        }
        story.dials();
        story.wait(&b, 9);
        assert_eq!(story.closed(), [1], "the least recently used one");
        assert_eq!(story.fx.dials[0].0, b);
        assert_eq!(story.places.open, 2);
    }

    #[test]
    fn who_waits_longest_gets_the_place_whatever_its_lane() {
        let (mut story, a, b) = (Story::new(1, 9, Speaks::Http1), key("a"), key("b"));
        story.wait(&a, 0);
        let link = story.dialled(&a, 1);
        story.wait(&b, 1);
        story.wait(&a, 2);
        story.granted();
        story.dials();
        story.give_back(&a, link);
        assert_eq!(story.closed(), [1]);
        assert_eq!(story.fx.dials[0].0, b);
    }

    #[test]
    fn one_that_leaves_does_not_hold_up_the_line() {
        let (mut story, a) = (Story::new(1, 9, Speaks::Http1), key("a"));
        story.wait(&a, 0);
        let ticket = story.wait(&a, 1);
        story.wait(&a, 2);
        let link = story.dialled(&a, 1);
        story.places.leave(&a, ticket);
        story.granted();
        story.give_back(&a, link);
        assert_eq!(story.granted(), [(2, 1)]);
    }

    #[test]
    fn one_dial_is_made_where_http2_is_possible_and_the_rest_when_it_is_not() {
        let (mut story, a) = (Story::new(99, 99, Speaks::Unknown), key("a"));
        for who in 0..10 {
            story.wait(&a, who);
        }
        assert_eq!(story.dials(), 1);
        assert_eq!(story.fx.told.len(), 10);
        story.dialled(&a, 1);
        assert_eq!(story.dials(), 9);
    }

    #[test]
    fn streams_are_shared_and_another_connection_is_dialled_for_the_rest() {
        let (mut story, a) = (Story::new(99, 99, Speaks::Unknown), key("a"));
        for who in 0..7 {
            story.wait(&a, who);
        }
        story.dials();
        let first = story.shared(&a, 1, 3);
        assert_eq!(story.granted(), [(0, 1), (1, 1), (2, 1)]);
        story.places.shared_changed(&a, story.now, &mut story.fx);
        assert_eq!(story.dials(), 2, "four who wait, three to a connection");
        first.0.closed.set(true);
        for _ in 0..3 {
            let now = story.now;
            story.places.stream_ended(&a, 1, now, &mut story.fx);
        }
        assert_eq!(story.closed(), [1]);
    }

    #[test]
    fn unsettled_connections_are_not_doubled() {
        let (mut story, a) = (Story::new(99, 99, Speaks::Http2), key("a"));
        story.wait(&a, 0);
        story.wait(&a, 1);
        story.dials();
        let link = Fake::new(1, 1);
        link.0.settled.set(false);
        story.places.dialled_multi(&a, link.clone(), None, story.now, &mut story.fx);
        assert_eq!((story.granted().len(), story.dials()), (1, 0));
        link.0.settled.set(true);
        link.0.room.set(100);
        story.places.shared_changed(&a, story.now, &mut story.fx);
        assert_eq!((story.granted().len(), story.dials()), (1, 0));
    }

    #[test]
    fn a_failed_dial_fails_one_of_many_or_all_who_shared_it() {
        let error = Error::Connect { failure: ConnectFailure::Refused, detail: String::new() };
        for (speaks, failed) in [(Speaks::Http1, 1), (Speaks::Unknown, 5)] {
            let (mut story, a) = (Story::new(99, 99, speaks), key("a"));
            for who in 0..5 {
                story.wait(&a, who);
            }
            story.places.dial_failed(&a, &error, story.now, &mut story.fx);
            assert_eq!(story.fx.failed.len(), failed);
        }
    }

    #[test]
    fn a_fresh_one_takes_none_that_was_used() {
        let (mut story, a) = (Story::new(9, 9, Speaks::Http1), key("a"));
        story.wait(&a, 0);
        let link = story.dialled(&a, 1);
        story.wait_for(&a, 1, true);
        story.granted();
        story.give_back(&a, link);
        assert!(story.granted().is_empty());
        story.dialled(&a, 2);
        assert_eq!(story.granted(), [(1, 2)]);
    }

    #[test]
    fn idle_and_old_connections_go() {
        let (mut story, a) = (Story::new(9, 9, Speaks::Http1), key("a"));
        story.wait(&a, 0);
        let link = story.dialled(&a, 1);
        story.give_back(&a, link);
        let next = story.places.expire(story.now, &mut story.fx).unwrap();
        assert_eq!(next, story.now + Duration::from_secs(15));
        story.now = next;
        assert!(story.take(&a).is_none());
        assert_eq!(story.closed(), [1]);

        story.wait(&a, 0);
        let old = Fake::new(2, 0);
        let expires = Some(story.now + Duration::from_secs(10));
        story.places.dialled_solo(&a, old.clone(), expires, story.now, &mut story.fx);
        story.now += Duration::from_secs(10);
        story.places.give_back(&a, old, expires, story.now, &mut story.fx);
        assert_eq!(story.closed(), [2]);
        assert_eq!(story.places.open, 0);
    }

    #[test]
    fn no_more_idle_ones_are_kept_than_asked_for() {
        let (mut story, a) = (Story::new(9, 2, Speaks::Http1), key("a"));
        let links: Vec<Fake> = (0..4)
            .map(|number| {
                story.wait(&a, number);
                story.dialled(&a, number)
            })
            .collect();
        for link in links {
            story.now += Duration::from_millis(1);
            story.give_back(&a, link);
        }
        assert_eq!(story.closed(), [0, 1]);
        assert_eq!(story.places.census(), Census { active: 0, idle: 2, connecting: 0 });
    }

    #[test]
    fn what_a_lane_speaks_is_guessed_from_scheme_and_settings() {
        let a = key("a");
        assert_eq!(first_guess(&a, HttpVersion::Auto), Speaks::Unknown);
        assert_eq!(first_guess(&Key { http1: true, ..(*a).clone() }, HttpVersion::Auto), Speaks::Http1);
        assert_eq!(first_guess(&a, HttpVersion::Http2), Speaks::Http2);
    }

    /// One step of a random story.
    #[derive(Clone, Debug)]
    enum Step {
        Ask { lane: usize, fresh: bool },
        Leave(usize),
        DialDone { nth: usize, ok: bool, shared: bool },
        Finish { nth: usize, clean: bool },
        Close(usize),
        Tick(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0..3_usize, prop::bool::weighted(0.1)).prop_map(|(lane, fresh)| Step::Ask { lane, fresh }),
            1 => (0..9_usize).prop_map(Step::Leave),
            4 => (0..9_usize, prop::bool::weighted(0.8), any::<bool>())
                .prop_map(|(nth, ok, shared)| Step::DialDone { nth, ok, shared }),
            4 => (0..9_usize, prop::bool::weighted(0.8)).prop_map(|(nth, clean)| Step::Finish { nth, clean }),
            1 => (0..9_usize).prop_map(Step::Close),
            1 => (0..20_u64).prop_map(Step::Tick),
        ]
    }

    proptest! {
        /// Whatever happens, the cap holds, nobody is forgotten, and at the end nothing is left.
        #[test]
        fn places_add_up(steps in prop::collection::vec(step(), 1..200), max in 1..5_usize) {
            let mut story = Story::new(max, 3, Speaks::Unknown);
            let lanes = [key("a"), key("b"), key("c")];
            let mut tickets: Vec<(u32, usize, u64)> = Vec::new();
            let mut dials: Vec<Arc<Key>> = Vec::new();
            let mut held: Vec<(Arc<Key>, Grant<Fake, Fake>)> = Vec::new();
            let mut links: Vec<Fake> = Vec::new();
            let mut who_lane: HashMap<u32, usize> = HashMap::new();
            let (mut who, mut number) = (0, 0);
            let error = Error::Connect { failure: ConnectFailure::Refused, detail: String::new() };
            let drain = 400;
            for at in 0..steps.len() + drain {
                let step = steps.get(at).cloned().unwrap_or(match at % 3 {
                    0 => Step::DialDone { nth: 0, ok: true, shared: false },
                    1 => Step::Finish { nth: 0, clean: true },
                    _ => Step::Tick(1),
                });
                let now = story.now;
                match step {
                    Step::Ask { lane, fresh } => {
                        let taken = if fresh { None } else { story.take(&lanes[lane]) };
                        match taken {
                            Some(grant) => held.push((lanes[lane].clone(), grant)),
                            None => {
                                who += 1;
                                who_lane.insert(who, lane);
                                let ticket = story.wait_for(&lanes[lane], who, fresh);
                                tickets.push((who, lane, ticket));
                            }
                        }
                    }
                    Step::Leave(nth) => {
                        if nth < tickets.len() {
                            let (_, lane, ticket) = tickets.remove(nth);
                            story.places.leave(&lanes[lane], ticket);
                        }
                    }
                    Step::DialDone { nth, ok, shared } => {
                        if !dials.is_empty() {
                            let key = dials.remove(nth % dials.len());
                            number += 1;
                            let fake = Fake::new(number, 2);
                            match (ok, shared) {
                                (false, _) => story.places.dial_failed(&key, &error, now, &mut story.fx),
                                (true, true) => {
                                    links.push(fake.clone());
                                    story.places.dialled_multi(&key, fake, None, now, &mut story.fx);
                                }
                                (true, false) => {
                                    links.push(fake.clone());
                                    story.places.dialled_solo(&key, fake, None, now, &mut story.fx);
                                }
                            }
                        }
                    }
                    Step::Finish { nth, clean } => {
                        if !held.is_empty() {
                            let (key, grant) = held.remove(nth % held.len());
                            match grant {
                                Grant::Solo { link, expires, .. } if clean => {
                                    story.places.give_back(&key, link, expires, now, &mut story.fx);
                                }
                                Grant::Solo { .. } => story.places.closed(&key, now, &mut story.fx),
                                Grant::Stream { id, .. } => story.places.stream_ended(&key, id, now, &mut story.fx),
                            }
                        }
                    }
                    Step::Close(nth) => {
                        if let Some(link) = links.get(nth) {
                            link.0.closed.set(true);
                            for lane in &lanes {
                                story.places.reap(lane, now, &mut story.fx);
                                story.places.shared_changed(lane, now, &mut story.fx);
                            }
                        }
                    }
                    Step::Tick(seconds) => {
                        story.now += Duration::from_secs(seconds);
                        story.places.expire(story.now, &mut story.fx);
                    }
                }
                for (who, grant) in std::mem::take(&mut story.fx.granted) {
                    tickets.retain(|(other, ..)| *other != who);
                    held.push((lanes[who_lane[&who]].clone(), grant));
                }
                for (who, _) in std::mem::take(&mut story.fx.failed) {
                    tickets.retain(|(other, ..)| *other != who);
                }
                dials.extend(std::mem::take(&mut story.fx.dials).into_iter().map(|(key, _)| key));
                story.closed();
                let census = story.places.census();
                prop_assert!(story.places.open <= max);
                prop_assert_eq!(census.connecting, dials.len());
                prop_assert_eq!(story.places.waiting, tickets.len());
                prop_assert_eq!(census.active + census.idle + census.connecting, story.places.open);
                if !tickets.is_empty() {
                    prop_assert!(!dials.is_empty() || !held.is_empty(), "somebody waits for nothing");
                }
            }
            story.now += Duration::from_secs(100);
            story.places.expire(story.now, &mut story.fx);
            prop_assert!(tickets.is_empty());
            prop_assert_eq!(story.places.open, 0);
            prop_assert!(story.places.lanes.is_empty());
        }
    }
}
