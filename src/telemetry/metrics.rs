//! The process's metrics: the registry, who holds which children, and how they are shown. Names, help texts and labels
//! are in `families`. Children are resolved when the configuration is built, never while a request waits.

mod children;
mod families;
mod series;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};

pub(super) use children::{Codes, Lazy, METHODS, method_index};
pub(super) use families::{BOUNDS, Families, IntCounterVec, IntGaugeVec};
use series::Shown;
pub(super) use series::{Histogram, IntCounter, IntGauge};

use crate::telemetry::export::SpanReport;
use crate::telemetry::report::{Gauge, LaneReport, UpstreamReport};

/// Which of `limits` refused something; the label of `outrigger_limit_refused_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// `max_connections`: a connection of an app's.
    Connections,
    /// `max_header_bytes`: a head.
    HeaderBytes,
    /// `max_headers`: a head.
    Headers,
    /// `header_timeout`: a head that came too slowly.
    HeaderTime,
    /// `replay_memory`: a request body was not kept for a retry.
    ReplayMemory,
    /// The 10,000 buckets of `rate_limit.key`: the one used longest ago was forgotten.
    KeyedBuckets,
    /// The process has no file descriptors left but those that are kept back.
    Descriptors,
    /// The 256 look-ups of names at once.
    Lookups,
    /// The 4,096 names whose addresses are remembered: one was forgotten while it was still good.
    Names,
    /// The 1,000 certificates of an intercepting CA: the one used longest ago was forgotten.
    Leaves,
    /// Frames of an app's HTTP/2 connection that carry nothing, or requests that it takes back at once: a bound of our own.
    Flood,
}

impl Limit {
    /// All of them.
    pub const ALL: [Limit; 11] = [
        Limit::Connections,
        Limit::HeaderBytes,
        Limit::Headers,
        Limit::HeaderTime,
        Limit::ReplayMemory,
        Limit::KeyedBuckets,
        Limit::Descriptors,
        Limit::Lookups,
        Limit::Names,
        Limit::Leaves,
        Limit::Flood,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Limit::Connections => "max_connections",
            Limit::HeaderBytes => "max_header_bytes",
            Limit::Headers => "max_headers",
            Limit::HeaderTime => "header_timeout",
            Limit::ReplayMemory => "replay_memory",
            Limit::KeyedBuckets => "keyed_buckets",
            Limit::Descriptors => "descriptors",
            Limit::Lookups => "dns_lookups",
            Limit::Names => "dns_names",
            Limit::Leaves => "leaf_certificates",
            Limit::Flood => "http2_flood",
        }
    }
}

/// How many connections of an upstream are in which state; the label of `outrigger_upstream_connections`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Carrying a request or an upgraded stream.
    pub active: usize,
    /// Waiting for one.
    pub idle: usize,
    /// Being made.
    pub connecting: usize,
}

/// The process's metrics.
pub struct Metrics {
    /// Of what the process itself uses.
    process: Registry,
    families: Families,
    /// The same, as they are shown.
    shown: Vec<Arc<dyn Shown>>,
    upstreams: Mutex<HashMap<String, Arc<UpstreamReport>>>,
    lanes: Mutex<HashMap<(String, String), Arc<LaneReport>>>,
    /// Log lines dropped so far, as the log's writer counts them. One scrape at a time, so that none is counted twice.
    dropped: Mutex<Box<dyn Fn() -> u64 + Send>>,
}

impl Metrics {
    /// All families, and the process collector.
    pub fn new() -> Arc<Metrics> {
        let process = Registry::new();
        let (families, shown) = Families::new();
        process.register(Box::new(ProcessCollector::for_self())).expect("the process collector is registered once");
        for limit in Limit::ALL {
            families.limit_refused.with_label_values(&[limit.as_str()]);
        }
        for result in ["success", "failure"] {
            families.config_reloads.with_label_values(&[result]);
        }
        families
            .build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), option_env!("OUTRIGGER_REVISION").unwrap_or("unknown")])
            .set(1);
        Arc::new(Metrics {
            process,
            families,
            shown,
            upstreams: Mutex::default(),
            lanes: Mutex::default(),
            dropped: Mutex::new(Box::new(|| 0)),
        })
    }

    /// The reporter of an upstream, the same one for the same name as long as the name lives.
    pub fn upstream(self: &Arc<Self>, name: &str) -> Arc<UpstreamReport> {
        lock(&self.upstreams)
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(UpstreamReport::new(&self.families, name)))
            .clone()
    }

    /// The reporter of one lane of an upstream; `route` is empty for the upstream's own.
    pub fn lane(self: &Arc<Self>, upstream: &str, route: &str) -> Arc<LaneReport> {
        lock(&self.lanes)
            .entry((upstream.to_owned(), route.to_owned()))
            .or_insert_with(|| Arc::new(LaneReport::new(&self.families, upstream, route)))
            .clone()
    }

    /// Removes the series of upstreams and lanes that are not in `keep` (upstream, route; an empty route is the
    /// upstream's own). Who still holds such a reporter counts into nothing.
    pub fn retain(&self, keep: &dyn Fn(&str, &str) -> bool) {
        let mut gone = false;
        lock(&self.upstreams).retain(|name, report| {
            let kept = keep(name, "");
            if !kept {
                report.retire();
                gone = true;
            }
            kept
        });
        lock(&self.lanes).retain(|(upstream, route), report| {
            let kept = keep(upstream, route);
            if !kept {
                report.retire();
                gone = true;
            }
            kept
        });
        // Every series has a reporter, so where none is gone there is nothing to look for.
        if gone {
            self.families.prune(keep);
        }
    }

    /// Something was refused because of `limits`.
    pub fn limit_refused(&self, limit: Limit) {
        self.families.limit_refused.with_label_values(&[limit.as_str()]).inc();
    }

    /// A connection of an app's is open until the guard is dropped.
    pub fn downstream(&self) -> Gauge {
        Gauge::up(&self.families.downstream_connections)
    }

    /// A reload took effect, or was refused.
    pub fn reload(&self, took_effect: bool) {
        let families = &self.families;
        let result = if took_effect { "success" } else { "failure" };
        families.config_reloads.with_label_values(&[result]).inc();
        self.configured(took_effect);
    }

    /// The reporter of spans. Their series are shown from now on.
    pub fn spans(&self) -> SpanReport {
        SpanReport::new(&self.families)
    }

    /// The first configuration took effect (or, by [`Metrics::reload`], a later one did or did not).
    pub fn configured(&self, took_effect: bool) {
        let families = &self.families;
        families.last_reload_success.set(i64::from(took_effect));
        if took_effect {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            families.last_reload_success_timestamp.set(since.as_secs_f64());
        }
    }

    /// Where the number of log lines dropped so far is read from at each scrape.
    pub fn count_dropped_lines(&self, dropped: impl Fn() -> u64 + Send + 'static) {
        *lock(&self.dropped) = Box::new(dropped);
    }

    /// Bytes held by replay buffers, as of now, and how often they met their cap so far.
    pub fn set_replay(&self, bytes: u64, refused: u64) {
        self.families.replay_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.set_refused(Limit::ReplayMemory, refused);
    }

    /// How often a bound was met so far, where that is counted elsewhere.
    pub fn set_refused(&self, limit: Limit, so_far: u64) {
        let counter = self.families.limit_refused.with_label_values(&[limit.as_str()]);
        let _one_at_a_time = lock(&self.dropped);
        counter.inc_by(so_far.saturating_sub(counter.get()));
    }

    /// The text exposition format (0.0.4).
    pub fn encode(&self) -> String {
        {
            let dropped = lock(&self.dropped);
            let counted = self.families.log_lines_dropped.get();
            self.families.log_lines_dropped.inc_by(dropped().saturating_sub(counted));
        }
        let mut text = String::new();
        for family in &self.shown {
            family.write(&mut text);
        }
        // It fails only where a family has neither a name nor series.
        let _ = TextEncoder::new().encode_utf8(&self.process.gather(), &mut text);
        text
    }

    /// The value of one series as it is written out, for tests: `outrigger_requests_in_flight{upstream="a"}`.
    pub fn sample(&self, series: &str) -> Option<f64> {
        self.encode().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::telemetry::report::{AttemptResult, Rejected};

    #[test]
    fn the_same_name_keeps_its_counters() {
        let metrics = Metrics::new();
        metrics.upstream("a").rejected(Rejected::Loop);
        metrics.upstream("a").rejected(Rejected::Loop);
        assert_eq!(metrics.sample(r#"outrigger_rejected_total{reason="loop",upstream="a"}"#), Some(2.0));
    }

    #[test]
    fn a_removed_upstream_takes_its_series_along_and_comes_back_at_nothing() {
        let metrics = Metrics::new();
        let (a, lane) = (metrics.upstream("a"), metrics.lane("a", "charges"));
        metrics.upstream("b").rejected(Rejected::Loop);
        lane.request(&Method::GET, 200, Duration::from_millis(3));
        metrics.retain(&|upstream, _| upstream == "b");
        assert!(!metrics.encode().contains(r#"upstream="a""#), "{}", metrics.encode());
        // A request that was in flight ends later.
        lane.request(&Method::GET, 404, Duration::from_millis(3));
        lane.attempt(AttemptResult::Success, Duration::from_millis(3));
        a.client_retry("amz-sdk-request");
        assert!(!metrics.encode().contains(r#"upstream="a""#));
        assert_eq!(metrics.sample(r#"outrigger_rejected_total{reason="loop",upstream="b"}"#), Some(1.0));
        metrics.lane("a", "charges").request(&Method::GET, 200, Duration::from_millis(3));
        let series = r#"outrigger_requests_total{code="200",method="GET",route="charges",upstream="a"}"#;
        assert_eq!(metrics.sample(series), Some(1.0));
    }

    #[test]
    fn a_removed_route_leaves_its_upstream_alone() {
        let metrics = Metrics::new();
        metrics.lane("a", "").request(&Method::GET, 200, Duration::ZERO);
        metrics.lane("a", "charges").request(&Method::GET, 200, Duration::ZERO);
        metrics.retain(&|_, route| route.is_empty());
        let text = metrics.encode();
        assert!(text.contains(r#"outrigger_requests_total{code="200",method="GET",route="",upstream="a"} 1"#));
        assert!(!text.contains("charges"));
    }

    #[test]
    fn every_name_of_the_contract_is_shown_once_it_has_a_series() {
        let metrics = Metrics::new();
        let (upstream, lane) = (metrics.upstream("a"), metrics.lane("a", ""));
        lane.request(&Method::GET, 200, Duration::ZERO);
        upstream.client_retry("x-stainless-retry-count");
        upstream.set_connections(Connections::default());
        lane.set_circuit(Some(crate::telemetry::report::CircuitState::Closed));
        upstream.set_budget_remaining(Some(3));
        upstream.set_certificate_expiry("ca", Some(1));
        let text = metrics.encode();
        for name in [
            "requests_total",
            "request_duration_seconds",
            "attempts_total",
            "attempt_duration_seconds",
            "retries_total",
            "retries_skipped_total",
            "client_retries_total",
            "circuit_state",
            "circuit_transitions_total",
            "rejected_total",
            "rate_limit_wait_seconds",
            "rate_limit_paused",
            "requests_in_flight",
            "requests_queued",
            "upstream_connections",
            "upstream_connect_duration_seconds",
            "upstream_connect_failures_total",
            "tunnels",
            "bytes_total",
            "replay_bytes",
            "downstream_connections",
            "retry_budget_remaining",
            "limit_refused_total",
            "log_lines_dropped_total",
            "certificate_expiry_timestamp_seconds",
            "config_reloads_total",
            "config_last_reload_success",
            "config_last_reload_success_timestamp_seconds",
            "build_info",
        ] {
            assert!(text.contains(&format!("# TYPE outrigger_{name} ")), "{name} is missing in\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes") && text.contains("process_open_fds"));
    }

    #[test]
    fn dropped_lines_are_counted_once_each() {
        let metrics = Metrics::new();
        metrics.count_dropped_lines(|| 3);
        metrics.encode();
        assert_eq!(metrics.sample("outrigger_log_lines_dropped_total"), Some(3.0));
    }

    #[test]
    fn unusual_methods_share_a_label() {
        let metrics = Metrics::new();
        for method in ["PROPFIND", "BREW"] {
            metrics.lane("a", "").request(&Method::from_bytes(method.as_bytes()).unwrap(), 207, Duration::ZERO);
        }
        let series = r#"outrigger_requests_total{code="207",method="OTHER",route="",upstream="a"}"#;
        assert_eq!(metrics.sample(series), Some(2.0));
    }
}
