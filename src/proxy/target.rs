//! Where a request wants to go, by what the app wrote. Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};

use crate::config::Listeners;
use crate::error::{Error, Result};
use crate::origin::{Host, Scheme, parse_authority};

/// Where a request wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The scheme the app asked with; that of the connection where the form has none.
    pub(crate) scheme: Scheme,
    /// The host.
    pub(crate) host: Host,
    /// The port, as asked or the scheme's own.
    pub(crate) port: u16,
    /// How it was written.
    pub(crate) form: Form,
}

/// The forms of a request target (RFC 9112 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A path; the host is that of the Host header, or of `:authority`.
    Origin,
    /// A URL.
    Absolute,
    /// `CONNECT host:port`.
    Authority,
    /// `OPTIONS *`.
    Asterisk,
}

impl Target {
    /// Host and port as the app would see them in a URL.
    pub(crate) fn authority(&self) -> String {
        let default = match self.form {
            Form::Authority => Scheme::Https.default_port(),
            Form::Origin | Form::Absolute | Form::Asterisk => self.scheme.default_port(),
        };
        if self.port == default { self.host.to_string() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Whether it leads back to one of Outrigger's own listeners, by an address or `localhost`. Names that resolve to one
    /// are found out when they are dialled.
    pub(crate) fn is_own(&self, accepted: SocketAddr, own: impl Iterator<Item = SocketAddr>) -> bool {
        let ip = match &self.host {
            Host::Ip(ip) => Some(unmapped(*ip)),
            Host::Name(_) if self.host.is_localhost() => None,
            Host::Name(_) => return false,
        };
        std::iter::once(accepted).chain(own).filter(|listener| listener.port() == self.port).any(|listener| {
            let listens = unmapped(listener.ip());
            match ip {
                Some(ip) => ip == listens || (ip.is_unspecified() || listens.is_unspecified()) && local(ip, accepted),
                None => listens.is_loopback() || listens.is_unspecified(),
            }
        })
    }
}

/// Whether an address is this machine's own, as far as can be told without asking the system.
fn local(ip: IpAddr, accepted: SocketAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || ip == unmapped(accepted.ip())
}

fn unmapped(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// All listeners of a configuration.
pub(crate) fn own_addresses(listeners: &Listeners) -> impl Iterator<Item = SocketAddr> + '_ {
    std::iter::once(listeners.proxy)
        .chain(listeners.admin)
        .chain(listeners.probes)
        .chain(listeners.tls)
        .chain(listeners.own.iter().copied())
}

/// What the Host header of a connection's last request meant. Most apps ask for the same one again.
#[derive(Debug, Default)]
pub(crate) struct LastHost(Mutex<Option<(Box<str>, Authority)>>);

/// A host, and a port where there is one.
type Authority = (Host, Option<u16>);

impl LastHost {
    fn parse(&self, text: &str) -> Result<Authority, &'static str> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, authority)) = &*last
            && **known == *text
        {
            return Ok(authority.clone());
        }
        let authority = parse_authority(text)?;
        *last = Some((text.into(), authority.clone()));
        Ok(authority)
    }
}

/// Reads the target and checks it against the Host header (RFC 9112 section 3.2, RFC 9113 section 8.3.1). `plain` is the
/// scheme of a form that has none: that of the connection.
///
/// # Errors
/// [`Error::BadRequest`] with what is wrong.
pub(crate) fn read(
    method: &Method,
    uri: &Uri,
    version: Version,
    headers: &HeaderMap,
    plain: Scheme,
    last: &LastHost,
) -> Result<Target> {
    let bad = |what| Err(Error::BadRequest(what));
    let host = host_header(headers, version, last)?;
    if *method == Method::CONNECT {
        let Some(authority) = uri.authority().filter(|_| uri.scheme().is_none()) else {
            return bad("CONNECT takes host:port and nothing else");
        };
        let (host, port) = parse_authority(authority.as_str()).map_err(Error::BadRequest)?;
        let Some(port) = port else { return bad("CONNECT takes host:port and nothing else") };
        return Ok(Target { scheme: Scheme::Https, host, port, form: Form::Authority });
    }
    // A literal `*` is the only target without a slash that is no URL.
    let asterisk = uri.path() == "*";
    if asterisk && *method != Method::OPTIONS {
        return bad("only OPTIONS may ask for *");
    }
    if uri.path_and_query().is_some_and(|path| !path.as_str().is_ascii()) {
        return bad("the target has a byte that no target has");
    }
    let http2 = version == Version::HTTP_2;
    if http2 && uri.path_and_query().is_some_and(|path| path.as_str().starts_with('?')) {
        return bad("the :path does not begin with a slash");
    }
    let scheme = match uri.scheme_str() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(_) => return bad("the URL's scheme is neither http nor https"),
    };
    match (scheme, uri.authority()) {
        (Some(scheme), Some(authority)) => {
            let (name, port) = last.parse(authority.as_str()).map_err(Error::BadRequest)?;
            let port = port.unwrap_or(scheme.default_port());
            // An HTTP/2 request has :scheme and :authority in any case. A Host beside them may only repeat them.
            let form = match (http2, asterisk) {
                (true, false) => Form::Origin,
                (false, false) => Form::Absolute,
                (_, true) => Form::Asterisk,
            };
            if http2
                && host.is_some_and(|(host, at)| (host, at.unwrap_or(scheme.default_port())) != (name.clone(), port))
            {
                return bad("Host and :authority differ");
            }
            Ok(Target { scheme, host: name, port, form })
        }
        (None, None) | (Some(_), None) => {
            let Some((name, port)) = host else {
                return bad("there is no Host header to say where the request goes");
            };
            let scheme = scheme.unwrap_or(plain);
            let form = if asterisk { Form::Asterisk } else { Form::Origin };
            Ok(Target { scheme, host: name, port: port.unwrap_or(scheme.default_port()), form })
        }
        (None, Some(_)) => bad("the target is neither a path nor a URL"),
    }
}

/// The Host header: exactly one in HTTP/1.1, at most one elsewhere, and a host with an optional port. `CONNECT` in
/// HTTP/1.0 comes without any.
fn host_header(headers: &HeaderMap, version: Version, last: &LastHost) -> Result<Option<Authority>> {
    let mut lines = headers.get_all(header::HOST).iter();
    let Some(line) = lines.next() else {
        return match version {
            Version::HTTP_11 => Err(Error::BadRequest("HTTP/1.1 needs a Host header")),
            _ => Ok(None),
        };
    };
    if lines.next().is_some() {
        return Err(Error::BadRequest("there is more than one Host header"));
    }
    let text = line.to_str().map_err(|_| Error::BadRequest("the Host header is not ASCII"))?;
    last.parse(text).map(Some).map_err(|_| Error::BadRequest("the Host header is not host or host:port"))
}

/// The path and query as an origin server gets them.
pub(crate) fn origin_form(uri: &Uri) -> Uri {
    if uri.scheme().is_none() && uri.authority().is_none() && uri.path_and_query().is_some() {
        return uri.clone();
    }
    Uri::from(uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")))
}

/// The Host header for a target that was a URL or an `:authority`: with the port where it is not the scheme's own.
pub(crate) fn host_value(target: &Target) -> HeaderValue {
    HeaderValue::try_from(target.authority()).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(hosts: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_static(host));
        }
        headers
    }

    fn get(uri: &str, hosts: &[&'static str]) -> Result<Target> {
        read(&Method::GET, &uri.parse().unwrap(), Version::HTTP_11, &headers(hosts), Scheme::Http, &LastHost::default())
    }

    #[test]
    fn a_url_goes_before_the_host_header() {
        let target = get("http://API.example.com./v1?x", &["other:8080"]).unwrap();
        assert_eq!((target.authority().as_str(), target.port, target.form), ("api.example.com", 80, Form::Absolute));
        let target = get("https://a:8443/", &["a"]).unwrap();
        assert_eq!((target.scheme, target.port), (Scheme::Https, 8443));
        assert_eq!(host_value(&target), "a:8443");
    }

    #[test]
    fn a_path_goes_to_the_host_header() {
        let target = get("/v1", &["a:81"]).unwrap();
        assert_eq!((target.authority().as_str(), target.scheme, target.form), ("a:81", Scheme::Http, Form::Origin));
        let old = read(
            &Method::GET,
            &"/".parse().unwrap(),
            Version::HTTP_10,
            &headers(&[]),
            Scheme::Http,
            &LastHost::default(),
        );
        assert!(matches!(old, Err(Error::BadRequest(_))));
    }

    #[test]
    fn a_connect_of_http_1_0_needs_no_header() {
        let target = read(
            &Method::CONNECT,
            &"a:443".parse().unwrap(),
            Version::HTTP_10,
            &headers(&[]),
            Scheme::Http,
            &LastHost::default(),
        )
        .unwrap();
        assert_eq!((target.authority().as_str(), target.form), ("a", Form::Authority));
        assert!(
            read(
                &Method::CONNECT,
                &"a:443".parse().unwrap(),
                Version::HTTP_11,
                &headers(&[]),
                Scheme::Http,
                &LastHost::default()
            )
            .is_err()
        );
    }

    #[test]
    fn hosts_that_are_missing_repeated_or_malformed_are_refused() {
        for hosts in
            [&[][..], &["a", "a"], &["u@a"], &["a/b"], &["a:x"], &["a:0"], &["a:99999"], &[""], &["a,b"], &["a b"]]
        {
            assert!(matches!(get("/", hosts), Err(Error::BadRequest(_))), "{hosts:?}");
            assert!(matches!(get("http://x/", hosts), Err(Error::BadRequest(_))), "{hosts:?}");
        }
        for uri in ["http://u:p@a/", "http://a:0/", "ftp://a/", "a:80", "*"] {
            assert!(matches!(get(uri, &["a"]), Err(Error::BadRequest(_))), "{uri}");
        }
        assert_eq!(
            read(
                &Method::OPTIONS,
                &"*".parse().unwrap(),
                Version::HTTP_11,
                &headers(&["a"]),
                Scheme::Http,
                &LastHost::default()
            )
            .unwrap()
            .form,
            Form::Asterisk
        );
    }

    #[test]
    fn on_http2_host_may_only_repeat_authority() {
        let read = |hosts: &[&'static str]| {
            read(
                &Method::GET,
                &"http://a/x".parse().unwrap(),
                Version::HTTP_2,
                &headers(hosts),
                Scheme::Http,
                &LastHost::default(),
            )
        };
        assert_eq!(read(&[]).unwrap().form, Form::Origin);
        assert!(read(&["A:80"]).is_ok());
        assert!(read(&["b"]).is_err());
        assert!(read(&["a", "a"]).is_err());
    }

    #[test]
    fn own_listeners_are_recognised() {
        let accepted: SocketAddr = "127.0.0.1:7171".parse().unwrap();
        let own = |host: &str| {
            let (host, port) = parse_authority(host).unwrap();
            let target = Target { scheme: Scheme::Http, host, port: port.unwrap_or(80), form: Form::Origin };
            target.is_own(accepted, ["[::]:7173".parse().unwrap(), "10.0.0.1:7201".parse().unwrap()].into_iter())
        };
        for host in [
            "127.0.0.1:7171",
            "localhost:7171",
            "[::ffff:127.0.0.1]:7171",
            "127.0.0.1:7173",
            "[::1]:7173",
            "0.0.0.0:7171",
        ] {
            assert!(own(host), "{host}");
        }
        for host in ["127.0.0.1:80", "localhost", "api:7171", "10.0.0.9:7171", "127.0.0.1:7201"] {
            assert!(!own(host), "{host}");
        }
    }
}
