//! The token bucket.

use std::num::NonZeroU32;
use std::time::Duration;

use http::HeaderName;

use crate::document::Reader;

/// `rate_limit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Tokens added…
    pub requests: NonZeroU32,
    /// …in this time.
    pub per: Duration,
    /// Bucket size.
    pub burst: NonZeroU32,
    /// How long a request waits for a token; 0 rejects at once.
    pub max_wait: Duration,
    /// Which requests share a bucket.
    pub key: Key,
    /// A 429 or 503 with Retry-After shuts the bucket until then.
    pub pause_on_retry_after: bool,
}

/// `rate_limit.key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// All requests share one.
    Upstream,
    /// A bucket for each value of this header.
    Header(HeaderName),
}

impl Settings {
    /// Reads the block; `None` where `requests` is not given.
    pub fn read(reader: &mut Reader<'_>) -> Option<Settings> {
        let requests = reader.optional_count("requests");
        let burst = reader.optional_count("burst");
        let per = reader.duration("per");
        let max_wait = reader.duration_or_zero("max_wait");
        let key = reader.parsed("key", |word| match word.strip_prefix("header:") {
            Some(name) => name.parse().map(Key::Header).map_err(|_| format!("`{name}` is not a header name")),
            None if word == "upstream" => Ok(Key::Upstream),
            None => Err(format!("`{word}` is not `upstream` or `header:NAME`")),
        });
        let pause_on_retry_after = reader.boolean("pause_on_retry_after");
        let requests = requests?;
        let key = key.unwrap_or(Key::Upstream);
        Some(Settings { requests, per, burst: burst.unwrap_or(requests), max_wait, key, pause_on_retry_after })
    }
}
