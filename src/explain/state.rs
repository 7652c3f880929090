//! Whose state a request shares: what other requests do to it, and it to them.

use serde::Serialize;

use crate::config;
use crate::policy::policies::{OwnState, Settings};
use crate::policy::rate_limit::Key;

/// One thing that has a state.
#[derive(Debug, Serialize)]
pub struct State {
    /// `circuit_breaker`, `rate_limit`, `concurrency`, `retry.budget` or `connections`.
    pub what: &'static str,
    /// `route`, `upstream`, `unmatched`, or `none` where it is off or doesn't act.
    pub whose: &'static str,
    /// One sentence.
    pub why: String,
}

/// Of the lane that the request takes. No `upstream`: no upstream names the host. `show_key`: `rate_limit.key` is no secret.
pub(super) fn states(
    upstream: Option<&config::Upstream>,
    route: Option<&config::Route>,
    policies: &Settings,
    tunnel: bool,
    show_key: bool,
) -> Vec<State> {
    let Some(upstream) = upstream else { return unmatched(policies) };
    let bucket = match policies.rate_limit.as_ref().map(|limit| &limit.key) {
        Some(Key::Header(_)) if !show_key => ", a bucket for each value of a header".to_owned(),
        Some(Key::Header(name)) => format!(", a bucket for each value of `{name}`"),
        Some(Key::Upstream) | None => String::new(),
    };
    let budget = policies.retry.as_ref().is_some_and(|retry| retry.budget.is_some());
    let of = |what: &'static str, block: &str, on: bool, acts: bool, extra: &str, own: fn(OwnState) -> bool| {
        if !on || !acts {
            let why = if on { "takes no part in tunnels" } else { "is off" };
            return State { what, whose: "none", why: why.to_owned() };
        }
        match route {
            Some(route) if own(route.own) => {
                State { what, whose: "route", why: format!("its own{extra}: the route writes `{block}`") }
            }
            Some(_) | None => State {
                what,
                whose: "upstream",
                why: format!("the upstream's{extra}, shared {}", sharers(upstream, own)),
            },
        }
    };
    vec![
        of("circuit_breaker", "circuit_breaker", policies.circuit_breaker.is_some(), true, "", |own| own.breaker),
        of("rate_limit", "rate_limit", policies.rate_limit.is_some(), true, &bucket, |own| own.rate_limit),
        of("concurrency", "concurrency", policies.concurrency.is_some(), !tunnel, "", |own| own.concurrency),
        of("retry.budget", "retry.budget", budget, true, "", |own| own.budget),
        State {
            what: "connections",
            whose: if tunnel { "none" } else { "upstream" },
            why: if tunnel {
                "a tunnel has a connection of its own, which `connections.max` doesn't count".to_owned()
            } else {
                "the upstream's pool, shared by all its requests".to_owned()
            },
        },
    ]
}

/// Who uses the upstream's own state.
fn sharers(upstream: &config::Upstream, own: fn(OwnState) -> bool) -> String {
    let apart: Vec<String> =
        upstream.routes.iter().filter(|route| own(route.own)).map(|route| format!("`{}`", route.name)).collect();
    match (upstream.routes.is_empty(), apart.as_slice()) {
        (true, _) => "by all its requests".to_owned(),
        (false, []) => "by all its requests, on every route".to_owned(),
        (false, apart) => format!("by all its requests but those of {}", apart.join(", ")),
    }
}

fn unmatched(policies: &Settings) -> Vec<State> {
    let needs_name = |what| State {
        what,
        whose: "none",
        why: "needs a named upstream: it doesn't act on hosts that none names".to_owned(),
    };
    let budget = policies.retry.as_ref().is_some_and(|retry| retry.budget.is_some());
    vec![
        needs_name("circuit_breaker"),
        needs_name("rate_limit"),
        needs_name("concurrency"),
        State {
            what: "retry.budget",
            whose: if budget { "unmatched" } else { "none" },
            why: if budget { "shared by all hosts that no upstream names" } else { "is off" }.to_owned(),
        },
        State {
            what: "connections",
            whose: "unmatched",
            why: "one pool for all hosts that no upstream names".to_owned(),
        },
    ]
}
