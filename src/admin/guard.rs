//! Who may talk to `admin`: pure rules over what a request says.
//!
//! A web page that the operator has open could reach a loopback port. So the Host must be an address of ours (a name that
//! the page's owner points here, DNS rebinding, is not), and what changes something must not come from another page.

use std::net::SocketAddr;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::origin::{Host, Scheme, parse_authority};

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: &'static str,
}

/// What the request is for, which must be loopback or the address that the connection came in on.
pub(super) fn host(headers: &HeaderMap, uri: &http::Uri, local: SocketAddr) -> Result<(), Refusal> {
    let refusal = Refusal {
        status: StatusCode::FORBIDDEN,
        text: "the Host must be a loopback name or address, or the address that admin listens on",
    };
    let line = one(headers.get_all(HOST).iter());
    // A URL goes before the Host (RFC 9112 section 3.2.2), but a browser's request has no two opinions.
    if uri.authority().is_some_and(|authority| line != Some(authority.as_str())) {
        return Err(refusal);
    }
    let (host, _) = line.and_then(read).ok_or(refusal)?;
    let ours = match &host {
        Host::Name(_) => host.is_localhost(),
        Host::Ip(ip) => ip.is_loopback() || *ip == local.ip().to_canonical(),
    };
    if ours { Ok(()) } else { Err(refusal) }
}

/// What changes something must come from a page of our own, or from no page at all.
pub(super) fn same_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let refusal = Refusal {
        status: StatusCode::FORBIDDEN,
        text: "a web page of another origin may neither change anything here nor listen",
    };
    // Browsers say on their own account where a request comes from.
    let said = headers.get_all("sec-fetch-site");
    if said.iter().any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none")) {
        return Err(refusal);
    }
    if !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    let origin = one(headers.get_all(ORIGIN).iter()).and_then(|text| read(text.strip_prefix("http://")?));
    let host = one(headers.get_all(HOST).iter()).and_then(read);
    if origin.is_some() && origin == host { Ok(()) } else { Err(refusal) }
}

/// A host and its port.
fn read(text: &str) -> Option<(Host, u16)> {
    let (host, port) = parse_authority(text).ok()?;
    Some((host, port.unwrap_or(Scheme::Http.default_port())))
}

/// `Authorization: Bearer` must carry the token, where there is one.
pub(super) fn token(headers: &HeaderMap, token: Option<&str>) -> Result<(), Refusal> {
    let Some(token) = token else { return Ok(()) };
    let refusal = Refusal { status: StatusCode::UNAUTHORIZED, text: "admin_token is set: send Authorization: Bearer" };
    let sent = one(headers.get_all(AUTHORIZATION).iter()).ok_or(refusal)?;
    let (scheme, sent) = sent.split_once(' ').ok_or(refusal)?;
    let equal = aws_lc_rs::constant_time::verify_slices_are_equal(sent.trim().as_bytes(), token.as_bytes()).is_ok();
    if scheme.eq_ignore_ascii_case("bearer") && equal { Ok(()) } else { Err(refusal) }
}

/// The only value; `None` where there is none, are several, or it is not text.
fn one<'a>(mut values: impl Iterator<Item = &'a HeaderValue>) -> Option<&'a str> {
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_loopback_and_the_own_address_are_hosts_of_admin() {
        let of = |value: &str, local: &str| {
            host(&headers(&[("host", value)]), &"/".parse().unwrap(), local.parse().unwrap()).is_ok()
        };
        for good in ["localhost", "LOCALHOST:7172", "127.0.0.1:7172", "127.9.9.9", "[::1]:7172", "outrigger.localhost"]
        {
            assert!(of(good, "127.0.0.1:7172"), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example", "10.0.0.1", "", "a@localhost", "localhost:x", "0.0.0.0"] {
            assert!(!of(bad, "127.0.0.1:7172"), "{bad}");
        }
        assert!(of("10.0.0.7:7172", "10.0.0.7:7172") && of("10.0.0.7", "[::ffff:10.0.0.7]:7172"));
        let local = "127.0.0.1:7172".parse().unwrap();
        assert!(host(&headers(&[]), &"/".parse().unwrap(), local).is_err());
        assert!(host(&headers(&[("host", "localhost"), ("host", "localhost")]), &"/".parse().unwrap(), local).is_err());
        let absolute = "http://evil.example/".parse().unwrap();
        assert!(host(&headers(&[("host", "localhost")]), &absolute, local).is_err());
        let absolute = "http://localhost/".parse().unwrap();
        assert!(host(&headers(&[("host", "evil.example")]), &absolute, local).is_err());
        assert!(host(&headers(&[("host", "localhost")]), &absolute, local).is_ok());
    }

    #[test]
    fn another_page_may_not_change_anything() {
        let of = |lines: &[(&'static str, &str)]| same_origin(&headers(lines)).is_ok();
        assert!(of(&[("host", "localhost:7172")]));
        assert!(of(&[("host", "localhost:7172"), ("origin", "http://localhost:7172")]));
        assert!(of(&[("host", "localhost"), ("origin", "http://localhost:80"), ("sec-fetch-site", "same-origin")]));
        for origin in ["null", "http://localhost:8080", "https://localhost:7172", "http://evil.example", ""] {
            assert!(!of(&[("host", "localhost:7172"), ("origin", origin)]), "{origin}");
        }
        for site in ["cross-site", "same-site", "Same-Origin", ""] {
            assert!(!of(&[("host", "localhost:7172"), ("sec-fetch-site", site)]), "{site}");
        }
        assert!(!of(&[("host", "localhost"), ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")]));
    }

    #[test]
    fn the_token_is_asked_for_where_it_is_set() {
        let of = |value: &str, expected| token(&headers(&[("authorization", value)]), expected).is_ok();
        assert!(of("Basic x", None) && token(&headers(&[]), None).is_ok());
        assert!(of("Bearer geheim", Some("geheim")) && of("bearer geheim", Some("geheim")));
        for bad in ["Bearer", "Bearer x", "Basic geheim", "geheim", "Bearer geheim2", ""] {
            assert!(!of(bad, Some("geheim")), "{bad}");
        }
        assert!(token(&headers(&[]), Some("geheim")).is_err());
    }
}
