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

/// A host as a URL names it (RFC 3986 section 3.2.2), in the one form in which it is compared, looked up and dialled: lower
/// case, without a trailing dot, an address as that address however it was spelled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A registered name, lower case.
    Name(Arc<str>),
    /// An address literal; never an IPv4 address that is mapped into IPv6. [`Host::of`] sees to that.
    Ip(IpAddr),
}

impl Host {
    /// An address as a host. One that is mapped into IPv6 (`::ffff:10.0.0.1`) is the IPv4 address that a socket would
    /// connect to.
    pub fn of(ip: IpAddr) -> Host {
        Host::Ip(ip.to_canonical())
    }

    /// Parses a host as it stands in a URL or a Host header: a name, an IPv4 address or an IPv6 address in brackets. IPv4 is
    /// understood in every spelling that system libraries understand (`127.1`, `0x7f.1`, `0177.0.0.1`, `2130706433`), so that
    /// no spelling gets around what is configured for the address.
    ///
    /// # Errors
    /// A sentence when it is empty, longer than 253 bytes or has a byte that no host has.
    pub fn parse(text: &str) -> Result<Host, &'static str> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or("an IPv6 address needs its closing bracket")?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| "what stands in the brackets is not an IPv6 address")?;
            return Ok(Host::of(IpAddr::V6(ip)));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err("the host is empty");
        }
        if name.len() > 253 {
            return Err("the host is longer than 253 bytes");
        }
        if name.as_bytes()[0].is_ascii_digit()
            && let Some(ip) = name.parse().ok().or_else(|| loose_ipv4(name))
        {
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

    /// RFC 6761 section 6.3: `localhost` and names below it are loopback, without a look-up.
    pub fn is_localhost(&self) -> bool {
        match self {
            Host::Ip(_) => false,
            Host::Name(name) => is_localhost(name),
        }
    }

    /// The address, when the host is a literal.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Host::Ip(ip) => Some(*ip),
            Host::Name(_) => None,
        }
    }
}

/// As [`Host::is_localhost`], of a name that is in lower case and without a trailing dot.
pub(crate) fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// IPv4 as inet_aton(3) and the URL standard of browsers read it: one to four numbers, each decimal, octal after `0` or
/// hexadecimal after `0x`; the last one fills the bytes that are left.
fn loose_ipv4(text: &str) -> Option<Ipv4Addr> {
    let number = |part: &str| {
        let (digits, radix) = match part.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&part[2..], 16),
            [b'0', _, ..] => (&part[1..], 8),
            _ => (part, 10),
        };
        match digits {
            // Browsers read a bare `0x` as 0.
            "" if radix == 16 => Some(0),
            digits if digits.starts_with('+') => None,
            digits => u32::from_str_radix(digits, radix).ok(),
        }
    };
    let (front, last) = text.rsplit_once('.').map_or((None, text), |(front, last)| (Some(front), last));
    let mut address: u32 = 0;
    let mut bits_left = 32;
    for part in front.into_iter().flat_map(|front| front.split('.')) {
        bits_left -= 8;
        if bits_left == 0 {
            return None;
        }
        address |= number(part).filter(|number| *number < 256)? << bits_left;
    }
    let last = number(last).filter(|last| bits_left == 32 || *last < 1 << bits_left)?;
    Some(Ipv4Addr::from(address | last))
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
    fn an_address_is_one_host_however_it_is_spelled() {
        let host = |text| Host::parse(text).unwrap();
        for text in [
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "127.0.1",
            "0x7f.1",
            "0X7F.0x0.0x0.0x1",
            "0177.0.0.1",
            "0177.0x0.1",
            "000000177.0.0.01",
            "2130706433",
            "017700000001",
            "0x7f000001",
            "0x7F000001.",
            "[::ffff:127.0.0.1]",
            "[::FFFF:7f00:1]",
            "[0:0:0:0:0:ffff:7f00:0001]",
        ] {
            assert_eq!(host(text), Host::Ip("127.0.0.1".parse().unwrap()), "{text}");
        }
        assert_eq!(host("0").to_string(), "0.0.0.0");
        assert_eq!(host("0x").to_string(), "0.0.0.0");
        assert_eq!(host("4294967295").to_string(), "255.255.255.255");
        assert_eq!(host("10.65535").to_string(), "10.0.255.255");
        assert_eq!(host("[::127.0.0.1]").to_string(), "[::7f00:1]");
        assert_eq!(host("[2001:DB8:0::1]"), host("[2001:db8::1]"));
    }

    #[test]
    fn what_only_looks_like_an_address_is_a_name() {
        for text in [
            "256.1.1.1",
            "1.2.3.4.5",
            "08.1.1.1",
            "4294967296",
            "0x1g",
            "1.2.3.0x100",
            "1e100.net",
            "3com.com",
            "1.2.3.4a",
        ] {
            assert_eq!(Host::parse(text), Ok(Host::Name(text.into())), "{text}");
        }
        for text in ["1..2", "+1", "1.+2", "[127.0.0.1]", "[::1%25lo]", "[fe80::1%eth0]", "%31", "\u{ff11}27.0.0.1"] {
            assert!(Host::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn localhost_is_so_however_it_is_spelled() {
        for text in ["localhost", "LOCALHOST.", "a.b.localhost"] {
            assert!(Host::parse(text).unwrap().is_localhost(), "{text}");
        }
        for text in ["localhost.example", "notlocalhost", "127.0.0.1"] {
            assert!(!Host::parse(text).unwrap().is_localhost(), "{text}");
        }
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
