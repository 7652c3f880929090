//! What is going to happen, drawn from a seed: the configurations, the apps' requests, and what befalls the world meanwhile.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fastrand::Rng;

use crate::config::Config;
use crate::config::load::{Options, load_text};
use crate::simulation::app::tunnel::Tunnel;
use crate::simulation::app::{Asked, Patience};
use crate::simulation::ledger::Bounds;
use crate::simulation::network::{HTTP2, Mood};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) mood: Mood,
    /// Which of the configurations is the first.
    pub(crate) first: usize,
    pub(crate) apps: Vec<App>,
    /// At which millisecond what happens, in order.
    pub(crate) acts: Vec<(u64, Act)>,
    /// The drain begins so long after the start, whatever is under way; `None`: once the apps are done.
    pub(crate) drain_at: Option<u64>,
}

/// One app.
#[derive(Clone, Debug)]
pub(crate) enum App {
    Http1(Vec<Asked>),
    Http2(Vec<Asked>),
    Tunnel(Tunnel),
}

/// What befalls the world.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// Another configuration takes over.
    Reload(usize),
    /// A machine stops.
    Down(u8),
    /// It is there again.
    Up(u8),
    /// A machine is out of reach for so many milliseconds.
    Partition(u8, u64),
}

impl Scenario {
    pub(crate) fn draw(seed: u64) -> Scenario {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let mut mood = match rng.u32(0..10) {
            0 => Mood { faults: 0, errors: 0, delay: 3 },
            1..3 => Mood { faults: 0, errors: 100, delay: 20 },
            3..7 => Mood { faults: 100, errors: 150, delay: 30 },
            7..9 => Mood { faults: 250, errors: 100, delay: 50 },
            _ => Mood { faults: 50, errors: 800, delay: 10 },
        };
        let hang_ups = [0, 100, 400][rng.usize(0..3)];
        let mut id = 0;
        // Many at once for one upstream, in waves: what opens circuits, and meets them half-open.
        let storm = rng.u32(0..5) == 0;
        let target = ["one", "one", "two", "three"][rng.usize(0..4)];
        if storm && rng.bool() {
            mood.errors = 700;
        }
        let apps = (0..if storm { rng.usize(3..6) } else { rng.usize(1..5) })
            .map(|_| {
                let count = if storm { rng.usize(4..9) } else { rng.usize(1..5) };
                let requests = |rng: &mut Rng, id: &mut u32| -> Vec<Asked> {
                    let ask = |_| {
                        *id += 1;
                        let mut asked = Asked::draw(rng, *id, hang_ups);
                        if storm {
                            asked.wait = Duration::from_millis(if id.is_multiple_of(4) { rng.u64(0..1500) } else { 0 });
                            asked.upstream = target;
                        }
                        asked
                    };
                    (0..count).map(ask).collect()
                };
                match rng.u32(0..10) {
                    0 => {
                        id += 1;
                        App::Tunnel(Tunnel {
                            id,
                            wait: Duration::from_millis(rng.u64(0..200)),
                            length: rng.usize(0..4000),
                            early: rng.bool(),
                            pause: Duration::from_millis(rng.u64(0..100)),
                            hang_up: rng.bool().then(|| Duration::from_millis(rng.u64(0..300))),
                        })
                    }
                    1..4 => App::Http2(requests(rng, &mut id)),
                    4..8 if storm => App::Http2(requests(rng, &mut id)),
                    _ => App::Http1(requests(rng, &mut id)),
                }
            })
            .collect();
        let mut acts = Vec::new();
        if rng.u32(0..3) == 0 {
            for _ in 0..rng.usize(1..3) {
                acts.push((rng.u64(0..4000), Act::Reload(rng.usize(0..CONFIGS))));
            }
        }
        if mood.faults > 0 && rng.u32(0..3) == 0 {
            for _ in 0..rng.usize(1..3) {
                let (machine, at) = (rng.u8(1..6), rng.u64(0..3000));
                acts.push((at, Act::Down(machine)));
                acts.push((at + rng.u64(1..3000), Act::Up(machine)));
            }
        }
        if mood.faults > 0 && rng.u32(0..4) == 0 {
            acts.push((rng.u64(0..3000), Act::Partition(rng.u8(1..6), rng.u64(50..4000))));
        }
        acts.sort_by_key(|(at, _)| *at);
        let drain_at = (rng.u32(0..5) == 0).then(|| rng.u64(0..3000));
        Scenario { mood, first: rng.usize(0..CONFIGS), apps, acts, drain_at }
    }

    /// All configurations of the run.
    fn configs(&self) -> impl Iterator<Item = usize> {
        let reloads = self.acts.iter().filter_map(|(_, act)| match act {
            Act::Reload(index) => Some(*index),
            Act::Down(_) | Act::Up(_) | Act::Partition(..) => None,
        });
        std::iter::once(self.first).chain(reloads)
    }

    /// What holds under every configuration of the run.
    pub(crate) fn bounds(&self) -> Bounds {
        let all: Vec<Values> = self.configs().map(Values::draw).collect();
        let most = |of: fn(&Values) -> u64| all.iter().map(of).max().unwrap_or(0);
        let names = |pairs: &[&str]| pairs.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        // One that has its token may wait for a slot, for an address and for a connection.
        let late = if self.mood.faults == 0 { 400 + self.mood.delay * 6 } else { 1500 };
        let tokens = (most(|it| it.burst) as f64, most(|it| it.rate) as f64, Duration::from_millis(late));
        let budget = (most(|it| it.ratio) as f64 / 100.0, 1.0);
        Bounds {
            attempts: most(|it| it.attempts) as usize,
            probes: most(|it| it.probes) as usize,
            in_flight: BTreeMap::from([("two".to_owned(), most(|it| it.slots) as usize)]),
            tokens: BTreeMap::from([("two".to_owned(), tokens)]),
            budget: names(&["one", "two", "three"]).into_iter().map(|name| (name, budget)).collect(),
        }
    }

    pub(crate) fn patience(&self) -> Patience {
        let most = self.configs().map(|index| Values::draw(index).request).max().unwrap_or(0);
        let partitions: u64 = self
            .acts
            .iter()
            .map(|(_, act)| match act {
                Act::Partition(_, lasts) => *lasts,
                Act::Reload(_) | Act::Down(_) | Act::Up(_) => 0,
            })
            .sum();
        Patience {
            request: Duration::from_millis(most),
            idle: Duration::from_secs(3),
            // Chopped to single bytes a head takes no longer, but an app's connection has its delays.
            slack: Duration::from_millis(1000 + partitions + self.mood.delay * 8),
        }
    }
}

/// How many configurations there are. They differ in values, not in what is switched on, so that what one switches off is
/// never judged by another.
const CONFIGS: usize = 8;

/// What differs.
struct Values {
    attempts: u64,
    probes: u64,
    slots: u64,
    burst: u64,
    rate: u64,
    /// In hundredths.
    ratio: u64,
    request: u64,
    attempt: u64,
    connections: u64,
    row: u64,
    open_for: u64,
    max_body: u64,
    wait: u64,
}

impl Values {
    fn draw(index: usize) -> Values {
        let mut rng = Rng::with_seed(0x5EED + index as u64);
        Values {
            attempts: rng.u64(1..5),
            probes: rng.u64(1..3),
            slots: rng.u64(1..4),
            burst: rng.u64(1..5),
            rate: rng.u64(1..5),
            ratio: rng.u64(10..50),
            request: rng.u64(800..3500),
            attempt: rng.u64(500..2500),
            connections: rng.u64(1..6),
            row: rng.u64(2..5),
            open_for: rng.u64(200..1500),
            max_body: rng.u64(512..3000),
            wait: rng.u64(0..800),
        }
    }

    fn yaml(&self) -> String {
        let Values { attempts, probes, slots, burst, rate, ratio, request, attempt, .. } = self;
        let Values { connections, row, open_for, max_body, wait, .. } = self;
        format!(
            r#"version: 1
defaults:
  timeouts: {{connect: 1s, attempt: {attempt}ms, request: {request}ms, idle: 3s, tunnel_idle: 3s}}
  retry:
    max_attempts: {attempts}
    backoff: {{base: 20ms, max: 300ms}}
    max_retry_after: 2s
    budget: {{ratio: 0.{ratio}, min_per_second: 1}}
    max_body: {max_body}B
  circuit_breaker:
    consecutive_failures: {row}
    open_for: {open_for}ms
    max_open_for: 2s
    half_open_requests: {probes}
  connections: {{max: {connections}, max_idle: 2, idle_timeout: 2s, max_age: 5s, http: 1}}
upstreams:
  one:
    hosts: [one.sim]
    to: ["http://one-a.sim", "http://one-b.sim"]
  two:
    hosts: [two.sim]
    scheme: same
    rate_limit: {{requests: {rate}, per: 1s, burst: {burst}, max_wait: {wait}ms}}
    concurrency: {{max_in_flight: {slots}, max_queue: 3, max_wait: 400ms}}
  three:
    hosts: [three.sim]
    to: ["http://three.sim:{HTTP2}"]
    connections: {{http: 2}}
dns: {{min_ttl: 1s, max_ttl: 5s, negative_ttl: 1s, stale_for: 5s, hosts_file: false}}
limits: {{header_timeout: 4s}}
shutdown: {{quiet: 200ms, grace: 5s}}
log: {{access: off}}
"#
        )
    }
}

/// A configuration, read once in a process.
pub(crate) fn config(index: usize) -> Arc<Config> {
    static READ: [OnceLock<Arc<Config>>; CONFIGS] = [const { OnceLock::new() }; CONFIGS];
    let read = || {
        let text = Values::draw(index).yaml();
        let loaded = load_text(&text, Path::new("simulation.yaml"), Options::default(), &|_| None);
        match loaded.config {
            Some(config) => Arc::new(config),
            None => panic!("{text}\n{:?}", loaded.problems),
        }
    };
    READ[index].get_or_init(read).clone()
}
