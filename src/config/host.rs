//! Hosts, origins and addresses as the configuration writes them.

use std::net::{IpAddr, SocketAddr};

use crate::config::HostPattern;
use crate::origin::{Host, Origin, Scheme, parse_authority};

/// A pattern of `hosts`.
pub(crate) fn pattern(text: &str) -> Result<HostPattern, String> {
    if text.contains("://") {
        return Err("is a URL: write the host alone here, and where it leads in `to`".to_owned());
    }
    plain(text)?;
    if text == "*" {
        return Err("`*` is no host: hosts that no upstream names are `egress.unmatched`'s".to_owned());
    }
    let (wildcard, rest) = match text.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest.contains('*') {
        return Err(format!("`{text}`: `*` may only stand for the whole front, as in `*.example.com`"));
    }
    let (host, port) = authority(rest)?;
    if wildcard && host.ip().is_some() {
        return Err(format!("`{text}`: there is nothing below an address; write the address itself"));
    }
    Ok(HostPattern { wildcard, host, port })
}

/// An origin of `to`. The message never shows the value, since it may hold a password.
pub(crate) fn origin(text: &str) -> Result<Origin, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
        Some(_) => return Err("must start with `https://` or `http://`".to_owned()),
        None => return Err("must be an origin: write `https://` or `http://` before the host".to_owned()),
    };
    // A lone slash is the origin's own.
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err(
            "must be an origin: user information is not supported; let the app send its `Authorization`".to_owned()
        );
    }
    if rest.contains(['/', '?', '#']) {
        return Err("must be an origin: leave the path and query out, the app's own are used".to_owned());
    }
    plain(rest)?;
    let (host, port) = authority(rest)?;
    Ok(Origin { scheme, host, port: port.unwrap_or(scheme.default_port()) })
}

/// `tls.server_name`.
pub(crate) fn server_name(text: &str) -> Result<Host, String> {
    plain(text)?;
    if let Ok(ip) = text.parse() {
        return Ok(Host::of(ip));
    }
    match authority(text)? {
        (host, None) => Ok(host),
        (_, Some(_)) => Err("must be a host without a port".to_owned()),
    }
}

/// `address:port` to listen on.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let help = match text.rsplit_once(':') {
        Some(("" | "*", port)) => format!("write `127.0.0.1:{port}`, or `0.0.0.0:{port}` for every address"),
        Some(("localhost", port)) => format!("write `127.0.0.1:{port}`"),
        Some(_) | None if text.bytes().all(|b| b.is_ascii_digit()) => format!("write `127.0.0.1:{text}`"),
        Some(_) | None => "write for example `127.0.0.1:7171` or `[::]:7173`".to_owned(),
    };
    Err(format!("`{text}` is not an address with a port: {help}"))
}

fn authority(text: &str) -> Result<(Host, Option<u16>), String> {
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(format!("`{text}`: write an IPv6 address in brackets: `[{text}]`"));
    }
    if text.contains('/') {
        return Err(format!("`{text}`: write the host alone, without a path"));
    }
    let (host, port) = parse_authority(text).map_err(|reason| format!("`{text}` is not a host: {reason}"))?;
    if let Host::Ip(IpAddr::V4(ip)) = host
        && !text.starts_with('[')
        && text.split(':').next().map(|host| host.trim_end_matches('.')) != Some(&ip.to_string())
    {
        // Requests are understood with it. Whoever writes it down may well mean another: 010.0.0.1 is 8.0.0.1.
        return Err(format!("`{text}` is a spelling of {ip}, which not everybody reads alike: write that"));
    }
    Ok((host, port))
}

fn plain(text: &str) -> Result<(), String> {
    if text.is_ascii() {
        return Ok(());
    }
    Err("has letters that DNS doesn't know: write its ASCII form, which starts with `xn--`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let shown = |text| pattern(text).map(|p| (p.wildcard, p.host.to_string(), p.port));
        assert_eq!(shown("API.X.com."), Ok((false, "api.x.com".into(), None)));
        assert_eq!(shown("*.x.com:8443"), Ok((true, "x.com".into(), Some(8443))));
        assert_eq!(shown("[::1]:80"), Ok((false, "[::1]".into(), Some(80))));
        assert_eq!(shown("10.0.0.1"), Ok((false, "10.0.0.1".into(), None)));
        for bad in
            ["*", "", "*.", "a.*.com", "https://x.com", "x.com/a", "b\u{fc}cher.de", "*.10.0.0.1", "::1", "x:0", "u@x"]
        {
            assert!(pattern(bad).is_err(), "{bad}");
        }
        assert!(pattern("::1").unwrap_err().contains("[::1]"));
        assert_eq!(shown("[::ffff:10.9.9.9]:80"), Ok((false, "10.9.9.9".into(), Some(80))));
        assert!(pattern("010.0.0.1:80").unwrap_err().contains("8.0.0.1"));
        assert!(origin("http://0x7f.1").unwrap_err().contains("127.0.0.1"));
        assert!(pattern("b\u{fc}cher.de").unwrap_err().contains("xn--"));
    }

    #[test]
    fn origins_have_no_path_and_no_password_and_never_show_one() {
        assert_eq!(origin("https://x.com/").unwrap().to_string(), "https://x.com");
        assert_eq!(origin("HTTP://[::1]:8080").unwrap().port, 8080);
        for bad in
            ["x.com", "ftp://x.com", "https://", "https://x.com/v1", "https://x.com?a", "https://x.com:0", "https:///a"]
        {
            assert!(origin(bad).is_err(), "{bad}");
        }
        let message = origin("https://user:hunter2@x.com").unwrap_err();
        assert!(message.contains("user information") && !message.contains("hunter2"));
    }

    #[test]
    fn addresses_to_listen_on_need_address_and_port() {
        assert!(listen("127.0.0.1:0").is_ok() && listen("[::]:7173").is_ok());
        for (bad, help) in
            [("7171", "127.0.0.1:7171"), (":7171", "0.0.0.0:7171"), ("localhost:1", "127.0.0.1:1"), ("x", "[::]:7173")]
        {
            assert!(listen(bad).unwrap_err().contains(help), "{bad}");
        }
    }
}
