//! The routing snapshot, and how a new configuration evolves it.

use std::sync::Arc;

use crate::config::Config;
use crate::origin::Host;
use crate::policy::replay::ReplayMemory;
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;
use crate::upstream::connect::Connector;

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
}

impl Table {
    /// A table for `config`, taking over from `old` the state that still has meaning. Pure but for the pools it makes:
    /// `old` is not changed, so that a reload that fails later has done nothing.
    ///
    /// # Errors
    /// A sentence for each upstream that can't be set up.
    pub fn evolve(
        _old: Option<&Table>,
        _config: Arc<Config>,
        _connector: Arc<Connector>,
        _metrics: &Arc<Metrics>,
        _replay: &Arc<ReplayMemory>,
    ) -> Result<Table, Vec<String>> {
        todo!()
    }

    /// Closes what the newer table did not take over. Called once the newer one is in place.
    pub fn retire(&self, _newer: &Table) {
        todo!()
    }

    /// The upstream that names this host. `None`: unmatched.
    pub fn find(&self, _host: &Host, _port: u16) -> Option<&Arc<Upstream>> {
        todo!()
    }

    /// The upstream of this name.
    pub fn named(&self, _name: &str) -> Option<&Arc<Upstream>> {
        todo!()
    }
}
