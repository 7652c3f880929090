//! Small texts that are read from files and from strangers: durations, sizes, Retry-After, a hosts file.

use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use outrigger::policy::retry_after;
use outrigger::units::{parse_duration, parse_size, show_duration, show_size};
use outrigger::upstream::hosts;

/// What is read as a duration or a size is written and read again as the same, and nothing is larger than what is written.
pub fn units(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse_duration(text) {
        Ok(duration) => {
            assert_eq!(parse_duration(&show_duration(duration)), Ok(duration), "{text:?}");
            assert!(duration <= Duration::from_secs(366 * 86_400), "{text:?}");
            assert!(text == "0" || text.ends_with(|c: char| c.is_ascii_lowercase()), "{text:?} has no unit");
        }
        Err(why) => assert!(why.len() > 10),
    }
    match parse_size(text) {
        Ok(size) => {
            assert_eq!(parse_size(&show_size(size)), Ok(size), "{text:?}");
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            assert!(size >= text[..digits].parse::<u64>().unwrap_or(u64::MAX), "{text:?}");
        }
        Err(why) => assert!(why.len() > 10),
    }
}

/// Retry-After is understood as seconds or a date, just as a naive reader does, and else as if it were not there.
pub fn waits(data: &[u8]) {
    let Some((now, text)) = data.split_first_chunk::<4>() else { return };
    let now = SystemTime::UNIX_EPOCH + Duration::new(u64::from(u32::from_le_bytes(*now)), 500);
    let Ok(value) = HeaderValue::from_bytes(text) else { return };
    let mut headers = HeaderMap::new();
    headers.append(RETRY_AFTER, value.clone());
    let wait = retry_after::parse(&headers, now);
    let naive = std::str::from_utf8(text).ok().map(|text| text.trim_matches([' ', '\t'])).and_then(|text| {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return Some(text.parse::<u64>().map_or(u64::from(u32::MAX), |seconds| seconds.min(u64::from(u32::MAX))));
        }
        let date = httpdate::parse_http_date(text).ok()?;
        // Up to the next whole second.
        let wait = date.duration_since(now).ok()?;
        Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
    });
    assert_eq!(wait.map(|wait| wait.as_secs()), naive, "{:?}", String::from_utf8_lossy(text));
    assert!(wait.is_none_or(|wait| wait.subsec_nanos() == 0));
    headers.append(RETRY_AFTER, value);
    assert_eq!(retry_after::parse(&headers, now), None, "said twice is not said");
}

/// A hosts file gives addresses that stand in it, to names that stand in it, and each once.
pub fn hosts_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for (name, addresses) in hosts::parse(&text) {
        assert!(text.to_ascii_lowercase().contains(&name), "{name:?}");
        assert!(!name.contains(|c: char| c.is_ascii_whitespace() || c == '#' || c.is_ascii_uppercase()), "{name:?}");
        assert!(!addresses.is_empty());
        for (at, address) in addresses.iter().enumerate() {
            assert!(!addresses[..at].contains(address), "{address} twice");
        }
    }
}
