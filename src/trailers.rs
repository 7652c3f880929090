//! What may stand behind a body. A field that frames a message, leads it somewhere, proves who sent it or says what its content is
//! has to be known before the content is; behind it, it is there to be taken for one of the head by somebody further on
//! (RFC 9110 section 6.5.1). hyper leaves these out of HTTP/1; here they are left out of HTTP/2 too, in both directions.

use http::{HeaderMap, HeaderName, header};

/// Removes what no trailer is.
pub fn clean(trailers: &mut HeaderMap) {
    while let Some(gone) = trailers.keys().find(|name| is_none(name)).cloned() {
        trailers.remove(gone);
    }
}

fn is_none(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::AUTHORIZATION
            | header::CACHE_CONTROL
            | header::CONNECTION
            | header::CONTENT_ENCODING
            | header::CONTENT_LENGTH
            | header::CONTENT_RANGE
            | header::CONTENT_TYPE
            | header::COOKIE
            | header::EXPECT
            | header::HOST
            | header::MAX_FORWARDS
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
            | header::SET_COOKIE
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
    ) || matches!(name.as_str(), "http2-settings" | "keep-alive" | "proxy-connection")
        // No name in HTTP/1 at all (RFC 9110 section 5.6.2), but h2 lets it pass.
        || name.as_str().contains('"')
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_belongs_into_a_head_is_no_trailer() {
        let mut trailers = HeaderMap::new();
        for name in ["grpc-status", "content-length", "x-sum", "host", "set-cookie", "keep-alive", "grpc-message"] {
            trailers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
            trailers.append(HeaderName::from_static(name), HeaderValue::from_static("2"));
        }
        clean(&mut trailers);
        let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!((left, trailers.len()), (vec!["grpc-message", "grpc-status", "x-sum"], 6));
    }
}
