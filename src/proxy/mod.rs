//! One request, from the app's socket to its answer.

pub mod body;
pub mod headers;
pub mod listener;
pub mod respond;
pub mod target;
pub mod tunnel;
pub mod upgrade;

use std::sync::Arc;

use crate::shared::Shared;
use crate::shutdown::Drain;
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::upstream::table::Table;

/// What every listener of apps shares.
pub struct Proxy {
    /// The routing snapshot.
    pub table: Arc<Shared<Table>>,
    /// Where access lines go.
    pub access: Arc<Shared<AccessLog>>,
    /// What is in flight.
    pub drain: Arc<Drain>,
    /// Process-wide counters.
    pub metrics: Arc<Metrics>,
}

impl Proxy {
    /// For all listeners of a process.
    pub fn new(
        table: Arc<Shared<Table>>,
        access: Arc<Shared<AccessLog>>,
        drain: Arc<Drain>,
        metrics: Arc<Metrics>,
    ) -> Arc<Proxy> {
        Arc::new(Proxy { table, access, drain, metrics })
    }
}

/// What a listener is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `listeners.proxy`: any upstream, by URL, Host or CONNECT.
    Any,
    /// An upstream's own `listen`.
    Upstream(Arc<str>),
}
