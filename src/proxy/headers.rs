//! What may not pass from one side to the other, and what is read on the way (RFC 9110 section 7.6.1). Pure.
//! Order and repetition of everything else stay as they are; its case travels in the message's extensions.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::message;
use crate::telemetry::spans::{Parent, TRACEPARENT, traceparent};

const AMZ_SDK_REQUEST: HeaderName = HeaderName::from_static("amz-sdk-request");
const STAINLESS_RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");
const GRPC_PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// Whether the app asks to switch protocols: `Connection: upgrade` with an `Upgrade` other than `h2c`, in HTTP/1.1.
pub(crate) fn asks_upgrade(headers: &HeaderMap, version: Version) -> bool {
    version == Version::HTTP_11
        && headers.contains_key(header::UPGRADE)
        && tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && tokens(headers, &header::UPGRADE).all(|token| !token.eq_ignore_ascii_case("h2c"))
}

/// Whether the app waits for `100 Continue` (RFC 9110 section 10.1.1). HTTP/1.0 has no expectations.
///
/// # Errors
/// [`Error::Expectation`] for any other one.
pub(crate) fn expects_continue(headers: &HeaderMap, version: Version) -> Result<bool> {
    if version == Version::HTTP_10 {
        return Ok(false);
    }
    let mut expects = headers.get_all(header::EXPECT).iter();
    let Some(first) = expects.next() else { return Ok(false) };
    if expects.next().is_some() || !first.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return Err(Error::Expectation);
    }
    Ok(true)
}

/// Refuses fields of an HTTP/2 request that h2 lets through and that an HTTP/1 upstream could read differently
/// (RFC 9113 sections 8.1.1 and 8.2.1).
///
/// # Errors
/// [`Error::BadRequest`] with what is wrong.
pub(crate) fn check_http2(headers: &HeaderMap) -> Result<()> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        if lengths.next().is_some() {
            return Err(Error::BadRequest("there is more than one Content-Length"));
        }
        // To h2 nothing at all is the number 0.
        if length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit) {
            return Err(Error::BadRequest("the Content-Length is not a number"));
        }
    }
    if message::has_odd_name(headers) {
        return Err(Error::BadRequest("a header's name has a byte that no name has"));
    }
    let white = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    if headers.values().any(|value| white(value.as_bytes().first()) || white(value.as_bytes().last())) {
        return Err(Error::BadRequest("there is white space around a header's value"));
    }
    Ok(())
}

/// How large a head is as HTTP/2 counts (RFC 9113 section 6.5.2), in bytes.
pub(crate) fn list_size(method: &Method, uri: &Uri, headers: &HeaderMap) -> u64 {
    const EACH: usize = 32;
    let pseudo = method.as_str().len()
        + uri.scheme_str().map_or(0, str::len)
        + uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len())
        + [":method", ":scheme", ":authority", ":path"].map(|name| name.len() + EACH).iter().sum::<usize>();
    let fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + EACH).sum();
    (pseudo + fields) as u64
}

/// Joins the pieces that HTTP/2 lets `Cookie` be sent in. HTTP/1 has one (RFC 9113 section 8.2.3, RFC 6265 section 5.4); servers
/// that are sent several take the first, or join them by a comma.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(header::COOKIE).iter();
    if pieces.by_ref().nth(1).is_none() {
        return;
    }
    let pieces: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // What is made of good values and a semicolon is one.
    if let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Removes what concerns one connection only, in either direction. `fields` are those of the head. `upgrade`: the message switches protocols, so that its
/// `Upgrade` passes, with the `Connection` it needs. `keys` are header names that `Connection` can't take away, besides
/// those that are protected anyway.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, fields: Fields, upgrade: bool, keys: &[HeaderName]) {
    if !fields.has(Fields::HOP_BY_HOP) {
        return;
    }
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !is_hop_by_hop(name) && !is_protected(name) && !keys.contains(name))
        .collect();
    let trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let mut upgraded = false;
    let old = std::mem::take(headers);
    headers.reserve(old.len());
    let mut current = None;
    for (name, value) in old {
        if name.is_some() {
            current = name;
        }
        let Some(name) = &current else { continue };
        let value = match *name {
            header::CONNECTION if upgrade && !upgraded => {
                upgraded = true;
                HeaderValue::from_static("Upgrade")
            }
            header::UPGRADE if upgrade => value,
            header::TE if trailers && !headers.contains_key(header::TE) => HeaderValue::from_static("trailers"),
            _ if is_hop_by_hop(name) || named.contains(name) => continue,
            _ => value,
        };
        // It had room for all of them before.
        let _ = headers.try_append(name.clone(), value);
    }
}

/// Removes one field, keeping the order of the others.
pub(crate) fn remove(headers: &mut HeaderMap, gone: &HeaderName) {
    let old = std::mem::take(headers);
    headers.reserve(old.len());
    let mut current = None;
    for (name, value) in old {
        if name.is_some() {
            current = name;
        }
        if let Some(name) = current.as_ref().filter(|name| *name != gone) {
            let _ = headers.try_append(name.clone(), value);
        }
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    Fields::named(name.as_str()).has(Fields::HOP_BY_HOP)
}

/// What `Connection` can't take away: framing, routing, and what makes a request mean the same thing.
fn is_protected(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONTENT_LENGTH
            | header::CONTENT_TYPE
            | header::CONTENT_ENCODING
            | header::CONTENT_RANGE
            | header::RANGE
            | header::HOST
            | header::AUTHORIZATION
            | header::WWW_AUTHENTICATE
            | header::COOKIE
            | header::SET_COOKIE
            | header::EXPECT
            | header::LOCATION
            | header::RETRY_AFTER
            | header::TRAILER
            | header::IF_MATCH
            | header::IF_NONE_MATCH
            | header::IF_UNMODIFIED_SINCE
            | header::IF_MODIFIED_SINCE
            | header::IF_RANGE
    ) || name.as_str().contains("idempotency")
        || *name == TRACEPARENT
}

/// The elements of a list header, trimmed.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        // What is no text is no token either; those beside it are.
        .filter_map(|token| std::str::from_utf8(token.trim_ascii()).ok())
        .filter(|token| !token.is_empty())
}

/// Whether the app speaks gRPC, so that an error has to be a gRPC status.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.starts_with(b"application/grpc") && matches!(value.get(16), None | Some(b'+' | b';'))
    })
}

/// What a valid `traceparent` says (W3C Trace Context section 3.2).
pub(crate) fn trace_parent(headers: &HeaderMap) -> Option<Parent> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() || value.len() < 55 || value[2] != b'-' || value[35] != b'-' || value[52] != b'-' {
        return None;
    }
    if value.starts_with(b"ff") || value.starts_with(b"00") && value.len() != 55 {
        return None;
    }
    let number = |digits: &[u8]| {
        let lower = |&b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| lower(&b)))?;
        u128::from_str_radix(text, 16).ok()
    };
    let trace = number(&value[3..35]).filter(|&id| id != 0)?;
    let span = number(&value[36..52]).filter(|&id| id != 0)?;
    let flags = number(&value[53..55])?;
    Some(Parent { trace, span: span as u64, sampled: flags & 1 == 1 })
}

/// Adds a `traceparent` for an id made here, where the app sent none at all. True where it did.
pub(crate) fn send_trace(headers: &mut HeaderMap, trace: u128, sampled: bool) -> bool {
    !headers.contains_key(TRACEPARENT)
        && headers.try_insert(TRACEPARENT, traceparent(trace, fastrand::u64(1..), sampled)).is_ok()
}

/// Whose retry this is, where the app's own SDK announces one.
pub(crate) fn client_retry(headers: &HeaderMap) -> Option<&'static str> {
    let above = |name: &HeaderName, floor: u64| {
        headers.get(name).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok()).is_some_and(|n| n > floor)
    };
    if let Some(value) = headers.get(AMZ_SDK_REQUEST).and_then(|value| value.to_str().ok()) {
        let attempt = value.split(';').find_map(|part| part.trim().strip_prefix("attempt=")?.parse::<u64>().ok());
        if attempt.is_some_and(|attempt| attempt > 1) {
            return Some("amz-sdk-request");
        }
    }
    if above(&STAINLESS_RETRY_COUNT, 0) {
        return Some("x-stainless-retry-count");
    }
    if above(&GRPC_PREVIOUS_ATTEMPTS, 0) {
        return Some("grpc-previous-rpc-attempts");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_head_is_counted_as_http2_counts_it() {
        let mut headers = HeaderMap::new();
        let uri: Uri = "http://up.test/x".parse().unwrap();
        // :method GET, :scheme http, :authority up.test, :path /x
        let pseudo = (7 + 3) + (7 + 4) + (10 + 7) + (5 + 2) + 4 * 32;
        assert_eq!(list_size(&Method::GET, &uri, &headers), pseudo);
        headers.insert("x-one", HeaderValue::from_static("abc"));
        assert_eq!(list_size(&Method::GET, &uri, &headers), pseudo + 5 + 3 + 32);
    }

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn list(headers: &HeaderMap) -> Vec<(&str, &str)> {
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
    }

    #[test]
    fn what_concerns_one_connection_is_removed_and_the_rest_keeps_its_order() {
        let mut headers = map(&[
            ("host", "a"),
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("accept", "a"),
            ("accept", "b"),
            ("keep-alive", "5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip, trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("x-last", "z"),
        ]);
        remove_hop_by_hop(&mut headers, Fields::HOP_BY_HOP, false, &[]);
        assert_eq!(
            list(&headers),
            [("host", "a"), ("accept", "a"), ("accept", "b"), ("te", "trailers"), ("trailer", "x"), ("x-last", "z")]
        );
    }

    #[test]
    fn connection_cannot_take_away_what_gives_a_request_its_meaning() {
        let fields = [
            ("host", "a"),
            ("content-length", "1"),
            ("authorization", "Bearer x"),
            ("idempotency-key", "k"),
            ("x-idempotency-key", "k"),
            ("x-request-key", "k"),
            ("cookie", "c"),
        ];
        let mut headers = map(&fields);
        let names = "Host, Content-Length, Authorization, Idempotency-Key, X-Idempotency-Key, X-Request-Key, Cookie";
        headers.insert(header::CONNECTION, HeaderValue::from_static(names));
        remove_hop_by_hop(&mut headers, Fields::HOP_BY_HOP, false, &[HeaderName::from_static("x-request-key")]);
        assert_eq!(list(&headers), fields);
    }

    #[test]
    fn what_connection_names_beside_odd_bytes_is_removed() {
        let mut headers = map(&[("x-drop", "1"), ("x-keep", "2")]);
        headers.insert(header::CONNECTION, HeaderValue::from_bytes(b"caf\xe9, x-drop").unwrap());
        remove_hop_by_hop(&mut headers, Fields::HOP_BY_HOP, false, &[]);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-keep"]);
    }

    #[test]
    fn what_http2_forbids_and_h2_lets_through_is_refused() {
        assert!(check_http2(&map(&[("content-length", "5"), ("x", "a b"), ("y", "")])).is_ok());
        assert!(check_http2(&map(&[("content-length", "5"), ("content-length", "5")])).is_err());
        assert!(check_http2(&map(&[("content-length", "")])).is_err());
        assert!(check_http2(&map(&[("content-length", "+5")])).is_err());
        assert!(check_http2(&map(&[("x\"", "1")])).is_err());
        for value in [" a", "a ", "\ta", "a\t", " "] {
            assert!(check_http2(&map(&[("x", value)])).is_err(), "{value:?}");
        }
        let mut odd = HeaderMap::new();
        odd.insert(HeaderName::from_lowercase(b"a\"b").unwrap(), HeaderValue::from_static("1"));
        assert!(check_http2(&odd).is_err());
    }

    #[test]
    fn the_pieces_of_a_cookie_become_one_in_their_place() {
        let mut headers = map(&[("a", "1"), ("cookie", "x=1"), ("b", "2"), ("cookie", "y=2"), ("cookie", "z=3")]);
        join_cookies(&mut headers);
        assert_eq!(list(&headers), [("a", "1"), ("cookie", "x=1; y=2; z=3"), ("b", "2")]);
        let mut one = map(&[("cookie", "x=1; y=2")]);
        join_cookies(&mut one);
        assert_eq!(list(&one), [("cookie", "x=1; y=2")]);
    }

    #[test]
    fn an_upgrade_passes_with_its_connection() {
        let mut headers =
            map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]);
        assert!(asks_upgrade(&headers, Version::HTTP_11));
        assert!(!asks_upgrade(&headers, Version::HTTP_10));
        remove_hop_by_hop(&mut headers, Fields::HOP_BY_HOP, true, &[]);
        assert_eq!(
            list(&headers),
            [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]
        );
        assert!(!asks_upgrade(
            &map(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]),
            Version::HTTP_11
        ));
        assert!(!asks_upgrade(&map(&[("upgrade", "websocket")]), Version::HTTP_11));
    }

    #[test]
    fn the_only_expectation_is_100_continue() {
        assert!(expects_continue(&map(&[("expect", "100-Continue")]), Version::HTTP_11).unwrap());
        assert!(!expects_continue(&map(&[("expect", "100-continue")]), Version::HTTP_10).unwrap());
        assert!(expects_continue(&map(&[("expect", "200-ok")]), Version::HTTP_11).is_err());
        assert!(!expects_continue(&map(&[]), Version::HTTP_11).unwrap());
    }

    #[test]
    fn a_trace_is_taken_over_only_where_it_is_valid() {
        let parent = |value| trace_parent(&map(&[("traceparent", value)]));
        let good = Parent { trace: 0x0af7651916cd43dd8448eb211c80319c, span: 0xb7ad6b7169203331, sampled: true };
        assert_eq!(parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), Some(good));
        let unsampled = Parent { sampled: false, ..good };
        assert_eq!(parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"), Some(unsampled));
        assert_eq!(parent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-later"), Some(good));
        for bad in [
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0X",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00",
        ] {
            assert_eq!(parent(bad), None, "{bad}");
        }
        let mut headers = HeaderMap::new();
        assert!(send_trace(&mut headers, 7, true));
        assert_eq!(trace_parent(&headers).map(|parent| (parent.trace, parent.sampled)), Some((7, true)));
        assert!(!send_trace(&mut headers, 8, true), "what is there stays");
    }

    #[test]
    fn retries_of_the_apps_own_sdk_are_recognised() {
        assert_eq!(client_retry(&map(&[("amz-sdk-request", "attempt=2; max=3")])), Some("amz-sdk-request"));
        assert_eq!(client_retry(&map(&[("amz-sdk-request", "attempt=1; max=3")])), None);
        assert_eq!(client_retry(&map(&[("x-stainless-retry-count", "1")])), Some("x-stainless-retry-count"));
        assert_eq!(client_retry(&map(&[("x-stainless-retry-count", "0")])), None);
        assert_eq!(client_retry(&map(&[("grpc-previous-rpc-attempts", "1")])), Some("grpc-previous-rpc-attempts"));
    }

    #[test]
    fn grpc_is_recognised_by_its_content_type() {
        assert!(is_grpc(&map(&[("content-type", "application/grpc+proto")])));
        assert!(is_grpc(&map(&[("content-type", "application/grpc")])));
        assert!(!is_grpc(&map(&[("content-type", "application/grpc-web")])));
    }
}
