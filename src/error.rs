//! What can go wrong with a request, from the operator's side. Only `proxy::respond` turns an error into an answer.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::address::AddressRule;

/// The result of everything on the request path.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Could the upstream have seen the request? Decided by evidence, never by a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Not one byte of it reached the upstream, or the upstream said that it did not process it.
    No,
    /// At least one byte may have.
    Maybe,
}

/// Who caused an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The app's own request, or its silence.
    App,
    /// A limit or rule of Outrigger's.
    Proxy,
    /// The upstream, or the way to it.
    Upstream,
}

/// Why a connection could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectFailure {
    /// The name could not be resolved, or has no address.
    Dns,
    /// The look-up took too long.
    DnsTimeout,
    /// Every address refused.
    Refused,
    /// No route, network down, or no local port left.
    Unreachable,
    /// `timeouts.connect` passed, DNS, TCP and TLS together.
    Timeout,
    /// The TLS handshake failed (no common version or cipher, not TLS at all, alert).
    Tls,
    /// The upstream's certificate was not accepted. Retrying does not mend it, so it never is retried.
    Certificate,
    /// The connection was closed while it was set up.
    Closed,
    /// HTTP/2 REFUSED_STREAM, or a GOAWAY that excludes the stream (RFC 9113 sections 6.8 and 8.7).
    Refusal,
}

impl ConnectFailure {
    /// All of them, for metrics.
    pub const ALL: [ConnectFailure; 9] = [
        ConnectFailure::Dns,
        ConnectFailure::DnsTimeout,
        ConnectFailure::Refused,
        ConnectFailure::Unreachable,
        ConnectFailure::Timeout,
        ConnectFailure::Tls,
        ConnectFailure::Certificate,
        ConnectFailure::Closed,
        ConnectFailure::Refusal,
    ];

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectFailure::Dns => "dns",
            ConnectFailure::DnsTimeout => "dns_timeout",
            ConnectFailure::Refused => "refused",
            ConnectFailure::Unreachable => "unreachable",
            ConnectFailure::Timeout => "timeout",
            ConnectFailure::Tls => "tls",
            ConnectFailure::Certificate => "certificate",
            ConnectFailure::Closed => "closed",
            ConnectFailure::Refusal => "refused_stream",
        }
    }
}

/// Why a destination may not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// `egress.unmatched: deny` and no upstream names the host.
    Unmatched,
    /// The address that would be dialled falls under this rule of `egress.deny`.
    Address(IpAddr, AddressRule),
    /// `egress.connect_ports` does not list the port.
    ConnectPort(u16),
    /// The upstream has `https: deny`.
    Connect,
}

/// Which bound a head is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadBound {
    /// `limits.max_header_bytes`
    Bytes,
    /// `limits.max_headers`
    Fields,
}

/// What Outrigger itself has no more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// `limits.max_connections`
    Connections,
    /// File descriptors, or memory of the kernel's.
    Descriptors,
    /// Look-ups of names at once.
    Lookups,
}

/// What happened instead of an answer.
#[derive(Clone, Debug)]
pub enum Error {
    /// The app's request is not HTTP as it should be; the text says what is wrong with it.
    BadRequest(&'static str),
    /// The request target is longer than `limits.max_header_bytes` allows.
    UriTooLong,
    /// An `Expect` other than `100-continue` (RFC 9110 section 10.1.1).
    Expectation,
    /// The request is for a host that this connection does not serve.
    Misdirected,
    /// The head is larger than `limits` allow.
    HeadersTooLarge(HeadBound),
    /// The app stopped sending its request body for `timeouts.idle`.
    AppSilent,
    /// The app hung up, or broke its request body off. Nobody reads the answer.
    AppGone,
    /// The request would come back to one of Outrigger's own listeners.
    Loop,
    /// The destination is not allowed.
    Denied(Denial),
    /// The circuit is open; the next probe may go after this long.
    CircuitOpen(Duration),
    /// No token in time; the next one is there after this long.
    RateLimited(Duration),
    /// No slot of `concurrency` in time, or its queue is full.
    ConcurrencyLimited,
    /// No connection of `connections.max` became free in time.
    NoConnection,
    /// Outrigger itself has no room: nothing was asked of the upstream.
    Overloaded(Overload),
    /// No connection could be made, or it refused the request: nothing was processed.
    Connect {
        /// What went wrong.
        failure: ConnectFailure,
        /// One sentence for the log and the app: addresses tried, what the certificate lacked. Never a secret.
        detail: String,
    },
    /// The connection broke before response headers.
    Reset {
        /// Whether the upstream may have seen the request.
        sent: Sent,
        /// It had carried a request before, so that the upstream may have closed it while it was idle.
        reused: bool,
        /// At least one byte of an answer had arrived.
        answer_began: bool,
        /// One sentence for the log.
        detail: String,
    },
    /// The upstream's answer is not HTTP as it should be, or its head is larger than `limits` allow.
    BadAnswer(String),
    /// `timeouts.attempt` passed before response headers.
    AttemptTimeout {
        /// Whether the upstream may have seen the request.
        sent: Sent,
    },
    /// `timeouts.request` passed before response headers, once connecting had begun.
    Deadline {
        /// Whether the upstream may have seen the request.
        sent: Sent,
        /// How long the attempt that it cut short had run.
        ran: Duration,
    },
    /// The upstream took no more of the request body, or sent no more of its answer, for `timeouts.idle`.
    UpstreamSilent,
    /// The process ended (`shutdown.grace` was over) before there was an answer.
    ShuttingDown,
    /// A bug of ours: the request's task panicked.
    Panic,
}

impl Error {
    /// A stable name for logs, problem types and `Proxy-Status` details.
    pub fn code(&self) -> &'static str {
        match self {
            Error::BadRequest(_) => "bad_request",
            Error::UriTooLong => "uri_too_long",
            Error::Expectation => "expectation_failed",
            Error::Misdirected => "misdirected",
            Error::HeadersTooLarge(_) => "headers_too_large",
            Error::AppSilent => "app_silent",
            Error::AppGone => "app_gone",
            Error::Loop => "loop",
            Error::Denied(Denial::Unmatched) => "denied_unmatched",
            Error::Denied(Denial::Address(..)) => "denied_address",
            Error::Denied(Denial::ConnectPort(_)) => "denied_connect_port",
            Error::Denied(Denial::Connect) => "denied_connect",
            Error::CircuitOpen(_) => "circuit_open",
            Error::RateLimited(_) => "rate_limited",
            Error::ConcurrencyLimited => "concurrency",
            Error::NoConnection => "no_connection",
            Error::Overloaded(_) => "overloaded",
            Error::Connect { failure, .. } => match failure {
                ConnectFailure::Dns => "dns_error",
                ConnectFailure::DnsTimeout => "dns_timeout",
                ConnectFailure::Refused => "connection_refused",
                ConnectFailure::Unreachable => "destination_unreachable",
                ConnectFailure::Timeout => "connect_timeout",
                ConnectFailure::Tls => "tls_error",
                ConnectFailure::Certificate => "certificate_error",
                ConnectFailure::Closed => "connect_closed",
                ConnectFailure::Refusal => "refused_stream",
            },
            Error::Reset { .. } => "reset",
            Error::BadAnswer(_) => "bad_answer",
            Error::AttemptTimeout { .. } => "attempt_timeout",
            Error::Deadline { .. } => "deadline",
            Error::UpstreamSilent => "upstream_silent",
            Error::ShuttingDown => "shutting_down",
            Error::Panic => "internal",
        }
    }

    /// The status that the app gets (interface section 7); 499 is only ever logged.
    pub fn status(&self) -> u16 {
        match self {
            Error::BadRequest(_) => 400,
            Error::UriTooLong => 414,
            Error::Expectation => 417,
            Error::Misdirected => 421,
            Error::HeadersTooLarge(_) => 431,
            Error::AppSilent => 408,
            Error::AppGone => 499,
            Error::Loop => 508,
            Error::Denied(_) => 403,
            Error::RateLimited(_) => 429,
            Error::CircuitOpen(_)
            | Error::ConcurrencyLimited
            | Error::NoConnection
            | Error::Overloaded(_)
            | Error::ShuttingDown => 503,
            Error::Connect { failure, .. } => match failure {
                ConnectFailure::DnsTimeout | ConnectFailure::Timeout => 504,
                ConnectFailure::Dns
                | ConnectFailure::Refused
                | ConnectFailure::Unreachable
                | ConnectFailure::Tls
                | ConnectFailure::Certificate
                | ConnectFailure::Closed
                | ConnectFailure::Refusal => 502,
            },
            Error::Reset { .. } | Error::BadAnswer(_) | Error::Panic => 502,
            Error::AttemptTimeout { .. } | Error::Deadline { .. } | Error::UpstreamSilent => 504,
        }
    }

    /// The error type of `Proxy-Status` (RFC 9209 section 2.3).
    pub fn proxy_status(&self) -> &'static str {
        match self {
            Error::BadRequest(_)
            | Error::UriTooLong
            | Error::Expectation
            | Error::Misdirected
            | Error::HeadersTooLarge(_)
            | Error::AppSilent
            | Error::AppGone => "http_request_error",
            Error::Loop => "proxy_loop_detected",
            Error::Denied(Denial::Address(..)) => "destination_ip_prohibited",
            Error::Denied(Denial::Unmatched | Denial::ConnectPort(_) | Denial::Connect) => "http_request_denied",
            Error::CircuitOpen(_) => "destination_unavailable",
            Error::RateLimited(_) => "http_request_denied",
            Error::ConcurrencyLimited | Error::NoConnection | Error::Overloaded(_) => "connection_limit_reached",
            Error::Connect { failure, .. } => match failure {
                ConnectFailure::Dns => "dns_error",
                ConnectFailure::DnsTimeout => "dns_timeout",
                ConnectFailure::Refused | ConnectFailure::Refusal => "connection_refused",
                ConnectFailure::Unreachable => "destination_ip_unroutable",
                ConnectFailure::Timeout => "connection_timeout",
                ConnectFailure::Tls => "tls_protocol_error",
                ConnectFailure::Certificate => "tls_certificate_error",
                ConnectFailure::Closed => "connection_terminated",
            },
            Error::Reset { .. } => "connection_terminated",
            Error::BadAnswer(_) => "http_protocol_error",
            // Nothing was sent yet, so it is the connection that took too long.
            Error::AttemptTimeout { sent: Sent::No } | Error::Deadline { sent: Sent::No, .. } => "connection_timeout",
            Error::AttemptTimeout { sent: Sent::Maybe } | Error::Deadline { sent: Sent::Maybe, .. } => {
                "http_response_timeout"
            }
            Error::UpstreamSilent => "connection_write_timeout",
            Error::ShuttingDown => "connection_terminated",
            Error::Panic => "proxy_internal_error",
        }
    }

    /// Who caused it. Only what the upstream did counts for the breaker.
    pub fn origin(&self) -> Origin {
        match self {
            Error::BadRequest(_)
            | Error::UriTooLong
            | Error::Expectation
            | Error::Misdirected
            | Error::HeadersTooLarge(_)
            | Error::AppSilent
            | Error::AppGone => Origin::App,
            Error::Loop
            | Error::Denied(_)
            | Error::CircuitOpen(_)
            | Error::RateLimited(_)
            | Error::ConcurrencyLimited
            | Error::NoConnection
            | Error::Overloaded(_)
            | Error::ShuttingDown
            | Error::Panic => Origin::Proxy,
            Error::Connect { .. }
            | Error::Reset { .. }
            | Error::BadAnswer(_)
            | Error::AttemptTimeout { .. }
            | Error::Deadline { .. }
            | Error::UpstreamSilent => Origin::Upstream,
        }
    }

    /// Whether the upstream may have seen the request.
    pub fn sent(&self) -> Sent {
        match self {
            Error::BadRequest(_)
            | Error::UriTooLong
            | Error::Expectation
            | Error::Misdirected
            | Error::HeadersTooLarge(_)
            | Error::Loop
            | Error::Denied(_)
            | Error::CircuitOpen(_)
            | Error::RateLimited(_)
            | Error::ConcurrencyLimited
            | Error::NoConnection
            | Error::Overloaded(_)
            | Error::Connect { .. } => Sent::No,
            Error::Reset { sent, .. } | Error::AttemptTimeout { sent } | Error::Deadline { sent, .. } => *sent,
            Error::AppSilent
            | Error::AppGone
            | Error::BadAnswer(_)
            | Error::UpstreamSilent
            | Error::ShuttingDown
            | Error::Panic => Sent::Maybe,
        }
    }

    /// How long the app should wait before it asks again, where Outrigger knows (whole seconds, rounded up, at least 1).
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Error::CircuitOpen(wait) | Error::RateLimited(wait) => {
                Some((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1))
            }
            Error::ConcurrencyLimited | Error::NoConnection | Error::Overloaded(_) | Error::ShuttingDown => Some(1),
            Error::BadRequest(_)
            | Error::UriTooLong
            | Error::Expectation
            | Error::Misdirected
            | Error::HeadersTooLarge(_)
            | Error::AppSilent
            | Error::AppGone
            | Error::Loop
            | Error::Denied(_)
            | Error::Connect { .. }
            | Error::Reset { .. }
            | Error::BadAnswer(_)
            | Error::AttemptTimeout { .. }
            | Error::Deadline { .. }
            | Error::UpstreamSilent
            | Error::Panic => None,
        }
    }
}

/// One short sentence, fit for an app and a log: no header values, no bodies.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::BadRequest(what) => write!(f, "the request is malformed: {what}"),
            Error::UriTooLong => f.write_str("the request target is too long (limits.max_header_bytes)"),
            Error::Expectation => f.write_str("the only expectation understood is 100-continue"),
            Error::Misdirected => f.write_str("this connection does not serve that host"),
            Error::HeadersTooLarge(HeadBound::Bytes) => {
                f.write_str("the request head is too large (limits.max_header_bytes)")
            }
            Error::HeadersTooLarge(HeadBound::Fields) => {
                f.write_str("the request head has too many fields (limits.max_headers)")
            }
            Error::AppSilent => f.write_str("the app stopped sending its request (limits.header_timeout for its head, timeouts.idle for its body)"),
            Error::AppGone => f.write_str("the app hung up before it had its answer"),
            Error::Loop => f.write_str("the request leads back to Outrigger itself"),
            Error::Denied(Denial::Unmatched) => f.write_str(
                "no upstream names this host and egress.unmatched is deny: add the host to an upstream, or set NO_PROXY in the app",
            ),
            Error::Denied(Denial::Address(ip, rule)) => write!(
                f,
                "the address {ip} is denied by egress.deny ({rule}): list it in the upstream's allow_addresses, or set NO_PROXY in the app"
            ),
            Error::Denied(Denial::ConnectPort(port)) => {
                write!(f, "CONNECT to port {port} is denied: list it in egress.connect_ports, or set NO_PROXY in the app")
            }
            Error::Denied(Denial::Connect) => f.write_str(
                "CONNECT to this host is denied by its upstream (https: deny): call it by http:// through the proxy, or set NO_PROXY in the app",
            ),
            Error::CircuitOpen(_) => f.write_str("the circuit is open after failures of the upstream"),
            Error::RateLimited(_) => f.write_str("no token of the rate limit became free in time"),
            Error::ConcurrencyLimited => f.write_str("no slot of the concurrency limit became free in time"),
            Error::NoConnection => f.write_str("no connection to the upstream became free in time (connections.max)"),
            Error::Overloaded(Overload::Connections) => {
                f.write_str("Outrigger is at its limit of connections (limits.max_connections)")
            }
            Error::Overloaded(Overload::Descriptors) => {
                f.write_str("Outrigger is at the process's limit of open files (ulimit -n)")
            }
            Error::Overloaded(Overload::Lookups) => {
                f.write_str("too many names are being looked up at once: the name servers don't answer")
            }
            Error::Connect { failure, detail } => {
                f.write_str(match failure {
                    ConnectFailure::Dns => "the upstream's name could not be resolved",
                    ConnectFailure::DnsTimeout => "the look-up of the upstream's name took too long",
                    ConnectFailure::Refused => "the upstream refused the connection",
                    ConnectFailure::Unreachable => "the upstream can't be reached",
                    ConnectFailure::Timeout => "connecting to the upstream took too long (timeouts.connect)",
                    ConnectFailure::Tls => "TLS with the upstream failed",
                    ConnectFailure::Certificate => "the upstream's certificate is not valid",
                    ConnectFailure::Closed => "the upstream closed the connection while it was set up",
                    ConnectFailure::Refusal => "the upstream refused the stream unprocessed",
                })?;
                if detail.is_empty() { Ok(()) } else { write!(f, ": {detail}") }
            }
            Error::Reset { detail, .. } => {
                f.write_str("the upstream closed the connection before its answer")?;
                if detail.is_empty() { Ok(()) } else { write!(f, ": {detail}") }
            }
            Error::BadAnswer(detail) => write!(f, "the upstream's answer is malformed: {detail}"),
            Error::AttemptTimeout { sent: Sent::No } => {
                f.write_str("the upstream could not be connected to in time (timeouts.attempt)")
            }
            Error::AttemptTimeout { sent: Sent::Maybe } => {
                f.write_str("the upstream did not answer in time (timeouts.attempt)")
            }
            Error::Deadline { sent: Sent::No, .. } => {
                f.write_str("the upstream could not be connected to in time (timeouts.request)")
            }
            Error::Deadline { sent: Sent::Maybe, .. } => {
                f.write_str("the upstream did not answer in time (timeouts.request)")
            }
            Error::UpstreamSilent => f.write_str("the upstream stopped taking the request, or sending its answer (timeouts.idle)"),
            Error::ShuttingDown => f.write_str("Outrigger was told to end and the grace is over (shutdown.grace)"),
            Error::Panic => f.write_str("an internal error, logged as a panic"),
        }
    }
}

impl std::error::Error for Error {}
