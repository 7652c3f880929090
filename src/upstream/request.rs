//! A request as HTTP/1.1 and as HTTP/2 want it. The pipeline's form is that of HTTP/1.1: origin-form target and Host.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{Method, Request, Uri, Version};

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::origin::Scheme;
use crate::upstream::upload::SendBody;

/// Puts `host` where the request's Host stands, so that the order and case of fields stay as they are.
pub(super) fn set_host(head: &mut http::request::Parts, host: HeaderValue) {
    match head.headers.get_mut(HOST) {
        Some(field) => *field = host,
        None => {
            head.headers.insert(HOST, host);
        }
    }
}

/// For HTTP/1.1. `fields` are those that it came with.
pub(super) fn for_http1(request: &mut Request<SendBody>, fields: Fields) {
    let came_by = std::mem::replace(request.version_mut(), Version::HTTP_11);
    if fields.has(Fields::CONTENT_LENGTH) || fields.has(Fields::TRANSFER_ENCODING) {
        return;
    }
    if request.body().is_of_unknown_length() {
        // hyper would send GET and HEAD without their body.
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if came_by == Version::HTTP_2 && expects_a_body(request.method()) && !request.body().will_send() {
        // HTTP/2 says "no body" by a flag; in HTTP/1.1 some servers insist on the length (RFC 9110 section 8.6).
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
}

fn expects_a_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// What must not be in HTTP/2 (RFC 9113 section 8.2.2).
const OF_THE_CONNECTION: [HeaderName; 6] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// For HTTP/2: the target absolute, Host in it, nothing that belongs to a connection. `authority` stands in for a Host that is
/// missing or is none. The Host that was taken out, for [`back_to_http1`].
///
/// # Errors
/// A target that HTTP/2 can't carry.
pub(super) fn for_http2(
    request: &mut Request<SendBody>,
    scheme: Scheme,
    authority: &str,
) -> Result<Option<HeaderValue>> {
    *request.version_mut() = Version::HTTP_2;
    let host = without_connection(request.headers_mut());
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(match scheme {
        Scheme::Http => UriScheme::HTTP,
        Scheme::Https => UriScheme::HTTPS,
    });
    let asked = host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let malformed = Error::BadRequest("the target does not fit into HTTP/2");
    parts.authority = match asked {
        Some(authority) => Some(authority),
        None => Some(Authority::try_from(authority).map_err(|_| malformed.clone())?),
    };
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.path_and_query = Some(path);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| malformed)?;
    Ok(host)
}

/// Takes out what HTTP/2 can't have, and Host, which is returned. `HeaderMap::remove` would change the order of the others.
fn without_connection(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let old = std::mem::take(headers);
    headers.reserve(old.len());
    let (mut host, mut current) = (None, None);
    for (name, value) in old {
        if name.is_some() {
            current = name;
        }
        let Some(name) = &current else { continue };
        if *name == HOST {
            host.get_or_insert(value);
        } else if !OF_THE_CONNECTION.contains(name)
            && (*name != TE || value.as_bytes().eq_ignore_ascii_case(b"trailers"))
        {
            // It had room for all of them before.
            let _ = headers.try_append(name.clone(), value);
        }
    }
    host
}

/// Undoes [`for_http2`], for a request that was not sent and goes over another connection.
pub(super) fn back_to_http1(request: &mut Request<SendBody>, host: Option<HeaderValue>) {
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    if let Some(path) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = Uri::from(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_http2_cannot_have_is_taken_out_and_the_rest_keeps_its_order() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "a"),
            ("user-agent", "b"),
            ("connection", "c"),
            ("accept", "d"),
            ("accept", "e"),
            ("te", "gzip"),
            ("upgrade", "f"),
            ("x-last", "g"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(without_connection(&mut headers).unwrap(), "a");
        let left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(left, [("user-agent", "b"), ("accept", "d"), ("accept", "e"), ("x-last", "g")]);
    }
}
