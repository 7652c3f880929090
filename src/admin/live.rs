//! What the dashboard is told while somebody looks: the whole state once, then each second what changed. One task makes the
//! news, once for all who listen; when nobody does, it only takes a sample now and then, and without
//! an `admin` listener nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::stream::{Audience, Events, Link};
use super::{Admin, api, scrape};
use crate::background::aside;
use crate::document::Problem;
use crate::telemetry::history::{self, History, Recent, Standing};
use crate::telemetry::report::CircuitState;
use crate::upstream::Upstream;
use crate::upstream::table::Table;

/// How often there is news. An event is sent each time, so that silence means a broken connection.
const TICK: Duration = Duration::from_secs(1);
/// How many long answers are written at once.
const WRITERS: usize = 2;
/// How many problems of a file are told: who has more, has one that matters.
const PROBLEMS: usize = 50;

/// What is kept for the dashboard.
pub struct Live {
    history: Mutex<History>,
    audience: Audience,
    /// Another configuration is in effect.
    reloaded: Notify,
    /// For those who write long answers.
    pub(super) writers: Arc<Semaphore>,
}

impl Default for Live {
    fn default() -> Live {
        Live {
            history: Mutex::default(),
            audience: Audience::default(),
            reloaded: Notify::new(),
            writers: Arc::new(Semaphore::new(WRITERS)),
        }
    }
}

/// What those who listen know already.
#[derive(Default)]
struct Told {
    /// By name, as it was sent.
    upstreams: HashMap<Arc<str>, String>,
    order: Vec<Arc<str>>,
    /// Numbers of the newest.
    failure: u64,
    reload: u64,
    sample: u64,
}

impl Live {
    /// The last minute of an upstream.
    pub(super) fn recent(&self, upstream: &Upstream, now: Instant) -> Recent {
        let totals = upstream.report.totals(upstream.lanes().map(|lane| &*lane.report));
        self.history().recent(&upstream.name, now, &totals)
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another configuration is in effect: there may be an `admin` listener now.
    pub(crate) fn reloaded(&self) {
        self.reloaded.notify_one();
    }

    fn sample(&self, table: &Table, now: Instant) {
        let all = table.all().map(|upstream| {
            let totals = upstream.report.totals(upstream.lanes().map(|lane| &*lane.report));
            (&upstream.name, totals, standing(upstream, now))
        });
        self.history().sample(now, all);
    }
}

/// The worst of an upstream's lanes.
fn standing(upstream: &Upstream, now: Instant) -> Standing {
    let mut paused = false;
    let mut worst = CircuitState::Closed;
    for (lane, own_circuit) in scrape::lanes(upstream) {
        let status = lane.policies.status(now);
        paused |= status.paused_for.is_some();
        if let Some(circuit) = status.circuit.filter(|circuit| own_circuit && circuit.state as u8 > worst as u8) {
            worst = circuit.state;
        }
    }
    match worst {
        CircuitState::Open => Standing::Open,
        CircuitState::HalfOpen => Standing::HalfOpen,
        CircuitState::Closed if paused => Standing::Paused,
        CircuitState::Closed => Standing::Closed,
    }
}

/// Takes samples and tells the news until the drain ends. Without an `admin` listener it does nothing.
pub(crate) async fn run(admin: Arc<Admin>) {
    let mut now = Instant::now();
    let mut next_sample = now;
    admin.live.history().begin(now);
    let mut told = Told::default();
    loop {
        if admin.table.load().config.listeners.admin.is_none() {
            admin.live.history().pause();
            // Also those who come by a connection that is older.
            admin.live.audience.dismiss();
            told = Told::default();
            tokio::select! {
                () = admin.drain.ended.cancelled() => return,
                () = admin.live.reloaded.notified() => {}
                () = admin.live.audience.joined() => {}
            }
            next_sample = Instant::now();
            continue;
        }
        // A process that nobody looks at is to wake as seldom as can be.
        let next = if admin.live.audience.is_empty() { next_sample } else { now + TICK };
        tokio::select! {
            () = admin.drain.ended.cancelled() => return admin.live.audience.dismiss(),
            () = admin.live.audience.joined() => continue,
            () = sleep_until(next) => {}
        }
        now = Instant::now();
        let table = admin.table.load();
        // A tick that comes a little early is the one that is meant.
        let due = next_sample <= now + TICK / 2;
        if due {
            next_sample = (next_sample + history::INTERVAL).max(now + TICK);
        }
        admin.live.audience.sort_out(table.config.listeners.admin_token.as_ref());
        let watched = !admin.live.audience.is_empty();
        if !due && !watched {
            continue;
        }
        // With a hundred upstreams that is more than a request should wait for.
        let maker = admin.clone();
        let made = aside(move || {
            if due {
                maker.live.sample(&table, now);
            }
            let news = watched.then(|| maker.news(&table, &mut told));
            (news, told)
        });
        // Where it panicked, which is logged, everything is told anew.
        let (news, known) = made.await.unwrap_or_default();
        told = known;
        match news {
            Some(news) => admin.live.audience.tell(&news),
            None => told = Told::default(),
        }
    }
}

impl Admin {
    /// A stream of events for one who wants to look; `None` where too many look already.
    pub(super) fn watch(self: &Arc<Self>, link: &Link) -> Option<Events> {
        let table = self.table.load();
        // Listens first, so that nothing falls between the state and the news. What is told twice is the same.
        let (events, welcome) = self.live.audience.join(link, table.config.listeners.admin_token.clone())?;
        let admin = self.clone();
        drop(aside(move || welcome.begin(frame("state", &admin.state(&table)))));
        Some(events)
    }

    /// Everything that the dashboard shows.
    fn state(&self, table: &Table) -> Value {
        let now = Instant::now();
        let mut state = self.moment();
        state.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        state.insert("order".to_owned(), table.all().map(|one| Value::from(&*one.name)).collect());
        let upstreams = table.all().map(|one| api::upstream(one, &self.live, now));
        state.insert("upstreams".to_owned(), upstreams.collect());
        let names = table.all().map(|one| &one.name);
        state.insert("history".to_owned(), api::history(&self.live.history(), names, history::SAMPLES));
        state.insert("failures".to_owned(), api::failures(&self.reloader.proxy().failures.after(0)).into());
        state.insert("reloads".to_owned(), self.reloader.past().json().into());
        state.insert("config".to_owned(), self.config());
        state.into()
    }

    /// What changed since the last tick, as a frame.
    fn news(&self, table: &Table, told: &mut Told) -> Bytes {
        let now = Instant::now();
        let mut news = self.moment();
        let mut changed = Vec::new();
        for upstream in table.all() {
            let value = api::upstream(upstream, &self.live, now);
            let text = value.to_string();
            if told.upstreams.get(&upstream.name) != Some(&text) {
                told.upstreams.insert(upstream.name.clone(), text);
                changed.push(value);
            }
        }
        news.insert("upstreams".to_owned(), changed.into());
        if !table.all().map(|one| &one.name).eq(&told.order) {
            told.order = table.all().map(|one| one.name.clone()).collect();
            told.upstreams.retain(|name, _| told.order.contains(name));
            news.insert("order".to_owned(), told.order.iter().map(|name| Value::from(&**name)).collect());
        }
        let history = self.live.history();
        if history.taken() != told.sample {
            told.sample = history.taken();
            news.insert("history".to_owned(), api::history(&history, told.order.iter(), 1));
        }
        drop(history);
        let kept = &self.reloader.proxy().failures;
        let failures = kept.after(told.failure);
        if let Some((newest, _)) = failures.last() {
            told.failure = *newest;
            news.insert("failures_kept".to_owned(), kept.numbers().into());
            news.insert("failures".to_owned(), api::failures(&failures).into());
        }
        let reloads = self.reloader.past().count();
        if reloads != told.reload {
            told.reload = reloads;
            news.insert("reloads".to_owned(), self.reloader.past().json().into());
            news.insert("config".to_owned(), self.config());
        }
        frame("tick", &news.into())
    }

    fn moment(&self) -> Map<String, Value> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        Map::from_iter([
            ("now_ms".to_owned(), now.into()),
            ("draining".to_owned(), self.drain.begun.is_cancelled().into()),
        ])
    }

    /// Whether the file, as it was last read, is in effect, and what is wrong with it.
    fn config(&self) -> Value {
        let last = self.reloader.last();
        json!({
            "in_effect": last.took_effect(),
            "problems": last.problems.iter().take(PROBLEMS).map(Problem::json).collect::<Vec<_>>(),
            "problem_count": last.problems.len(),
        })
    }
}

/// A server-sent event. JSON has no line breaks where it is not asked for them.
fn frame(event: &str, data: &Value) -> Bytes {
    format!("event: {event}\ndata: {data}\n\n").into()
}
