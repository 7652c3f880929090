//! Which route of its upstream a request takes, and why not another.

use http::Method;
use serde::Serialize;

use crate::config::{self, Config, Match, PathMatch, upstream::expression};
use crate::explain::Spot;
use crate::upstream::route;

/// The route, and why.
#[derive(Debug, Serialize)]
pub struct Choice {
    /// As metrics and logs name it; `None`: no route takes the request, so that the upstream's own policies act.
    pub name: Option<String>,
    /// Where it is written.
    pub place: Option<Spot>,
    /// One sentence.
    pub why: String,
    /// The other routes, in the order of the file.
    pub others: Vec<Other>,
}

/// A route that the request does not take.
#[derive(Debug, Serialize)]
pub struct Other {
    /// Its name.
    pub name: String,
    /// Where it is written.
    pub place: Option<Spot>,
    /// Whether it would take the request, if it came first.
    pub matches: bool,
    /// Whether it looks as if it would, and doesn't.
    pub near: bool,
    /// One sentence.
    pub why: String,
}

/// The route of a request to this upstream: its index, and the reasons.
pub(super) fn choose(
    config: &Config,
    upstream: &config::Upstream,
    method: &Method,
    path: &str,
) -> (Option<usize>, Choice) {
    let chosen = route::first(upstream.routes.iter().map(|route| &route.matcher), method, path);
    let others = upstream.routes.iter().enumerate().filter(|(at, _)| Some(*at) != chosen).map(|(_, route)| {
        let matches = route::matches(&route.matcher, method, path);
        let (why, near) = match (matches, chosen.map(|at| &upstream.routes[at].name)) {
            (true, Some(first)) => {
                (format!("would take it too, but stands behind `{first}`: the first match wins"), true)
            }
            (_, _) => match secret(config, upstream, route) {
                Some(written) => (format!("its `match` is another: {written}"), false),
                None => differs(&route.matcher, method, path),
            },
        };
        Other { name: route.name.to_string(), place: place(config, upstream, route), matches, near, why }
    });
    let others = others.collect();
    let choice = match chosen.map(|at| &upstream.routes[at]) {
        Some(route) => Choice {
            name: Some(route.name.to_string()),
            place: place(config, upstream, route),
            why: format!(
                "its `match` takes the request: {}",
                secret(config, upstream, route).unwrap_or_else(|| show(&route.matcher))
            ),
            others,
        },
        None => {
            let why =
                if upstream.routes.is_empty() { "the upstream has no routes" } else { "no route takes the request" };
            Choice { name: None, place: None, why: format!("{why}: its own policies act"), others }
        }
    };
    (chosen, choice)
}

fn place(config: &Config, upstream: &config::Upstream, route: &config::Route) -> Option<Spot> {
    super::settings::written_route(config, upstream, route).map(|node| Spot::of(&node.place))
}

/// The path of a `match` as the file has it, where a part of it is a variable or a file, which may be a secret.
fn secret(config: &Config, upstream: &config::Upstream, route: &config::Route) -> Option<String> {
    let route = super::settings::written_route(config, upstream, route)?;
    let node = route.get("match")?;
    let scalar = |key| Some((key, node.get(key)?.scalar().filter(|scalar| scalar.expansion.is_some())?));
    let (key, scalar) = scalar("path").or_else(|| scalar("path_regex"))?;
    Some(format!("`{key}: {}`", scalar.as_written()))
}

/// A `match` as the file would have it.
fn show(matcher: &Match) -> String {
    let methods: Vec<&str> = matcher.methods.iter().map(Method::as_str).collect();
    let mut parts = Vec::new();
    if !methods.is_empty() {
        parts.push(format!("methods: [{}]", methods.join(", ")));
    }
    match &matcher.path {
        PathMatch::Any => {}
        PathMatch::Exact(path) => parts.push(format!("path: {path}")),
        PathMatch::Prefix(prefix) => parts.push(format!("path: {prefix}*")),
        PathMatch::Regex(_) => parts.push(format!("path_regex: {}", pattern_of(matcher))),
    }
    format!("`{}`", parts.join(", "))
}

/// The expression as it was written: it is compiled so that it has to match the whole path.
fn pattern_of(matcher: &Match) -> &str {
    match &matcher.path {
        PathMatch::Regex(regex) => {
            let whole = regex.as_str();
            whole.strip_prefix(r"\A(?:").and_then(|rest| rest.strip_suffix(r")\z")).unwrap_or(whole)
        }
        PathMatch::Exact(path) | PathMatch::Prefix(path) => path,
        PathMatch::Any => "",
    }
}

/// Why a route does not take the request, and whether that is near.
fn differs(matcher: &Match, method: &Method, path: &str) -> (String, bool) {
    let methods: Vec<&str> = matcher.methods.iter().map(Method::as_str).collect();
    let other_method = !matcher.methods.is_empty() && !matcher.methods.contains(method);
    let any_method = Match { methods: Vec::new(), path: matcher.path.clone() };
    if other_method && route::matches(&any_method, method, path) {
        return (format!("its path fits, but {method} is not in its methods ({})", methods.join(", ")), true);
    }
    let hint = match &matcher.path {
        PathMatch::Any => None,
        PathMatch::Exact(exact) => nearly(exact, path).or_else(|| {
            let below = path.strip_prefix(exact.as_str()).is_some_and(|rest| rest.starts_with('/'));
            below.then(|| format!("`{exact}` is exact; `{}/*` takes what is below it", exact.trim_end_matches('/')))
        }),
        PathMatch::Prefix(prefix) => {
            if path == prefix.trim_end_matches('/') {
                Some(format!("`{prefix}*` takes what starts with `{prefix}`, not `{path}` itself"))
            } else {
                let start = path.char_indices().nth(prefix.chars().count()).map_or(path.len(), |(at, _)| at);
                nearly(prefix, &path[..start])
            }
        }
        PathMatch::Regex(_) => expression(pattern_of(matcher))
            .is_ok_and(|part| part.is_match(path.as_bytes()))
            .then(|| format!("`{}` fits a part of the path only, and has to fit the whole", pattern_of(matcher))),
    };
    match hint {
        Some(hint) if other_method => (format!("{hint}; and {method} is not in its methods"), true),
        Some(hint) => (hint, true),
        None => (format!("its path is another: {}", show(matcher)), false),
    }
}

/// What sets two paths apart that a person may take for one.
fn nearly(listed: &str, asked: &str) -> Option<String> {
    if listed.trim_end_matches('/') == asked.trim_end_matches('/') {
        return Some(format!("the path is `{listed}` there: the slash at the end counts"));
    }
    if listed.eq_ignore_ascii_case(asked) {
        return Some(format!("the path is `{listed}` there: upper and lower case differ"));
    }
    let decoded = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            match hex.filter(|_| first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &tail[2..];
                }
                None => {
                    bytes.push(first);
                    rest = tail;
                }
            }
        }
        bytes
    };
    (decoded(listed) == decoded(asked)).then(|| {
        format!("the path is `{listed}` there: paths are compared as they are sent, percent-encoding included")
    })
}
