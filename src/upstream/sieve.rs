//! Which of an upstream's routes may take a request, told by a few bytes: most routes are passed over without a look at
//! what they match.

use http::Method;

use crate::config::{Match, PathMatch};

/// Holds what can be compared at once of each route; [`Sieve::first`] asks the plain rule about those that are left.
#[derive(Debug, Default)]
pub(crate) struct Sieve {
    /// What all written paths begin with, so that the bytes behind it tell them apart.
    common: Box<[u8]>,
    marks: Box<[Mark]>,
}

/// What a route takes.
#[derive(Debug)]
struct Mark {
    /// The first bytes behind [`Sieve::common`].
    bytes: u64,
    /// Which of them count. None do where any path may match.
    mask: u64,
    /// A bit for each method, one for all unusual ones.
    methods: u16,
}

impl Sieve {
    /// Of routes in their order.
    pub(crate) fn new<'m>(matchers: impl Iterator<Item = &'m Match> + Clone) -> Sieve {
        let literals = matchers.clone().filter_map(|matcher| literal(&matcher.path));
        let common = literals.reduce(|common, path| {
            let same = common.iter().zip(path).take_while(|(a, b)| a == b).count();
            &common[..same]
        });
        let common = common.unwrap_or_default();
        let mark = |matcher: &Match| {
            let methods = matcher.methods.iter().fold(0, |bits, method| bits | bit(method));
            let (bytes, mask) = match literal(&matcher.path) {
                Some(path) => eight(&path[common.len()..]),
                None => (0, 0),
            };
            Mark { bytes, mask, methods: if matcher.methods.is_empty() { u16::MAX } else { methods } }
        };
        Sieve { common: common.into(), marks: matchers.map(mark).collect() }
    }

    /// The first route that takes the request, counted from 0, where `takes` is the plain rule.
    pub(crate) fn first(&self, method: &Method, path: &str, takes: impl Fn(usize) -> bool) -> Option<usize> {
        if self.marks.is_empty() {
            return None;
        }
        let method = bit(method);
        // Where the path begins in another way, only routes without written bytes are left.
        let (bytes, ours) = match path.as_bytes().strip_prefix(&*self.common) {
            Some(rest) => (eight(rest).0, u64::MAX),
            None => (0, 0),
        };
        self.marks.iter().enumerate().position(|(at, mark)| {
            mark.methods & method != 0 && (mark.bytes ^ bytes) & mark.mask == 0 && mark.mask & !ours == 0 && takes(at)
        })
    }
}

/// What the path must at least begin with.
fn literal(path: &PathMatch) -> Option<&[u8]> {
    match path {
        PathMatch::Exact(path) | PathMatch::Prefix(path) => Some(path.as_bytes()),
        PathMatch::Any | PathMatch::Regex(_) => None,
    }
}

/// The first eight bytes as a number, and a mask of those that are there.
fn eight(path: &[u8]) -> (u64, u64) {
    if let Some(bytes) = path.first_chunk() {
        return (u64::from_le_bytes(*bytes), u64::MAX);
    }
    path.iter()
        .enumerate()
        .fold((0, 0), |(bytes, mask), (at, byte)| (bytes | u64::from(*byte) << (8 * at), mask | 0xff << (8 * at)))
}

fn bit(method: &Method) -> u16 {
    match *method {
        Method::GET => 1,
        Method::HEAD => 1 << 1,
        Method::POST => 1 << 2,
        Method::PUT => 1 << 3,
        Method::DELETE => 1 << 4,
        Method::CONNECT => 1 << 5,
        Method::OPTIONS => 1 << 6,
        Method::TRACE => 1 << 7,
        Method::PATCH => 1 << 8,
        _ => 1 << 9,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::upstream::route;

    fn paths() -> impl Strategy<Value = String> {
        prop_oneof!["/[ab]{0,3}(/[ab]{0,9}){0,2}", "/aaaaaaaaaaaa[ab]{0,3}", "[ab*]{0,2}", "/ä[äb]{0,5}"]
    }

    fn methods() -> impl Strategy<Value = Method> {
        let names =
            vec!["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "BREW", "PROPFIND"];
        prop::sample::select(names).prop_map(|name| Method::from_bytes(name.as_bytes()).unwrap())
    }

    fn matchers() -> impl Strategy<Value = Match> {
        let path = prop_oneof![
            1 => Just(PathMatch::Any),
            4 => paths().prop_map(PathMatch::Exact),
            4 => paths().prop_map(PathMatch::Prefix),
            1 => Just(PathMatch::Regex(regex::bytes::Regex::new("^/a.*b$").unwrap())),
        ];
        (prop::collection::vec(methods(), 0..3), path).prop_map(|(methods, path)| Match { methods, path })
    }

    proptest! {
        #[test]
        fn the_same_route_is_found_as_by_asking_each_in_turn(
            routes in prop::collection::vec(matchers(), 0..8),
            method in methods(),
            path in paths(),
            chosen in any::<prop::sample::Index>(),
            tail in "[ab/]{0,3}",
        ) {
            let sieve = Sieve::new(routes.iter());
            // Often a path that one of them has written, or a longer one.
            let written = routes.get(chosen.index(routes.len() + 1)).and_then(|one| literal(&one.path));
            let written = written.map(|path| format!("{}{tail}", String::from_utf8_lossy(path)));
            for path in [Some(path), written].into_iter().flatten() {
                let found = sieve.first(&method, &path, |at| route::matches(&routes[at], &method, &path));
                prop_assert_eq!(found, route::first(routes.iter(), &method, &path));
            }
        }
    }

    #[test]
    fn routes_whose_paths_differ_are_not_asked() {
        let prefix = |path: &str| Match { methods: vec![Method::GET], path: PathMatch::Prefix(path.to_owned()) };
        let routes = ["/api/v1/customers/", "/api/v1/charges/", "/api/v1/refunds/"].map(prefix);
        let sieve = Sieve::new(routes.iter());
        let asked = std::cell::RefCell::new(Vec::new());
        let ask = |method: &Method, path: &str| {
            asked.borrow_mut().clear();
            let takes = |at: usize| {
                asked.borrow_mut().push(at);
                route::matches(&routes[at], method, path)
            };
            (sieve.first(method, path, takes), asked.borrow().clone())
        };
        assert_eq!(ask(&Method::GET, "/api/v1/refunds/7"), (Some(2), vec![2]));
        assert_eq!(ask(&Method::PUT, "/api/v1/refunds/7"), (None, vec![]));
        assert_eq!(ask(&Method::GET, "/api/v2/refunds/7"), (None, vec![]));
    }
}
