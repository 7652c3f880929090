//! The pool of one upstream: `Places` decides, this carries out: dials as tasks, waiting requests, closing, and the sweep
//! of what idled too long.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::HttpVersion;
use crate::error::{ConnectFailure, Error, Result};
use crate::message::{Attempt, Exchange, Phase};
use crate::origin::Scheme;
use crate::telemetry::report::{Gauge, UpstreamReport};
use crate::upstream::connect::{Connector, Place, Secure};
use crate::upstream::connection::{HeadLimits, Http1, Http2, chain};
use crate::upstream::egress::is_exempt;
use crate::upstream::places::{self, Census, Effects, Grant, Key, Limits, Multi, Places, Solo, Want};
use crate::upstream::tls::{self, Tls};
use crate::upstream::transport::Settings;

/// The sweep runs no oftener than this.
const SWEEP: Duration = Duration::from_secs(1);

/// An answer is complete and the request is sent, but the connection is not ready yet: it has this long.
const SETTLING: Duration = Duration::from_secs(1);

type Core = Places<Http1, Http2, Arc<Waiter>>;
type Fx = Effects<Http1, Http2, Arc<Waiter>>;

impl Solo for Http1 {
    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Multi for Http2 {
    fn is_closed(&self) -> bool {
        Http2::is_closed(self)
    }

    fn room(&self) -> usize {
        Http2::room(self)
    }

    fn is_settled(&self) -> bool {
        Http2::is_settled(self)
    }
}

/// See the module.
pub(super) struct Pool {
    core: Mutex<State>,
    settings: Settings,
    limits: HeadLimits,
    connector: Arc<Connector>,
    tls: Tls,
    report: Arc<UpstreamReport>,
}

struct State {
    places: Core,
    sweeping: bool,
}

impl Pool {
    /// Empty.
    ///
    /// # Errors
    /// A sentence when an https endpoint in `to` can't be spoken to.
    pub(super) fn new(
        settings: Settings,
        connector: Arc<Connector>,
        report: Arc<UpstreamReport>,
    ) -> Result<Arc<Pool>, String> {
        let tls = Tls::new(settings.tls.clone(), settings.connections.http, connector.roots().clone());
        // What the operator wrote is checked now; system roots for other hosts are loaded with the first https connection.
        let https = settings.to.iter().any(|origin| origin.scheme == Scheme::Https);
        if https || settings.tls.roots.is_some() {
            tls.config(false)?;
        }
        let limits = Limits {
            max: settings.connections.max.get() as usize,
            max_idle: settings.connections.max_idle.get() as usize,
            idle_timeout: settings.connections.idle_timeout,
            // With an address and TLS there is a lane for each name that apps ask for.
            keep_lanes: !settings.to.is_empty()
                && settings.to.iter().all(|origin| origin.host.ip().is_none() || origin.scheme == Scheme::Http),
        };
        let head = HeadLimits {
            bytes: usize::try_from(settings.max_header_bytes).unwrap_or(usize::MAX).max(1),
            fields: settings.max_headers as usize,
        };
        let core = Mutex::new(State { places: Places::new(limits), sweeping: false });
        Ok(Arc::new(Pool { core, settings, limits: head, connector, tls, report }))
    }

    /// What it was made from.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes the connections; shared with tunnels.
    pub(super) fn connector(&self) -> &Arc<Connector> {
        &self.connector
    }

    /// Counts and logs.
    pub(super) fn report(&self) -> &Arc<UpstreamReport> {
        &self.report
    }

    /// Connections now.
    pub(super) fn census(&self) -> Census {
        self.lock().places.census()
    }

    /// Closes idle connections now, others after their request.
    pub(super) fn retire(self: &Arc<Pool>) {
        self.act(|places, _, fx| places.retire(fx));
    }

    /// A connection for a request: a free one, else a new one or whichever becomes free first.
    ///
    /// # Errors
    /// Why no connection could be made.
    pub(super) async fn checkout(self: &Arc<Pool>, key: &Arc<Key>, fresh: bool, attempt: &Attempt) -> Result<Lease> {
        let waiter = {
            let mut fx = Fx::default();
            let mut state = self.lock();
            let now = Instant::now();
            let taken = if fresh { None } else { state.places.take(key, now, &mut fx) };
            match taken {
                Some(grant) => {
                    drop(state);
                    self.carry_out(fx);
                    return Ok(Lease::new(self, key, grant));
                }
                None => {
                    let waiter = Arc::new(Waiter { key: key.clone(), waited: Mutex::default() });
                    let want = Want {
                        speaks: places::first_guess(key, self.settings.connections.http),
                        fresh,
                        limit: attempt.connect_timeout,
                    };
                    let ticket = state.places.wait(key, want, waiter.clone(), &mut fx);
                    drop(state);
                    let in_line = InLine {
                        pool: self.clone(),
                        ticket,
                        waiter,
                        since: now,
                        exchange: attempt.exchange.clone(),
                        queued: None,
                    };
                    self.carry_out(fx);
                    in_line
                }
            }
        };
        // Most requests find a connection; for those that don't, the wait is boxed, so that it takes no room in the others.
        Box::pin(waiter.outcome(attempt)).await.map(|grant| Lease::new(self, key, grant))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn act<R>(self: &Arc<Pool>, decide: impl FnOnce(&mut Core, Instant, &mut Fx) -> R) -> R {
        let mut fx = Fx::default();
        let mut state = self.lock();
        let result = decide(&mut state.places, Instant::now(), &mut fx);
        let sweep = !state.sweeping && state.places.has_idle();
        state.sweeping |= sweep;
        drop(state);
        if sweep {
            self.sweep();
        }
        self.carry_out(fx);
        result
    }

    fn carry_out(self: &Arc<Pool>, fx: Fx) {
        if fx.is_empty() {
            return;
        }
        for (waiter, grant) in fx.granted {
            if let Some(Ok(grant)) = waiter.settle(Ok(grant)) {
                Lease::new(self, &waiter.key, grant).give_back();
            }
        }
        for (waiter, error) in fx.failed {
            waiter.settle(Err(error));
        }
        for waiter in fx.told {
            waiter.tell();
        }
        for (key, limit) in fx.dials {
            tokio::spawn(Dial { pool: self.clone(), key, done: false }.run(limit));
        }
        // Dropping the sender closes an idle connection in good order.
        drop(fx.solos);
        drop(fx.multis);
    }

    /// One task while anything idles.
    fn sweep(self: &Arc<Pool>) {
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut wait = SWEEP;
            loop {
                tokio::time::sleep(wait).await;
                let Some(pool) = pool.upgrade() else { return };
                let mut fx = Fx::default();
                let next = {
                    let mut state = pool.lock();
                    let now = Instant::now();
                    let next = state.places.expire(now, &mut fx);
                    state.sweeping = next.is_some();
                    next.map(|next| next.saturating_duration_since(now).max(SWEEP))
                };
                pool.carry_out(fx);
                match next {
                    Some(next) => wait = next,
                    None => return,
                }
            }
        });
    }

    async fn establish(self: &Arc<Pool>, key: &Arc<Key>, limit: Option<Duration>) -> Result<Link> {
        let host = &key.origin.host;
        let place = Place {
            host,
            port: key.origin.port,
            exempt: is_exempt(&self.settings.to, &key.origin),
            allow: &self.settings.allow_addresses,
        };
        let secure = match key.origin.scheme {
            Scheme::Http => None,
            Scheme::Https => {
                let config = self
                    .tls
                    .config(key.http1)
                    .map_err(|detail| Error::Connect { failure: ConnectFailure::Tls, detail })?;
                Some(Secure { config, server: tls::server_name(&key.server)? })
            }
        };
        let stream = self.connector.connect(&place, secure, limit).await?;
        let http2 = !key.http1
            && match self.settings.connections.http {
                HttpVersion::Auto => stream.agreed_on_h2(),
                HttpVersion::Http1 => false,
                HttpVersion::Http2 => true,
            };
        let broken = |error: hyper::Error| Error::Connect { failure: ConnectFailure::Closed, detail: chain(&error) };
        let (pool, lane) = (Arc::downgrade(self), key.clone());
        if http2 {
            let changed = move || with(&pool, |pool| pool.act(|places, now, fx| places.shared_changed(&lane, now, fx)));
            Ok(Link::Multi(Http2::start(stream, self.limits, changed).await.map_err(broken)?))
        } else {
            let ended = move || with(&pool, |pool| pool.act(|places, _, fx| places.reap(&lane, fx)));
            Ok(Link::Solo(Http1::start(stream, self.limits, ended).await.map_err(broken)?))
        }
    }

    /// `connections.max_age` give or take 10 %, so that connections of one moment don't all end in one.
    fn expires(&self, now: Instant) -> Option<Instant> {
        self.settings.connections.max_age.map(|age| now + age.mul_f64(0.9 + 0.2 * fastrand::f64()))
    }
}

fn with(pool: &Weak<Pool>, act: impl FnOnce(&Arc<Pool>)) {
    if let Some(pool) = pool.upgrade() {
        act(&pool);
    }
}

enum Link {
    Solo(Http1),
    Multi(Http2),
}

/// A connection being made, as a task of its own: whoever asked for it may hang up, and another takes it.
struct Dial {
    pool: Arc<Pool>,
    key: Arc<Key>,
    done: bool,
}

impl Dial {
    async fn run(mut self, limit: Option<Duration>) {
        let start = Instant::now();
        let result = self.pool.establish(&self.key, limit).await;
        self.done = true;
        let (pool, key) = (&self.pool, &self.key);
        match result {
            Ok(link) => {
                pool.report.connected(start.elapsed());
                pool.act(|places, now, fx| {
                    let expires = pool.expires(now);
                    match link {
                        Link::Solo(link) => places.dialled_solo(key, link, expires, now, fx),
                        Link::Multi(link) => {
                            places.dialled_multi(key, link, expires, now, fx);
                        }
                    }
                });
            }
            Err(error) => {
                if let Error::Connect { failure, detail } = &error {
                    pool.report.connect_failed(*failure, detail);
                }
                pool.act(|places, _, fx| places.dial_failed(key, &error, fx));
            }
        }
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        if !self.done {
            // A bug of ours, or the end of the process: the place must not be lost.
            self.pool.act(|places, _, fx| places.dial_failed(&self.key, &Error::Panic, fx));
        }
    }
}

/// Somebody in line.
struct Waiter {
    key: Arc<Key>,
    waited: Mutex<Waited>,
}

#[derive(Default)]
struct Waited {
    waker: Option<Waker>,
    told: Option<Instant>,
    outcome: Option<Result<Grant<Http1, Http2>>>,
    /// Nobody will fetch an outcome any more.
    gone: bool,
}

impl Waiter {
    fn lock(&self) -> MutexGuard<'_, Waited> {
        self.waited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the outcome over, or back where nobody waits any more.
    fn settle(&self, outcome: Result<Grant<Http1, Http2>>) -> Option<Result<Grant<Http1, Http2>>> {
        let mut waited = self.lock();
        if waited.gone {
            return Some(outcome);
        }
        waited.outcome = Some(outcome);
        if let Some(waker) = waited.waker.take() {
            waker.wake();
        }
        None
    }

    fn tell(&self) {
        let mut waited = self.lock();
        waited.told = Some(Instant::now());
        if let Some(waker) = waited.waker.take() {
            waker.wake();
        }
    }
}

/// A place in line, left when dropped.
struct InLine {
    pool: Arc<Pool>,
    ticket: u64,
    waiter: Arc<Waiter>,
    since: Instant,
    exchange: Arc<Exchange>,
    queued: Option<Gauge>,
}

impl InLine {
    async fn outcome(mut self, attempt: &Attempt) -> Result<Grant<Http1, Http2>> {
        let waiter = self.waiter.clone();
        poll_fn(|cx| {
            let mut waited = waiter.lock();
            if waited.told.is_some() {
                attempt.reached(Phase::Connecting);
                self.queued = None;
            } else if self.queued.is_none() {
                self.queued = Some(self.pool.report.queued());
            }
            match waited.outcome.take() {
                Some(outcome) => Poll::Ready(outcome),
                None => {
                    waited.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let now = Instant::now();
        let (told, outcome) = {
            let mut waited = self.waiter.lock();
            waited.gone = true;
            (waited.told, waited.outcome.take())
        };
        let connecting = told.map_or(Duration::ZERO, |told| now.saturating_duration_since(told));
        let waited = now.saturating_duration_since(self.since).saturating_sub(connecting);
        Exchange::add(&self.exchange.connecting, connecting);
        Exchange::add(&self.exchange.waited, waited);
        let mut fx = Fx::default();
        self.pool.lock().places.leave(&self.waiter.key, self.ticket, &mut fx);
        self.pool.carry_out(fx);
        // Granted between the last poll and now: the connection is for somebody else.
        if let Some(Ok(grant)) = outcome {
            Lease::new(&self.pool, &self.waiter.key, grant).give_back();
        }
    }
}

/// A connection, or a stream of one, for as long as a request needs it. Dropped before [`Lease::finish`] it is given up: an
/// HTTP/1.1 connection closes at once.
pub(super) struct Lease {
    pool: Arc<Pool>,
    key: Arc<Key>,
    /// It carried a request before.
    pub(super) reused: bool,
    held: Option<Held>,
}

enum Held {
    Solo { link: Http1, expires: Option<Instant> },
    Stream { link: Http2, id: u64 },
}

/// What a lease is used through.
pub(super) enum Use<'a> {
    /// HTTP/1.1.
    Solo(&'a mut Http1),
    /// HTTP/2.
    Stream(&'a mut Http2),
}

impl Lease {
    fn new(pool: &Arc<Pool>, key: &Arc<Key>, grant: Grant<Http1, Http2>) -> Lease {
        let (held, reused) = match grant {
            Grant::Solo { link, expires, reused } => (Held::Solo { link, expires }, reused),
            Grant::Stream { link, id, reused } => (Held::Stream { link, id }, reused),
        };
        Lease { pool: pool.clone(), key: key.clone(), reused, held: Some(held) }
    }

    /// The connection. `None` after it was given back, which nobody does who still holds the lease.
    pub(super) fn connection(&mut self) -> Option<Use<'_>> {
        match self.held.as_mut()? {
            Held::Solo { link, .. } => Some(Use::Solo(link)),
            Held::Stream { link, .. } => Some(Use::Stream(link)),
        }
    }

    /// The answer was read to its clean end and the request was sent whole.
    pub(super) fn finish(mut self) {
        match self.held.take() {
            Some(Held::Solo { link, expires }) if link.sender.is_ready() || link.sender.is_closed() => {
                self.pool.act(|places, now, fx| places.give_back(&self.key, link, expires, now, fx));
            }
            Some(Held::Solo { mut link, expires }) => {
                // The last bytes are still being written, or the driver runs on another thread and is about to be done.
                tokio::spawn(async move {
                    let ready = tokio::time::timeout(SETTLING, link.sender.ready()).await;
                    self.held = Some(Held::Solo { link, expires });
                    if matches!(ready, Ok(Ok(()))) {
                        self.give_back();
                    }
                });
            }
            held @ (Some(Held::Stream { .. }) | None) => self.held = held,
        }
    }

    /// Nothing was done with it.
    fn give_back(mut self) {
        if let Some(Held::Solo { link, expires }) = self.held.take_if(|held| matches!(held, Held::Solo { .. })) {
            self.pool.act(|places, now, fx| places.give_back(&self.key, link, expires, now, fx));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.held.take() {
            Some(Held::Solo { link, .. }) => {
                link.kill();
                self.pool.act(|places, _, fx| places.closed(&self.key, fx));
            }
            Some(Held::Stream { id, link }) => {
                drop(link);
                self.pool.act(|places, now, fx| places.stream_ended(&self.key, id, now, fx));
            }
            None => {}
        }
    }
}
