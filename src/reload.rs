//! The only writer of the live table. A new world is built whole, what can fail first; then it is swapped in, once; then
//! the old one is torn down. Whatever goes wrong, the old world stays as it was.

mod changes;
mod listeners;
mod past;
mod source;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

pub use listeners::Place;
pub use past::Past;
pub use source::Source;
pub(crate) use status::warn;
pub use status::{Cause, Status};

use crate::admin::live::Live;
use crate::admin::{self, Admin, Surface};
use crate::background::Background;
use crate::config::Config;
use crate::config::watch::Watch;
use crate::document::{Problem, Problems};
use crate::policy::replay::ReplayMemory;
use crate::proxy::listener::{self, Door};
use crate::proxy::{Entry, Proxy};
use crate::reload::listeners::{Bound, Listeners};
use crate::shared::Shared;
use crate::telemetry::access::AccessLog;
use crate::telemetry::logging::Logging;
use crate::upstream::connect::Connector;
use crate::upstream::table::Table;

/// How often files are looked at: a change is to be noticed within five seconds, also where one look is left out and on a busy machine.
const POLL: Duration = Duration::from_secs(2);

/// Takes new configurations into service.
pub struct Reloader {
    source: Source,
    proxy: Arc<Proxy>,
    replay: Arc<ReplayMemory>,
    logging: Option<Logging>,
    last: Shared<Status>,
    past: Past,
    /// What the dashboard shows besides.
    live: Arc<Live>,
    /// Where it listens now.
    addresses: Shared<Vec<(Place, SocketAddr)>>,
    background: Background,
    /// Held by whoever changes the world, so that changes come one after the other.
    world: Arc<Mutex<World>>,
}

/// What a reload replaces besides the table.
struct World {
    listeners: Listeners,
    watch: Watch,
    /// Tables that were replaced, until the last request that began under them has ended: to free a large one takes
    /// longer than a request should wait for.
    replaced: Vec<Arc<Table>>,
}

/// A new configuration with all that could fail done.
struct Ready {
    config: Arc<Config>,
    warnings: Vec<Problem>,
    /// What differs from the configuration in effect.
    changes: Vec<String>,
    watch: Watch,
    /// A file changed while it was read.
    torn: bool,
    listeners: listeners::Plan,
    table: Arc<Table>,
}

impl Reloader {
    /// Opens every listener of the first configuration and makes the table. Nothing is served yet.
    ///
    /// # Errors
    /// A sentence that says what can't be opened or set up.
    pub(crate) fn first(
        config: Config,
        source: Source,
        logging: Option<Logging>,
        make: impl FnOnce(Arc<Shared<Table>>, Arc<Shared<AccessLog>>) -> Arc<Proxy>,
        metrics: &Arc<crate::telemetry::metrics::Metrics>,
    ) -> Result<Arc<Reloader>, String> {
        let config = Arc::new(config);
        let plan = Listeners::default().plan(&config).map_err(|problems| problems.join("; "))?;
        let connector = Connector::new(&config.dns, &config.egress, plan.addresses())?;
        let replay = ReplayMemory::new(config.limits.replay_memory);
        let table =
            Table::evolve(None, config.clone(), connector, metrics, &replay).map_err(|problems| problems.join("; "))?;
        let access = access(&config, logging.as_ref());
        let proxy = make(Arc::new(Shared::new(Arc::new(table))), Arc::new(Shared::new(Arc::new(access))));
        let (listeners, _) = plan.settle();
        let (start, past) = (Status::start(), Past::default());
        past.note(&start);
        Ok(Arc::new(Reloader {
            source,
            proxy,
            replay,
            logging,
            last: Shared::new(Arc::new(start)),
            past,
            live: Arc::default(),
            addresses: Shared::new(Arc::new(listeners.all())),
            background: Background::start()?,
            world: Arc::new(Mutex::new(World {
                listeners,
                watch: Watch::new(config.files.clone()),
                replaced: Vec::new(),
            })),
        }))
    }

    /// Serves the listeners, and reloads whenever a file changes, until the drain ends.
    pub(crate) fn serve(self: &Arc<Self>) {
        if let Ok(world) = self.world.try_lock() {
            for bound in world.listeners.fresh() {
                self.spawn(bound);
            }
        }
        let reloader = Arc::downgrade(self);
        self.background.every(POLL, move || {
            if let Some(reloader) = reloader.upgrade().filter(|reloader| !reloader.proxy.drain.ended.is_cancelled()) {
                reloader.look();
            }
        });
    }

    /// Whether a file changed. A file system may hang, and a look that finds nothing new, as nearly all do, is to wake nobody
    /// else: it is made in the background.
    fn look(self: &Arc<Self>) {
        // Somebody changes it: there is a next time.
        let Ok(mut world) = self.world.clone().try_lock_owned() else { return };
        world.bury(&self.background);
        let cause = if world.watch.changed() {
            Cause::Changed
        } else if !self.last.load().took_effect() {
            // What was missing, a file that the new configuration names, may have come.
            Cause::Again
        } else {
            return;
        };
        let reloader = self.clone();
        tokio::spawn(async move { reloader.reload_alone(&mut world, cause).await });
    }

    /// Reads the file and takes it into service, or says why not. What happened is logged and counted.
    ///
    /// It must run to its end: call it from a task that nobody drops.
    pub async fn reload(self: &Arc<Self>, cause: Cause) -> Arc<Status> {
        let mut world = self.world.lock().await;
        self.reload_alone(&mut world, cause).await
    }

    /// How the last reload went.
    pub fn last(&self) -> Arc<Status> {
        self.last.load()
    }

    /// How the last ones went.
    pub fn past(&self) -> &Past {
        &self.past
    }

    /// What `admin` shows and orders.
    pub(crate) fn admin(self: &Arc<Self>) -> Arc<Admin> {
        Arc::new(Admin {
            table: self.proxy.table.clone(),
            metrics: self.proxy.metrics.clone(),
            replay: self.replay.clone(),
            drain: self.proxy.drain.clone(),
            reloader: self.clone(),
            live: self.live.clone(),
        })
    }

    /// Does something to the table while no reload is under way.
    pub async fn alone<T>(&self, act: impl FnOnce(&Table) -> T) -> T {
        let _world = self.world.lock().await;
        act(&self.proxy.table.load())
    }

    /// Where it listens now.
    pub fn addresses(&self) -> Arc<Vec<(Place, SocketAddr)>> {
        self.addresses.load()
    }

    pub(crate) fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    async fn reload_alone(self: &Arc<Self>, world: &mut World, cause: Cause) -> Arc<Status> {
        let start = Instant::now();
        let status = match self.prepare(world).await {
            Ok(ready) => self.swap(world, ready, cause, start).await,
            Err(problems) => {
                let (table, metrics) = (self.proxy.table.load(), self.proxy.metrics.clone());
                // A new upstream may have got as far as its counters.
                self.background.run(move || table.forget_others(&metrics)).await;
                Status::refused(cause, problems)
            }
        };
        let news = cause != Cause::Again || *status.problems != *self.last.load().problems;
        let status = Arc::new(status);
        if news {
            let (told, before) = (status.clone(), self.last.load());
            // A line for each change: a thousand where a default changed.
            self.background.run(move || told.tell(&before)).await;
            self.proxy.metrics.reload(status.took_effect());
            self.past.note(&status);
            self.last.store(status.clone());
        }
        world.bury(&self.background);
        status
    }

    /// Everything that can fail. The world is not touched. What takes time with the number of upstreams is done in the
    /// background.
    async fn prepare(&self, world: &World) -> Result<Ready, Vec<Problem>> {
        let source = self.source.clone();
        let old = self.proxy.table.load();
        let mut watch = world.watch.clone();
        let loaded = self
            .background
            .run(move || {
                // The watch begins with what the files held before they were read, so a change from here on is seen.
                watch.changed();
                let loaded = source.load().map_err(|message| vec![sentence(message)])?;
                let Problems { errors, warnings } = loaded.problems;
                let config = loaded.config.ok_or(errors)?;
                watch.follow(config.files.clone());
                let torn = watch.clone().changed();
                Ok::<_, Vec<Problem>>((Arc::new(config), warnings, watch, torn))
            })
            .await;
        let (config, warnings, watch, torn) = loaded.ok_or_else(internal)??;
        let plan =
            world.listeners.plan(&config).map_err(|problems| problems.into_iter().map(sentence).collect::<Vec<_>>())?;
        let own = plan.addresses();
        let (metrics, replay) = (self.proxy.metrics.clone(), self.replay.clone());
        let new = config.clone();
        let made = self
            .background
            .run(move || {
                // System roots are read from files here.
                let connector =
                    old.connector.evolve(&new.dns, &new.egress, own).map_err(|problem| vec![sentence(problem)])?;
                let changes = changes::between(&old.config, &new);
                let table = Table::evolve(Some(&old), new, connector, &metrics, &replay)
                    .map_err(|problems| problems.into_iter().map(sentence).collect::<Vec<_>>())?;
                Ok::<_, Vec<Problem>>((Arc::new(table), changes))
            })
            .await;
        let (table, changes) = made.ok_or_else(internal)??;
        Ok(Ready { config, warnings, changes, watch, torn, listeners: plan, table })
    }

    /// The new world takes over. Nothing here can fail.
    async fn swap(self: &Arc<Self>, world: &mut World, ready: Ready, cause: Cause, start: Instant) -> Status {
        let Ready { config, warnings, changes, watch, torn, listeners, table } = ready;
        let old = self.proxy.table.load();
        self.proxy.table.store(table.clone());
        self.live.reloaded();
        if let Some(logging) = &self.logging {
            logging.apply(&config.log);
        }
        self.proxy.access.store(Arc::new(access(&config, self.logging.as_ref())));
        let (listeners, closed) = listeners.settle();
        world.listeners = listeners;
        self.addresses.store(Arc::new(world.listeners.all()));
        for bound in world.listeners.fresh() {
            self.spawn(bound);
        }
        // What is closed here was served under the old table; connections it accepted live on.
        drop(closed);
        world.watch = watch;
        world.replaced.push(old.clone());
        let metrics = self.proxy.metrics.clone();
        self.background.run(move || table.take_over(Some(&old), &metrics)).await;
        let mut status = Status::took(cause, changes, warnings);
        status.torn = torn;
        status.duration = start.elapsed();
        status
    }

    fn spawn(self: &Arc<Self>, bound: &Bound) {
        let Some((socket, stop)) = bound.socket() else { return };
        let door = match bound.place() {
            Place::Proxy => Door::Plain(Entry::Any),
            Place::Upstream(name) => Door::Plain(Entry::Upstream(name.clone())),
            Place::Tls => Door::Tls,
            Place::Admin | Place::Probes => {
                let surface = if *bound.place() == Place::Admin { Surface::Admin } else { Surface::Probes };
                let admin = self.admin();
                tokio::spawn(admin::serve(socket, surface, admin, stop));
                return;
            }
        };
        tokio::spawn(listener::serve(socket, door, self.proxy.clone(), stop));
    }
}

impl World {
    /// Frees the tables that nobody uses any more.
    fn bury(&mut self, background: &Background) {
        let unused: Vec<_> = self.replaced.extract_if(.., |table| Arc::strong_count(table) == 1).collect();
        if !unused.is_empty() {
            background.later(move || unused.into_iter().for_each(Table::take_apart));
        }
    }
}

fn access(config: &Config, logging: Option<&Logging>) -> AccessLog {
    let access = AccessLog::new(&config.log);
    match logging {
        Some(logging) => access.to(logging.writer()),
        None => access,
    }
}

/// A problem that has no place in the file.
fn sentence(message: String) -> Problem {
    Problem { place: None, path: String::new(), message, help: None }
}

fn internal() -> Vec<Problem> {
    vec![sentence("an internal error, logged as a panic".to_owned())]
}
