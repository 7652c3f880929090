//! What happens, one method each: it counts, and logs where an operator wants to read of it. Call sites stay one line.

mod labels;
mod totals;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use labels::{AttemptResult, CircuitState, Handshake, Rejected, RetryReason, Skipped};
pub use totals::{BUCKETS, Totals, failed};

use crate::error::{ConnectFailure, Error};
use crate::telemetry::metrics::{
    Codes, Connections, Families, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Lazy, Limit, METHODS,
    Metrics, method_index,
};

/// What happens to one upstream.
pub struct UpstreamReport {
    name: Arc<str>,
    connect_duration: Histogram,
    connect_failures: [IntCounter; ConnectFailure::ALL.len()],
    retries: IntCounterVec,
    retried: Retried,
    retries_skipped: [IntCounter; Skipped::ALL.len()],
    client_retries: IntCounterVec,
    handshakes: IntCounterVec,
    /// The few sources there are, as they are met.
    client_retry_sources: Mutex<Vec<(&'static str, IntCounter)>>,
    rejected: [IntCounter; Rejected::ALL.len()],
    rate_limit_wait: Histogram,
    rate_limit_paused: IntGauge,
    in_flight: IntGauge,
    queued: IntGauge,
    buckets_forgotten: IntCounter,
    leaves_forgotten: IntCounter,
    tunnels: IntGauge,
    sent: IntCounter,
    received: IntCounter,
    /// Active, idle, connecting.
    connections: [IntGauge; 3],
    budget_remaining: IntGaugeVec,
    certificate_expiry: IntGaugeVec,
    lazy: Lazy,
    connect_log: Throttle,
    budget_log: Throttle,
    handshake_log: Throttle,
}

/// Children of `outrigger_retries_total`.
struct Retried {
    connect_failure: IntCounter,
    reset: IntCounter,
    timeout: IntCounter,
    stale_connection: IntCounter,
    statuses: Codes,
}

impl UpstreamReport {
    pub(super) fn new(families: &Families, name: &str) -> UpstreamReport {
        let retried = |reason| families.retries.with_label_values(&[name, reason]);
        let connections = |state| families.upstream_connections.with_label_values(&[name, state]);
        UpstreamReport {
            name: name.into(),
            connect_duration: Families::of_upstream(&families.connect_duration, name),
            connect_failures: ConnectFailure::ALL
                .map(|failure| families.connect_failures.with_label_values(&[name, failure.as_str()])),
            retries: families.retries.clone(),
            retried: Retried {
                connect_failure: retried("connect_failure"),
                reset: retried("reset"),
                timeout: retried("timeout"),
                stale_connection: retried("stale_connection"),
                statuses: Codes::new(),
            },
            retries_skipped: Skipped::ALL
                .map(|reason| families.retries_skipped.with_label_values(&[name, reason.as_str()])),
            client_retries: families.client_retries.clone(),
            handshakes: families.intercept_handshakes.clone(),
            client_retry_sources: Mutex::default(),
            rejected: Rejected::ALL.map(|reason| families.rejected.with_label_values(&[name, reason.as_str()])),
            rate_limit_wait: Families::of_upstream(&families.rate_limit_wait, name),
            rate_limit_paused: families.rate_limit_paused.with_label_values(&[name]),
            in_flight: families.in_flight.with_label_values(&[name]),
            queued: families.queued.with_label_values(&[name]),
            buckets_forgotten: families.limit_refused.with_label_values(&[Limit::KeyedBuckets.as_str()]),
            leaves_forgotten: families.limit_refused.with_label_values(&[Limit::Leaves.as_str()]),
            tunnels: families.tunnels.with_label_values(&[name]),
            sent: families.bytes.with_label_values(&[name, "sent"]),
            received: families.bytes.with_label_values(&[name, "received"]),
            connections: [connections("active"), connections("idle"), connections("connecting")],
            budget_remaining: families.budget_remaining.clone(),
            certificate_expiry: families.certificate_expiry.clone(),
            lazy: Lazy::new(),
            connect_log: Throttle::new(),
            budget_log: Throttle::new(),
            handshake_log: Throttle::new(),
        }
    }

    /// For tests: counts into a registry of its own.
    pub fn for_test(name: &str) -> Arc<UpstreamReport> {
        Metrics::new().upstream(name)
    }

    /// A connection was made: DNS, TCP and TLS together took this long.
    pub fn connected(&self, took: Duration) {
        self.connect_duration.observe(took.as_secs_f64());
    }

    /// A connection could not be made. One line a second is a warning, the others are for debugging.
    pub fn connect_failed(&self, failure: ConnectFailure, detail: &str) {
        let at = ConnectFailure::ALL.iter().position(|one| *one == failure).expect("ALL lists every failure");
        self.connect_failures[at].inc();
        let (upstream, reason) = (&*self.name, failure.as_str());
        match self.connect_log.pass(Instant::now()) {
            Some(suppressed) => {
                tracing::warn!(upstream, reason, detail, suppressed, "connecting to the upstream failed")
            }
            None => tracing::debug!(upstream, reason, detail, "connecting to the upstream failed"),
        }
    }

    /// A request was sent again.
    pub fn retried(&self, reason: RetryReason) {
        match reason {
            RetryReason::ConnectFailure => self.retried.connect_failure.inc(),
            RetryReason::Reset => self.retried.reset.inc(),
            RetryReason::Timeout => self.retried.timeout.inc(),
            RetryReason::StaleConnection => self.retried.stale_connection.inc(),
            RetryReason::Status(status) => {
                self.retried.statuses.get(status, |code| self.lazy.child(&self.retries, &[&self.name, code])).inc()
            }
        }
    }

    /// A wanted retry was not made. That the budget is spent is a warning, once a second.
    pub fn retry_skipped(&self, reason: Skipped) {
        self.retries_skipped[reason as usize - 1].inc();
        if reason == Skipped::Budget
            && let Some(suppressed) = self.budget_log.pass(Instant::now())
        {
            tracing::warn!(upstream = &*self.name, suppressed, "the retry budget is spent");
        }
    }

    /// The app's own SDK announces that this is a retry of its own. `source` is the header that says so.
    pub fn client_retry(&self, source: &'static str) {
        let mut sources = self.client_retry_sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = sources.iter().find(|(known, _)| *known == source) {
            counter.inc();
            return;
        }
        let counter = self.lazy.child(&self.client_retries, &[&self.name, source]);
        counter.inc();
        sources.push((source, counter));
    }

    /// An app's TLS was ended, or not. What an operator has to mend is a warning, once a second.
    pub fn handshake(&self, result: Handshake, detail: &str) {
        self.lazy.child(&self.handshakes, &[&self.name, result.as_str()]).inc();
        let upstream = &*self.name;
        let advice = match result {
            Handshake::Success => return,
            Handshake::Rejected => {
                "an app refused the certificate: have it trust Outrigger's CA, as `outrigger ca env` says"
            }
            Handshake::Strayed => "an app named another host in TLS than in CONNECT: its requests are refused",
            Handshake::Timeout | Handshake::Failed => "an app's TLS handshake failed",
        };
        match self.handshake_log.pass(Instant::now()) {
            Some(suppressed) => tracing::warn!(upstream, result = result.as_str(), detail, suppressed, "{advice}"),
            None => tracing::debug!(upstream, result = result.as_str(), detail, "{advice}"),
        }
    }

    /// A request was refused by Outrigger.
    pub fn rejected(&self, reason: Rejected) {
        self.rejected[reason as usize].inc();
    }

    /// An attempt waited this long for its token.
    pub fn token_waited(&self, waited: Duration) {
        self.rate_limit_wait.observe(waited.as_secs_f64());
    }

    /// A bucket of `rate_limit.key` was forgotten for want of room.
    pub fn bucket_forgotten(&self) {
        self.buckets_forgotten.inc();
    }

    /// A certificate that was made for an intercepted host was forgotten for want of room.
    pub fn leaf_forgotten(&self) {
        self.leaves_forgotten.inc();
    }

    /// Body bytes: to the upstream (`sent`) and from it (`received`).
    pub fn bytes(&self, sent: u64, received: u64) {
        if sent > 0 {
            self.sent.inc_by(sent);
        }
        if received > 0 {
            self.received.inc_by(received);
        }
    }

    /// A request is in flight until the guard is dropped.
    pub fn in_flight(self: &Arc<Self>) -> Gauge {
        Gauge::up(&self.in_flight)
    }

    /// An attempt is queued (for a token, a slot or a connection) until the guard is dropped.
    pub fn queued(self: &Arc<Self>) -> Gauge {
        Gauge::up(&self.queued)
    }

    /// A tunnel is open until the guard is dropped.
    pub fn tunnel(self: &Arc<Self>) -> Gauge {
        Gauge::up(&self.tunnels)
    }

    /// Requests, queued attempts and tunnels now.
    pub fn now(&self) -> Now {
        Now { in_flight: self.in_flight.get(), queued: self.queued.get(), tunnels: self.tunnels.get() }
    }

    /// Connections, as of now.
    pub fn set_connections(&self, connections: Connections) {
        let counts = [connections.active, connections.idle, connections.connecting];
        for (gauge, count) in self.connections.iter().zip(counts) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Whether a bucket is shut by a Retry-After, as of now.
    pub fn set_paused(&self, paused: bool) {
        self.rate_limit_paused.set(i64::from(paused));
    }

    /// What the upstream's own budget allows, as of now; `None`: there is none.
    pub fn set_budget_remaining(&self, retries: Option<u64>) {
        match retries {
            Some(retries) if !self.lazy.retired() => {
                self.budget_remaining.with_label_values(&[&*self.name]).set(i64::try_from(retries).unwrap_or(i64::MAX))
            }
            Some(_) | None => drop(self.budget_remaining.remove_label_values(&[&*self.name])),
        }
    }

    /// When the first of its certificates expires, `client` or `ca`; `None`: it has none.
    pub fn set_certificate_expiry(&self, kind: &str, unix_seconds: Option<i64>) {
        match unix_seconds {
            Some(at) if !self.lazy.retired() => {
                self.certificate_expiry.with_label_values(&[&*self.name, kind]).set(at);
            }
            Some(_) | None => drop(self.certificate_expiry.remove_label_values(&[&*self.name, kind])),
        }
    }

    /// Its series were removed: whatever is counted from now on is not shown.
    pub(super) fn retire(&self) {
        self.lazy.retire();
    }
}

/// How many of what there is at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Requests of apps.
    pub in_flight: i64,
    /// Attempts waiting for a token, a slot or a connection.
    pub queued: i64,
    /// CONNECT tunnels.
    pub tunnels: i64,
}

/// What happens on one lane: an upstream's own, or one of its routes'.
pub struct LaneReport {
    upstream: Arc<str>,
    route: Arc<str>,
    requests: IntCounterVec,
    /// A table of statuses for each of [`METHODS`].
    by_code: [Codes; METHODS.len()],
    request_duration: Histogram,
    attempts: [IntCounter; AttemptResult::ALL.len()],
    attempt_duration: Histogram,
    /// Answers whose body broke off; they are among `by_code` by their status. For [`Totals`] alone.
    broken: AtomicU32,
    /// Answers of 429 that count as a success of the attempt. For [`Totals`] alone.
    limited: AtomicU32,
    circuit_state: IntGaugeVec,
    circuit_transitions: IntCounterVec,
    /// Made when the lane turns out to have a circuit of its own.
    transitions: OnceLock<[IntCounter; CircuitState::ALL.len()]>,
    lazy: Lazy,
}

impl LaneReport {
    pub(super) fn new(families: &Families, upstream: &str, route: &str) -> LaneReport {
        LaneReport {
            upstream: upstream.into(),
            route: route.into(),
            requests: families.requests.clone(),
            by_code: std::array::from_fn(|_| Codes::new()),
            request_duration: families.request_duration.with_label_values(&[upstream, route]),
            attempts: AttemptResult::ALL
                .map(|result| families.attempts.with_label_values(&[upstream, route, result.as_str()])),
            attempt_duration: Families::of_upstream(&families.attempt_duration, upstream),
            broken: AtomicU32::new(0),
            limited: AtomicU32::new(0),
            circuit_state: families.circuit_state.clone(),
            circuit_transitions: families.circuit_transitions.clone(),
            transitions: OnceLock::new(),
            lazy: Lazy::new(),
        }
    }

    /// For tests: counts into a registry of its own.
    pub fn for_test() -> Arc<LaneReport> {
        Metrics::new().lane("test", "")
    }

    /// A request ended; 499 where the app hung up.
    pub fn request(&self, method: &http::Method, code: u16, took: Duration) {
        let method = method_index(method);
        self.by_code[method]
            .get(code, |code| self.lazy.child(&self.requests, &[&self.upstream, &self.route, METHODS[method], code]))
            .inc();
        self.request_duration.observe(took.as_secs_f64());
    }

    /// The body of an answer that is not counted as a failure broke off.
    pub fn broke(&self) {
        self.broken.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt that counts as a success was answered with 429.
    pub fn limited(&self) {
        self.limited.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt ended (`took` runs to its response headers). A cancelled one says nothing about how fast the upstream
    /// is, so it is not in the histogram.
    pub fn attempt(&self, result: AttemptResult, took: Duration) {
        self.attempts[result as usize].inc();
        if result != AttemptResult::Cancelled {
            self.attempt_duration.observe(took.as_secs_f64());
        }
    }

    /// An attempt failed with this error: logged at `debug`.
    pub fn attempt_failed(&self, number: u32, error: &Error) {
        tracing::debug!(
            upstream = &*self.upstream,
            route = &*self.route,
            attempt = number,
            error = error.code(),
            detail = %error,
            "an attempt failed"
        );
    }

    /// The circuit changed.
    pub fn circuit(&self, to: CircuitState, open_for: Option<Duration>) {
        self.transitions()[to as usize].inc();
        self.set_circuit(Some(to));
        tracing::warn!(
            upstream = &*self.upstream,
            route = &*self.route,
            to = to.as_str(),
            open_for_ms = open_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            "the circuit changed"
        );
    }

    /// The state of the lane's own circuit, as of now; `None`: it has none.
    pub fn set_circuit(&self, state: Option<CircuitState>) {
        let labels = [&*self.upstream, &*self.route];
        match state {
            Some(state) if !self.lazy.retired() => {
                self.transitions();
                self.circuit_state.with_label_values(&labels).set(state as i64);
            }
            Some(_) | None => drop(self.circuit_state.remove_label_values(&labels)),
        }
    }

    fn transitions(&self) -> &[IntCounter; CircuitState::ALL.len()] {
        self.transitions.get_or_init(|| {
            CircuitState::ALL
                .map(|to| self.lazy.child(&self.circuit_transitions, &[&self.upstream, &self.route, to.as_str()]))
        })
    }

    /// Its series were removed: whatever is counted from now on is not shown.
    pub(super) fn retire(&self) {
        self.lazy.retire();
    }
}

/// Counts one up until it is dropped.
pub struct Gauge(IntGauge);

impl Gauge {
    pub(super) fn up(gauge: &IntGauge) -> Gauge {
        gauge.inc();
        Gauge(gauge.clone())
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Lets one line a second pass, and counts the others.
struct Throttle {
    start: Instant,
    /// Milliseconds after `start` from which on the next line passes.
    next: AtomicU64,
    suppressed: AtomicU64,
}

impl Throttle {
    fn new() -> Throttle {
        Throttle { start: Instant::now(), next: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// How many lines were held back since the last one that passed; `None` holds this one back too.
    fn pass(&self, now: Instant) -> Option<u64> {
        let millis = now.saturating_duration_since(self.start).as_millis() as u64;
        let next = self.next.load(Ordering::Relaxed);
        let ours = millis >= next
            && self.next.compare_exchange(next, millis + 1000, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if ours {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_at_the_place_of_their_number() {
        for (at, reason) in Skipped::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize - 1, at);
        }
        for (at, reason) in Rejected::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
        for (at, result) in AttemptResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, at);
        }
        for (at, state) in CircuitState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, at);
        }
    }

    #[test]
    fn a_dropped_guard_counts_down() {
        let report = UpstreamReport::for_test("a");
        let first = report.in_flight();
        let second = report.in_flight();
        assert_eq!(report.now().in_flight, 2);
        drop(first);
        drop(second);
        assert_eq!(report.now().in_flight, 0);
    }

    #[test]
    fn one_line_a_second_passes_and_tells_how_many_did_not() {
        let throttle = Throttle::new();
        let start = throttle.start;
        assert_eq!(throttle.pass(start), Some(0));
        assert_eq!(throttle.pass(start + Duration::from_millis(10)), None);
        assert_eq!(throttle.pass(start + Duration::from_millis(999)), None);
        assert_eq!(throttle.pass(start + Duration::from_millis(1000)), Some(2));
    }

    #[test]
    fn statuses_and_states_are_shown_by_number() {
        let metrics = Metrics::new();
        metrics.upstream("a").retried(RetryReason::Status(503));
        metrics.lane("a", "").circuit(CircuitState::Open, Some(Duration::from_secs(30)));
        assert_eq!(metrics.sample(r#"outrigger_retries_total{reason="503",upstream="a"}"#), Some(1.0));
        assert_eq!(metrics.sample(r#"outrigger_circuit_state{route="",upstream="a"}"#), Some(2.0));
        let series = r#"outrigger_circuit_transitions_total{route="",to="open",upstream="a"}"#;
        assert_eq!(metrics.sample(series), Some(1.0));
        metrics.lane("a", "").set_circuit(None);
        assert_eq!(metrics.sample(r#"outrigger_circuit_state{route="",upstream="a"}"#), None);
    }
}
