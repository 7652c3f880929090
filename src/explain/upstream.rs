//! Which upstream a request belongs to, and which patterns were nearly it.

use serde::Serialize;

use crate::config::{Config, Connect, HostPattern, host};
use crate::explain::Spot;
use crate::origin::Host;
use crate::proxy::target::Target;
use crate::upstream::index::{Candidate, Index};
use crate::upstream::table::UNMATCHED;

/// The upstream, and why.
#[derive(Debug, Serialize)]
pub struct Choice {
    /// As metrics and logs name it; `unmatched` where no upstream names the host.
    pub name: String,
    /// Where it is written.
    pub place: Option<Spot>,
    /// The pattern of its `hosts` that takes the request; `None` for its own port, and for `unmatched`.
    pub pattern: Option<Pattern>,
    /// One sentence.
    pub why: String,
    /// Patterns that take the request too, but come later.
    pub later: Vec<Pattern>,
    /// Patterns that look as if they would, and don't.
    pub near: Vec<Pattern>,
}

/// A pattern of `hosts`, or for what is near an origin of `to`.
#[derive(Debug, Serialize)]
pub struct Pattern {
    /// As the file has it.
    pub pattern: String,
    /// Whose it is.
    pub upstream: String,
    /// Where it is written.
    pub place: Option<Spot>,
    /// What it takes, or why it does not take this request.
    pub why: String,
}

/// The host's upstream: its index, and the reasons.
pub(super) fn choose(config: &Config, target: &Target) -> (Option<usize>, Choice) {
    let index = Index::new(&config.upstreams);
    let mut candidates = index.candidates(&target.host, target.port);
    let first = candidates.next();
    let later: Vec<Pattern> = candidates
        .map(|candidate| {
            let why = first.map_or("", |first| precedence(&first, &candidate));
            pattern(config, &found(target, &candidate), candidate.upstream, why.to_owned())
        })
        .collect();
    let Some(first) = first else {
        let choice = Choice {
            name: UNMATCHED.to_owned(),
            place: None,
            pattern: None,
            why: format!("no upstream's `hosts` name {}", target.host),
            later,
            near: near(config, target, None),
        };
        return (None, choice);
    };
    let upstream = &config.upstreams[first.upstream];
    let sort = match (first.below, first.port) {
        (None, Some(_)) => "exactly this host and port".to_owned(),
        (None, None) => "exactly this host, on any port".to_owned(),
        (Some(below), Some(port)) => format!("any host below {below}, on port {port}"),
        (Some(below), None) => format!("any host below {below}, on any port"),
    };
    let pattern = pattern(config, &found(target, &first), first.upstream, sort);
    let choice = Choice {
        name: upstream.name.to_string(),
        place: place(config, first.upstream),
        why: format!("`{}` in its `hosts`: {}", pattern.pattern, pattern.why),
        pattern: Some(pattern),
        later,
        near: near(config, target, Some(first.upstream)),
    };
    (Some(first.upstream), choice)
}

/// Whether the host's upstream ends the TLS of what goes through its tunnels.
pub(super) fn intercepts(config: &Config, target: &Target) -> bool {
    let index = Index::new(&config.upstreams);
    let first = index.candidates(&target.host, target.port).next();
    first.is_some_and(|first| config.upstreams[first.upstream].connect == Connect::Intercept)
}

/// The upstream whose own port was asked.
pub(super) fn by_port(config: &Config, at: usize) -> Choice {
    let upstream = &config.upstreams[at];
    let listen = upstream.listen.map(|listen| listen.to_string()).unwrap_or_default();
    Choice {
        name: upstream.name.to_string(),
        place: place(config, at),
        pattern: None,
        why: format!("{listen} is its own port (`listen`), called directly as a base URL"),
        later: Vec::new(),
        near: Vec::new(),
    }
}

/// Where an upstream is written.
pub(super) fn place(config: &Config, at: usize) -> Option<Spot> {
    let entry = config.layers.root().get("upstreams")?.entry(&config.upstreams[at].name)?;
    Some(Spot::of(&entry.place))
}

/// The pattern that made a candidate.
fn found(target: &Target, candidate: &Candidate<'_>) -> HostPattern {
    let host = match candidate.below {
        Some(below) => Host::Name(below.into()),
        None => target.host.clone(),
    };
    HostPattern { wildcard: candidate.below.is_some(), host, port: candidate.port }
}

fn precedence(first: &Candidate<'_>, later: &Candidate<'_>) -> &'static str {
    match (first.below, later.below) {
        (None, None) => "a host with its port goes before the host alone",
        (None, Some(_)) => "an exact host goes before a wildcard",
        (Some(_), _) if first.port.is_some() && later.port.is_none() => {
            "a wildcard with the port goes before one without"
        }
        (Some(_), _) => "the longer wildcard goes first",
    }
}

fn pattern(config: &Config, pattern: &HostPattern, upstream: usize, why: String) -> Pattern {
    let name = &config.upstreams[upstream].name;
    let items = config.layers.root().get("upstreams").and_then(|upstreams| upstreams.get(name));
    // Merge keys and anchors included.
    let merged = items.map(|written| config.layers.upstream(written));
    let item = merged.as_ref().and_then(|merged| merged.get("hosts")).and_then(|hosts| {
        let is_it = |text: &str| host::pattern(text).is_ok_and(|found| found == *pattern);
        hosts.items().iter().find(|item| item.scalar().is_some_and(|scalar| is_it(&scalar.text)))
    });
    Pattern { pattern: show(pattern), upstream: name.to_string(), place: item.map(|item| Spot::of(&item.place)), why }
}

fn show(pattern: &HostPattern) -> String {
    let star = if pattern.wildcard { "*." } else { "" };
    let port = pattern.port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{star}{}{port}", pattern.host)
}

/// Patterns that don't take the request, with what keeps them from it. Where an upstream was found, only those of
/// others that differ by the port alone: more is not what anybody expects then.
fn near(config: &Config, target: &Target, found: Option<usize>) -> Vec<Pattern> {
    let mut near = Vec::new();
    for (at, upstream) in config.upstreams.iter().enumerate() {
        for listed in &upstream.hosts {
            if let Some(why) = misses(listed, target, found.is_some()).filter(|_| found != Some(at)) {
                near.push(pattern(config, listed, at, why));
            }
        }
        // By its own port only, or by another name.
        let leads_there = upstream.to.iter().any(|to| to.host == target.host);
        if found.is_none() && leads_there {
            let why = match upstream.listen {
                Some(listen) if upstream.hosts.is_empty() => format!(
                    "leads to {}, but has no `hosts`: apps reach it by its own port, http://{listen}",
                    target.host
                ),
                Some(_) | None => format!("leads to {}, but doesn't name it in `hosts`", target.host),
            };
            near.push(Pattern {
                pattern: "to".to_owned(),
                upstream: upstream.name.to_string(),
                place: place(config, at),
                why,
            });
        }
    }
    near
}

/// Why a pattern that looks near does not take the request; `None` where it does, or is not near.
fn misses(pattern: &HostPattern, target: &Target, only_port: bool) -> Option<String> {
    let (host, asked) = (&target.host, target.port);
    let covers = |name: &str| match (host, &pattern.host) {
        (Host::Name(host), Host::Name(below)) => {
            name == &**host && host.strip_suffix(&**below).is_some_and(|front| front.ends_with('.'))
        }
        (Host::Name(_) | Host::Ip(_), _) => false,
    };
    let named = match host {
        Host::Name(name) => &**name,
        Host::Ip(_) => "",
    };
    let same = if pattern.wildcard { covers(named) } else { pattern.host == *host };
    if same {
        let port = pattern.port.filter(|port| *port != asked)?;
        let implied = match (asked, port) {
            (80, 443) => ", as http:// without a port means",
            (443, 80) => ", as https:// without a port means",
            (_, _) => "",
        };
        return Some(format!("names port {port}, and this request asks for port {asked}{implied}"));
    }
    if only_port {
        return None;
    }
    if pattern.wildcard && pattern.host == *host {
        return Some(format!("takes what is below {host}, not {host} itself"));
    }
    if !pattern.wildcard && covers(named) {
        return Some(format!("takes {} alone; `*.{}` takes what is below it", pattern.host, pattern.host));
    }
    let (Host::Name(listed), Host::Name(asked)) = (&pattern.host, host) else { return None };
    let distance = strsim::damerau_levenshtein(listed, asked);
    (distance > 0 && distance <= 2 && asked.len() > 4).then(|| "is spelt nearly the same".to_owned())
}
