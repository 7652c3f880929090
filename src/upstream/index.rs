//! Which upstream a host belongs to.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::config;
use crate::origin::Host;

/// Indices into the configuration's upstreams, by what apps ask for. Looked into once a request, so by a hash that is quick
/// and yet seeded.
#[derive(Default)]
pub(crate) struct Index {
    exact: HashMap<Host, Ports, RandomState>,
    /// By what stands behind `*.`.
    wildcard: HashMap<Box<str>, Ports, RandomState>,
    names: HashMap<Arc<str>, usize>,
}

/// A pattern that takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate<'h> {
    /// The upstream that lists it, counted from 0.
    pub(crate) upstream: usize,
    /// What stands behind its `*.`; `None` where it is the host itself.
    pub(crate) below: Option<&'h str>,
    /// The port that it names.
    pub(crate) port: Option<u16>,
}

/// The upstreams of one pattern: for single ports, and for all others.
#[derive(Default)]
struct Ports {
    one: Vec<(u16, usize)>,
    any: Option<usize>,
}

impl Ports {
    fn insert(&mut self, port: Option<u16>, at: usize) {
        match port {
            Some(port) => self.one.push((port, at)),
            None => self.any = Some(at),
        }
    }

    fn exactly(&self, port: u16) -> Option<usize> {
        self.one.iter().find(|(one, _)| *one == port).map(|(_, at)| *at)
    }
}

impl Index {
    /// Of all upstreams of a configuration.
    pub(crate) fn new(upstreams: &[Arc<config::Upstream>]) -> Index {
        let mut index = Index::default();
        for (at, upstream) in upstreams.iter().enumerate() {
            index.names.insert(upstream.name.clone(), at);
            for pattern in &upstream.hosts {
                index.insert(pattern, at);
            }
        }
        index
    }

    fn insert(&mut self, pattern: &config::HostPattern, at: usize) {
        let ports = match (&pattern.host, pattern.wildcard) {
            (Host::Name(name), true) => self.wildcard.entry((&**name).into()).or_default(),
            (host @ (Host::Name(_) | Host::Ip(_)), _) => self.exact.entry(host.clone()).or_default(),
        };
        ports.insert(pattern.port, at);
    }

    /// The upstream of this name.
    pub(crate) fn named(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// The upstream that a request for this host belongs to: that of the first candidate.
    pub(crate) fn find(&self, host: &Host, port: u16) -> Option<usize> {
        self.candidates(host, port).next().map(|candidate| candidate.upstream)
    }

    /// Every pattern that takes a request for this host, in the order of precedence: exact with the port, exact, wildcards
    /// with the port, wildcards, each from the longest. Nothing is looked up before it is asked for.
    pub(crate) fn candidates<'h>(&'h self, host: &'h Host, port: u16) -> impl Iterator<Item = Candidate<'h>> {
        let named = Some(port);
        let exact = self.exact.get(host).into_iter().flat_map(move |ports| {
            let with_port = ports.exactly(port).map(|upstream| Candidate { upstream, below: None, port: named });
            with_port.into_iter().chain(ports.any.map(|upstream| Candidate { upstream, below: None, port: None }))
        });
        let name = match host {
            Host::Name(name) if !self.wildcard.is_empty() => Some(&**name),
            Host::Name(_) | Host::Ip(_) => None,
        };
        let wildcards = move || {
            let mut rest = name;
            let parents = std::iter::from_fn(move || {
                rest = Some(rest?.split_once('.')?.1);
                rest
            });
            parents.filter_map(|parent| Some((parent, self.wildcard.get(parent)?)))
        };
        // A pattern with the port goes before a longer one without.
        let with_port = wildcards().filter_map(move |(parent, ports)| {
            Some(Candidate { upstream: ports.exactly(port)?, below: Some(parent), port: named })
        });
        let without = wildcards()
            .filter_map(|(parent, ports)| Some(Candidate { upstream: ports.any?, below: Some(parent), port: None }));
        exact.chain(with_port).chain(without)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(patterns: &[(&str, Option<u16>)]) -> Index {
        let mut index = Index::default();
        for (at, (pattern, port)) in patterns.iter().enumerate() {
            let (wildcard, name) = match pattern.strip_prefix("*.") {
                Some(name) => (true, name),
                None => (false, *pattern),
            };
            index.insert(&config::HostPattern { wildcard, host: Host::parse(name).unwrap(), port: *port }, at);
        }
        index
    }

    #[test]
    fn hosts_are_found_exact_with_port_first_and_longest_wildcard_last() {
        let index = index(&[
            ("a.x.com", Some(8080)),
            ("a.x.com", None),
            ("*.x.com", Some(8080)),
            ("*.x.com", None),
            ("*.b.x.com", None),
            ("10.0.0.1", None),
        ]);
        let find = |host: &str, port| index.find(&Host::parse(host).unwrap(), port);
        assert_eq!(find("A.x.com.", 8080), Some(0));
        assert_eq!(find("a.x.com", 443), Some(1));
        assert_eq!(find("c.b.x.com", 8080), Some(2));
        assert_eq!(find("c.d.x.com", 443), Some(3));
        assert_eq!(find("c.b.x.com", 443), Some(4));
        assert_eq!(find("x.com", 443), None);
        assert_eq!(find("10.0.0.1", 1), Some(5));
        assert_eq!(find("yx.com", 443), None);
    }

    #[test]
    fn every_pattern_that_takes_a_host_is_a_candidate_in_its_turn() {
        let index = index(&[
            ("*.com", None),
            ("*.x.com", None),
            ("*.x.com", Some(8080)),
            ("a.x.com", None),
            ("a.x.com", Some(8080)),
            ("a.x.com", Some(1)),
        ]);
        let host = Host::parse("a.x.com").unwrap();
        let order: Vec<usize> = index.candidates(&host, 8080).map(|candidate| candidate.upstream).collect();
        assert_eq!(order, [4, 3, 2, 1, 0]);
    }
}
