//! One run from a seed: the world is made, goes its way, and comes to its end; what is left over is counted.

use std::cell::Cell;
use std::panic;
use std::sync::{Arc, Once};
use std::time::Duration;

use fastrand::Rng;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::Config;
use crate::policy::replay::ReplayMemory;
use crate::proxy::Proxy;
use crate::shared::Shared;
use crate::shutdown::{Drain, FAREWELL};
use crate::simulation::app::{self, Surroundings};
use crate::simulation::ledger::{Event, Ledger};
use crate::simulation::network::Network;
use crate::simulation::scenario::{self, Act, App, Scenario};
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::report::CircuitState;
use crate::upstream::connect::Connector;
use crate::upstream::table::Table;

/// What came of a run.
pub(crate) struct Run {
    pub(crate) scenario: Scenario,
    pub(crate) events: Vec<(u64, Event)>,
    pub(crate) violations: Vec<String>,
}

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Panics are counted wherever they are caught.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

/// Runs the scenario of a seed. The same seed gives the same run.
pub(crate) fn run(seed: u64) -> Run {
    count_panics();
    PANICS.set(0);
    fastrand::seed(seed);
    let scenario = Scenario::draw(seed);
    let runtime =
        Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime without I/O");
    let ledger = runtime.block_on(async {
        let ledger = Ledger::new(scenario.bounds());
        World::new(seed, &scenario, ledger.clone()).live(&scenario).await;
        ledger
    });
    drop(runtime);
    let mut book = ledger.book();
    book.audit();
    if PANICS.get() > 0 {
        let what = format!("{} panics", PANICS.get());
        book.violation(what);
    }
    let (events, violations) = (std::mem::take(&mut book.events), std::mem::take(&mut book.violations));
    drop(book);
    Run { scenario, events, violations }
}

struct World {
    proxy: Arc<Proxy>,
    network: Network,
    ledger: Ledger,
    replay: Arc<ReplayMemory>,
}

impl World {
    fn new(seed: u64, scenario: &Scenario, ledger: Ledger) -> World {
        let network = Network::new(Rng::with_seed(!seed), ledger.clone(), scenario.mood.clone());
        let config = scenario::config(scenario.first);
        let metrics = Metrics::new();
        let connector = Connector::with(
            Arc::new(network.clone()),
            Arc::new(network.clone()),
            &config.dns,
            &config.egress,
            Vec::new(),
        );
        let replay = ReplayMemory::new(config.limits.replay_memory);
        let table = Table::evolve(None, config.clone(), connector, &metrics, &replay).expect("nothing needs a file");
        let access = AccessLog::new(&config.log);
        let table = Arc::new(Shared::new(Arc::new(table)));
        ledger.watch(table.clone());
        let proxy = Proxy::new(table, Arc::new(Shared::new(Arc::new(access))), Drain::new(), metrics);
        World { proxy, network, ledger, replay }
    }

    async fn live(self, scenario: &Scenario) {
        let start = Instant::now();
        let around = Surroundings {
            proxy: self.proxy.clone(),
            network: self.network.clone(),
            ledger: self.ledger.clone(),
            patience: scenario.patience(),
        };
        let mut apps = JoinSet::new();
        for (number, app) in scenario.apps.iter().cloned().enumerate() {
            let (around, number) = (around.clone(), number as u16);
            match app {
                App::Http1(requests) => apps.spawn(app::http1::run(requests, number, around)),
                App::Http2(requests) => apps.spawn(app::http2::run(requests, number, around)),
                App::Tunnel(tunnel) => apps.spawn(app::tunnel::run(tunnel, number, around)),
            };
        }
        drop(around);
        let drain = scenario.drain_at.map(|at| start + Duration::from_millis(at));
        let acting = async {
            for (at, act) in &scenario.acts {
                sleep_until(start + Duration::from_millis(*at)).await;
                self.act(*act);
            }
        };
        let asking = async {
            while let Some(ended) = apps.join_next().await {
                if let Err(error) = ended {
                    self.ledger.violation(format!("an app panicked: {error}"));
                }
            }
        };
        let draining = async {
            if let Some(drain) = drain {
                sleep_until(drain).await;
                self.drain().await;
            }
        };
        let all = async { tokio::join!(acting, asking, draining) };
        if timeout(Duration::from_secs(300), all).await.is_err() {
            self.ledger.violation("the apps came to no end".to_owned());
        }
        self.ledger.note(Event::Note("the apps are done"));
        if drain.is_none() {
            self.settled().await;
            self.drain().await;
        }
        self.end().await;
    }

    fn act(&self, act: Act) {
        self.ledger.note(Event::Directs(format!("{act:?}")));
        match act {
            Act::Reload(index) => self.reload(scenario::config(index)),
            Act::Down(machine) => self.network.set_down(machine, true),
            Act::Up(machine) => self.network.set_down(machine, false),
            Act::Partition(machine, lasts) => self.network.partition(machine, Duration::from_millis(lasts)),
        }
    }

    /// As a reload does it, files and listeners left out.
    fn reload(&self, config: Arc<Config>) {
        let old = self.proxy.table.load();
        let connector = old.connector.evolve(&config.dns, &config.egress, Vec::new()).expect("no file is read");
        let table = Table::evolve(Some(&old), config, connector, &self.proxy.metrics, &self.replay);
        let table = Arc::new(table.expect("nothing needs a file"));
        self.proxy.table.store(table.clone());
        table.take_over(Some(&old), &self.proxy.metrics);
    }

    async fn drain(&self) {
        self.ledger.note(Event::Note("the drain begins"));
        let settings = self.proxy.table.load().config.shutdown.clone();
        let began = Instant::now();
        let most = settings.grace + FAREWELL + Duration::from_millis(100);
        // What comes while it ends may be cut off.
        let over = async {
            self.proxy.drain.ended.cancelled().await;
            self.ledger.book().drain_over = true;
        };
        tokio::join!(self.proxy.drain.run(&settings), over);
        let took = began.elapsed();
        if took > most {
            self.ledger.violation(format!("the drain took {took:?}, more than {most:?}"));
        }
        self.ledger.note(Event::Note("the drain is over"));
    }

    /// Nothing is asked any more: after a while nothing is held.
    async fn settled(&self) {
        // An app whose connection vanished is noticed by the idle clocks.
        sleep(Duration::from_secs(20)).await;
        self.ledger.note(Event::Note("what is held is counted"));
        let table = self.proxy.table.load();
        let now = Instant::now();
        let mut wrong = Vec::new();
        for upstream in table.all() {
            let name = &upstream.name;
            let held = upstream.report.now();
            if (held.in_flight, held.queued, held.tunnels) != (0, 0, 0) {
                wrong.push(format!("{name} still has {held:?}"));
            }
            let counts = upstream.transport.counts();
            if counts.active + counts.connecting > 0 {
                wrong.push(format!("{name} still has connections: {counts:?}"));
            }
            for lane in upstream.lanes() {
                let status = lane.policies.status(now);
                if status.in_flight.unwrap_or(0) + status.queued > 0 {
                    wrong.push(format!("{name} still has slots taken: {status:?}"));
                }
                let half_open = status.circuit.is_some_and(|circuit| circuit.state != CircuitState::Open);
                if half_open && !lane.policies.would_admit(now) {
                    wrong.push(format!("{name} has lost the place of a probe"));
                }
            }
        }
        if self.proxy.drain.in_flight() > 0 {
            wrong.push(format!("{} requests are still in flight", self.proxy.drain.in_flight()));
        }
        if self.replay.held() > 0 {
            wrong.push(format!("{} bytes are still kept to be sent again", self.replay.held()));
        }
        wrong.into_iter().for_each(|what| self.ledger.violation(what));
    }

    /// After the drain, nothing is left.
    async fn end(self) {
        // Farewells, lingering, and the last bytes of HTTP/2.
        sleep(Duration::from_secs(5)).await;
        if self.proxy.connections() > 0 {
            let left = self.proxy.connections();
            self.ledger.violation(format!("{left} connections of apps outlived the drain"));
        }
        let table = self.proxy.table.load();
        for upstream in table.all() {
            upstream.transport.retire();
        }
        drop(table);
        sleep(Duration::from_secs(70)).await;
        let open = self.ledger.book().open;
        if open > 0 {
            self.ledger.violation(format!("{open} connections to upstreams are left"));
        }
        self.network.end();
        self.ledger.book().unwatch();
        drop(self.proxy);
        sleep(Duration::from_secs(5)).await;
        let tasks = Handle::current().metrics().num_alive_tasks();
        if tasks > 0 {
            self.ledger.violation(format!("{tasks} tasks are left"));
        }
    }
}
