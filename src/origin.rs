//! Where a request goes: scheme, host and port, compared the way HTTP compares them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// `http` or `https`: whether TLS is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP, default port 80.
    Http,
    /// HTTP over TLS, default port 443.
    Https,
}

impl Scheme {
    /// The port a URL of this scheme means when it names none.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }

    /// The scheme as it is written in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// A host as a URL names it (RFC 3986 section 3.2.2): lower case, without a trailing dot, IPv6 without brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A registered name, lower case.
    Name(Arc<str>),
    /// An address literal.
    Ip(IpAddr),
}

impl Host {
    /// Parses a host as it stands in a URL or a Host header: a name, an IPv4 address or an IPv6 address in brackets.
    ///
    /// # Errors
    /// A sentence when it is empty, longer than 253 bytes or has a byte that no host has.
    pub fn parse(text: &str) -> Result<Host, &'static str> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or("an IPv6 address needs its closing bracket")?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| "what stands in the brackets is not an IPv6 address")?;
            return Ok(Host::Ip(IpAddr::V6(ip)));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err("the host is empty");
        }
        if name.len() > 253 {
            return Err("the host is longer than 253 bytes");
        }
        if let Ok(ip) = name.parse::<Ipv4Addr>() {
            return Ok(Host::Ip(IpAddr::V4(ip)));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !name.bytes().all(plain) {
            return Err("a host has letters, digits, '-', '_' and '.' only");
        }
        if name.starts_with('.') || name.ends_with('.') || name.contains("..") {
            return Err("a host has no empty label");
        }
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            return Ok(Host::Name(name.to_ascii_lowercase().into()));
        }
        Ok(Host::Name(name.into()))
    }

    /// The address, when the host is a literal.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Host::Ip(ip) => Some(*ip),
            Host::Name(_) => None,
        }
    }
}

/// As it stands in a URL: IPv6 in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// Scheme, host and port (RFC 6454): what a connection is made to, and what a pool is keyed by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Whether TLS is spoken.
    pub scheme: Scheme,
    /// The host, normalised.
    pub host: Host,
    /// The port, always explicit.
    pub port: u16,
}

impl Origin {
    /// Host and port as a Host header or `:authority` has them: without the port where it is the scheme's own.
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

/// Splits `host[:port]` as a Host header or a CONNECT target has it. The port is `None` where it is left out.
///
/// # Errors
/// A sentence when there is userinfo, a path, a bad host or a bad port (0 included).
pub fn parse_authority(text: &str) -> Result<(Host, Option<u16>), &'static str> {
    if text.contains('@') {
        return Err("it must not carry user information");
    }
    let split = match text.rfind(']') {
        Some(end) => text[end..].find(':').map(|at| end + at),
        None => text.rfind(':'),
    };
    let Some(at) = split else {
        return Ok((Host::parse(text)?, None));
    };
    let (host, port) = (&text[..at], &text[at + 1..]);
    if port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err("the port is a number from 1 to 65535");
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((Host::parse(host)?, Some(port))),
        Ok(_) | Err(_) => Err("the port is a number from 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_compare_without_case_and_trailing_dot() {
        assert_eq!(Host::parse("API.Example.COM."), Host::parse("api.example.com"));
        assert_eq!(Host::parse("[::1]").unwrap().to_string(), "[::1]");
        assert_eq!(Host::parse("127.0.0.1").unwrap().ip(), Some("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn authorities_with_userinfo_path_or_bad_port_are_refused() {
        for bad in [
            "u@h", "h/x", "h:", "h:0", "h:65536", "h:+1", "h:1:2", "", "[::1", "[::1]x:1", "a b", ":80", "h..x", ".",
            "h..", "h..:80",
        ] {
            assert!(parse_authority(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_authority("h:80").unwrap(), (Host::Name("h".into()), Some(80)));
        assert_eq!(parse_authority("[::1]:80").unwrap().1, Some(80));
    }
}
