//! What a request asks for, and where it is led: URLs, CONNECT targets and headers as `explain` takes them, which asks the
//! functions of the proxy itself.

use std::path::Path;
use std::sync::LazyLock;

use outrigger::config::Config;
use outrigger::config::load::{Options, load_text};
use outrigger::explain::{Question, explain};
use outrigger::origin::{Host, parse_authority};

const CONFIG: &str = r#"
version: 1
egress: {connect_ports: [443, 8443]}
upstreams:
  exact: {hosts: [api.test, "api.test:8443", "10.1.2.3"], scheme: same}
  below: {hosts: ["*.api.test", "*.x.test:81"], https: deny}
  inside: {hosts: [in.test], https: intercept}
  fixed: {hosts: ["[2001:db8::1]", fixed.test], to: ["https://b.test:99"], routes: [{name: r, match: {path: /v1/*}}]}
intercept: {generate: true, dir: /nowhere/ca}
"#;

static LOADED: LazyLock<Config> = LazyLock::new(|| {
    let loaded = load_text(CONFIG, Path::new("urls.yaml"), Options::default(), &|_| None);
    loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.problems))
});

/// A request is refused, or led to the host that a naive reader finds in it; what is read as a host is written and read again
/// as the same.
pub fn urls(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (method, url) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let headers: Vec<String> = lines.take(8).map(str::to_owned).collect();
    host(url);
    let Ok(question) = Question::new(method, url, &headers, None) else { return };
    let explained = explain(&LOADED, &question);
    assert!(!explained.text(false).contains('\u{1b}'));
    let Some((name, port)) = naive(url, &headers) else {
        assert_eq!(explained.verdict, "refused", "nobody finds a host in {url:?} {headers:?}, but it is led somewhere");
        return;
    };
    if explained.verdict == "refused" {
        return;
    }
    let upstream = explained.upstream.as_ref().map(|upstream| &*upstream.name);
    let should = match &*name {
        "api.test" | "10.1.2.3" => "exact",
        "in.test" => "inside",
        "fixed.test" | "[2001:db8::1]" => "fixed",
        name if name.ends_with(".api.test") => "below",
        name if name.ends_with(".x.test") && port == Some(81) => "below",
        _ => "unmatched",
    };
    let number = name.rsplit('.').next().is_some_and(|label| label.starts_with(|c: char| c.is_ascii_digit()));
    let odd = name.starts_with('[') || (number && name.parse::<std::net::Ipv4Addr>().is_err());
    if odd && should == "unmatched" {
        // Other spellings of the same address.
        return;
    }
    assert_eq!(upstream, Some(should), "{method} {url:?} {headers:?}");
    if matches!(should, "unmatched" | "exact" | "below") {
        for to in &explained.leads_to {
            // A tunnel leads to host:port, a request to an origin.
            let authority = to.origin.split_once("://").map_or(&*to.origin, |(_, authority)| authority);
            let led = authority.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
            assert_eq!(led.map_or(authority, |(host, _)| host), name, "{method} {url:?} {headers:?}");
        }
    }
}

/// Host and port as one finds them without much thought. A URL goes before Host.
fn naive(url: &str, headers: &[String]) -> Option<(String, Option<u16>)> {
    let authority = match url.split_once("://") {
        Some((_, rest)) if !url.starts_with('/') => rest.split(['/', '?', '#']).next()?.to_owned(),
        _ if url.starts_with('/') || url == "*" => {
            let host = headers.iter().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.trim().eq_ignore_ascii_case("host").then(|| value.trim().to_owned())
            });
            host?
        }
        _ => url.to_owned(),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host.to_owned(), Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    let host = host.to_ascii_lowercase();
    Some((host.strip_suffix('.').unwrap_or(&host).to_owned(), port))
}

/// Hosts and authorities.
fn host(text: &str) {
    if let Ok(host) = Host::parse(text) {
        let shown = host.to_string();
        assert_eq!(Host::parse(&shown), Ok(host), "{text:?}");
        assert!(shown.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()), "{shown:?}");
    }
    if let Ok((host, port)) = parse_authority(text) {
        let shown = port.map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
        assert_eq!(parse_authority(&shown), Ok((host, port)), "{text:?}");
    }
}
