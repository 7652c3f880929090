//! What no single setting shows: settings that contradict each other, and what is valid but dangerous.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use http::Method;

use crate::address::{LOCALHOST, reaches};
use crate::config::{Config, Connect, Match, PathMatch, Upstream, UpstreamScheme, intercept};
use crate::document::read::written;
use crate::document::tree::Node;
use crate::document::{Place, Problems, Reader};
use crate::origin::{Host, Scheme};
use crate::policy::policies;
use crate::units::show_duration;

/// The policy blocks of one lane.
pub(crate) fn policies(reader: &mut Reader<'_>, settings: &policies::Settings) {
    clocks(reader, settings);
    if let Some(retry) = &settings.retry {
        if retry.backoff.max < retry.backoff.base {
            error(
                reader,
                &["retry", "backoff"],
                &["base", "max"],
                "`max` is shorter than `base`",
                "raise `max` or lower `base`",
            );
        }
        let unsafe_method = retry.methods.iter().find(|method| !is_idempotent(method));
        if let Some(method) = unsafe_method.filter(|_| retry.max_attempts.get() > 1) {
            let message = format!(
                "a {method} may be carried out more than once: it is retried although the upstream may have done it"
            );
            let help = "take it out: a request with an idempotency key is retried whatever its method";
            warn(reader, &["retry"], &["methods"], &message, help);
        }
        if retry.generate_idempotency_key {
            if retry.idempotency_headers.is_empty() {
                let help = "list a header in `idempotency_headers`";
                error(reader, &["retry"], &["generate_idempotency_key"], "has no header to send the key in", help);
            } else {
                let message =
                    "only an upstream that documents such a header honours it: any other carries out each attempt";
                let help = "make sure that its documentation promises idempotency";
                warn(reader, &["retry"], &["generate_idempotency_key"], message, help);
            }
        }
    }
    if let Some(breaker) = &settings.circuit_breaker {
        if breaker.max_open_for < breaker.open_for {
            let help = "raise `max_open_for` or lower `open_for`";
            error(
                reader,
                &["circuit_breaker"],
                &["open_for", "max_open_for"],
                "`max_open_for` is shorter than `open_for`",
                help,
            );
        }
        if breaker.consecutive_failures.is_none() && breaker.failure_rate.is_none() {
            let help = "keep `consecutive_failures` or `failure_rate`, or write `circuit_breaker: off`";
            let keys = &["consecutive_failures", "failure_rate"];
            warn(reader, &["circuit_breaker"], keys, "nothing ever opens this circuit", help);
        }
        if let (Some(slow), Some(attempt)) = (breaker.slow_after, settings.timeouts.attempt)
            && slow >= attempt
        {
            let message =
                format!("is never reached: `timeouts.attempt` ends the attempt after {}", show_duration(attempt));
            warn(reader, &["circuit_breaker"], &["slow_after"], &message, "make it shorter than `timeouts.attempt`");
        }
    }
    if let Some(limit) = &settings.rate_limit
        && u128::from(limit.requests.get()) > limit.per.as_nanos()
    {
        let help = "lengthen `per` or lower `requests`";
        error(reader, &["rate_limit"], &["requests", "per"], "is more than one token a nanosecond", help);
    }
}

fn clocks(reader: &mut Reader<'_>, settings: &policies::Settings) {
    let (Some(attempt), Some(request)) = (settings.timeouts.attempt, settings.timeouts.request) else { return };
    let attempts = settings.retry.as_ref().map_or(1, |retry| retry.max_attempts.get());
    let total = attempt.saturating_mul(attempts);
    if total <= request {
        return;
    }
    let place = [["retry", "max_attempts"], ["timeouts", "attempt"], ["timeouts", "request"]]
        .iter()
        .filter_map(|path| reader.node().at(path))
        .max_by_key(|node| node.layer)
        .and_then(written);
    if place.is_none() {
        return;
    }
    let (path, message) = if attempts == 1 {
        let (attempt, request) = (show_duration(attempt), show_duration(request));
        ("timeouts", format!("`attempt` ({attempt}) is longer than `request` ({request}), which ends it first"))
    } else {
        let (total, attempt, request) = (show_duration(total), show_duration(attempt), show_duration(request));
        let message = format!(
            "{attempts} attempts of {attempt} are {total}, but `request` ends them after {request}: the last may be cut short \
             or never made"
        );
        ("timeouts", message)
    };
    let help = "raise `timeouts.request`, or lower `timeouts.attempt` or `retry.max_attempts`";
    reader.warning_at(place, path, message, Some(help.to_owned()));
}

/// One upstream as a whole.
pub(crate) fn upstream(reader: &mut Reader<'_>, upstream: &Upstream) {
    let exact = upstream.hosts.iter().filter(|pattern| !pattern.wildcard).count();
    let is_written = |key: &str| reader.node().get(key).is_some();
    let (writes_hosts, writes_to, writes_listen) = (is_written("hosts"), is_written("to"), is_written("listen"));
    if upstream.listen.is_some() && !writes_to && exact != 1 && !(writes_hosts && upstream.hosts.is_empty()) {
        let help = "write `to: [https://…]`, or exactly one host without `*` in `hosts`";
        reader.problem("listen", "doesn't know where to lead".to_owned(), Some(help.to_owned()));
    }
    if upstream.hosts.is_empty()
        && !writes_listen
        && reader.node().get("hosts").is_none_or(|node| node.items().is_empty())
    {
        let help = "write `hosts: [api.example.com]`, or `listen` with a port of its own";
        reader.warning("hosts", "no host leads to this upstream".to_owned(), Some(help.to_owned()));
    }
    if let Some(address) = upstream.listen.filter(|address| !address.ip().is_loopback()) {
        let help = format!("write `listen: 127.0.0.1:{}`", address.port());
        reader.warning("listen", "is not a loopback address: whoever reaches it can use it".to_owned(), Some(help));
    }
    if writes_to && reader.node().get("scheme").is_some_and(|node| written(node).is_some()) {
        reader.warning(
            "scheme",
            "has no effect, since `to` names the scheme".to_owned(),
            Some("take it out".to_owned()),
        );
    }
    if !upstream.to.is_empty()
        && upstream.to.iter().all(|origin| origin.scheme == Scheme::Http)
        && let Some(place) = written_here(reader.node(), "tls")
    {
        let help = Some("take `tls` out, or write `https://` in `to`".to_owned());
        reader.warning_at(Some(place), "tls", "has no effect, since `to` is plain HTTP".to_owned(), help);
    }
    for (block, switch) in [("rate_limit", "requests"), ("concurrency", "max_in_flight")] {
        let node =
            reader.node().get(block).filter(|node| node.is_map() && node.layer > crate::document::Layer::Defaults);
        if node.is_some_and(|node| node.get(switch).is_none()) {
            let help = format!("write `{switch}`");
            reader.warning(block, format!("has no effect without `{switch}`"), Some(help));
        }
    }
    tunnel(reader, upstream);
}

/// What a CONNECT tunnel ignores.
fn tunnel(reader: &mut Reader<'_>, upstream: &Upstream) {
    if upstream.connect != Connect::Tunnel || upstream.hosts.is_empty() {
        return;
    }
    // A tunnel to the host asked for is where this `to` leads too.
    let same = upstream.to.iter().all(|origin| {
        let asked = |pattern: &crate::config::HostPattern| {
            !pattern.wildcard && pattern.host == origin.host && pattern.port.is_none_or(|port| port == origin.port)
        };
        origin.scheme == Scheme::Https && upstream.hosts.iter().any(asked)
    });
    let ignored: Vec<(&str, Place)> = ["to", "scheme", "tls", "routes"]
        .into_iter()
        .filter(|key| !(*key == "to" && same))
        // Over TLS, or as the app asked, is how a tunnel goes anyway.
        .filter(|key| !(*key == "scheme" && upstream.scheme != UpstreamScheme::Always(Scheme::Http)))
        .filter_map(|key| written_here(reader.node(), key).map(|place| (key, place)))
        .collect();
    let Some((first, place)) = ignored.first().cloned() else { return };
    let names: Vec<String> = ignored.iter().map(|(key, _)| format!("`{key}`")).collect();
    let verb = if names.len() == 1 { "has" } else { "have" };
    let message = format!(
        "{} {verb} no effect on tunnels: what an app asks for as https:// through HTTPS_PROXY is passed on unseen to the host it \
         names",
        names.join(", ")
    );
    let help = "let the app use http:// or a base URL with `listen`; `https: intercept` looks inside, `https: deny` refuses them";
    reader.warning_at(Some(place), first, message, Some(help.to_owned()));
}

/// The configuration as a whole.
pub(crate) fn whole(config: &Config, top: &Node, problems: &mut Problems) {
    listeners(config, top, problems);
    if config.listeners.tls.is_some() && !config.upstreams.iter().any(|one| one.connect == Connect::Intercept) {
        let place = top.at(&["listeners", "tls"]).and_then(written);
        let help = "write `https: intercept` for the upstreams whose names lead here";
        problems.warning(place, "listeners.tls", "serves nobody: no upstream is intercepted", Some(help));
    }
    let own: HashSet<SocketAddr> = addresses(config).into_iter().map(|(_, address)| address).collect();
    let written_upstreams = top.get("upstreams").map_or(&[][..], |node| node.entries());
    // Those that are no block were noted, and were not read.
    let written_upstreams = written_upstreams.iter().filter(|entry| entry.value.is_map() || entry.value.is_null());
    for (upstream, entry) in config.upstreams.iter().zip(written_upstreams) {
        let node = &entry.value;
        for (index, origin) in upstream.to.iter().enumerate() {
            let own = |ip: &IpAddr| own.iter().any(|own| reaches(*own, SocketAddr::new(*ip, origin.port)));
            let place = node.get("to").and_then(|to| to.items().get(index)).and_then(|item| written(item));
            let path = format!("upstreams.{}.to[{index}]", upstream.name);
            let help = Some("name the upstream's own address");
            match &origin.host {
                Host::Ip(ip) if own(ip) => problems.error(place, &path, "leads back to Outrigger itself", help),
                // Something else may listen on the other one of its two addresses.
                Host::Name(_) if origin.host.is_localhost() && LOCALHOST.iter().any(own) => {
                    problems.warning(place, &path, "leads back to Outrigger itself", help);
                }
                Host::Ip(_) | Host::Name(_) => {}
            }
        }
        if upstream.connect == Connect::Intercept && config.intercept.is_none() {
            let place = node.get("https").and_then(|node| written(node));
            let path = format!("upstreams.{}.https", upstream.name);
            problems.error(place, &path, "needs a CA that the app trusts", Some(intercept::HELP));
        }
        let body = upstream.policies.retry.as_ref().map(|retry| retry.max_body);
        if body.is_some_and(|body| body > config.limits.replay_memory) {
            let place = node.at(&["retry", "max_body"]).and_then(written);
            if place.is_some() {
                let path = format!("upstreams.{}.retry.max_body", upstream.name);
                let help = "raise `limits.replay_memory` or lower it";
                problems.warning(
                    place,
                    &path,
                    "is more than `limits.replay_memory` has for all requests together",
                    Some(help),
                );
            }
        }
    }
}

/// Every address that is listened on, and the setting that says so.
fn addresses(config: &Config) -> Vec<(String, SocketAddr)> {
    let mut all = vec![("listeners.proxy".to_owned(), config.listeners.proxy)];
    all.extend(config.listeners.admin.map(|address| ("listeners.admin".to_owned(), address)));
    all.extend(config.listeners.probes.map(|address| ("listeners.probes".to_owned(), address)));
    all.extend(config.listeners.tls.map(|address| ("listeners.tls".to_owned(), address)));
    for upstream in &config.upstreams {
        all.extend(upstream.listen.map(|address| (format!("upstreams.{}.listen", upstream.name), address)));
    }
    all
}

fn listeners(config: &Config, top: &Node, problems: &mut Problems) {
    let all = addresses(config);
    let mut by_port: HashMap<u16, Vec<&(String, SocketAddr)>> = HashMap::new();
    for entry in &all {
        let (path, address) = entry;
        if address.port() == 0 {
            continue;
        }
        let same_port = by_port.entry(address.port()).or_default();
        if let Some((other, _)) = same_port.iter().find(|(_, earlier)| collide(*earlier, *address)) {
            let keys: Vec<&str> = path.split('.').collect();
            let other_keys: Vec<&str> = other.split('.').collect();
            let place = |keys: &[&str]| top.at(keys).and_then(written);
            let shown = place(&keys).or_else(|| place(&other_keys));
            let line = place(&other_keys).map(|place| format!(" in line {}", place.line)).unwrap_or_default();
            let message = format!("{address} is taken: `{other}`{line} listens there too");
            problems.error(shown, path, message, Some("give it another port"));
        }
        same_port.push(entry);
    }
}

/// Whether two sockets can't listen at once: `[::]` takes both families.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let takes = |a: IpAddr, b: IpAddr| a.is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a.port() == b.port() && (a.ip() == b.ip() || takes(a.ip(), b.ip()) || takes(b.ip(), a.ip()))
}

/// Whether all that `later` matches is matched by `earlier`, where that is plain to see.
pub(crate) fn covers(earlier: &Match, later: &Match) -> bool {
    let methods = earlier.methods.is_empty()
        || (!later.methods.is_empty() && later.methods.iter().all(|method| earlier.methods.contains(method)));
    let path = match (&earlier.path, &later.path) {
        (PathMatch::Any, _) => true,
        (PathMatch::Prefix(prefix), _) if prefix == "/" => true,
        (PathMatch::Prefix(prefix), PathMatch::Exact(path) | PathMatch::Prefix(path)) => {
            path.starts_with(prefix.as_str())
        }
        (PathMatch::Exact(a), PathMatch::Exact(b)) => a == b,
        (PathMatch::Regex(regex), PathMatch::Exact(path)) => regex.is_match(path.as_bytes()),
        (PathMatch::Regex(a), PathMatch::Regex(b)) => a.as_str() == b.as_str(),
        (PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::Regex(_), _) => false,
    };
    methods && path
}

fn is_idempotent(method: &Method) -> bool {
    ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"].contains(&method.as_str())
}

/// Where the upstream itself writes a key.
fn written_here(node: &Node, key: &str) -> Option<Place> {
    let node = node.get(key)?;
    (node.layer >= crate::document::Layer::Upstream).then(|| node.place.clone())
}

/// The place of the most specific of some keys of a block.
fn place(reader: &Reader<'_>, block: &[&str], keys: &[&str]) -> Option<Place> {
    let block = reader.node().at(block)?;
    // Of equals, the key that is named first.
    let nodes = keys.iter().rev().filter_map(|key| block.get(key));
    nodes.max_by_key(|node| node.layer).and_then(|node| written(node))
}

fn error(reader: &mut Reader<'_>, block: &[&str], keys: &[&str], message: &str, help: &str) {
    let place = place(reader, block, keys);
    let path = format!("{}.{}", block.join("."), keys[0]);
    reader.problem_at(place, &path, message.to_owned(), Some(help.to_owned()));
}

fn warn(reader: &mut Reader<'_>, block: &[&str], keys: &[&str], message: &str, help: &str) {
    let place = place(reader, block, keys);
    let path = format!("{}.{}", block.join("."), keys[0]);
    reader.warning_at(place, &path, message.to_owned(), Some(help.to_owned()));
}
