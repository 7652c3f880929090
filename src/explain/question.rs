//! The request that is asked about, as it would reach the proxy port.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, Scheme as UriScheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};

use crate::error::Error;
use crate::origin::Scheme;
use crate::policy::retry;
use crate::proxy::target::{self, Form, LastHost, Target};
use crate::units::parse_size;

/// A request that nobody sends.
#[derive(Clone, Debug)]
pub struct Question {
    /// As it is written.
    pub(crate) method: Method,
    /// A URL, a path with a Host header beside it, or `host:port` for CONNECT.
    pub(crate) uri: Uri,
    /// With a Host, as every client sends one.
    pub(crate) headers: HeaderMap,
    /// How much there is to send.
    pub(crate) body: Body,
    /// Where the proxy reads that it wants to go. A URL with `https://` is a CONNECT here, as clients make one of it.
    pub(crate) target: Target,
}

/// What is known of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// There is none.
    None,
    /// So many bytes.
    Of(u64),
    /// There may be one, of a size that was not told.
    Untold,
}

impl Question {
    /// From the words of a command line. `headers` are `Name: value`; `body_size` is a size such as `64KiB`.
    ///
    /// # Errors
    /// A sentence that says what would be right. It never repeats a header's value, or what may be a password in a URL.
    pub fn new(method: &str, url: &str, headers: &[String], body_size: Option<&str>) -> Result<Question, String> {
        let method = retry::method(method)?;
        let uri = uri(&method, url)?;
        let mut fields = HeaderMap::new();
        for header in headers {
            let (name, value) = field(header)?;
            fields.try_append(name, value).map_err(|_| "there are too many headers".to_owned())?;
        }
        if !fields.contains_key(HOST)
            && let Some(authority) = uri.authority()
        {
            // A client leaves user information out, and the proxy refuses it in the URL just below.
            let host = authority.as_str().rsplit('@').next().unwrap_or_default();
            let host = HeaderValue::from_str(host).map_err(|_| "the URL's host is no host".to_owned())?;
            fields.insert(HOST, host);
        }
        let target = target(&method, &uri, &fields)?;
        let body = body(&method, &fields, body_size)?;
        Ok(Question { method, uri, headers: fields, body, target })
    }

    /// The same request as `http://`, where it is a tunnel now because its URL says `https://`.
    pub(crate) fn as_http(&self) -> Option<Question> {
        if self.uri.scheme() != Some(&UriScheme::HTTPS) {
            return None;
        }
        let mut parts = self.uri.clone().into_parts();
        parts.scheme = Some(UriScheme::HTTP);
        let host = match self.target.port {
            443 => self.target.host.to_string(),
            port => format!("{}:{port}", self.target.host),
        };
        parts.authority = Some(Authority::try_from(host).ok()?);
        let uri = Uri::from_parts(parts).ok()?;
        let target =
            target::read(&self.method, &uri, Version::HTTP_11, &self.headers, Scheme::Http, &LastHost::default())
                .ok()?;
        Some(Question { uri, target, ..self.clone() })
    }

    /// The same request inside its tunnel, where that is intercepted. `None`: it is itself the CONNECT, or no tunnel.
    pub(crate) fn inside(&self) -> Option<Question> {
        if self.method == Method::CONNECT || !self.is_tunnel() {
            return None;
        }
        let read =
            target::read(&self.method, &self.uri, Version::HTTP_11, &self.headers, Scheme::Https, &LastHost::default())
                .ok()?;
        // An app sends a path there, and the host as Host.
        Some(Question { target: Target { form: Form::Origin, ..read }, ..self.clone() })
    }

    /// Whether it is a CONNECT by the time it reaches the proxy.
    pub(crate) fn is_tunnel(&self) -> bool {
        self.target.form == Form::Authority
    }

    /// The request in one line: values of the query may be secrets and are left out.
    pub(crate) fn shown(&self) -> String {
        if self.method == Method::CONNECT {
            return format!("CONNECT {}:{}", self.target.host, self.target.port);
        }
        format!("{} {}", self.method, self.shown_url())
    }

    /// See [`Question::shown`].
    pub(crate) fn shown_url(&self) -> String {
        let query = if self.uri.query().is_some() { "?…" } else { "" };
        match (self.uri.scheme_str(), self.target.form) {
            (_, Form::Asterisk) => format!("* (Host: {})", self.target.authority()),
            (None, Form::Authority) => format!("{}:{}", self.target.host, self.target.port),
            (Some(scheme), _) => format!("{scheme}://{}{}{query}", self.authority(), self.uri.path()),
            (None, _) => format!("{}{query} (Host: {})", self.uri.path(), self.target.authority()),
        }
    }

    /// Host and port as the URL has them, the port left out where it is the scheme's own.
    fn authority(&self) -> String {
        let default = match self.uri.scheme_str() {
            Some("https") => Scheme::Https.default_port(),
            Some(_) | None => Scheme::Http.default_port(),
        };
        match self.target.port {
            port if port == default => self.target.host.to_string(),
            port => format!("{}:{port}", self.target.host),
        }
    }
}

fn uri(method: &Method, url: &str) -> Result<Uri, String> {
    let connect = *method == Method::CONNECT;
    if connect && (url.contains('/') || url.contains('@')) {
        return Err("CONNECT takes host:port and nothing else, as in `CONNECT api.example.com:443`".to_owned());
    }
    let with_scheme = url.contains("://");
    if !with_scheme && !connect && url != "*" && !url.starts_with('/') {
        return Err("the URL has no scheme: write `http://…`, or `https://…` for what a tunnel gets".to_owned());
    }
    if url.contains(|c: char| c.is_whitespace() || c.is_control() || !c.is_ascii()) {
        return Err(
            "the URL has spaces or letters that a URL carries percent-encoded: write them as `%20` and the like"
                .to_owned(),
        );
    }
    url.parse().map_err(|error: http::uri::InvalidUri| format!("this is not a URL: {error}"))
}

fn field(header: &str) -> Result<(HeaderName, HeaderValue), String> {
    let Some((name, value)) = header.split_once(':') else {
        return Err("a header is written as 'Name: value'".to_owned());
    };
    let parsed: HeaderName = name.trim().parse().map_err(|_| match name.trim() {
        "" => "a header is written as 'Name: value', and this one has no name".to_owned(),
        name => format!("`{}` is not a header name", name.escape_debug()),
    })?;
    let value = HeaderValue::from_str(value.trim())
        .map_err(|_| format!("the value of `{parsed}` has characters that no header can carry"))?;
    Ok((parsed, value))
}

/// Where it wants to go, read by what reads it in the proxy.
fn target(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Target, String> {
    let sentence = |error: Error| match error {
        Error::BadRequest("there is no Host header to say where the request goes" | "HTTP/1.1 needs a Host header") => {
            "a path alone doesn't say where to go: write a URL, or add -H 'Host: api.example.com'".to_owned()
        }
        Error::BadRequest(what) => format!("no such request passes: {what}"),
        other => other.to_string(),
    };
    let read = |method: &Method, uri: &Uri| {
        target::read(method, uri, Version::HTTP_11, headers, Scheme::Http, &LastHost::default()).map_err(sentence)
    };
    let asked = read(method, uri)?;
    if asked.form != Form::Absolute || asked.scheme == Scheme::Http {
        return Ok(asked);
    }
    // What clients make of https:// when HTTPS_PROXY is set.
    let connect = format!("{}:{}", asked.host, asked.port);
    let connect: Uri = connect.parse().map_err(|_| "the URL's host is no host".to_owned())?;
    read(&Method::CONNECT, &connect)
}

fn body(method: &Method, headers: &HeaderMap, told: Option<&str>) -> Result<Body, String> {
    let told = match told {
        Some(text) => Some(parse_size(text)?),
        None => {
            let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
            let first = lengths.next();
            if lengths.next().is_some() {
                return Err("there is more than one Content-Length".to_owned());
            }
            let number = |value: &HeaderValue| {
                let text = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
                text.parse::<u64>().ok()
            };
            match first {
                Some(value) => Some(number(value).ok_or("Content-Length is a whole number of bytes")?),
                None => None,
            }
        }
    };
    Ok(match told {
        Some(0) => Body::None,
        Some(bytes) => Body::Of(bytes),
        None if headers.contains_key(TRANSFER_ENCODING) => Body::Untold,
        None if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => Body::Untold,
        None => Body::None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, url: &str, headers: &[&str]) -> Result<Question, String> {
        let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
        Question::new(method, url, &headers, None)
    }

    #[test]
    fn the_target_is_read_as_the_proxy_reads_it() {
        let target = |method, url, headers: &[&str]| {
            let target = ask(method, url, headers).unwrap().target;
            (target.host.to_string(), target.port, target.form)
        };
        assert_eq!(target("GET", "http://API.x.com./a?b", &[]), ("api.x.com".into(), 80, Form::Absolute));
        assert_eq!(target("GET", "http://a:81/", &["Host: other"]), ("a".into(), 81, Form::Absolute));
        assert_eq!(target("GET", "https://a/x", &[]), ("a".into(), 443, Form::Authority));
        assert_eq!(target("CONNECT", "a:8443", &[]), ("a".into(), 8443, Form::Authority));
        assert_eq!(target("GET", "/v1", &["host: a:81"]), ("a".into(), 81, Form::Origin));
        assert_eq!(target("OPTIONS", "*", &["Host: a"]), ("a".into(), 80, Form::Asterisk));
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_what_would_be_right_and_no_secret() {
        for (method, url, headers, says) in [
            ("get", "http://a/", &[][..], "write `GET`"),
            ("GE T", "http://a/", &[], "not an HTTP method"),
            ("GET", "a.com/x", &[], "has no scheme"),
            ("GET", "a.com:443", &[], "has no scheme"),
            ("GET", "ftp://a/", &[], "neither http nor https"),
            ("GET", "http://a:0/", &[], "port"),
            ("GET", "http://u:hunter2@a/", &[], "user information"),
            ("GET", "http://a/b c", &[], "percent-encoded"),
            ("GET", "http://", &[], "not a URL"),
            ("GET", "*", &["Host: a"], "only OPTIONS"),
            ("GET", "/x", &[], "add -H 'Host: "),
            ("CONNECT", "https://a", &[], "host:port"),
            ("CONNECT", "a", &[], "host:port"),
            ("GET", "http://a/", &["hunter2"], "Name: value"),
            ("GET", "http://a/", &[": hunter2"], "no name"),
            ("GET", "http://a/", &["X Y: hunter2"], "not a header name"),
            ("GET", "http://a/", &["X: hunter2\u{7f}"], "characters that no header"),
            ("GET", "http://a/", &["Content-Length: x"], "whole number"),
            ("GET", "http://a/", &["Host: a", "Host: b"], "more than one Host"),
        ] {
            let error = ask(method, url, headers).unwrap_err();
            assert!(error.contains(says) && !error.contains("hunter2"), "{method} {url}: {error}");
        }
    }

    #[test]
    fn the_body_is_told_by_the_option_then_by_content_length_then_by_the_method() {
        let body = |method: &str, headers: &[&str], told| {
            let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
            Question::new(method, "http://a/", &headers, told).unwrap().body
        };
        assert_eq!(body("POST", &["Content-Length: 5"], Some("2KiB")), Body::Of(2048));
        assert_eq!(body("POST", &["Content-Length: 5"], None), Body::Of(5));
        assert_eq!(body("POST", &["Content-Length: 0"], None), Body::None);
        assert_eq!(body("POST", &[], None), Body::Untold);
        assert_eq!(body("GET", &["Transfer-Encoding: chunked"], None), Body::Untold);
        assert_eq!(body("GET", &[], None), Body::None);
        assert!(Question::new("GET", "http://a/", &[], Some("5")).unwrap_err().contains("needs a unit"));
    }

    #[test]
    fn what_is_shown_has_no_query_values() {
        let shown = |method, url, headers: &[&str]| ask(method, url, headers).unwrap().shown();
        assert_eq!(shown("GET", "http://A:80/x?key=hunter2", &[]), "GET http://a/x?…");
        assert_eq!(shown("GET", "https://a:8443/x", &[]), "GET https://a:8443/x");
        assert_eq!(shown("CONNECT", "a:443", &[]), "CONNECT a:443");
        assert_eq!(shown("GET", "/x", &["Host: a"]), "GET /x (Host: a)");
        let plain = ask("GET", "https://a:8443/x", &[]).unwrap().as_http().unwrap();
        assert_eq!(plain.shown(), "GET http://a:8443/x");
        assert_eq!(ask("GET", "https://a/x", &[]).unwrap().as_http().unwrap().target.port, 80);
    }
}
