//! Which lane of an upstream a request takes, and where it leads. Pure.

use http::Method;

use crate::config::{self, HttpVersion, Match, PathMatch, UpstreamScheme};
use crate::origin::{Host, Origin, Scheme};

/// The first of an upstream's routes that takes the request, counted from 0; `None`: the upstream's own lane.
pub(crate) fn first<'m>(mut matchers: impl Iterator<Item = &'m Match>, method: &Method, path: &str) -> Option<usize> {
    matchers.position(|matcher| matches(matcher, method, path))
}

/// Where a request for this host leads when the upstream has no `to`: by its `scheme`, or as the app asked where no upstream
/// names the host. A scheme's own port becomes the other's; another port stays.
pub(crate) fn origin(upstream: Option<&config::Upstream>, asked: Scheme, host: Host, port: u16) -> Origin {
    let scheme = match upstream.map(|upstream| upstream.scheme) {
        Some(UpstreamScheme::Always(scheme)) => scheme,
        Some(UpstreamScheme::Same) | None => asked,
    };
    let port = if port == asked.default_port() { scheme.default_port() } else { port };
    Origin { scheme, host, port }
}

/// Which names a request goes by on its way to one of `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// Host becomes that of `to`; else it stays the app's.
    pub(crate) host_of_to: bool,
    /// TLS goes by the host that the app asked for; else by `tls.server_name` or `to`.
    pub(crate) server_asked_for: bool,
}

impl Names {
    /// `keep_host` is false on an upstream's own port.
    pub(crate) fn towards(to: &Origin, keep_host: bool, tls: &config::Tls) -> Names {
        let keeps = to.host.ip().is_some() && keep_host;
        // Without TLS no name is verified, and connections serve every Host.
        let server_asked_for = keeps && tls.server_name.is_none() && to.scheme == Scheme::Https;
        Names { host_of_to: !keeps, server_asked_for }
    }
}

/// Whether nothing but HTTP/1.1 will do: an Upgrade is a thing of HTTP/1.1. Where the operator insists on HTTP/2 it goes out
/// as a plain request.
pub(crate) fn http1_only(upgrade: bool, http: HttpVersion) -> bool {
    upgrade && http != HttpVersion::Http2
}

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
        PathMatch::Regex(regex) => regex.is_match(path.as_bytes()),
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
