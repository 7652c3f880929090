//! The keys there are: what each holds, where it may stand, and what may be shown of it. One table, from which the
//! effective configuration, the reference page and a JSON Schema are made.

use std::collections::HashMap;
use std::sync::LazyLock;

/// What a key holds. A key without a value is the same as no key, but for [`Kind::Version`] and what routes need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The version of the format.
    Version,
    /// `250ms`, longer than 0.
    Duration,
    /// `250ms` or `0`
    Wait,
    /// `250ms` or `off`
    Clock,
    /// `64KiB`
    Size,
    /// A whole number of at least 1.
    Count,
    /// A whole number from 1 to this.
    CountUpTo(u32),
    /// A whole number of at least 1, or `off`.
    CountOrOff,
    /// A number above 0 and at most 1.
    Ratio,
    /// `true` or `false`
    Boolean,
    /// `true` or `off`
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One of these.
    One(Item),
    /// A list of these.
    List(Item),
    /// A list of ports, or `any`.
    Ports,
    /// `address:port`
    Listen,
    /// `address:port` or `off`
    ListenOrOff,
    /// Free text: shown only where the file itself writes it.
    Text,
    /// Never shown.
    Secret,
    /// A block of keys.
    Block,
    /// A block of keys, or `off`.
    BlockOrOff,
    /// A list of blocks: routes.
    Routes,
}

/// What a single value, or an item of a list, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A word of `retry.on`, or a status.
    Event,
    /// An HTTP method.
    Method,
    /// The name of a header.
    Header,
    /// A host, a wildcard or an address, with or without a port.
    HostPattern,
    /// `https://host:port`
    Origin,
    /// A class of addresses, an address or a CIDR.
    AddressRule,
    /// A host or an address without a port.
    ServerName,
    /// A name in metrics and logs.
    Name,
    /// A path, or the start of one with `*`.
    Path,
    /// A regular expression.
    Regex,
    /// `upstream` or `header:NAME`
    BucketKey,
}

impl Kind {
    /// Whether a value that came from an environment variable may be shown: what became a number, duration, size, word of a
    /// fixed set, host or address is no secret.
    pub fn may_be_shown(self) -> bool {
        match self {
            Kind::Version
            | Kind::Duration
            | Kind::Wait
            | Kind::Clock
            | Kind::Size
            | Kind::Count
            | Kind::CountUpTo(_)
            | Kind::CountOrOff
            | Kind::Ratio
            | Kind::Boolean
            | Kind::Switch
            | Kind::Choice(_)
            | Kind::Ports
            | Kind::Listen
            | Kind::ListenOrOff
            | Kind::Block
            | Kind::BlockOrOff
            | Kind::Routes => true,
            Kind::One(item) | Kind::List(item) => item.may_be_shown(),
            Kind::Text | Kind::Secret => false,
        }
    }

    /// How it is written, in a word or two, as the reference page and editors show it.
    pub fn form(self) -> String {
        let quoted = |words: &[&str]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        let form = match self {
            Kind::Version => "`1`",
            Kind::Duration => "duration",
            Kind::Wait => "duration or `0`",
            Kind::Clock => "duration or `off`",
            Kind::Size => "size",
            Kind::Count | Kind::CountUpTo(_) => "whole number",
            Kind::CountOrOff => "whole number or `off`",
            Kind::Ratio => "number up to 1",
            Kind::Boolean => "`true` or `false`",
            Kind::Switch => "`true` or `off`",
            Kind::Choice(words) => return quoted(words),
            Kind::One(Item::ServerName) => "host",
            Kind::One(_) | Kind::Text => "text",
            Kind::List(_) => "list",
            Kind::Ports => "`any` or a list",
            Kind::Listen => "`address:port`",
            Kind::ListenOrOff => "`address:port` or `off`",
            Kind::Secret => "text, `${file:…}`",
            Kind::Block => "block",
            Kind::BlockOrOff => "block or `off`",
            Kind::Routes => "list of blocks",
        };
        form.to_owned()
    }

    /// Whether a number is text like any other there.
    pub(crate) fn is_text(self) -> bool {
        self == Kind::Text || (matches!(self, Kind::One(_) | Kind::List(_)) && !self.may_be_shown())
    }
}

impl Item {
    fn may_be_shown(self) -> bool {
        match self {
            Item::Event | Item::Method | Item::HostPattern | Item::Origin | Item::AddressRule | Item::ServerName => {
                true
            }
            Item::Header | Item::Name | Item::Path | Item::Regex | Item::BucketKey => false,
        }
    }
}

/// Where a key may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// At the top of the file.
    Top,
    /// In `defaults`, upstreams and routes.
    Policy,
    /// In `defaults` and upstreams.
    Shared,
    /// In upstreams.
    Upstream,
    /// In routes.
    Route,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its path, from where its scope starts.
    pub path: &'static str,
    /// Where.
    pub scope: Scope,
    /// What.
    pub kind: Kind,
    /// One sentence.
    pub about: &'static str,
}

const fn key(scope: Scope, path: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { path, scope, kind, about }
}

use Kind::*;
use Scope::{Policy, Route, Shared, Top, Upstream};

/// Most fields that one head may be allowed to have.
pub const MOST_HEADERS: u32 = 10_000;

/// Words that are kept for a later version, at the top of the file, in `defaults` and in upstreams.
pub const RESERVED: &[&str] = &["fallback", "cache", "outbox", "credentials", "presets", "webhooks"];

/// Every key.
pub const KEYS: &[Key] = &[
    key(Top, "version", Version, "The version of this format."),
    key(Top, "listeners", Block, "Where apps and operators connect."),
    key(Top, "listeners.proxy", Listen, "Where `HTTP_PROXY` and `HTTPS_PROXY` point; also routes by the Host header."),
    key(Top, "listeners.admin", ListenOrOff, "Dashboard and control."),
    key(Top, "listeners.probes", ListenOrOff, "`/livez`, `/readyz` and `/metrics`, read only."),
    key(
        Top,
        "listeners.tls",
        Listen,
        "Ends TLS by SNI for intercepted hosts, for apps that take Outrigger for the host itself.",
    ),
    key(
        Top,
        "listeners.admin_token",
        Secret,
        "What `Authorization: Bearer` must carry on `admin`; needed where that is not loopback.",
    ),
    key(Top, "admin_token", Secret, "The same, where it is written at the top of the file."),
    key(Top, "defaults", Block, "Blocks that every upstream starts from."),
    key(Top, "upstreams", Block, "The APIs that apps call, by name."),
    key(Top, "intercept", Block, "The CA that apps trust, for upstreams with `https: intercept`."),
    key(Top, "intercept.ca_cert", Text, "A CA brought from outside, PEM, its own certificate first."),
    key(Top, "intercept.ca_key", Text, "Its private key, PEM."),
    key(Top, "intercept.generate", Boolean, "Whether a CA is made at start, valid for a year."),
    key(
        Top,
        "intercept.dir",
        Text,
        "Where what the app has to trust is written: `ca.crt`, `ca-bundle.crt`, `truststore.p12`, `env.sh`.",
    ),
    key(
        Top,
        "intercept.key_dir",
        Text,
        "Where the key of a CA that is made here outlives a restart; left out: nowhere.",
    ),
    key(Top, "intercept.constrain", Switch, "Whether such a CA may sign for the intercepted hosts alone."),
    key(
        Top,
        "intercept.unknown",
        Choice(&["refuse", "tunnel"]),
        "What becomes of a tunnel with neither TLS nor HTTP inside.",
    ),
    key(Top, "egress", Block, "Where nobody may go."),
    key(Top, "egress.unmatched", Choice(&["forward", "deny"]), "Hosts that no upstream names."),
    key(
        Top,
        "egress.deny",
        List(Item::AddressRule),
        "Address classes and CIDRs that are never dialled; what is written adds to the built-in three.",
    ),
    key(Top, "egress.connect_ports", Ports, "Ports that CONNECT may name."),
    key(Top, "dns", Block, "Look-ups."),
    key(Top, "dns.min_ttl", Duration, "An answer is used at least so long."),
    key(Top, "dns.max_ttl", Duration, "An answer is used at most so long."),
    key(Top, "dns.negative_ttl", Duration, "How long a failed look-up is remembered."),
    key(Top, "dns.stale_for", Duration, "How long past its time the last good answer is used when look-ups fail."),
    key(Top, "dns.hosts_file", Boolean, "Whether `/etc/hosts` is read."),
    key(Top, "limits", Block, "Bounds."),
    key(Top, "limits.max_connections", Count, "Connections of apps."),
    key(Top, "limits.max_header_bytes", Size, "Of one head, an app's or an upstream's; 1KiB to 16MiB."),
    key(Top, "limits.max_headers", CountUpTo(MOST_HEADERS), "Fields of one head."),
    key(Top, "limits.header_timeout", Duration, "How long an app may take to send a head."),
    key(
        Top,
        "limits.replay_memory",
        Size,
        "Replay buffers of the whole process; never more than a quarter of the memory limit.",
    ),
    key(Top, "shutdown", Block, "Drain."),
    key(Top, "shutdown.quiet", Duration, "Ends when nothing was in flight and nothing new came for so long."),
    key(Top, "shutdown.grace", Duration, "Ends after this in any case."),
    key(Top, "log", Block, "Logging."),
    key(Top, "log.format", Choice(&["json", "text"]), "JSON lines, or text."),
    key(Top, "log.level", Choice(&["error", "warn", "info", "debug", "trace"]), "What is logged."),
    key(Top, "log.access", Choice(&["all", "errors", "off"]), "Which requests get an access line."),
    key(Top, "log.path", Choice(&["masked", "full", "off"]), "How much of the path it shows."),
    key(Top, "trace", Block, "Tracing."),
    key(Top, "trace.send", Boolean, "Whether a `traceparent` that is made here is also sent upstream."),
    key(
        Upstream,
        "hosts",
        List(Item::HostPattern),
        "What apps ask for: `api.x.com`, `api.x.com:8443`, `*.x.com` (any depth below, not `x.com` itself), addresses.",
    ),
    key(
        Upstream,
        "to",
        List(Item::Origin),
        "Where it leads: origins such as `https://api.x.com`. Left out: to the host asked for, by `scheme`.",
    ),
    key(Upstream, "scheme", Choice(&["https", "http", "same"]), "Where `to` is left out."),
    key(
        Upstream,
        "listen",
        Listen,
        "A port of its own, for SDKs that only take a base URL; needs `to` or one exact host.",
    ),
    key(Upstream, "https", Choice(&["tunnel", "intercept", "deny"]), "What CONNECT does."),
    key(
        Upstream,
        "allow_addresses",
        List(Item::AddressRule),
        "Classes or CIDRs that `egress.deny` forbids and this upstream may use.",
    ),
    key(Upstream, "routes", Routes, "A list; the first match wins; each may carry any policy block."),
    key(Route, "name", One(Item::Name), "The name used in metrics and logs: a-z, 0-9 and `-`."),
    key(Route, "match", Block, "Which requests."),
    key(Route, "match.methods", List(Item::Method), "Methods; any where left out."),
    key(
        Route,
        "match.path",
        One(Item::Path),
        "The raw path without query: exact, or `/v1/*` for all that starts with `/v1/`.",
    ),
    key(
        Route,
        "match.path_regex",
        One(Item::Regex),
        "A regular expression for the whole path, instead of `path`. ASCII only: it is matched byte by byte, without Unicode's classes (`\\p{…}`).",
    ),
    key(Policy, "timeouts", BlockOrOff, "The clocks; each may be off."),
    key(Policy, "timeouts.connect", Clock, "One connection set-up: DNS, TCP over all addresses, TLS."),
    key(Policy, "timeouts.attempt", Clock, "One attempt, from its slot to response headers."),
    key(Policy, "timeouts.request", Clock, "All attempts and waits together, until the app has response headers."),
    key(Policy, "timeouts.idle", Clock, "Silence between body bytes, in either direction."),
    key(Policy, "timeouts.tunnel_idle", Clock, "Silence in tunnels, WebSockets and other upgraded streams."),
    key(Policy, "retry", BlockOrOff, "Whether and when a request is sent again."),
    key(Policy, "retry.max_attempts", Count, "The first one included; 1 switches retries off."),
    key(
        Policy,
        "retry.on",
        List(Item::Event),
        "`connect_failure`, `reset`, `timeout`, statuses from 400 to 599, `4xx`, `5xx`.",
    ),
    key(
        Policy,
        "retry.methods",
        List(Item::Method),
        "Methods that may be repeated after the upstream may have seen the request.",
    ),
    key(
        Policy,
        "retry.idempotency_headers",
        List(Item::Header),
        "A request with one of these may be retried whatever its method.",
    ),
    key(
        Policy,
        "retry.generate_idempotency_key",
        Boolean,
        "POST and PATCH without a key get one, the same in all attempts.",
    ),
    key(Policy, "retry.backoff", BlockOrOff, "Exponential with full jitter."),
    key(Policy, "retry.backoff.base", Wait, "Upper bound of the first wait; 0 doesn't wait."),
    key(Policy, "retry.backoff.max", Duration, "Upper bound of any wait."),
    key(Policy, "retry.max_retry_after", Wait, "Longest Retry-After that is waited for; 0 waits for none."),
    key(Policy, "retry.budget", BlockOrOff, "Bounds retries over 10 s."),
    key(Policy, "retry.budget.ratio", Ratio, "Retries as a share of requests."),
    key(Policy, "retry.budget.min_per_second", Count, "A floor, times 10 s."),
    key(Policy, "retry.max_body", Size, "Larger request bodies are streamed, and not retried once sent."),
    key(Policy, "circuit_breaker", BlockOrOff, "Stops asking an upstream that fails."),
    key(Policy, "circuit_breaker.consecutive_failures", CountOrOff, "So many failures in a row open the circuit."),
    key(Policy, "circuit_breaker.failure_rate", BlockOrOff, "So does a share of failures."),
    key(Policy, "circuit_breaker.failure_rate.threshold", Ratio, "The share at which it opens."),
    key(Policy, "circuit_breaker.failure_rate.window", Duration, "Over this long."),
    key(Policy, "circuit_breaker.failure_rate.min_requests", Count, "And at least so many attempts."),
    key(Policy, "circuit_breaker.failures", List(Item::Event), "What counts as a failure: the words of `retry.on`."),
    key(Policy, "circuit_breaker.slow_after", Clock, "An attempt without response headers by then is a failure."),
    key(
        Policy,
        "circuit_breaker.open_for",
        Duration,
        "How long the first opening lasts; doubles for each failed probe.",
    ),
    key(Policy, "circuit_breaker.max_open_for", Duration, "The longest opening."),
    key(Policy, "circuit_breaker.half_open_requests", Count, "Probes under way at once."),
    key(Policy, "rate_limit", BlockOrOff, "A token bucket; off unless `requests` is written."),
    key(Policy, "rate_limit.requests", Count, "Tokens added…"),
    key(Policy, "rate_limit.per", Duration, "…in this time."),
    key(Policy, "rate_limit.burst", Count, "Bucket size; left out: `requests`."),
    key(Policy, "rate_limit.max_wait", Wait, "How long a request waits for a token; 0 rejects at once."),
    key(
        Policy,
        "rate_limit.key",
        One(Item::BucketKey),
        "`upstream`, or `header:NAME` for a bucket of each value (the 10,000 used last are kept).",
    ),
    key(
        Policy,
        "rate_limit.pause_on_retry_after",
        Boolean,
        "A 429 or 503 with Retry-After shuts the bucket until then.",
    ),
    key(Policy, "concurrency", BlockOrOff, "Slots and a queue; off unless `max_in_flight` is written."),
    key(Policy, "concurrency.max_in_flight", Count, "Slots."),
    key(Policy, "concurrency.max_queue", Count, "How many may wait for one."),
    key(Policy, "concurrency.max_wait", Wait, "How long they wait; 0 rejects at once."),
    key(Shared, "connections", Block, "The connection pool of one upstream."),
    key(Shared, "connections.max", Count, "Connections, upgraded streams included, tunnels not."),
    key(Shared, "connections.max_idle", Count, "How many idle ones are kept."),
    key(Shared, "connections.idle_timeout", Clock, "How long an idle one is kept."),
    key(Shared, "connections.max_age", Clock, "How long any is used, give or take 10 %."),
    key(
        Shared,
        "connections.http",
        Choice(&["auto", "1", "2"]),
        "`auto`: by ALPN, HTTP/1.1 without TLS. 2 without TLS: with prior knowledge.",
    ),
    key(Shared, "tls", Block, "TLS to the upstream."),
    key(Shared, "tls.ca_file", Text, "Whom to trust, PEM; left out: the system's roots."),
    key(Shared, "tls.client_cert", Text, "Client certificate, PEM, leaf first."),
    key(Shared, "tls.client_key", Text, "Its private key, PEM."),
    key(Shared, "tls.server_name", One(Item::ServerName), "Instead of the host, in SNI and verification only."),
    key(Shared, "tls.min_version", Choice(&["1.2", "1.3"]), "The lowest TLS version."),
];

/// The key at a path, from where its scope starts.
pub fn find(path: &str) -> Option<&'static Key> {
    static BY_PATH: LazyLock<HashMap<&str, &Key>> = LazyLock::new(|| KEYS.iter().map(|key| (key.path, key)).collect());
    BY_PATH.get(path).copied()
}
