//! The pool's decisions, without sockets, tasks or locks: who gets which connection, when one is dialled, which one is
//! closed. Time is passed in; what is to be done about a decision comes out as `Effects`.
//!
//! An upstream has `connections.max` places. A connection takes one from the start of its dial until it is closed; a request
//! that finds no connection waits in its lane (the connections to one origin), and all lanes wait for places in the order in
//! which their requests came.

mod lane;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use self::lane::{Idle, Lane, Member, Waiting, is_over};
pub(super) use self::lane::{Multi, Solo, Speaks, first_guess};
use crate::error::Error;
use crate::origin::{Host, Origin};

/// Which connections can stand in for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Of all others, so that it is not made for each request.
    hash: u64,
    /// Where it leads.
    pub(super) origin: Origin,
    /// What TLS verifies.
    pub(super) server: Host,
    /// HTTP/1.1 only, for an Upgrade.
    pub(super) http1: bool,
}

impl Key {
    /// Of connections to `origin`.
    pub(super) fn new(origin: Origin, server: Host, http1: bool) -> Key {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);
        let hash = HASHER.hash_one((&origin, &server, http1));
        Key { hash, origin, server, http1 }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
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

impl<S, M, W> Effects<S, M, W> {
    /// Whether nothing is to be done, as mostly.
    pub(super) fn is_empty(&self) -> bool {
        let Effects { granted, failed, told, dials, solos, multis } = self;
        granted.is_empty()
            && failed.is_empty()
            && told.is_empty()
            && dials.is_empty()
            && solos.is_empty()
            && multis.is_empty()
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
    lanes: HashMap<Arc<Key>, Lane<S, M, W>, RandomState>,
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

impl<S: Solo, M: Multi, W: Clone> Places<S, M, W> {
    /// No connection, nobody waiting.
    pub(super) fn new(limits: Limits) -> Self {
        Places {
            limits,
            lanes: HashMap::default(),
            open: 0,
            idle: 0,
            waiting: 0,
            tickets: 0,
            members: 0,
            retired: false,
        }
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
    pub(super) fn wait(&mut self, key: &Arc<Key>, want: Want, who: W, fx: &mut Effects<S, M, W>) -> u64 {
        let Want { speaks, fresh, limit } = want;
        self.tickets += 1;
        let ticket = self.tickets;
        self.waiting += 1;
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| Lane::new(speaks));
        lane.waiting.push_back(Waiting { ticket, fresh, limit, told: false, who });
        self.plan(fx);
        self.tidy(key, fx);
        ticket
    }

    /// Gives up waiting. A dial that was begun goes on: what it makes is for the next one.
    pub(super) fn leave(&mut self, key: &Key, ticket: u64, fx: &mut Effects<S, M, W>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if let Some(at) = lane.waiting.iter().position(|waiting| waiting.ticket == ticket) {
            lane.waiting.remove(at);
            self.waiting -= 1;
        }
        self.tidy(key, fx);
    }

    /// Starts dials for those who wait and can't count on one, oldest first, as far as there are places.
    fn plan(&mut self, fx: &mut Effects<S, M, W>) {
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
            }
            self.tidy(&key, fx);
            fx.dials.push((key, limit));
        }
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
        self.tidy(&key, fx);
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
        self.plan(fx);
        self.tidy(key, fx);
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
        self.plan(fx);
        self.tidy(key, fx);
        id
    }

    /// A dial failed. Its error goes to those who can't count on another one.
    pub(super) fn dial_failed(&mut self, key: &Arc<Key>, error: &Error, fx: &mut Effects<S, M, W>) {
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
        self.plan(fx);
        self.tidy(key, fx);
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
            self.closed(key, fx);
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
            self.plan(fx);
            self.tidy(key, fx);
            return;
        }
        let first =
            self.lanes.get_mut(key).and_then(|lane| own.and_then(|at| lane.waiting.remove(at).map(|w| (lane, w))));
        match first {
            Some((lane, first)) => {
                lane.busy += 1;
                self.waiting -= 1;
                fx.granted.push((first.who, Grant::Solo { link, expires, reused: true }));
                self.tidy(key, fx);
            }
            None => {
                self.rest(key, Idle { link, since: now, expires, used: true }, fx);
                self.plan(fx);
            }
        }
    }

    /// A request's connection is closed.
    pub(super) fn closed(&mut self, key: &Arc<Key>, fx: &mut Effects<S, M, W>) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.busy -= 1;
            self.open -= 1;
        }
        self.plan(fx);
        self.tidy(key, fx);
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
        self.plan(fx);
        self.tidy(key, fx);
    }

    /// Connections that were closed while they were idle are taken out.
    pub(super) fn reap(&mut self, key: &Arc<Key>, fx: &mut Effects<S, M, W>) {
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
        self.plan(fx);
        self.tidy(key, fx);
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
            self.tidy(&key, fx);
        }
        self.plan(fx);
        next
    }

    /// A newer pool has taken over: idle ones are closed now, the others when their request is over.
    pub(super) fn retire(&mut self, fx: &mut Effects<S, M, W>) {
        self.retired = true;
        while self.evict(fx) {}
        self.plan(fx);
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

    /// After every change of a lane: tells those who can now count on a connection that is being made, once, for they are
    /// connecting and no longer waiting; and forgets a lane that is empty, unless its knowledge is to be kept.
    fn tidy(&mut self, key: &Key, fx: &mut Effects<S, M, W>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let covered = lane.covered();
        for waiting in lane.waiting.iter_mut().take(covered).filter(|waiting| !waiting.told) {
            waiting.told = true;
            fx.told.push(waiting.who.clone());
        }
        if !self.limits.keep_lanes && lane.is_empty() {
            self.lanes.remove(key);
        }
    }
}
