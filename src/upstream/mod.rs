//! Upstreams as live state: the routing table, and for each upstream its lanes (policies) and its pool.

pub mod answer;
pub mod balance;
pub mod connect;
pub mod connection;
#[cfg(feature = "otlp")]
pub(crate) mod direct;
pub mod dns;
pub mod egress;
pub mod eyeballs;
pub mod hosts;
pub(crate) mod index;
pub mod places;
pub mod pool;
pub mod request;
pub mod resolver;
pub mod route;
mod sieve;
pub mod table;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod transport;
pub mod upload;

use std::sync::Arc;

use crate::config;
use crate::origin::{Host, Origin, Scheme};
use crate::policy::policies::{OwnState, Policies};
use crate::telemetry::report::{LaneReport, UpstreamReport};
use crate::upstream::sieve::Sieve;
use crate::upstream::transport::Transport;

/// One upstream, live.
pub struct Upstream {
    /// The name used in metrics and logs; `unmatched` for all hosts that no upstream names.
    pub name: Arc<str>,
    /// What it was made from; `None` for `unmatched`.
    pub config: Option<Arc<config::Upstream>>,
    /// Its own policies.
    pub lane: Arc<Lane>,
    /// Its routes', first match wins.
    pub routes: Vec<(config::Match, Arc<Lane>)>,
    /// Finds the first of them.
    sieve: Sieve,
    /// The way out.
    pub transport: Arc<Transport>,
    /// Its counters.
    pub report: Arc<UpstreamReport>,
}

/// The policies of an upstream or of one of its routes.
pub struct Lane {
    /// The route's name; empty for the upstream's own.
    pub route: Arc<str>,
    /// Which states are its own; all of them for the upstream's own lane.
    pub own: OwnState,
    /// The policies.
    pub policies: Policies,
    /// Their counters.
    pub report: Arc<LaneReport>,
}

impl Upstream {
    /// The lane that a request takes. `path` is raw and without query.
    pub fn lane(&self, method: &http::Method, path: &str) -> &Arc<Lane> {
        let route = self.sieve.first(method, path, |at| route::matches(&self.routes[at].0, method, path));
        route.map_or(&self.lane, |at| &self.routes[at].1)
    }

    /// Whether its tunnels end here.
    pub fn intercepts(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.connect == config::Connect::Intercept)
    }

    /// All lanes, the upstream's own first.
    pub fn lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        std::iter::once(&self.lane).chain(self.routes.iter().map(|(_, lane)| lane))
    }

    /// Where a request for this host leads when the upstream has no `to`.
    pub fn origin(&self, asked: Scheme, host: Host, port: u16) -> Origin {
        route::origin(self.config.as_deref(), asked, host, port)
    }
}
