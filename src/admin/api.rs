//! The JSON that `admin` shows and takes.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::scrape::{connections, lanes};
use crate::config::HostPattern;
use crate::policy::breaker::Override;
use crate::upstream::Upstream;
use crate::upstream::table::Table;

/// Every upstream, in the order of the file, `unmatched` last.
pub(super) fn upstreams(table: &Table, draining: bool, now: Instant) -> Value {
    let all = table.upstreams.iter().chain([&table.unmatched]).map(|one| upstream(one, now));
    json!({"draining": draining, "upstreams": all.collect::<Vec<_>>()})
}

/// One upstream. Durations are in milliseconds; a lane is the upstream's own policies (`route` is empty) or a route's.
pub(super) fn upstream(upstream: &Upstream, now: Instant) -> Value {
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
            "paused_ms": status.paused_for.map(millis),
            "slots_taken": status.in_flight,
            "queued": status.queued,
        })
    });
    json!({
        "name": &*upstream.name,
        "hosts": config.map(|config| config.hosts.iter().map(pattern).collect::<Vec<_>>()),
        "to": config.map(|config| config.to.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "listen": config.and_then(|config| config.listen).map(|address| address.to_string()),
        "in_flight": at_once.in_flight,
        "queued": at_once.queued,
        "tunnels": at_once.tunnels,
        "connections": {
            "active": connections.active,
            "idle": connections.idle,
            "connecting": connections.connecting,
        },
        "lanes": lanes.collect::<Vec<_>>(),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn pattern(pattern: &HostPattern) -> String {
    let star = if pattern.wildcard { "*." } else { "" };
    let port = pattern.port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{star}{}{port}", pattern.host)
}

fn word(order: Override) -> &'static str {
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
    use crate::origin::Host;

    #[test]
    fn an_order_is_one_of_three_words() {
        assert_eq!(order(br#"{"state": "open"}"#), Ok(Override::Open));
        assert_eq!(order(br#"{"state":"auto"}"#), Ok(Override::Auto));
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

    #[test]
    fn hosts_are_shown_as_they_are_written() {
        let shown = |wildcard, port| pattern(&HostPattern { wildcard, host: Host::parse("x.com").unwrap(), port });
        assert_eq!((shown(true, None), shown(false, Some(8443))), ("*.x.com".to_owned(), "x.com:8443".to_owned()));
    }
}
