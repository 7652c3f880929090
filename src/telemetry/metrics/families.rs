//! Every metric: name, help, labels (interface section 8).

use std::sync::Arc;

use super::series::{Family, Histogram, IntCounter, IntGauge, Series, Shown, Timestamp};

/// Counters by their labels.
pub(in crate::telemetry) type IntCounterVec = Arc<Family<IntCounter>>;
/// Gauges by their labels.
pub(in crate::telemetry) type IntGaugeVec = Arc<Family<IntGauge>>;
/// Histograms by their labels.
pub(in crate::telemetry) type HistogramVec = Arc<Family<Histogram>>;

/// Seconds, from a millisecond to the longest request that is usual.
pub(in crate::telemetry) const BOUNDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The families.
#[derive(Clone)]
pub(in crate::telemetry) struct Families {
    pub(in crate::telemetry) requests: IntCounterVec,
    pub(in crate::telemetry) request_duration: HistogramVec,
    pub(in crate::telemetry) attempts: IntCounterVec,
    pub(in crate::telemetry) attempt_duration: HistogramVec,
    pub(in crate::telemetry) retries: IntCounterVec,
    pub(in crate::telemetry) retries_skipped: IntCounterVec,
    pub(in crate::telemetry) client_retries: IntCounterVec,
    pub(in crate::telemetry) circuit_state: IntGaugeVec,
    pub(in crate::telemetry) circuit_transitions: IntCounterVec,
    pub(in crate::telemetry) rejected: IntCounterVec,
    pub(in crate::telemetry) rate_limit_wait: HistogramVec,
    pub(in crate::telemetry) rate_limit_paused: IntGaugeVec,
    pub(in crate::telemetry) in_flight: IntGaugeVec,
    pub(in crate::telemetry) queued: IntGaugeVec,
    pub(in crate::telemetry) upstream_connections: IntGaugeVec,
    pub(in crate::telemetry) connect_duration: HistogramVec,
    pub(in crate::telemetry) connect_failures: IntCounterVec,
    pub(in crate::telemetry) tunnels: IntGaugeVec,
    pub(in crate::telemetry) bytes: IntCounterVec,
    pub(in crate::telemetry) budget_remaining: IntGaugeVec,
    pub(in crate::telemetry) certificate_expiry: IntGaugeVec,
    pub(in crate::telemetry) intercept_handshakes: IntCounterVec,
    pub(in crate::telemetry) replay_bytes: IntGauge,
    pub(in crate::telemetry) downstream_connections: IntGauge,
    pub(in crate::telemetry) limit_refused: IntCounterVec,
    pub(in crate::telemetry) log_lines_dropped: IntCounter,
    pub(in crate::telemetry) spans: IntCounterVec,
    pub(in crate::telemetry) config_reloads: IntCounterVec,
    pub(in crate::telemetry) last_reload_success: IntGauge,
    pub(in crate::telemetry) last_reload_success_timestamp: Timestamp,
    pub(in crate::telemetry) build_info: IntGaugeVec,
}

impl Families {
    /// All of them, and the same as a scrape shows them, by name.
    pub(in crate::telemetry) fn new() -> (Families, Vec<Arc<dyn Shown>>) {
        let mut all: Vec<Arc<dyn Shown>> = Vec::new();
        let r = &mut all;
        let families = Families {
            requests: counter(
                r,
                "requests_total",
                "Requests of apps by the status they got; 499 is an app that hung up.",
                &["upstream", "route", "method", "code"],
            ),
            request_duration: histogram(
                r,
                "request_duration_seconds",
                "From an app's request to the end of its answer, retries and waits included.",
                &["upstream", "route"],
            ),
            attempts: counter(
                r,
                "attempts_total",
                "Attempts at an upstream by how they ended.",
                &["upstream", "route", "result"],
            ),
            attempt_duration: histogram(
                r,
                "attempt_duration_seconds",
                "From an attempt's start to its response headers, connecting included.",
                &["upstream"],
            ),
            retries: counter(
                r,
                "retries_total",
                "Attempts made again, by what made the one before fail.",
                &["upstream", "reason"],
            ),
            retries_skipped: counter(
                r,
                "retries_skipped_total",
                "Retries that were wanted and not made, by what forbade them.",
                &["upstream", "reason"],
            ),
            client_retries: counter(
                r,
                "client_retries_total",
                "Requests that the app's own SDK announces as retries, by the header that says so.",
                &["upstream", "source"],
            ),
            circuit_state: gauge(r, "circuit_state", "0 closed, 1 half-open, 2 open.", &["upstream", "route"]),
            circuit_transitions: counter(
                r,
                "circuit_transitions_total",
                "Changes of a circuit's state.",
                &["upstream", "route", "to"],
            ),
            rejected: counter(
                r,
                "rejected_total",
                "Requests that Outrigger refused by itself.",
                &["upstream", "reason"],
            ),
            rate_limit_wait: histogram(
                r,
                "rate_limit_wait_seconds",
                "How long attempts waited for a token.",
                &["upstream"],
            ),
            rate_limit_paused: gauge(
                r,
                "rate_limit_paused",
                "1 while a Retry-After of the upstream's keeps a bucket shut.",
                &["upstream"],
            ),
            in_flight: gauge(r, "requests_in_flight", "Requests of apps under way.", &["upstream"]),
            queued: gauge(r, "requests_queued", "Attempts waiting for a token, a slot or a connection.", &["upstream"]),
            upstream_connections: gauge(
                r,
                "upstream_connections",
                "Connections to the upstream by state: active, idle, connecting.",
                &["upstream", "state"],
            ),
            connect_duration: histogram(
                r,
                "upstream_connect_duration_seconds",
                "How long making a connection took: DNS, TCP and TLS together.",
                &["upstream"],
            ),
            connect_failures: counter(
                r,
                "upstream_connect_failures_total",
                "Connections that could not be made.",
                &["upstream", "reason"],
            ),
            tunnels: gauge(r, "tunnels", "Open CONNECT tunnels.", &["upstream"]),
            bytes: counter(
                r,
                "bytes_total",
                "Body and tunnel bytes, sent to the upstream and received from it.",
                &["upstream", "direction"],
            ),
            budget_remaining: gauge(
                r,
                "retry_budget_remaining",
                "Retries that the upstream's own budget allows now.",
                &["upstream"],
            ),
            certificate_expiry: gauge(
                r,
                "certificate_expiry_timestamp_seconds",
                "When the first of these certificates expires: client (tls.client_cert) or ca (tls.ca_file).",
                &["upstream", "kind"],
            ),
            intercept_handshakes: counter(
                r,
                "intercept_handshakes_total",
                "TLS handshakes of apps whose CONNECT is intercepted.",
                &["upstream", "result"],
            ),
            replay_bytes: one(r, "replay_bytes", "Request body bytes held for a retry, of all upstreams."),
            downstream_connections: one(r, "downstream_connections", "Open connections of apps."),
            limit_refused: counter(r, "limit_refused_total", "What was refused because of `limits`.", &["limit"]),
            log_lines_dropped: one(
                r,
                "log_lines_dropped_total",
                "Log lines dropped because nobody read standard output fast enough.",
            ),
            spans: counter(
                r,
                "spans_total",
                "Spans by what became of them: exported, queue_full (dropped, since the collector is too slow) or failed.",
                &["result"],
            ),
            config_reloads: counter(r, "config_reloads_total", "Reloads: success or failure.", &["result"]),
            last_reload_success: one(
                r,
                "config_last_reload_success",
                "1 if the configuration file as last read is the one in effect.",
            ),
            last_reload_success_timestamp: one(
                r,
                "config_last_reload_success_timestamp_seconds",
                "When a configuration last took effect.",
            ),
            build_info: gauge(r, "build_info", "Always 1.", &["version", "revision"]),
        };
        all.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        (families, all)
    }

    /// Removes the series of upstreams and routes that are not to be kept.
    pub(in crate::telemetry) fn prune(&self, keep: &dyn Fn(&str, &str) -> bool) {
        for counters in [
            &self.requests,
            &self.attempts,
            &self.retries,
            &self.retries_skipped,
            &self.client_retries,
            &self.circuit_transitions,
            &self.rejected,
            &self.connect_failures,
            &self.bytes,
            &self.intercept_handshakes,
        ] {
            counters.retain(keep);
        }
        for gauges in [
            &self.circuit_state,
            &self.rate_limit_paused,
            &self.in_flight,
            &self.queued,
            &self.upstream_connections,
            &self.tunnels,
            &self.budget_remaining,
            &self.certificate_expiry,
        ] {
            gauges.retain(keep);
        }
        for histograms in
            [&self.request_duration, &self.attempt_duration, &self.rate_limit_wait, &self.connect_duration]
        {
            histograms.retain(keep);
        }
    }

    /// The histogram of one upstream.
    pub(in crate::telemetry) fn of_upstream(vec: &HistogramVec, upstream: &str) -> Histogram {
        vec.with_label_values(&[upstream])
    }
}

type All = Vec<Arc<dyn Shown>>;

fn counter(all: &mut All, name: &str, help: &'static str, labels: &'static [&'static str]) -> IntCounterVec {
    family(all, name, help, labels)
}

fn gauge(all: &mut All, name: &str, help: &'static str, labels: &'static [&'static str]) -> IntGaugeVec {
    family(all, name, help, labels)
}

fn histogram(all: &mut All, name: &str, help: &'static str, labels: &'static [&'static str]) -> HistogramVec {
    family(all, name, help, labels)
}

/// The only series of a family without labels.
fn one<S: Series>(all: &mut All, name: &str, help: &'static str) -> S {
    family::<S>(all, name, help, &[]).with_label_values(&[])
}

fn family<S: Series>(all: &mut All, name: &str, help: &'static str, labels: &'static [&'static str]) -> Arc<Family<S>> {
    let family = Arc::new(Family::new(name, help, labels));
    all.push(family.clone());
    family
}
