//! The token bucket. Each attempt pays one token; who finds none waits in line, first come, first served, for as long as
//! `max_wait` and the deadline allow. An upstream's Retry-After shuts the bucket until then.

#[cfg(test)]
mod model;
mod tokens;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::document::Reader;
use crate::error::{Error, Result};
use crate::policy::rate_limit::tokens::Tokens;

/// `rate_limit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Tokens added…
    pub requests: NonZeroU32,
    /// …in this time.
    pub per: Duration,
    /// Bucket size.
    pub burst: NonZeroU32,
    /// How long a request waits for a token; 0 rejects at once.
    pub max_wait: Duration,
    /// Which requests share a bucket.
    pub key: Key,
    /// A 429 or 503 with Retry-After shuts the bucket until then.
    pub pause_on_retry_after: bool,
}

/// `rate_limit.key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// All requests share one.
    Upstream,
    /// A bucket for each value of this header.
    Header(HeaderName),
}

impl Settings {
    /// Reads the block; `None` where `requests` is not given.
    pub fn read(reader: &mut Reader<'_>) -> Option<Settings> {
        let requests = reader.optional_count("requests");
        let burst = reader.optional_count("burst");
        let per = reader.duration("per");
        let max_wait = reader.duration_or_zero("max_wait");
        let key = reader.parsed("key", |word| match word.strip_prefix("header:") {
            Some(name) => name.parse().map(Key::Header).map_err(|_| format!("`{name}` is not a header name")),
            None if word == "upstream" => Ok(Key::Upstream),
            None => Err(format!("`{word}` is not `upstream` or `header:NAME`")),
        });
        let pause_on_retry_after = reader.boolean("pause_on_retry_after");
        let requests = requests?;
        let key = key.unwrap_or(Key::Upstream);
        Some(Settings { requests, per, burst: burst.unwrap_or(requests), max_wait, key, pause_on_retry_after })
    }
}

/// Buckets that are kept of a keyed limit; the one used longest ago goes first.
const KEYED_BUCKETS: usize = 10_000;

/// The rate limit of a lane.
pub struct RateLimit {
    state: Mutex<State>,
    /// Keys are kept as hashes only, with a seed of this process: they may be secrets.
    hasher: RandomState,
}

struct State {
    settings: Settings,
    buckets: Buckets,
}

enum Buckets {
    One(Arc<Bucket>),
    Keyed(Keyed),
}

#[derive(Default)]
struct Keyed {
    by_key: HashMap<u64, (u64, Arc<Bucket>)>,
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl RateLimit {
    /// A full bucket.
    pub fn new(settings: Settings, now: Instant) -> Arc<RateLimit> {
        let buckets = Buckets::of(&settings, now);
        Arc::new(RateLimit { state: Mutex::new(State { settings, buckets }), hasher: RandomState::new() })
    }

    /// A reload changed the settings: used tokens stay used, a pause stays, and who waits goes on waiting by the new rate.
    pub fn reconfigure(&self, settings: &Settings, now: Instant) {
        let mut state = self.lock();
        if state.settings == *settings {
            return;
        }
        if state.settings.key == settings.key {
            match &state.buckets {
                Buckets::One(bucket) => bucket.reconfigure(settings, now),
                Buckets::Keyed(keyed) => {
                    keyed.by_key.values().for_each(|(_, bucket)| bucket.reconfigure(settings, now))
                }
            }
        } else {
            state.buckets = Buckets::of(settings, now);
        }
        state.settings = settings.clone();
    }

    /// The bucket of a request, and how long it may wait there. `forgotten` is told when another one went to make room.
    pub fn bucket(&self, headers: &HeaderMap, now: Instant, forgotten: impl FnOnce()) -> (Arc<Bucket>, Duration) {
        let mut state = self.lock();
        let State { settings, buckets } = &mut *state;
        let bucket = match (buckets, &settings.key) {
            (Buckets::One(bucket), _) => bucket.clone(),
            (Buckets::Keyed(keyed), Key::Header(name)) => {
                // Requests without the header share a bucket too.
                let key = self.hasher.hash_one(headers.get(name).map(|value| value.as_bytes()));
                keyed.bucket(key, settings, now, forgotten)
            }
            // `Buckets::of` makes keyed buckets for a header key only; any other would be a bucket for nobody.
            (Buckets::Keyed(keyed), Key::Upstream) => keyed.bucket(0, settings, now, forgotten),
        };
        (bucket, settings.max_wait)
    }

    /// Whether a Retry-After shuts the bucket.
    pub fn pauses(&self) -> bool {
        self.lock().settings.pause_on_retry_after
    }

    /// Tokens left and the pause that is left, where there is one bucket; and how many attempts wait in all.
    pub fn status(&self, now: Instant) -> (Option<u64>, Option<Duration>, usize) {
        let state = self.lock();
        match &state.buckets {
            Buckets::One(bucket) => (Some(bucket.tokens(now)), bucket.paused(now), bucket.waiting()),
            Buckets::Keyed(keyed) => {
                let longest = keyed.by_key.values().filter_map(|(_, bucket)| bucket.paused(now)).max();
                (None, longest, keyed.by_key.values().map(|(_, bucket)| bucket.waiting()).sum())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    fn of(settings: &Settings, now: Instant) -> Buckets {
        match settings.key {
            Key::Upstream => Buckets::One(Arc::new(Bucket::new(settings, now))),
            Key::Header(_) => Buckets::Keyed(Keyed::default()),
        }
    }
}

impl Keyed {
    fn bucket(&mut self, key: u64, settings: &Settings, now: Instant, forgotten: impl FnOnce()) -> Arc<Bucket> {
        self.uses += 1;
        if let Some((used, bucket)) = self.by_key.get_mut(&key) {
            self.by_use.remove(used);
            self.by_use.insert(self.uses, key);
            *used = self.uses;
            return bucket.clone();
        }
        if self.by_key.len() >= KEYED_BUCKETS
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.by_key.remove(&oldest);
            forgotten();
        }
        let bucket = Arc::new(Bucket::new(settings, now));
        self.by_key.insert(key, (self.uses, bucket.clone()));
        self.by_use.insert(self.uses, key);
        bucket
    }
}

/// One bucket, and the line before it.
pub struct Bucket {
    inner: Mutex<Inner>,
    /// Whose turn it is. Tokio's mutex is fair, so the line is first in, first out; only its head sleeps.
    turn: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
    /// Wakes the head when a reload changed what it waits for.
    changed: Notify,
}

struct Inner {
    tokens: Tokens,
    paused_until: Option<Instant>,
}

impl Bucket {
    fn new(settings: &Settings, now: Instant) -> Bucket {
        Bucket {
            inner: Mutex::new(Inner { tokens: Tokens::new(settings, now), paused_until: None }),
            turn: tokio::sync::Mutex::new(()),
            waiting: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }

    fn reconfigure(&self, settings: &Settings, now: Instant) {
        self.lock().tokens.reconfigure(settings, now);
        self.changed.notify_waiters();
    }

    /// Takes a token where one is there and nobody waits for it.
    pub fn try_acquire(&self, now: Instant) -> bool {
        self.waiting() == 0 && self.take(now).is_ok()
    }

    /// Takes a token, waiting for it as long as `max_wait` and `deadline` allow. A wait that is known to be in vain is not
    /// begun.
    ///
    /// # Errors
    /// [`Error::RateLimited`] with the time until the next token.
    pub async fn acquire(&self, max_wait: Duration, deadline: Option<Instant>) -> Result<()> {
        let now = Instant::now();
        if self.waiting() == 0 {
            match self.take(now) {
                Ok(()) => return Ok(()),
                Err(wait) if wait > max_wait || deadline.is_some_and(|deadline| now + wait > deadline) => {
                    return Err(Error::RateLimited(wait));
                }
                Err(_) => {}
            }
        }
        if max_wait.is_zero() {
            return Err(Error::RateLimited(self.next(now)));
        }
        let until = now + max_wait;
        let until = deadline.map_or(until, |deadline| deadline.min(until));
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _place = Place(&self.waiting);
        let turn = tokio::time::timeout_at(until, self.turn.lock()).await;
        let Ok(_turn) = turn else {
            return Err(Error::RateLimited(self.next(Instant::now())));
        };
        loop {
            // Before the look, so that a change after it is not missed.
            let changed = self.changed.notified();
            let now = Instant::now();
            match self.take(now) {
                Ok(()) => return Ok(()),
                Err(wait) if now + wait > until => return Err(Error::RateLimited(wait)),
                Err(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = changed => {}
                },
            }
        }
    }

    /// The upstream asked to be left alone for this long. A shorter pause than the one that holds changes nothing.
    pub fn pause(&self, wait: Duration, now: Instant) {
        let mut inner = self.lock();
        let until = now + wait;
        if inner.paused_until.is_none_or(|already| already < until) {
            inner.paused_until = Some(until);
        }
    }

    /// How long it is still shut by a Retry-After.
    pub fn paused(&self, now: Instant) -> Option<Duration> {
        self.lock().paused(now)
    }

    fn take(&self, now: Instant) -> std::result::Result<(), Duration> {
        self.lock().take(now)
    }

    /// When the next token may be had, from now.
    fn next(&self, now: Instant) -> Duration {
        let mut inner = self.lock();
        inner.paused(now).unwrap_or_default().max(inner.tokens.wait(now))
    }

    fn tokens(&self, now: Instant) -> u64 {
        self.lock().tokens.left(now)
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take(&mut self, now: Instant) -> std::result::Result<(), Duration> {
        match self.paused(now) {
            Some(wait) => Err(wait),
            None => self.tokens.take(now),
        }
    }

    fn paused(&mut self, now: Instant) -> Option<Duration> {
        let wait = self.paused_until?.checked_duration_since(now).filter(|wait| !wait.is_zero());
        if wait.is_none() {
            self.paused_until = None;
        }
        wait
    }
}

/// A place in the line, given back on drop.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(requests: u32, burst: u32, max_wait_ms: u64) -> Settings {
        Settings {
            requests: NonZeroU32::new(requests).unwrap(),
            per: Duration::from_secs(1),
            burst: NonZeroU32::new(burst).unwrap(),
            max_wait: Duration::from_millis(max_wait_ms),
            key: Key::Upstream,
            pause_on_retry_after: true,
        }
    }

    async fn acquire(limit: &RateLimit, deadline: Option<Instant>) -> Result<()> {
        let (bucket, max_wait) = limit.bucket(&HeaderMap::new(), Instant::now(), || {});
        bucket.acquire(max_wait, deadline).await
    }

    #[tokio::test(start_paused = true)]
    async fn ten_seconds_give_the_burst_and_ten_times_the_rate() {
        for max_wait in [0, 500] {
            let limit = RateLimit::new(settings(100, 20, max_wait), Instant::now());
            let start = Instant::now();
            let admitted = Arc::new(AtomicUsize::new(0));
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..10_000 {
                let (limit, admitted) = (limit.clone(), admitted.clone());
                tasks.spawn(async move {
                    if acquire(&limit, None).await.is_ok() && start.elapsed() <= Duration::from_secs(10) {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                });
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            while tasks.join_next().await.is_some() {}
            let admitted = admitted.load(Ordering::Relaxed);
            assert!((1010..=1030).contains(&admitted), "{admitted} with max_wait {max_wait}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_served_in_order() {
        let limit = RateLimit::new(settings(10, 1, 5000), Instant::now());
        acquire(&limit, None).await.unwrap();
        let (sender, mut served) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..10 {
            let (waiter, sender) = (limit.clone(), sender.clone());
            let before = limit.status(Instant::now()).2;
            tokio::spawn(async move {
                acquire(&waiter, None).await.unwrap();
                sender.send(number).unwrap();
            });
            while limit.status(Instant::now()).2 == before {
                tokio::task::yield_now().await;
            }
        }
        for number in 0..10 {
            assert_eq!(served.recv().await, Some(number));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_never_outlives_the_deadline() {
        let limit = RateLimit::new(settings(1, 1, 60_000), Instant::now());
        acquire(&limit, None).await.unwrap();
        let start = Instant::now();
        let soon = start + Duration::from_millis(100);
        assert!(
            matches!(acquire(&limit, Some(soon)).await, Err(Error::RateLimited(wait)) if wait == Duration::from_secs(1))
        );
        assert_eq!(start.elapsed(), Duration::ZERO, "a wait in vain is not begun");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_shuts_the_bucket_and_the_longest_holds() {
        let limit = RateLimit::new(settings(100, 100, 0), Instant::now());
        let (bucket, _) = limit.bucket(&HeaderMap::new(), Instant::now(), || {});
        bucket.pause(Duration::from_secs(2), Instant::now());
        bucket.pause(Duration::from_secs(1), Instant::now());
        assert!(matches!(acquire(&limit, None).await, Err(Error::RateLimited(wait)) if wait == Duration::from_secs(2)));
        tokio::time::advance(Duration::from_secs(2)).await;
        acquire(&limit, None).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn used_tokens_stay_used_over_new_settings() {
        let limit = RateLimit::new(settings(1, 20, 0), Instant::now());
        for _ in 0..15 {
            acquire(&limit, None).await.unwrap();
        }
        limit.reconfigure(&settings(1, 30, 0), Instant::now());
        assert_eq!(limit.status(Instant::now()).0, Some(15));
        let mut more = 0;
        while acquire(&limit, None).await.is_ok() {
            more += 1;
        }
        assert_eq!(more, 15);
        limit.reconfigure(&settings(1, 10, 0), Instant::now());
        assert!(acquire(&limit, None).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn each_value_of_the_key_header_has_a_bucket_and_the_last_used_are_kept() {
        let mut keyed = settings(1, 1, 0);
        keyed.key = Key::Header("x-tenant".parse().unwrap());
        let limit = RateLimit::new(keyed, Instant::now());
        let forgotten = AtomicUsize::new(0);
        let forget = || {
            forgotten.fetch_add(1, Ordering::Relaxed);
        };
        let take = async |tenant: usize| {
            let mut headers = HeaderMap::new();
            headers.insert("x-tenant", tenant.into());
            let (bucket, max_wait) = limit.bucket(&headers, Instant::now(), forget);
            bucket.acquire(max_wait, None).await.is_ok()
        };
        assert!(take(0).await && take(1).await);
        assert!(!take(0).await);
        for tenant in 2..KEYED_BUCKETS {
            assert!(take(tenant).await);
        }
        assert!(!take(0).await, "still known, and now the last used");
        assert!(take(KEYED_BUCKETS).await);
        assert!(!take(0).await);
        assert!(take(1).await, "forgotten");
        assert_eq!(forgotten.load(Ordering::Relaxed), 2);
    }
}
