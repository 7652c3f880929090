//! The valid configuration: types that cannot be wrong. [`load`] makes one from a file or says everything that is wrong
//! with it. Nothing here is live; `upstream::table` turns it into state.

mod checks;
pub(crate) mod effective;
mod global;
pub(crate) mod host;
mod intercept;
pub mod json_schema;
pub mod layers;
pub mod load;
pub mod schema;
pub(crate) mod tls;
pub(crate) mod upstream;
pub mod watch;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::address::AddressSet;
use crate::origin::{Host, Origin, Scheme};
use crate::policy::policies;

/// A configuration that can run.
#[derive(Debug)]
pub struct Config {
    /// Where apps and operators connect.
    pub listeners: Listeners,
    /// In the order of the file.
    pub upstreams: Vec<Arc<Upstream>>,
    /// What hosts that no upstream names get: built-in `connect`, `idle`, `tunnel_idle` and retries of what was never
    /// sent; the rest only where `defaults` writes it.
    pub unmatched: Unmatched,
    /// The CA that apps trust; `None`: nothing is intercepted.
    pub intercept: Option<Intercept>,
    /// Where nobody may go.
    pub egress: Egress,
    /// Look-ups.
    pub dns: Dns,
    /// Bounds.
    pub limits: Limits,
    /// Drain.
    pub shutdown: Shutdown,
    /// Logging.
    pub log: Log,
    /// `trace.send`
    pub trace_send: bool,
    /// Every file that was read for it, and is watched: the configuration itself, certificates, keys, CAs, `${file:}`.
    pub files: Vec<PathBuf>,
    /// Where each value comes from.
    pub layers: layers::Layers,
}

impl Config {
    /// The effective configuration as `/config` shows it: merged, secrets hidden. Made when it is asked for, since it is
    /// larger than all else that is kept of a file.
    pub fn effective(&self) -> serde_json::Value {
        effective::whole(self)
    }

    /// Where a value of the effective configuration comes from: the path is as in problems, with a route by its name, as in
    /// `upstreams.stripe.routes.charges.timeouts.attempt`. `None` where there is no such value.
    pub fn origin_of(&self, path: &str) -> Option<layers::Source> {
        self.layers.origin_of(path)
    }
}

/// `listeners`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// `HTTP_PROXY` and `HTTPS_PROXY` point here.
    pub proxy: SocketAddr,
    /// Control; `None` is `off`.
    pub admin: Option<SocketAddr>,
    /// What `Authorization: Bearer` must carry on `admin`, where it is not loopback.
    pub admin_token: Option<Secret>,
    /// `/livez /readyz /metrics`; `None` is `off`.
    pub probes: Option<SocketAddr>,
    /// Ends TLS by SNI, for apps that take us for the host itself.
    pub tls: Option<SocketAddr>,
    /// The upstreams' own ports, in their order.
    pub own: Vec<SocketAddr>,
}

impl Listeners {
    /// How many take connections of apps.
    pub fn of_apps(&self) -> usize {
        1 + usize::from(self.tls.is_some()) + self.own.len()
    }
}

/// A string that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Hides the text.
    pub fn new(text: &str) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// One of `upstreams`.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The name used in metrics and logs: `[a-z0-9-]`.
    pub name: Arc<str>,
    /// What apps ask for.
    pub hosts: Vec<HostPattern>,
    /// Where it leads; empty: to the host asked for, by `scheme`.
    pub to: Vec<Origin>,
    /// Where `to` is left out.
    pub scheme: UpstreamScheme,
    /// A port of its own.
    pub listen: Option<SocketAddr>,
    /// What CONNECT does.
    pub connect: Connect,
    /// What `egress.deny` forbids and this upstream may use.
    pub allow_addresses: AddressSet,
    /// TLS to the upstream.
    pub tls: Tls,
    /// The pool.
    pub connections: Connections,
    /// The upstream's own policies.
    pub policies: policies::Settings,
    /// In the order of the file; first match wins.
    pub routes: Vec<Route>,
}

/// Hosts that no upstream names.
#[derive(Clone, Debug)]
pub struct Unmatched {
    /// Breaker, rate limit and concurrency are always `None` here.
    pub policies: policies::Settings,
    /// `defaults.connections` over the built-in ones.
    pub connections: Connections,
    /// `defaults.tls` over the built-in ones.
    pub tls: Tls,
}

/// A pattern of `hosts`. Order of precedence: exact:port, exact, wildcard:port, longest wildcard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    /// `*.` stood before it: any depth below the name, not the name itself.
    pub wildcard: bool,
    /// The name or address, normalised.
    pub host: Host,
    /// Only this port.
    pub port: Option<u16>,
}

/// As it is written.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.wildcard { "*." } else { "" };
        write!(f, "{star}{}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// `scheme`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamScheme {
    /// Always this one: port 80 becomes 443 and the other way round, another port stays.
    Always(Scheme),
    /// As the app asked.
    Same,
}

/// `https`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Bytes are passed on.
    Tunnel,
    /// TLS is ended here, and what is inside gets the policies.
    Intercept,
    /// 403.
    Deny,
}

/// `intercept`
#[derive(Clone, Debug, PartialEq)]
pub struct Intercept {
    /// Where the CA comes from.
    pub authority: Authority,
    /// Where what the app has to trust is written.
    pub dir: Option<PathBuf>,
    /// What becomes of a tunnel that has neither TLS nor HTTP inside.
    pub unknown: Unknown,
}

/// Where the CA comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Authority {
    /// `ca_cert` and `ca_key`
    Given(Arc<Identity>),
    /// `generate: true`
    Generated {
        /// Where its key outlives a restart; `None`: in memory only.
        key_dir: Option<PathBuf>,
        /// Whether it may sign for the intercepted hosts alone.
        constrain: bool,
    },
}

/// `intercept.unknown`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It is closed.
    Refuse,
    /// Bytes are passed on.
    Tunnel,
}

/// `tls`. Files are read and parsed when the configuration is loaded, so that what is checked can run.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// Whom to trust; `None`: the system's roots.
    pub roots: Option<Arc<Vec<CertificateDer<'static>>>>,
    /// The client certificate, leaf first, and its key; checked to belong together.
    pub identity: Option<Arc<Identity>>,
    /// Instead of the host, in SNI and verification.
    pub server_name: Option<Host>,
    /// TLS 1.3 only; otherwise 1.2 is accepted too.
    pub tls13_only: bool,
    /// Where the files are, for messages and certificate-expiry metrics.
    pub ca_file: Option<PathBuf>,
    /// Likewise.
    pub client_cert: Option<PathBuf>,
}

/// A client certificate with its key.
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key.secret_der() == other.key.secret_der()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// `connections`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// How many at most, upgraded streams included, tunnels not.
    pub max: NonZeroU32,
    /// How many idle ones are kept.
    pub max_idle: NonZeroU32,
    /// How long an idle one is kept.
    pub idle_timeout: Option<Duration>,
    /// How long any is used, ±10 %.
    pub max_age: Option<Duration>,
    /// Which protocol.
    pub http: HttpVersion,
}

/// `connections.http`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// By ALPN; HTTP/1.1 without TLS.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; with prior knowledge where there is no TLS.
    Http2,
}

/// One of `routes`.
#[derive(Clone, Debug)]
pub struct Route {
    /// The name used in metrics and logs.
    pub name: Arc<str>,
    /// Which requests.
    pub matcher: Match,
    /// Its policies, merged over the upstream's.
    pub policies: policies::Settings,
    /// Which blocks the route wrote itself, so that their state is its own.
    pub own: policies::OwnState,
}

/// `match`
#[derive(Clone, Debug)]
pub struct Match {
    /// Any where empty.
    pub methods: Vec<Method>,
    /// On the raw path without query.
    pub path: PathMatch,
}

/// `match.path` and `match.path_regex`
#[derive(Clone)]
pub enum PathMatch {
    /// Every path.
    Any,
    /// This one.
    Exact(String),
    /// `/v1/*`: starts with `/v1/`.
    Prefix(String),
    /// The whole path.
    Regex(regex::bytes::Regex),
}

/// Without the path, since a variable may have brought a secret into it.
impl std::fmt::Debug for PathMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PathMatch::Any => "Any",
            PathMatch::Exact(_) => "Exact(..)",
            PathMatch::Prefix(_) => "Prefix(..)",
            PathMatch::Regex(_) => "Regex(..)",
        })
    }
}

/// `egress`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Whether hosts that no upstream names may be reached.
    pub forward_unmatched: bool,
    /// Never dialled; includes the built-in three.
    pub deny: AddressSet,
    /// Ports that CONNECT may name; `None`: any.
    pub connect_ports: Option<Vec<u16>>,
}

/// `dns`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// An answer lives at least so long.
    pub min_ttl: Duration,
    /// And at most so long.
    pub max_ttl: Duration,
    /// How long a failure is remembered.
    pub negative_ttl: Duration,
    /// How long past its time the last good answer is used when look-ups fail.
    pub stale_for: Duration,
    /// Whether `/etc/hosts` is read.
    pub hosts_file: bool,
}

/// `limits`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of apps.
    pub max_connections: NonZeroU32,
    /// Of one head, an app's or an upstream's. Bytes.
    pub max_header_bytes: u64,
    /// Fields of one head.
    pub max_headers: NonZeroU32,
    /// How long an app may take to send a head.
    pub header_timeout: Duration,
    /// Replay buffers of the whole process. Bytes.
    pub replay_memory: u64,
}

/// `shutdown`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// Ends when nothing was in flight and nothing new came for so long…
    pub quiet: Duration,
    /// …or after this.
    pub grace: Duration,
}

/// `log`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// JSON lines, or text.
    pub json: bool,
    /// A level: `error`, `warn`, `info`, `debug`.
    pub level: LogLevel,
    /// Which requests get an access line.
    pub access: AccessLog,
    /// How much of the path it shows.
    pub path: LogPath,
}

/// `log.level`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Someone should look.
    Error,
    /// It recovered.
    Warn,
    /// Start, reload, access lines.
    Info,
    /// Each attempt. Also what `trace` means.
    Debug,
}

/// `log.access`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Every request.
    All,
    /// Those that failed.
    Errors,
    /// None.
    Off,
}

/// `log.path`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogPath {
    /// Segments that look like a secret or an identifier are `***`.
    Masked,
    /// As it is; query values stay hidden.
    Full,
    /// Not at all.
    Off,
}
