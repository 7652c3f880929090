//! The JSON that `admin` shows and takes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::live::Live;
use super::scrape::{connections, lanes};
use crate::policy::breaker::Override;
use crate::telemetry::failures::Failure;
use crate::telemetry::history::{self, History, Percentiles, Recent, Sample};
use crate::telemetry::report::Skipped;
use crate::upstream::Upstream;
use crate::upstream::table::Table;

/// Every upstream, in the order of the file, `unmatched` last.
pub(super) fn upstreams(table: &Table, live: &Live, draining: bool, now: Instant) -> Value {
    let all = table.all().map(|one| upstream(one, live, now));
    json!({"draining": draining, "upstreams": all.collect::<Vec<_>>()})
}

/// One upstream. Durations are in milliseconds; a lane is the upstream's own policies (`route` is empty) or a route's.
pub(super) fn upstream(upstream: &Upstream, live: &Live, now: Instant) -> Value {
    let config = upstream.config.as_ref();
    let at_once = upstream.report.now();
    let connections = connections(upstream);
    let lanes = lanes(upstream).map(|(lane, own_circuit)| {
        let status = lane.policies.status(now);
        let circuit = status.circuit.map(|circuit| {
            json!({
                "state": circuit.state.as_str(),
                "next_probe_ms": circuit.next_probe.map(millis),
                "manual": word(circuit.manual),
                "consecutive_failures": circuit.consecutive_failures,
                "own": own_circuit,
            })
        });
        json!({
            "route": &*lane.route,
            "circuit": circuit,
            "retry_budget_remaining": status.budget_remaining,
            "tokens": status.tokens,
            "burst": status.burst,
            "paused_ms": status.paused_for.map(millis),
            "slots": status.slots,
            "slots_taken": status.in_flight,
            "queued": status.queued,
        })
    });
    json!({
        "name": &*upstream.name,
        "hosts": config.map(|config| config.hosts.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "to": config.map(|config| config.to.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "listen": config.and_then(|config| config.listen).map(|address| address.to_string()),
        "in_flight": at_once.in_flight,
        "queued": at_once.queued,
        "tunnels": at_once.tunnels,
        "connections": {
            "active": connections.active,
            "idle": connections.idle,
            "connecting": connections.connecting,
            "max": upstream.transport.settings().connections.max,
        },
        "recent": recent(&live.recent(upstream, now)),
        "lanes": lanes.collect::<Vec<_>>(),
    })
}

fn recent(recent: &Recent) -> Value {
    let counts = &recent.counts;
    let side = |count: u32, failed: u32, judged: u32, took: &Percentiles| {
        json!({
            "count": count,
            "failed": failed,
            "success": (judged > 0).then(|| 1.0 - (f64::from(failed) / f64::from(judged)).min(1.0)).map(digits),
            "p50_ms": took.p50.map(digits),
            "p95_ms": took.p95.map(digits),
            "p99_ms": took.p99.map(digits),
        })
    };
    let judged = counts.requests.saturating_sub(counts.gone);
    json!({
        "requests_per_second": digits(recent.requests_per_second),
        "attempts_per_second": digits(recent.attempts_per_second),
        "retries_per_second": digits(recent.retries_per_second),
        "retries": counts.retries,
        "hung_up": counts.gone,
        "app": side(counts.requests, counts.failed, judged, &recent.app),
        "upstream": side(counts.attempts, counts.attempts_failed, counts.attempts, &recent.upstream),
    })
}

/// Four digits behind the point are enough for anybody.
fn digits(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// The samples of every upstream that has any: for each kind of number a list, oldest first, that ends with sample `taken`.
pub(super) fn history<'a>(history: &History, names: impl Iterator<Item = &'a Arc<str>>, last: usize) -> Value {
    let mut all = Map::new();
    for name in names {
        let skip = history.samples(name).count().saturating_sub(last);
        let list = |of: &dyn Fn(&Sample) -> Value| history.samples(name).skip(skip).map(of).collect::<Vec<_>>();
        let requests = list(&|sample| sample.requests.into());
        if requests.is_empty() {
            continue;
        }
        let samples = json!({
            "requests": requests,
            "failed": list(&|sample| sample.failed.into()),
            "hung_up": list(&|sample| sample.gone.into()),
            "attempts": list(&|sample| sample.attempts.into()),
            "attempts_failed": list(&|sample| sample.attempts_failed.into()),
            "retries": list(&|sample| sample.retries.into()),
            "p95_ms": list(&|sample| sample.p95.map(|millis| digits(f64::from(millis))).into()),
            "standing": list(&|sample| (sample.standing as u8).into()),
        });
        all.insert(name.to_string(), samples);
    }
    let interval = millis(history::INTERVAL);
    json!({"interval_ms": interval, "kept": history::SAMPLES, "taken": history.taken(), "upstreams": all})
}

/// Failures with their numbers, newest first.
pub(super) fn failures(failures: &[(u64, Arc<Failure>)]) -> Vec<Value> {
    failures.iter().rev().map(|(number, failure)| one_failure(*number, failure)).collect()
}

fn one_failure(number: u64, failure: &Failure) -> Value {
    json!({
        "number": number,
        "at_ms": millis(failure.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
        "upstream": &*failure.upstream,
        "route": &*failure.route,
        "method": failure.method,
        "host": failure.host,
        "path": failure.path,
        "status": failure.status,
        "error": failure.error,
        "detail": failure.detail,
        "attempts": failure.attempts,
        "no_retry": failure.no_retry.map(Skipped::as_str),
        "total_ms": millis(failure.total),
        "trace_id": format!("{:032x}", failure.trace),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An order as it is written.
pub(super) fn word(order: Override) -> &'static str {
    match order {
        Override::Auto => "auto",
        Override::Open => "open",
        Override::Closed => "closed",
    }
}

/// What `POST /api/upstreams/NAME/circuit` takes.
///
/// # Errors
/// A sentence that says what would be right.
pub(super) fn order(body: &[u8]) -> Result<Override, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        state: String,
    }
    const RIGHT: &str = r#"send {"state": "open"}, {"state": "closed"} or {"state": "auto"}"#;
    let body: Body = serde_json::from_slice(body).map_err(|error| format!("{error}: {RIGHT}"))?;
    match &*body.state {
        "open" => Ok(Override::Open),
        "closed" => Ok(Override::Closed),
        "auto" => Ok(Override::Auto),
        _ => Err(format!("the state is not one that can be ordered: {RIGHT}")),
    }
}

/// The upstream's name in `/api/upstreams/NAME/circuit`.
pub(super) fn circuit_of(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/api/upstreams/")?.strip_suffix("/circuit")?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_one_of_three_words() {
        assert_eq!(order(br#"{"state": "open"}"#), Ok(Override::Open));
        assert_eq!(order(br#"{"state":"auto"}"#), Ok(Override::Auto));
        for order in [Override::Auto, Override::Open, Override::Closed] {
            assert_eq!(super::order(format!(r#"{{"state":"{}"}}"#, word(order)).as_bytes()), Ok(order));
        }
        for bad in [&b""[..], b"open", b"{}", br#"{"state":"half_open"}"#, br#"{"state":"open","for":3}"#, b"\xff"] {
            assert!(order(bad).unwrap_err().contains(r#"{"state": "open"}"#));
        }
    }

    #[test]
    fn the_name_is_the_one_segment_between() {
        assert_eq!(circuit_of("/api/upstreams/stripe/circuit"), Some("stripe"));
        for bad in
            ["/api/upstreams//circuit", "/api/upstreams/circuit", "/api/upstreams/a/b/circuit", "/api/upstreams/a"]
        {
            assert_eq!(circuit_of(bad), None);
        }
    }
}
