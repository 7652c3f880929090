//! Configurations that surprise.

use crate::explain::Explanation;
use crate::explain::tests::{ask, config};

fn upstream(told: &Explanation) -> &str {
    &told.upstream.as_ref().unwrap().name
}

fn setting<'e>(told: &'e Explanation, path: &str) -> (String, &'e str, Option<usize>) {
    let setting = told.policy.iter().find(|setting| setting.setting == path).unwrap();
    let value = setting.value.as_str().map_or_else(|| setting.value.to_string(), str::to_owned);
    (value, setting.from, setting.place.as_ref().map(|place| place.line))
}

/// A file of the project, read when the test runs: an image is built without it.
fn project_file(path: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn exact_hosts_ports_and_wildcards_say_why_the_others_come_later_or_miss() {
    let config = config(
        "version: 1\n\
         upstreams:\n\
         \x20 exact: {hosts: [api.x.com]}\n\
         \x20 port: {hosts: [\"api.x.com:8443\", \"plain.x.com:443\"]}\n\
         \x20 wild: {hosts: [\"*.x.com\"]}\n\
         \x20 deep: {hosts: [\"*.eu.x.com\", \"*.x.com:8443\"]}\n\
         \x20 hidden: {to: [\"https://other.net\"], listen: \"127.0.0.1:7201\"}\n",
    );
    let later = |url: &str| {
        let told = ask(&config, "GET", url, &[]);
        let choice = told.upstream.unwrap();
        let later: Vec<_> = choice.later.iter().map(|pattern| (pattern.pattern.clone(), pattern.why.clone())).collect();
        let near: Vec<_> = choice.near.iter().map(|pattern| (pattern.upstream.clone(), pattern.why.clone())).collect();
        (choice.name, choice.pattern.and_then(|pattern| pattern.place).map(|place| place.line), later, near)
    };
    let (name, line, later_ones, _) = later("http://api.x.com:8443/");
    assert_eq!((name.as_str(), line), ("port", Some(4)));
    let whys: Vec<&str> = later_ones.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(
        whys,
        [
            "a host with its port goes before the host alone",
            "an exact host goes before a wildcard",
            "an exact host goes before a wildcard"
        ]
    );
    let (name, _, later_ones, _) = later("http://a.eu.x.com:8443/");
    assert_eq!(name, "deep");
    assert_eq!(later_ones[0].1, "a wildcard with the port goes before one without");
    let (name, _, later_ones, _) = later("http://a.eu.x.com/");
    assert_eq!((name.as_str(), later_ones[0].1.as_str()), ("deep", "the longer wildcard goes first"));
    // http:// without a port asks for port 80.
    let (name, _, _, near) = later("http://plain.x.com/");
    assert_eq!(name, "wild");
    assert!(near[0].0 == "port" && near[0].1.contains("port 443, and this request asks for port 80"), "{near:?}");
    for (url, whose, says) in [
        ("http://x.com/", "wild", "not x.com itself"),
        ("http://sub.plain.x.org/", "", ""),
        ("http://api.x.con/", "exact", "spelt nearly the same"),
        ("http://other.net/", "hidden", "http://127.0.0.1:7201"),
    ] {
        let (name, _, _, near) = later(url);
        assert_eq!(name, "unmatched", "{url}");
        match near.iter().find(|(upstream, _)| upstream == whose) {
            Some((_, why)) => assert!(why.contains(says), "{url}: {why}"),
            None => assert!(whose.is_empty() && near.is_empty(), "{url}: {near:?}"),
        }
    }
}

#[test]
fn routes_that_overlap_or_are_nearly_it_say_so() {
    let config = config(
        "version: 1\nupstreams:\n  a:\n    hosts: [a.test]\n    routes:\n\
         \x20     - {name: exact, match: {path: /v1/charges}}\n\
         \x20     - {name: posts, match: {methods: [POST], path: /v1/*}}\n\
         \x20     - {name: ids, match: {path_regex: \"/ids/[0-9]+\"}}\n\
         \x20     - {name: rest, match: {path: /v1/*}}\n",
    );
    let others = |method: &str, path: &str| {
        let choice = ask(&config, method, &format!("http://a.test{path}"), &[]).route.unwrap();
        let others: Vec<String> =
            choice.others.into_iter().filter(|o| o.near).map(|o| format!("{}: {}", o.name, o.why)).collect();
        (choice.name.unwrap_or_default(), others.join("\n"))
    };
    for (method, path, route, says) in [
        ("POST", "/v1/charges", "exact", "posts: would take it too, but stands behind `exact`"),
        ("POST", "/v1/charges/", "posts", "exact: the path is `/v1/charges` there: the slash at the end counts"),
        ("GET", "/v1/Charges", "rest", "exact: the path is `/v1/charges` there: upper and lower case differ"),
        ("GET", "/v1/charge%73", "rest", "percent-encoding included"),
        ("GET", "/v1/charges/1", "rest", "exact: `/v1/charges` is exact; `/v1/charges/*` takes what is below it"),
        ("GET", "/v1/x", "rest", "posts: its path fits, but GET is not in its methods (POST)"),
        ("GET", "/v1", "", "rest: `/v1/*` takes what starts with `/v1/`, not `/v1` itself"),
        ("GET", "/ids/12/x", "", "fits a part of the path only"),
        ("GET", "/ids/12?x=/v1/charges", "ids", ""),
        ("GET", "/V1/x", "", "rest: the path is `/v1/` there: upper and lower case differ"),
    ] {
        let (name, near) = others(method, path);
        assert_eq!(name, route, "{method} {path}: {near}");
        assert!(near.contains(says), "{method} {path}: {near}");
    }
}

#[test]
fn a_clock_that_is_off_does_not_pass() {
    let yaml = "version: 1\nupstreams: {a: {hosts: [a.b], timeouts: {attempt: off}}}\n";
    for (method, url) in [("GET", "http://a.b/"), ("CONNECT", "a.b:443")] {
        let text = ask(&config(yaml), method, url, &[]).text(false);
        assert!(!text.contains("`timeouts.attempt` passes"), "{text}");
    }
    let text = ask(&config(&yaml.replace("off", "3s")), "GET", "http://a.b/", &[]).text(false);
    assert!(text.contains("`timeouts.attempt` passes"), "{text}");
}

#[test]
fn blocks_that_are_switched_off_say_where_and_a_map_over_off_says_that_it_starts_over() {
    let config = config(
        "version: 1\n\
         defaults:\n\
         \x20 retry: off\n\
         \x20 circuit_breaker: {open_for: 10s}\n\
         \x20 timeouts: {attempt: 5s, idle: off}\n\
         upstreams:\n\
         \x20 a:\n\
         \x20   hosts: [a.test]\n\
         \x20   retry: {max_attempts: 2}\n\
         \x20   circuit_breaker: off\n\
         \x20   rate_limit: {max_wait: 1s}\n\
         \x20   routes:\n\
         \x20     - name: r\n\
         \x20       match: {path: /r}\n\
         \x20       circuit_breaker: {consecutive_failures: 3}\n\
         \x20       retry: {on: [503], budget: off}\n\
         \x20 b: {hosts: [b.test]}\n",
    );
    let own = ask(&config, "GET", "http://a.test/", &[]);
    assert_eq!(setting(&own, "retry.max_attempts"), ("2".into(), "upstream", Some(9)));
    assert_eq!(setting(&own, "retry.backoff.base"), ("100ms".into(), "built-in", None));
    assert_eq!(setting(&own, "circuit_breaker"), ("off".into(), "upstream", Some(10)));
    assert_eq!(setting(&own, "timeouts.idle"), ("off".into(), "defaults", Some(5)));
    assert_eq!(setting(&own, "rate_limit").0, "off");
    let note = |told: &Explanation, path: &str| {
        told.policy.iter().find(|setting| setting.setting == path).unwrap().note.clone().unwrap_or_default()
    };
    assert_eq!(note(&own, "rate_limit"), "until `requests` is written");
    assert!(note(&own, "retry").contains("`defaults` has `off` (f.yaml:3) and the upstream writes it again"));

    let route = ask(&config, "GET", "http://a.test/r", &[]);
    // `open_for` of `defaults` is gone with the upstream's `off`.
    assert_eq!(setting(&route, "circuit_breaker.open_for"), ("30s".into(), "built-in", None));
    assert_eq!(setting(&route, "circuit_breaker.consecutive_failures"), ("3".into(), "route", Some(15)));
    assert!(
        note(&route, "circuit_breaker").contains("the upstream has `off` (f.yaml:10) and the route writes it again")
    );
    assert_eq!(setting(&route, "retry.on"), ("[503]".into(), "route", Some(16)));
    assert_eq!(setting(&route, "retry.budget"), ("off".into(), "route", Some(16)));
    assert_eq!(setting(&route, "retry.max_attempts"), ("2".into(), "upstream", Some(9)));
    let whose: Vec<_> = route.state.iter().map(|state| (state.what, state.whose)).collect();
    assert_eq!(whose[0], ("circuit_breaker", "route"));
    assert_eq!(whose[3], ("retry.budget", "none"));

    let other = ask(&config, "GET", "http://b.test/", &[]);
    assert_eq!(setting(&other, "retry"), ("off".into(), "defaults", Some(3)));
    assert_eq!(other.retries.unwrap().max_attempts, 1);
}

#[test]
fn values_by_anchors_and_merge_keys_are_placed_where_they_are_written() {
    let config = config(&project_file("tests/config/valid/anchors.yaml"));
    let told = ask(&config, "GET", "http://b.example/", &[]);
    assert_eq!(setting(&told, "retry.max_attempts"), ("2".into(), "upstream", Some(5)));
    assert_eq!(setting(&told, "retry.max_retry_after"), ("1s".into(), "upstream", Some(9)));
    assert_eq!(told.upstream.unwrap().pattern.unwrap().place.unwrap().line, 8);
}

#[test]
fn shared_state_names_the_routes_that_are_apart() {
    let config = config(
        "version: 1\nupstreams:\n  a:\n    hosts: [a.test]\n    rate_limit: {requests: 5, key: \"header:X-Tenant\"}\n    routes:\n\
         \x20     - {name: own, match: {path: /own}, rate_limit: {max_wait: 0}, retry: {budget: {ratio: 0.1}}}\n\
         \x20     - {name: same, match: {path: /same}, timeouts: {attempt: 1s}}\n",
    );
    let why = |path: &str, what: &str| {
        let told = ask(&config, "GET", &format!("http://a.test{path}"), &[]);
        told.state.iter().find(|state| state.what == what).unwrap().why.clone()
    };
    assert_eq!(
        why("/same", "rate_limit"),
        "the upstream's, a bucket for each value of `x-tenant`, shared by all its requests but those of `own`"
    );
    assert!(why("/own", "rate_limit").starts_with("its own, a bucket for each value"));
    assert_eq!(why("/own", "retry.budget"), "its own: the route writes `retry.budget`");
    assert_eq!(why("/own", "circuit_breaker"), "the upstream's, shared by all its requests, on every route");
    assert_eq!(why("/own", "concurrency"), "is off");
}

#[test]
fn a_tunnel_is_told_apart_from_what_http_would_get() {
    let config = config(
        "version: 1\nupstreams:\n  a:\n    hosts: [a.test]\n    to: [\"https://b.test\"]\n    concurrency: {max_in_flight: 1}\n\
         \x20   routes: [{name: r, match: {path: /r}}]\n  deny: {hosts: [d.test], https: deny}\negress: {connect_ports: [443]}\n",
    );
    let told = ask(&config, "GET", "https://a.test/r", &[]);
    assert_eq!((told.verdict, upstream(&told), told.route.is_none()), ("tunnel", "a", true));
    assert_eq!(told.leads_to[0].origin, "a.test:443");
    let http = told.as_http.unwrap();
    assert_eq!((http.url.as_str(), http.route.as_deref()), ("http://a.test/r", Some("r")));
    assert_eq!(http.leads_to, ["https://b.test"]);
    assert!(told.notes.iter().any(|note| note.contains("`to` and `routes` has no effect")), "{:?}", told.notes);
    let acts = |path: &str| told.policy.iter().find(|setting| setting.setting.starts_with(path)).unwrap().acts;
    assert!(acts("timeouts.connect") && acts("circuit_breaker.") && !acts("concurrency") && !acts("to"));
    assert_eq!(told.clocks.unwrap().wait_for_slot_ms, 0);

    let refusal = |method: &str, url: &str| {
        let told = ask(&config, method, url, &[]);
        let refusal = told.refusal.unwrap();
        (refusal.status, refusal.code, refusal.place.map(|place| place.line))
    };
    assert_eq!(refusal("GET", "https://d.test/"), (403, "denied_connect", Some(8)));
    assert_eq!(refusal("CONNECT", "a.test:8443"), (403, "denied_connect_port", Some(9)));
    assert_eq!(refusal("CONNECT", "127.0.0.1:443"), (403, "denied_address", None));
}

#[test]
fn hosts_without_an_upstream_leave_as_the_app_asked_or_not_at_all() {
    let forward = config("version: 1\ndefaults: {timeouts: {attempt: 5s}, circuit_breaker: {open_for: 1s}}\n");
    let told = ask(&forward, "GET", "http://u.test/", &[]);
    assert_eq!((upstream(&told), told.leads_to[0].origin.as_str()), ("unmatched", "http://u.test"));
    assert_eq!(setting(&told, "timeouts.attempt"), ("5s".into(), "defaults", Some(2)));
    assert_eq!(setting(&told, "timeouts.request"), ("off".into(), "built-in", None));
    assert!(!told.policy.iter().any(|setting| setting.setting.starts_with("circuit_breaker")));
    assert!(told.state.iter().take(3).all(|state| state.whose == "none"));
    // Nothing but failed connections is repeated, so three attempts of five seconds, and nothing bounds them together.
    let clocks = told.clocks.unwrap();
    assert_eq!((clocks.attempts, clocks.at_most_ms), (3, Some(15_300)));
    let told = ask(&config("version: 1\n"), "GET", "http://u.test/", &[]);
    assert_eq!(told.clocks.unwrap().at_most_ms, None);

    let deny = config("version: 1\negress:\n  unmatched: deny\n");
    let refusal = ask(&deny, "GET", "http://u.test/", &[]).refusal.unwrap();
    assert_eq!((refusal.code, refusal.place.unwrap().line), ("denied_unmatched", 3));
}

#[test]
fn own_listeners_are_a_loop_and_own_ports_lead_to_their_upstream() {
    let config = config(
        "version: 1\nupstreams:\n  a: {to: [\"https://a.test\"], listen: \"127.0.0.1:7201\"}\n\
         \x20 b: {hosts: [\"b.test:8080\"], listen: \"127.0.0.1:7202\"}\n",
    );
    for url in ["http://127.0.0.1:7171/", "http://localhost:7172/", "http://127.0.0.1:7173/", "https://127.0.0.1:7201/"]
    {
        let refusal = ask(&config, "GET", url, &[]).refusal.unwrap();
        assert_eq!((refusal.status, refusal.code), (508, "loop"), "{url}");
    }
    let told = ask(&config, "GET", "http://localhost:7201/x", &[]);
    assert_eq!((told.verdict, upstream(&told), told.leads_to[0].origin.as_str()), ("request", "a", "https://a.test"));
    assert_eq!(told.leads_to[0].host.as_deref(), Some("a.test"));
    assert!(told.notes[0].contains("508 loop"));
    let told = ask(&config, "GET", "/x", &["Host: 127.0.0.1:7202"]);
    assert_eq!((upstream(&told), told.leads_to[0].origin.as_str()), ("b", "https://b.test:8080"));
    assert_eq!(told.leads_to[0].host.as_deref(), Some("b.test:8080"));
}

#[test]
fn names_towards_an_address_are_the_apps_and_addresses_are_judged_where_they_are_known() {
    let config = config(
        "version: 1\nupstreams:\n  a: {hosts: [a.test], to: [\"https://10.0.0.1:8443\", \"http://127.0.0.1:9\", \"https://b.test\"]}\n\
         \x20 c: {hosts: [127.0.0.1], scheme: http}\n  d: {hosts: [localhost], scheme: http, allow_addresses: [loopback]}\n\
         \x20 e: {hosts: [e.test], tls: {server_name: f.test, min_version: 1.3}, connections: {http: 2}}\n\
         egress: {deny: [private]}\n",
    );
    let told = ask(&config, "GET", "http://a.test:81/", &[]);
    let names: Vec<_> = told
        .leads_to
        .iter()
        .map(|to| (to.host.as_deref().unwrap(), to.tls.as_ref().map(|tls| tls.server_name.as_str()), to.egress.verdict))
        .collect();
    assert_eq!(
        names,
        [
            ("a.test:81", Some("a.test"), "allowed"),
            ("a.test:81", None, "allowed"),
            ("b.test", Some("b.test"), "when_resolved")
        ]
    );
    assert_eq!(ask(&config, "GET", "http://127.0.0.1:81/", &[]).refusal.unwrap().code, "denied_address");
    let told = ask(&config, "GET", "http://localhost:81/", &[]);
    assert!(told.leads_to[0].egress.why.contains("`allow_addresses` lifts it"), "{:?}", told.leads_to);
    let told = ask(&config, "GET", "http://e.test/", &["Connection: Upgrade", "Upgrade: websocket"]);
    let tls = told.leads_to[0].tls.as_ref().unwrap();
    assert_eq!((tls.server_name.as_str(), tls.min_version, told.leads_to[0].http), ("f.test", "1.3", Some("HTTP/2")));
    let told = ask(&config, "GET", "http://a.test/", &["Connection: Upgrade", "Upgrade: websocket"]);
    assert_eq!(told.leads_to[2].http, Some("HTTP/1.1"));
    assert!(told.policy.iter().any(|setting| setting.setting == "timeouts.tunnel_idle" && setting.acts));
}

#[test]
fn secrets_are_in_neither_form() {
    let config = config(
        "version: 1\nadmin_token: hunter2\nupstreams:\n  a:\n    hosts: [a.test]\n    timeouts: {attempt: \"${ATTEMPT}\"}\n\
         \x20   rate_limit: {requests: 1, key: \"header:${PASSWORD}\"}\n\
         \x20   retry: {idempotency_headers: [\"${PASSWORD}\"]}\n",
    );
    let told = ask(&config, "POST", "http://a.test/x?token=hunter3", &["Authorization: hunter4", "hunter2: hunter5"]);
    assert_eq!(setting(&told, "timeouts.attempt"), ("3s".into(), "upstream", Some(6)));
    assert_eq!(setting(&told, "rate_limit.key").0, "<redacted>");
    for shown in [told.text(false), told.json()] {
        for secret in ["hunter3", "hunter4", "hunter5"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(!shown.to_ascii_lowercase().contains("hunter2"), "{shown}");
    }
}

#[test]
fn the_text_is_at_most_a_hundred_columns_and_plain_without_colour() {
    let config = config(&project_file("config.example.yaml"));
    for (method, url) in [
        ("POST", "http://127.0.0.1:7201/v1/charges"),
        ("GET", "https://api.github.com/a/rather/long/path/so/that/the/line/has/to/be/broken/somewhere"),
        ("GET", "http://search.internal/"),
        ("GET", "http://nowhere.example/"),
    ] {
        let told = ask(&config, method, url, &[]);
        for line in told.text(false).lines().skip(1).filter(|line| !line.contains("://")) {
            assert!(line.chars().count() <= 100 && !line.contains('\u{1b}') && !line.ends_with(' '), "{line:?}");
        }
        assert!(told.text(true).contains("\u{1b}[1m"));
    }
}

#[test]
fn a_grpc_timeout_and_an_expectation_count() {
    let config = config("version: 1\nupstreams: {a: {hosts: [a.test]}}\n");
    let told = ask(&config, "POST", "http://a.test/s/m", &["Content-Type: application/grpc", "grpc-timeout: 5S"]);
    assert_eq!(told.clocks.unwrap().at_most_ms, Some(5_000));
    let refusal = ask(&config, "PUT", "http://a.test/", &["Expect: something"]).refusal.unwrap();
    assert_eq!((refusal.status, refusal.code), (417, "expectation_failed"));
}

#[test]
fn what_is_inside_an_intercepted_tunnel_gets_what_a_request_gets() {
    let config = config(
        "version: 1\nintercept: {generate: true, dir: /nowhere}\negress: {connect_ports: [443]}\nupstreams:\n  api:\n    hosts: \
         [api.x]\n    https: intercept\n    to: [\"https://b.x:8443\"]\n    routes: [{name: a, match: {path: /a}}]\n",
    );
    let told = ask(&config, "GET", "https://API.x./a?q", &[]);
    assert_eq!((told.verdict, told.inside, told.as_http.is_none()), ("request", true, true));
    assert_eq!(told.route.as_ref().unwrap().name.as_deref(), Some("a"));
    let to = &told.leads_to[0];
    assert_eq!((to.origin.as_str(), to.host.as_deref()), ("https://b.x:8443", Some("b.x:8443")));
    let plain = ask(&config, "GET", "http://api.x/a", &[]);
    let cases = |told: &Explanation| format!("{:?} {:?}", told.retries, told.clocks);
    assert_eq!(cases(&told), cases(&plain));
    let acts = |told: &Explanation, name| told.policy.iter().any(|setting| setting.setting == name && setting.acts);
    assert!(acts(&told, "https") && acts(&told, "retry.methods") && !acts(&plain, "https"));
    assert!(told.notes.is_empty(), "{:?}", told.notes);
    let text = told.text(false);
    assert!(text.contains("Inside     through HTTPS_PROXY the app's TLS ends here"), "{text}");

    let connect = ask(&config, "CONNECT", "api.x:443", &[]);
    assert_eq!((connect.verdict, connect.inside, connect.leads_to.len()), ("intercepted", false, 0));
    assert!(connect.retries.is_none() && connect.policy.is_empty() && connect.refusal.is_none());
    assert!(connect.text(false).contains("each request inside gets every policy"));
    assert!(connect.notes[0].contains("`GET https://api.x/`"), "{:?}", connect.notes);

    let refused = ask(&config, "GET", "https://api.x:8443/a", &[]);
    assert_eq!((refused.verdict, refused.refusal.unwrap().status), ("refused", 403));
    assert_eq!(ask(&config, "GET", "https://else.x/", &[]).verdict, "tunnel");
}
