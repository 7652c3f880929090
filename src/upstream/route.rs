//! Which lane of an upstream a request takes.

use http::Method;

use crate::config::{Match, PathMatch};

/// Whether a route takes the request. `path` is raw, without query: what is percent-encoded stays so, since upstreams
/// differ in what they make of it.
pub fn matches(matcher: &Match, method: &Method, path: &str) -> bool {
    if !matcher.methods.is_empty() && !matcher.methods.contains(method) {
        return false;
    }
    match &matcher.path {
        PathMatch::Any => true,
        PathMatch::Exact(exact) => path == exact,
        PathMatch::Prefix(prefix) => path.starts_with(prefix),
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_matches_by_method_and_raw_path() {
        let posts = Match { methods: vec![Method::POST], path: PathMatch::Exact("/v1/charges".into()) };
        assert!(matches(&posts, &Method::POST, "/v1/charges"));
        assert!(!matches(&posts, &Method::GET, "/v1/charges"));
        assert!(!matches(&posts, &Method::POST, "/v1/charges/"));
        let below = Match { methods: Vec::new(), path: PathMatch::Prefix("/v1/".into()) };
        assert!(matches(&below, &Method::GET, "/v1/") && matches(&below, &Method::PUT, "/v1/x/y"));
        assert!(!matches(&below, &Method::GET, "/v1") && !matches(&below, &Method::GET, "/%761/x"));
    }
}
