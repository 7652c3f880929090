//! Upstreams as live state: the routing table, and for each upstream its lanes (policies) and its pool.

pub mod answer;
pub mod balance;
pub mod connect;
pub mod connection;
pub mod dns;
pub mod egress;
pub mod eyeballs;
pub mod hosts;
pub mod places;
pub mod pool;
pub mod request;
pub mod resolver;
pub mod route;
pub mod table;
pub mod tls;
pub mod transport;
pub mod upload;

use std::sync::Arc;

use crate::origin::{Host, Origin, Scheme};
use crate::policy::pipeline::Policies;
use crate::telemetry::report::{LaneReport, UpstreamReport};
use crate::upstream::transport::Transport;

/// One upstream, live.
pub struct Upstream {
    /// The name used in metrics and logs; `unmatched` for all hosts that no upstream names.
    pub name: Arc<str>,
    /// What it was made from; `None` for `unmatched`.
    pub config: Option<crate::config::Upstream>,
    /// Its own policies.
    pub lane: Arc<Lane>,
    /// Its routes', first match wins.
    pub routes: Vec<(crate::config::Match, Arc<Lane>)>,
    /// The way out.
    pub transport: Arc<Transport>,
    /// Its counters.
    pub report: Arc<UpstreamReport>,
}

/// The policies of an upstream or of one of its routes.
pub struct Lane {
    /// The route's name; empty for the upstream's own.
    pub route: Arc<str>,
    /// The policies.
    pub policies: Policies,
    /// Their counters.
    pub report: Arc<LaneReport>,
}

impl Upstream {
    /// The lane that a request takes. `path` is raw and without query.
    pub fn lane(&self, _method: &http::Method, _path: &str) -> &Arc<Lane> {
        todo!()
    }

    /// Where a request for this host leads when the upstream has no `to`: by its `scheme`.
    pub fn origin(&self, _asked: Scheme, _host: Host, _port: u16) -> Origin {
        todo!()
    }
}
