//! Retry-After (RFC 9110 section 10.2.3): how long an upstream asks to be left alone.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

/// The wait that the answer asks for, rounded up to whole seconds; `None` where it is absent, malformed, past or said twice.
/// `now` is the wall clock, which a date is compared with.
pub fn parse(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let mut values = headers.get_all(RETRY_AFTER).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit still are a number: a very long wait, which every cap refuses.
        return Some(Duration::from_secs(text.parse::<u64>().unwrap_or(u64::from(u32::MAX)).min(u64::from(u32::MAX))));
    }
    let wait = httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?;
    Some(Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(value: &str) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().unwrap());
        parse(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_700)).map(|wait| wait.as_secs())
    }

    #[test]
    fn seconds_and_dates_are_understood() {
        assert_eq!(asked("120"), Some(120));
        assert_eq!(asked("0"), Some(0));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(77));
        assert_eq!(asked("99999999999999999999999"), Some(u64::from(u32::MAX)));
    }

    #[test]
    fn past_or_malformed_is_absent() {
        for value in ["Sun, 06 Nov 1994 08:00:00 GMT", "-1", "1.5", "soon", "", "1 2"] {
            assert_eq!(asked(value), None, "{value:?}");
        }
    }
}
