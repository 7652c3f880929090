//! Names to addresses: one look-up at a time for each name, answers kept as long as the `dns` block says, and the last
//! good one used for a while when look-ups fail. The look-up itself is behind the trait `Lookup`.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::address::LOCALHOST;
use crate::config;
use crate::error::{Error, Overload};
use crate::origin::is_localhost;
use crate::upstream::hosts::HostsFile;

/// A look-up under way.
pub(crate) type LookupFuture = Pin<Box<dyn Future<Output = Result<Answer, LookupError>> + Send>>;

/// Asks for the addresses of a name, without any memory.
pub(crate) trait Lookup: Send + Sync + 'static {
    /// A and AAAA together; one of them failing is not a failure.
    fn lookup(&self, name: &str) -> LookupFuture;
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Never empty.
    pub(crate) addresses: Vec<IpAddr>,
    /// The shortest of the records.
    pub(crate) ttl: Duration,
}

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LookupError {
    /// The name does not exist or has no address: an answer, after which an older one is not used any more.
    NoAddress(String),
    /// The look-up failed.
    Failed(String),
    /// No name server answered.
    TimedOut(String),
    /// It was not asked: Outrigger has no room for another look-up.
    NoRoom(Overload),
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LookupError::NoAddress(text) | LookupError::Failed(text) | LookupError::TimedOut(text) => f.write_str(text),
            LookupError::NoRoom(overload) => Error::Overloaded(*overload).fmt(f),
        }
    }
}

/// Names that are remembered at most; the app chooses them.
const MAX_NAMES: usize = 4096;

/// Look-ups under way at most: each holds a few sockets until the name servers answer.
const MAX_FLIGHTS: usize = 256;

/// A slow look-up is not waited for longer than this where a last good answer may still be used.
const PATIENCE: Duration = Duration::from_millis(500);

type Found = Result<Arc<[IpAddr]>, LookupError>;

/// The memory of look-ups.
pub(super) struct Dns {
    lookup: Arc<dyn Lookup>,
    settings: config::Dns,
    hosts: Option<HostsFile>,
    names: Arc<Mutex<Names>>,
    /// Names that were forgotten for others while they were still good, over the process's life.
    forgotten: Arc<AtomicU64>,
}

/// What is remembered.
#[derive(Default)]
struct Names {
    entries: HashMap<Arc<str>, Entry>,
    /// Look-ups under way.
    flights: usize,
}

#[derive(Default)]
struct Entry {
    good: Option<Good>,
    /// A failure and until when it is remembered.
    failed: Option<(LookupError, Instant)>,
    /// The look-up under way.
    flight: Option<watch::Receiver<Option<Found>>>,
}

struct Good {
    addresses: Arc<[IpAddr]>,
    fresh_until: Instant,
}

impl Entry {
    /// An answer that needs no look-up.
    fn known(&self, now: Instant, stale_for: Duration) -> Option<Found> {
        if let Some(good) = self.good.as_ref().filter(|good| now < good.fresh_until) {
            return Some(Ok(good.addresses.clone()));
        }
        let (error, until) = self.failed.as_ref()?;
        (now < *until).then(|| self.stale(now, stale_for).map_or_else(|| Err(error.clone()), Ok))
    }

    /// The last good answer, where it may still stand in.
    fn stale(&self, now: Instant, stale_for: Duration) -> Option<Arc<[IpAddr]>> {
        self.good.as_ref().filter(|good| now < good.fresh_until + stale_for).map(|good| good.addresses.clone())
    }

    /// Takes a look-up's result in, and says what the waiting ones get.
    fn settle(&mut self, result: Result<Answer, LookupError>, now: Instant, settings: &config::Dns) -> Found {
        self.flight = None;
        match result {
            Ok(answer) => {
                let ttl = answer.ttl.clamp(settings.min_ttl, settings.max_ttl.max(settings.min_ttl));
                let addresses: Arc<[IpAddr]> = answer.addresses.into();
                self.good = Some(Good { addresses: addresses.clone(), fresh_until: now + ttl });
                self.failed = None;
                Ok(addresses)
            }
            Err(error) => {
                match error {
                    LookupError::NoAddress(_) => self.good = None,
                    LookupError::Failed(_) | LookupError::TimedOut(_) => {}
                    // Nothing was learnt about the name: there may be room for the next one at once.
                    LookupError::NoRoom(_) => return self.stale(now, settings.stale_for).ok_or(error),
                }
                self.failed = Some((error.clone(), now + settings.negative_ttl));
                self.stale(now, settings.stale_for).ok_or(error)
            }
        }
    }

    fn is_worthless(&self, now: Instant, stale_for: Duration) -> bool {
        self.flight.is_none()
            && self.good.as_ref().is_none_or(|good| now >= good.fresh_until + stale_for)
            && self.failed.as_ref().is_none_or(|(_, until)| now >= *until)
    }
}

impl Dns {
    /// Knows nothing yet.
    pub(super) fn new(lookup: Arc<dyn Lookup>, settings: config::Dns) -> Dns {
        Dns::counting(lookup, settings, Arc::default())
    }

    fn counting(lookup: Arc<dyn Lookup>, settings: config::Dns, forgotten: Arc<AtomicU64>) -> Dns {
        let hosts = settings.hosts_file.then(HostsFile::system);
        Dns { lookup, settings, hosts, names: Arc::default(), forgotten }
    }

    /// With another hosts file than the machine's.
    #[cfg(test)]
    pub(super) fn with_hosts(self, hosts: HostsFile) -> Dns {
        Dns { hosts: Some(hosts), ..self }
    }

    /// For other settings, with the same look-up and an empty memory.
    pub(super) fn evolve(&self, settings: &config::Dns) -> Dns {
        Dns::counting(self.lookup.clone(), settings.clone(), self.forgotten.clone())
    }

    /// Names that were forgotten for others while they were still good.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// What it was made from.
    pub(super) fn settings(&self) -> &config::Dns {
        &self.settings
    }

    /// The addresses of a name (lower case, no trailing dot).
    ///
    /// # Errors
    /// Why there are none.
    pub(super) async fn resolve(&self, name: &str) -> Found {
        if is_localhost(name) {
            return Ok(LOCALHOST.into());
        }
        if let Some(found) = self.hosts.as_ref().and_then(|hosts| hosts.find(name)) {
            return Ok(found);
        }
        let (mut flight, stale, under_way) = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let entry = names.entries.get(name);
            if let Some(known) = entry.and_then(|entry| entry.known(now, self.settings.stale_for)) {
                return known;
            }
            let stale = entry.and_then(|entry| entry.stale(now, self.settings.stale_for));
            match entry.and_then(|entry| entry.flight.clone()) {
                Some(flight) => (flight, stale, None),
                None if names.flights >= MAX_FLIGHTS => {
                    return stale.ok_or(LookupError::NoRoom(Overload::Lookups));
                }
                None => {
                    let (flight, under_way) = self.register(&mut names, name, now);
                    (flight, stale, Some(under_way))
                }
            }
        };
        // Not under the lock: a runtime that is going away drops the task at once, which needs it.
        if let Some(under_way) = under_way {
            self.start(under_way);
        }
        let landed = async {
            match flight.wait_for(Option::is_some).await {
                Ok(found) => found.clone().unwrap_or_else(|| Err(lost(name))),
                Err(_) => Err(lost(name)),
            }
        };
        let Some(stale) = stale else { return landed.await };
        match tokio::time::timeout(PATIENCE, landed).await {
            Ok(found) => found,
            Err(_) => Ok(stale),
        }
    }

    /// Notes that a name is being looked up.
    fn register(&self, names: &mut Names, name: &str, now: Instant) -> (watch::Receiver<Option<Found>>, Flight) {
        if names.entries.len() >= MAX_NAMES && !names.entries.contains_key(name) {
            let forgot = make_room(&mut names.entries, now, self.settings.stale_for);
            self.forgotten.fetch_add(u64::from(forgot), Ordering::Relaxed);
        }
        let name: Arc<str> = name.into();
        let (tell, flight) = watch::channel(None);
        names.entries.entry(name.clone()).or_default().flight = Some(flight.clone());
        names.flights += 1;
        let under_way = Flight { names: self.names.clone(), settings: self.settings.clone(), name, tell, result: None };
        (flight, under_way)
    }

    /// Looks it up in a task of its own: who asked first may hang up, the others still wait for it.
    fn start(&self, under_way: Flight) {
        let looking = self.lookup.lookup(&under_way.name);
        tokio::spawn(async move {
            let result = looking.await;
            if let Err(error) = &result {
                tracing::debug!(host = %under_way.name, %error, "a look-up failed");
            }
            under_way.land(result);
        });
    }
}

/// A look-up under way. However it ends, those who wait are told and the name can be looked up again.
struct Flight {
    names: Arc<Mutex<Names>>,
    settings: config::Dns,
    name: Arc<str>,
    tell: watch::Sender<Option<Found>>,
    result: Option<Result<Answer, LookupError>>,
}

impl Flight {
    fn land(mut self, result: Result<Answer, LookupError>) {
        self.result = Some(result);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| Err(lost(&self.name)));
        let found = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.flights -= 1;
            names.entries.entry(self.name.clone()).or_default().settle(result, Instant::now(), &self.settings)
        };
        let _ = self.tell.send(Some(found));
    }
}

fn lost(name: &str) -> LookupError {
    LookupError::Failed(format!("the look-up of {name} was lost"))
}

/// Forgets what has no worth any more, or else any one name that is not being looked up: then true.
fn make_room(names: &mut HashMap<Arc<str>, Entry>, now: Instant, stale_for: Duration) -> bool {
    names.retain(|_, entry| !entry.is_worthless(now, stale_for));
    if names.len() < MAX_NAMES {
        return false;
    }
    let victim = names
        .iter()
        .filter(|(_, entry)| entry.flight.is_none())
        .min_by_key(|(_, entry)| entry.good.as_ref().map(|good| good.fresh_until))
        .map(|(name, _)| name.clone());
    victim.is_some_and(|victim| names.remove(&victim).is_some())
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Answers from a list, one after another, the last one for ever; `None` never answers.
    pub(in crate::upstream) struct Scripted {
        answers: Mutex<Vec<Option<Result<Answer, LookupError>>>>,
        pub(in crate::upstream) asked: AtomicUsize,
    }

    impl Scripted {
        pub(in crate::upstream) fn new(answers: Vec<Option<Result<Answer, LookupError>>>) -> Arc<Scripted> {
            Arc::new(Scripted { answers: Mutex::new(answers), asked: AtomicUsize::new(0) })
        }

        pub(in crate::upstream) fn addresses(addresses: &[&str]) -> Option<Result<Answer, LookupError>> {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            Some(Ok(Answer { addresses, ttl: Duration::from_secs(30) }))
        }
    }

    impl Lookup for Scripted {
        fn lookup(&self, _name: &str) -> LookupFuture {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let mut answers = self.answers.lock().unwrap();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            Box::pin(async move {
                match answer {
                    Some(answer) => {
                        tokio::task::yield_now().await;
                        answer
                    }
                    None => std::future::pending().await,
                }
            })
        }
    }

    pub(in crate::upstream) fn settings() -> config::Dns {
        config::Dns {
            min_ttl: Duration::from_secs(5),
            max_ttl: Duration::from_secs(300),
            negative_ttl: Duration::from_secs(2),
            stale_for: Duration::from_secs(60),
            hosts_file: false,
        }
    }

    fn failed() -> Option<Result<Answer, LookupError>> {
        Some(Err(LookupError::Failed("server failure".into())))
    }

    #[test]
    fn a_look_up_begun_while_the_runtime_goes_away_is_lost_and_hangs_nobody() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        drop(runtime);
        let _entered = handle.enter();
        let dns = Dns::new(Scripted::new(vec![None]), settings());
        let mut asked = std::pin::pin!(dns.resolve("a.test"));
        let polled = asked.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        assert!(matches!(polled, std::task::Poll::Ready(Err(LookupError::Failed(_)))), "{polled:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_want_of_room_is_not_remembered() {
        let full = Some(Err(LookupError::NoRoom(Overload::Descriptors)));
        let dns = Dns::new(Scripted::new(vec![full, Scripted::addresses(&["192.0.2.1"])]), settings());
        assert!(matches!(dns.resolve("a.test").await, Err(LookupError::NoRoom(_))));
        assert!(dns.resolve("a.test").await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_its_time() {
        let script = Scripted::new(vec![Scripted::addresses(&["192.0.2.1"]), Scripted::addresses(&["192.0.2.2"])]);
        let dns = Dns::new(script.clone(), settings());
        assert_eq!(dns.resolve("a.test").await.unwrap()[0].to_string(), "192.0.2.1");
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(dns.resolve("a.test").await.unwrap()[0].to_string(), "192.0.2.1");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(dns.resolve("a.test").await.unwrap()[0].to_string(), "192.0.2.2");
        assert_eq!(script.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_share_one_look_up() {
        let script = Scripted::new(vec![Scripted::addresses(&["192.0.2.1"])]);
        let dns = Arc::new(Dns::new(script.clone(), settings()));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let dns = dns.clone();
            tasks.spawn(async move { dns.resolve("a.test").await.is_ok() });
        }
        assert!(tasks.join_all().await.into_iter().all(|ok| ok));
        assert_eq!(script.asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_up_does_not_stop_the_look_up_for_the_others() {
        let script = Scripted::new(vec![Scripted::addresses(&["192.0.2.1"])]);
        let dns = Arc::new(Dns::new(script.clone(), settings()));
        let first = tokio::spawn({
            let dns = dns.clone();
            async move { dns.resolve("a.test").await }
        });
        tokio::task::yield_now().await;
        first.abort();
        assert!(dns.resolve("a.test").await.is_ok());
        assert_eq!(script.asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_look_up_falls_back_on_the_last_good_answer_for_a_bounded_time() {
        let script = Scripted::new(vec![Scripted::addresses(&["192.0.2.1"]), failed()]);
        let dns = Dns::new(script.clone(), settings());
        dns.resolve("a.test").await.unwrap();
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(dns.resolve("a.test").await.is_ok());
        assert!(dns.resolve("a.test").await.is_ok());
        assert_eq!(script.asked.load(Ordering::Relaxed), 2, "the failure is remembered for negative_ttl");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(dns.resolve("a.test").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_look_up_falls_back_on_the_last_good_answer_too() {
        let dns = Dns::new(Scripted::new(vec![Scripted::addresses(&["192.0.2.1"]), None]), settings());
        dns.resolve("a.test").await.unwrap();
        tokio::time::advance(Duration::from_secs(31)).await;
        let start = Instant::now();
        assert!(dns.resolve("a.test").await.is_ok());
        assert_eq!(start.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_gone_is_not_answered_from_memory() {
        let gone = Some(Err(LookupError::NoAddress("no such name".into())));
        let dns = Dns::new(Scripted::new(vec![Scripted::addresses(&["192.0.2.1"]), gone]), settings());
        dns.resolve("a.test").await.unwrap();
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(matches!(dns.resolve("a.test").await, Err(LookupError::NoAddress(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_remembered_for_a_short_time() {
        let script = Scripted::new(vec![failed(), Scripted::addresses(&["192.0.2.1"])]);
        let dns = Dns::new(script.clone(), settings());
        assert!(dns.resolve("a.test").await.is_err());
        assert!(dns.resolve("a.test").await.is_err());
        assert_eq!(script.asked.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(dns.resolve("a.test").await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_is_bounded() {
        let dns = Dns::new(Scripted::new(vec![Scripted::addresses(&["192.0.2.1"])]), settings());
        for name in 0..MAX_NAMES + 100 {
            dns.resolve(&format!("{name}.test")).await.unwrap();
        }
        assert!(dns.names.lock().unwrap().entries.len() <= MAX_NAMES);
        assert_eq!(dns.forgotten(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_at_once_are_bounded_and_what_is_known_goes_on() {
        let dns = Arc::new(Dns::new(Scripted::new(vec![Scripted::addresses(&["192.0.2.1"]), None]), settings()));
        dns.resolve("good.test").await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for name in 0..MAX_FLIGHTS {
            let dns = dns.clone();
            tasks.spawn(async move { dns.resolve(&format!("{name}.test")).await });
        }
        while dns.names.lock().unwrap().flights < MAX_FLIGHTS {
            tokio::task::yield_now().await;
        }
        assert_eq!(dns.resolve("more.test").await, Err(LookupError::NoRoom(Overload::Lookups)));
        assert!(dns.resolve("good.test").await.is_ok());
        // A stale answer is better than none.
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(dns.resolve("good.test").await.is_ok());
        assert_eq!(dns.names.lock().unwrap().entries.len(), MAX_FLIGHTS + 1);
    }

    /// Panics once, then knows.
    struct Broken(AtomicUsize);

    impl Lookup for Broken {
        fn lookup(&self, _name: &str) -> LookupFuture {
            let before = self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                assert!(before > 0, "as a library might");
                Ok(Answer { addresses: vec!["192.0.2.1".parse().unwrap()], ttl: Duration::from_secs(30) })
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_panics_fails_alone_and_the_name_can_be_looked_up_again() {
        let dns = Dns::new(Arc::new(Broken(AtomicUsize::new(0))), settings());
        assert!(matches!(dns.resolve("a.test").await, Err(LookupError::Failed(_))));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(dns.resolve("a.test").await.is_ok());
        assert_eq!(dns.names.lock().unwrap().flights, 0);
    }

    #[tokio::test]
    async fn localhost_needs_no_look_up() {
        let dns = Dns::new(Scripted::new(vec![failed()]), settings());
        assert_eq!(&*dns.resolve("localhost").await.unwrap(), &LOCALHOST);
    }
}
