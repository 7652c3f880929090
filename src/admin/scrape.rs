//! Gauges that mirror live state are set when somebody looks, not whenever it changes.

use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::certificate::expires;
use crate::policy::replay::ReplayMemory;
use crate::telemetry::metrics::{Connections, Limit, Metrics};
use crate::upstream::table::Table;
use crate::upstream::{Lane, Upstream};

/// The metrics in the text exposition format, as of `now`.
pub(super) fn scrape(metrics: &Metrics, table: &Table, replay: &ReplayMemory, now: Instant) -> String {
    metrics.set_replay(replay.held(), replay.refused());
    metrics.set_refused(Limit::Names, table.connector.names_forgotten());
    for upstream in table.upstreams.iter().chain([&table.unmatched]) {
        let own_ca = table.interception.as_ref().filter(|_| upstream.intercepts());
        show(upstream, own_ca.map(|own| own.chain()), now);
    }
    metrics.encode()
}

fn show(upstream: &Upstream, own_ca: Option<&[CertificateDer<'_>]>, now: Instant) {
    let own = upstream.lane.policies.status(now);
    upstream.report.set_connections(connections(upstream));
    upstream.report.set_budget_remaining(own.budget_remaining);
    upstream.lane.report.set_circuit(own.circuit.map(|circuit| circuit.state));
    let mut paused = own.paused_for.is_some();
    for (at, (_, lane)) in upstream.routes.iter().enumerate() {
        let status = lane.policies.status(now);
        paused |= status.paused_for.is_some();
        // A circuit that is shared is shown once, as the upstream's.
        let circuit = status.circuit.filter(|_| own_circuit(upstream, at));
        lane.report.set_circuit(circuit.map(|circuit| circuit.state));
    }
    upstream.report.set_paused(paused);
    let tls = upstream.config.as_ref().map(|config| &config.tls);
    let client = tls.and_then(|tls| tls.identity.as_ref()).map(|identity| &*identity.chain);
    let ca = tls.and_then(|tls| tls.roots.as_ref()).map(|roots| &***roots);
    for (kind, certificates) in [("client", client), ("ca", ca), ("intercept", own_ca)] {
        let first = certificates.and_then(|certificates| certificates.iter().filter_map(expires).min());
        upstream.report.set_certificate_expiry(kind, first);
    }
}

/// An upstream's connections by state.
pub(super) fn connections(upstream: &Upstream) -> Connections {
    let counts = upstream.transport.counts();
    Connections { active: counts.active, idle: counts.idle, connecting: counts.connecting }
}

/// Whether the route at this place has a circuit of its own, rather than its upstream's.
pub(super) fn own_circuit(upstream: &Upstream, at: usize) -> bool {
    upstream.config.as_ref().and_then(|config| config.routes.get(at)).is_some_and(|route| route.own.breaker)
}

/// The lanes of an upstream, its own first, each with whether its circuit is its own.
pub(super) fn lanes(upstream: &Upstream) -> impl Iterator<Item = (&Lane, bool)> {
    let routes = upstream.routes.iter().enumerate().map(|(at, (_, lane))| (&**lane, own_circuit(upstream, at)));
    std::iter::once((&*upstream.lane, true)).chain(routes)
}
