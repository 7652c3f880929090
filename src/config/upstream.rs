//! Reading upstreams and their routes.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use crate::address::{AddressRule, AddressSet};
use crate::config::layers::Layers;
use crate::config::tls::Files;
use crate::config::{
    Connect, Connections, HostPattern, HttpVersion, Match, PathMatch, Route, Tls, Unmatched, Upstream, UpstreamScheme,
    checks, host, schema,
};
use crate::document::read::written;
use crate::document::tree::Node;
use crate::document::{Place, Reader};
use crate::origin::Scheme;
use crate::policy::{policies, retry};

/// Of upstreams and routes. Characters.
pub(crate) const LONGEST_NAME: usize = 63;
/// Compiled size of one `path_regex`. Bytes.
const REGEX_SIZE: usize = 1 << 20;

/// Reads `defaults`, to note what is wrong with it, whoever inherits it.
pub(crate) fn defaults(reader: &mut Reader<'_>, files: &mut Files<'_>) {
    let policies = policies::Settings::read(reader);
    let (_, _) = shared(reader, files);
    checks::policies(reader, &policies);
    reader.reserved(schema::RESERVED);
}

/// Reads what hosts without an upstream get.
pub(crate) fn unmatched(reader: &mut Reader<'_>, files: &mut Files<'_>) -> Unmatched {
    let policies = policies::Settings::read(reader);
    let (connections, tls) = shared(reader, files);
    let policies = policies::Settings { circuit_breaker: None, rate_limit: None, concurrency: None, ..policies };
    Unmatched { policies, connections, tls }
}

/// `connections` and `tls`
fn shared(reader: &mut Reader<'_>, files: &mut Files<'_>) -> (Connections, Tls) {
    let connections = reader.section("connections", |reader| {
        let connections = Connections {
            max: reader.count("max", "0 would refuse every request"),
            max_idle: reader.count("max_idle", "`idle_timeout: 1ms` keeps hardly any"),
            idle_timeout: reader.clock("idle_timeout"),
            max_age: reader.clock("max_age"),
            http: reader
                .choice("http", &[("auto", HttpVersion::Auto), ("1", HttpVersion::Http1), ("2", HttpVersion::Http2)]),
        };
        if connections.max_idle > connections.max && reader.node().get("max_idle").is_some_and(|n| written(n).is_some())
        {
            reader.warning("max_idle", "is more than `max`".to_owned(), None);
        }
        connections
    });
    // Only where the block is no block, which is noted.
    let connections = connections.unwrap_or(Connections {
        max: NonZeroU32::MIN,
        max_idle: NonZeroU32::MIN,
        idle_timeout: None,
        max_age: None,
        http: HttpVersion::Auto,
    });
    let tls = reader.section("tls", |reader| files.read(reader)).unwrap_or(Tls {
        roots: None,
        identity: None,
        server_name: None,
        tls13_only: false,
        ca_file: None,
        client_cert: None,
    });
    (connections, tls)
}

/// What was read of the upstreams so far.
#[derive(Default)]
pub(crate) struct Seen {
    /// Who listed a host, and where.
    hosts: HashMap<HostPattern, (Arc<str>, Option<Place>)>,
}

/// Whether the text can be a name in metrics: `[a-z0-9-]`, at most 63.
pub(crate) fn name_problem(name: &str) -> Option<(String, String)> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !name.is_empty() && name.len() <= LONGEST_NAME && name.bytes().all(allowed) {
        return None;
    }
    let mut suggestion: String = name
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii() && allowed(c as u8) { c } else { '-' })
        .take(LONGEST_NAME)
        .collect();
    if suggestion.trim_matches('-').is_empty() {
        suggestion = "name".to_owned();
    }
    let message = format!("a name has a-z, 0-9 and `-` only, and at most {LONGEST_NAME} of them");
    Some((message, format!("write `{suggestion}`")))
}

/// Reads one upstream.
pub(crate) fn upstream(
    reader: &mut Reader<'_>,
    name: &str,
    merged: &Arc<Node>,
    layers: &Layers,
    files: &mut Files<'_>,
    seen: &mut Seen,
) -> Upstream {
    let name: Arc<str> = name.into();
    let hosts = hosts(reader, &name, seen);
    let to = reader.list("to", host::origin);
    let scheme = reader.choice(
        "scheme",
        &[
            ("https", UpstreamScheme::Always(Scheme::Https)),
            ("http", UpstreamScheme::Always(Scheme::Http)),
            ("same", UpstreamScheme::Same),
        ],
    );
    let listen = reader.parsed("listen", host::listen);
    let connect = connect(reader);
    let allow_addresses = AddressSet(reader.list("allow_addresses", AddressRule::parse));
    let policies = policies::Settings::read(reader);
    let (connections, tls) = shared(reader, files);
    let routes = routes(reader, merged, layers);
    reader.reserved(schema::RESERVED);
    let upstream =
        Upstream { name, hosts, to, scheme, listen, connect, allow_addresses, tls, connections, policies, routes };
    checks::policies(reader, &upstream.policies);
    checks::upstream(reader, &upstream);
    upstream
}

fn hosts(reader: &mut Reader<'_>, name: &Arc<str>, seen: &mut Seen) -> Vec<HostPattern> {
    let listed = reader.placed_list("hosts", |text, node| {
        let pattern = host::pattern(text)?;
        if let Some((other, place)) = seen.hosts.get(&pattern) {
            let line = place.as_ref().map(|place| format!(" (line {})", place.line)).unwrap_or_default();
            let whose = if other == name { "this upstream".to_owned() } else { format!("upstream `{other}`") };
            return Err(format!("is already listed by {whose}{line}: a host belongs to one upstream, once"));
        }
        seen.hosts.insert(pattern.clone(), (name.clone(), written(node)));
        Ok(pattern)
    });
    listed.into_iter().map(|(pattern, _)| pattern).collect()
}

fn connect(reader: &mut Reader<'_>) -> Connect {
    reader.choice("https", &[("tunnel", Connect::Tunnel), ("intercept", Connect::Intercept), ("deny", Connect::Deny)])
}

fn routes(reader: &mut Reader<'_>, upstream: &Arc<Node>, layers: &Layers) -> Vec<Route> {
    let Some(list) = reader.raw("routes") else { return Vec::new() };
    if list.scalar().is_some_and(|scalar| scalar.is_missing()) {
        return Vec::new();
    }
    if list.is_map() || list.scalar().is_some() {
        let help = "start each with `- name: …`".to_owned();
        reader.problem("routes", "must be a list".to_owned(), Some(help));
        return Vec::new();
    }
    let mut routes: Vec<Route> = Vec::new();
    let mut names: HashSet<String> = HashSet::new();
    for (index, item) in list.items().iter().enumerate() {
        let merged = layers.route(upstream, item);
        let Some(mut reader) = reader.item("routes", index, &merged) else { continue };
        if let Some(route) = route(&mut reader, item, upstream, &mut names) {
            let shadowed = routes.iter().any(|earlier| checks::covers(&earlier.matcher, &route.matcher));
            if shadowed {
                let help = Some("put it further up: the first match wins".to_owned());
                reader.warning("match", "is never reached: an earlier route takes all it matches".to_owned(), help);
            }
            routes.push(route);
        }
        reader.finish();
    }
    routes
}

fn route(
    reader: &mut Reader<'_>,
    item: &Arc<Node>,
    upstream: &Arc<Node>,
    names: &mut HashSet<String>,
) -> Option<Route> {
    let name = reader.parsed("name", |text| match name_problem(text) {
        None => Ok(text.to_owned()),
        Some((message, help)) => Err(format!("{message}: {help}")),
    });
    if !reader.has("name") {
        let help = Some("write `name: …`; metrics and logs use it".to_owned());
        reader.problem("name", "is missing".to_owned(), help);
    }
    if let Some(name) = &name
        && !names.insert(name.clone())
    {
        reader.problem("name", format!("another route of this upstream is called `{name}` too"), None);
    }
    let matcher = reader.section("match", matching).flatten();
    if !reader.has("match") {
        let help = Some("write `match: {path: /v1/charges}`; `path: /*` matches everything".to_owned());
        reader.problem("match", "is missing".to_owned(), help);
    }
    let policies = policies::Settings::read(reader);
    checks::policies(reader, &policies);
    reader.reserved(schema::RESERVED);
    let own_budget = item.at(&["retry", "budget"]).is_some();
    // There is no budget of the upstream's to share where its retries or its budget are off.
    let nothing_to_share = upstream.at(&["retry", "budget"]).is_none_or(Node::is_off);
    let has_budget = policies.retry.as_ref().is_some_and(|retry: &retry::Settings| retry.budget.is_some());
    let own = policies::OwnState {
        breaker: item.get("circuit_breaker").is_some(),
        rate_limit: item.get("rate_limit").is_some(),
        concurrency: item.get("concurrency").is_some(),
        budget: own_budget || (nothing_to_share && has_budget),
    };
    Some(Route { name: name?.into(), matcher: matcher?, policies, own })
}

/// `match`; `None` where it is wrong.
fn matching(reader: &mut Reader<'_>) -> Option<Match> {
    let methods = reader.list("methods", retry::method);
    let has_path = reader.has("path");
    let path = reader.parsed("path", path);
    let regex = reader.parsed("path_regex", path_regex);
    if has_path && reader.has("path_regex") {
        let help = Some("keep one of the two".to_owned());
        reader.problem("path_regex", "can't stand beside `path`".to_owned(), help);
        return None;
    }
    if !has_path && !reader.has("path_regex") && !reader.has("methods") {
        let help = Some("write `methods`, `path` or `path_regex`; `path: /*` matches everything".to_owned());
        reader.problem("", "matches nothing in particular".to_owned(), help);
        return None;
    }
    if !has_path && !reader.has("path_regex") {
        return Some(Match { methods, path: PathMatch::Any });
    }
    Some(Match { methods, path: path.or(regex)? })
}

/// What is wrong with a path that is written as people read it.
const ENCODED: &str = "has spaces or letters that a path carries percent-encoded: write them as `%20` and the like";

fn path(text: &str) -> Result<PathMatch, String> {
    if !text.starts_with('/') {
        return Err(format!("`{text}` must start with `/`"));
    }
    if text.contains(['?', '#']) {
        return Err(format!("`{text}`: the path is matched without query and fragment; leave them out"));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ENCODED.to_owned());
    }
    match text.find('*') {
        None => Ok(PathMatch::Exact(text.to_owned())),
        Some(at) if at + 1 == text.len() && text.ends_with("/*") => Ok(PathMatch::Prefix(text[..at].to_owned())),
        Some(_) => Err(format!("`{text}`: `*` may only stand at the end, after `/`; use `path_regex` for more")),
    }
}

fn path_regex(text: &str) -> Result<PathMatch, String> {
    if !text.is_ascii() {
        return Err(ENCODED.to_owned());
    }
    let explain = |error: regex::Error| match error {
        regex::Error::CompiledTooBig(_) => {
            "is too large once compiled (1 MiB at most): use fewer repetitions".to_owned()
        }
        error => {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or("").trim_start_matches("error: ");
            format!("is not a regular expression: {reason}")
        }
    };
    // By itself first, so that nothing in it can reach out of the group.
    expression(text).map_err(explain)?;
    expression(&format!(r"\A(?:{text})\z")).map(PathMatch::Regex).map_err(explain)
}

/// Compiles an expression as `path_regex` reads it: paths are ASCII, so a class is one of bytes.
pub(crate) fn expression(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).unicode(false).size_limit(REGEX_SIZE).build()
}
