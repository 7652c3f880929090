//! Every metric: name, help, labels (interface section 8). Children are resolved when the configuration is built.

use std::sync::Arc;

use crate::telemetry::report::{LaneReport, UpstreamReport};

/// The process's metrics.
pub struct Metrics {}

impl Metrics {
    /// An own registry, with the process collector.
    pub fn new() -> Arc<Metrics> {
        todo!()
    }

    /// The reporter of an upstream, the same one for the same name as long as the name lives.
    pub fn upstream(self: &Arc<Self>, _name: &str) -> Arc<UpstreamReport> {
        todo!()
    }

    /// The reporter of one lane of an upstream; `route` is empty for the upstream's own.
    pub fn lane(self: &Arc<Self>, _upstream: &str, _route: &str) -> Arc<LaneReport> {
        todo!()
    }

    /// Removes the series of upstreams and lanes that are not in `keep` (upstream, route).
    pub fn retain(&self, _keep: &dyn Fn(&str, &str) -> bool) {
        todo!()
    }

    /// The text exposition format (0.0.4).
    pub fn encode(&self) -> String {
        todo!()
    }
}
