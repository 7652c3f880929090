//! The routing snapshot, and how a new configuration evolves it.
//!
//! For each policy state there is one rule: *share* the upstream's when a route writes no block of its own, else *carry*
//! what was there before, else *new*. So an open circuit stays open and a drained bucket stays drained. A request keeps
//! the upstream that it started with.

use std::sync::Arc;

use tokio::time::Instant;

use crate::address::AddressSet;
use crate::background::give_way;
use crate::config::{self, Config};
use crate::intercept::Interception;
use crate::origin::Host;
use crate::policy::policies::{self, Heritage, OwnState, Policies};
use crate::policy::replay::ReplayMemory;
use crate::telemetry::metrics::Metrics;
use crate::upstream::connect::Connector;
use crate::upstream::index::Index;
use crate::upstream::sieve::Sieve;
use crate::upstream::transport::{self, Transport};
use crate::upstream::{Lane, Upstream};

/// The name in metrics and logs of all hosts that no upstream names.
pub const UNMATCHED: &str = "unmatched";

/// The routing snapshot: immutable, replaced whole by a reload.
pub struct Table {
    /// What it was made from.
    pub config: Arc<Config>,
    /// In the order of the file.
    pub upstreams: Vec<Arc<Upstream>>,
    /// For hosts that no upstream names.
    pub unmatched: Arc<Upstream>,
    /// Makes the connections of all of them.
    pub connector: Arc<Connector>,
    /// Replay buffers of the whole process.
    pub replay: Arc<ReplayMemory>,
    /// For upstreams that are intercepted.
    pub(crate) interception: Option<Arc<Interception>>,
    index: Index,
}

/// All states are its own: an upstream's own lane.
const ALL_OWN: OwnState = OwnState { breaker: true, rate_limit: true, concurrency: true, budget: true };

/// What every lane of a new table is made with.
struct Maker<'a> {
    config: &'a Config,
    connector: &'a Arc<Connector>,
    same_connector: bool,
    metrics: &'a Arc<Metrics>,
    replay: &'a Arc<ReplayMemory>,
    now: Instant,
}

/// What an upstream's lanes and pool are made from, named or not.
struct Plan<'a> {
    name: &'a Arc<str>,
    policies: &'a policies::Settings,
    routes: &'a [config::Route],
    pool: transport::Settings,
}

impl Table {
    /// A table for `config`, taking over from `old` the state that still has meaning. `old` is not changed, so that a
    /// reload that fails later has done nothing; [`Table::take_over`] completes it once the table is in place.
    ///
    /// # Errors
    /// A sentence for each upstream that can't be set up.
    pub fn evolve(
        old: Option<&Table>,
        config: Arc<Config>,
        connector: Arc<Connector>,
        metrics: &Arc<Metrics>,
        replay: &Arc<ReplayMemory>,
    ) -> Result<Table, Vec<String>> {
        let same_connector = old.is_some_and(|old| Arc::ptr_eq(&old.connector, &connector));
        let maker =
            Maker { config: &config, connector: &connector, same_connector, metrics, replay, now: Instant::now() };
        let mut problems = Vec::new();
        let mut upstreams = Vec::new();
        for upstream in &config.upstreams {
            give_way();
            let plan = Plan {
                name: &upstream.name,
                policies: &upstream.policies,
                routes: &upstream.routes,
                pool: maker.pool(&upstream.to, &upstream.tls, &upstream.connections, &upstream.allow_addresses),
            };
            let before = old.and_then(|old| old.named(&upstream.name));
            match maker.upstream(before, plan, Some(upstream.clone())) {
                Ok(upstream) => upstreams.push(Arc::new(upstream)),
                Err(problem) => problems.push(format!("upstreams.{}: {problem}", upstream.name)),
            }
        }
        let plan = Plan {
            name: &UNMATCHED.into(),
            policies: &config.unmatched.policies,
            routes: &[],
            pool: maker.pool(&[], &config.unmatched.tls, &config.unmatched.connections, &AddressSet::default()),
        };
        let unmatched = match maker.upstream(old.map(|old| &old.unmatched), plan, None) {
            Ok(upstream) => Some(Arc::new(upstream)),
            Err(problem) => {
                problems.push(format!("egress.unmatched: {problem}"));
                None
            }
        };
        let Some(unmatched) = unmatched.filter(|_| problems.is_empty()) else { return Err(problems) };
        // Last, since it may write files.
        let before = old.and_then(|old| old.interception.as_ref());
        let interception =
            Interception::evolve(before, &config).map_err(|problem| vec![format!("intercept: {problem}")])?;
        let index = Index::new(&config.upstreams);
        Ok(Table { config, upstreams, unmatched, connector, replay: replay.clone(), interception, index })
    }

    /// The table is in place: state that it took over goes by the new settings from now on, and `old`'s pools that it did
    /// not take over are closed as their requests end.
    pub fn take_over(&self, old: Option<&Table>, metrics: &Metrics) {
        let now = Instant::now();
        self.replay.set_cap(self.config.limits.replay_memory);
        for lane in self.all().flat_map(|upstream| upstream.lanes()) {
            give_way();
            lane.policies.take_over(now);
        }
        for upstream in old.into_iter().flat_map(Table::all) {
            give_way();
            let new = if *upstream.name == *UNMATCHED { Some(&self.unmatched) } else { self.named(&upstream.name) };
            if !new.is_some_and(|new| Arc::ptr_eq(&new.transport, &upstream.transport)) {
                upstream.transport.retire();
            }
        }
        self.forget_others(metrics);
    }

    /// Frees it piece by piece, where nobody else has it.
    pub(crate) fn take_apart(table: Arc<Table>) {
        let Some(Table { config, upstreams, .. }) = Arc::into_inner(table) else { return };
        for upstream in upstreams {
            give_way();
            drop(upstream);
        }
        let Some(Config { upstreams, .. }) = Arc::into_inner(config) else { return };
        for upstream in upstreams {
            give_way();
            drop(upstream);
        }
    }

    /// Removes the series of upstreams and lanes that the table does not have.
    pub fn forget_others(&self, metrics: &Metrics) {
        metrics.retain(&|name, route| {
            let upstream = if name == UNMATCHED { Some(&self.unmatched) } else { self.named(name) };
            upstream.is_some_and(|upstream| upstream.lanes().any(|lane| &*lane.route == route))
        });
    }

    /// The upstream that names this host; `None`: unmatched. Order: exact:port, exact, wildcard:port, longest wildcard.
    pub fn find(&self, host: &Host, port: u16) -> Option<&Arc<Upstream>> {
        self.index.find(host, port).map(|at| &self.upstreams[at])
    }

    /// The upstream of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.index.named(name).map(|at| &self.upstreams[at])
    }

    /// Every upstream, and `unmatched` at the end.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.iter().chain(std::iter::once(&self.unmatched))
    }
}

impl Maker<'_> {
    fn pool(
        &self,
        to: &[crate::origin::Origin],
        tls: &config::Tls,
        connections: &config::Connections,
        allow_addresses: &AddressSet,
    ) -> transport::Settings {
        transport::Settings {
            to: to.to_vec(),
            tls: tls.clone(),
            connections: connections.clone(),
            allow_addresses: allow_addresses.clone(),
            max_header_bytes: self.config.limits.max_header_bytes,
            max_headers: self.config.limits.max_headers.get(),
        }
    }

    fn upstream(
        &self,
        old: Option<&Arc<Upstream>>,
        plan: Plan<'_>,
        config: Option<Arc<config::Upstream>>,
    ) -> Result<Upstream, String> {
        let report = self.metrics.upstream(plan.name);
        let transport = match old.filter(|old| self.same_connector && *old.transport.settings() == plan.pool) {
            Some(old) => old.transport.clone(),
            None => Transport::new(plan.pool, self.connector.clone(), report.clone())?,
        };
        let make = |settings: &policies::Settings, heritage: &Heritage<'_>, route: &Arc<str>| {
            let lane = self.metrics.lane(plan.name, route);
            let policies =
                Policies::new(settings.clone(), heritage, self.replay.clone(), report.clone(), lane.clone(), self.now);
            Arc::new(Lane { route: route.clone(), own: heritage.own, policies, report: lane })
        };
        let before = old.map(|old| (&old.lane.policies, ALL_OWN));
        let lane = make(plan.policies, &Heritage { old: before, parent: None, own: ALL_OWN }, &"".into());
        let routes = plan.routes.iter().map(|route| {
            let before = old.and_then(|old| old.routes.iter().find(|(_, lane)| lane.route == route.name));
            let before = before.map(|(_, lane)| (&lane.policies, lane.own));
            let heritage = Heritage { old: before, parent: Some(&lane.policies), own: route.own };
            (route.matcher.clone(), make(&route.policies, &heritage, &route.name))
        });
        let routes: Vec<_> = routes.collect();
        let sieve = Sieve::new(plan.routes.iter().map(|route| &route.matcher));
        Ok(Upstream { name: plan.name.clone(), config, lane, routes, sieve, transport, report })
    }
}
