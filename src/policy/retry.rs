//! Whether and when a request is sent again.

use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderName, Method};

use crate::document::Reader;
use crate::policy::classify::Events;
use crate::policy::{backoff, budget};

/// `retry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The first one included; 1 switches retries off.
    pub max_attempts: NonZeroU32,
    /// What is retried.
    pub on: Events,
    /// Methods that may be repeated.
    pub methods: Vec<Method>,
    /// A request with one of these may be retried whatever its method.
    pub idempotency_headers: Vec<HeaderName>,
    /// POST and PATCH without a key get one.
    pub generate_idempotency_key: bool,
    /// The waits between attempts.
    pub backoff: backoff::Settings,
    /// Longest Retry-After that is waited for.
    pub max_retry_after: Duration,
    /// Retries as a share of requests; `None` is `off`.
    pub budget: Option<budget::Settings>,
    /// Larger request bodies are streamed, and not retried once sent. Bytes.
    pub max_body: u64,
}

impl Settings {
    /// Reads the block.
    pub fn read(reader: &mut Reader<'_>) -> Settings {
        Settings {
            max_attempts: reader.count("max_attempts", "1 switches retries off"),
            on: Events::read(reader, "on"),
            methods: reader.list("methods", |word| {
                Method::from_bytes(word.as_bytes()).map_err(|_| format!("`{word}` is not an HTTP method"))
            }),
            idempotency_headers: reader
                .list("idempotency_headers", |word| word.parse().map_err(|_| format!("`{word}` is not a header name"))),
            generate_idempotency_key: reader.boolean("generate_idempotency_key"),
            backoff: reader
                .block("backoff", backoff::Settings::read)
                .unwrap_or(backoff::Settings { base: Duration::ZERO, max: Duration::from_secs(1) }),
            max_retry_after: reader.duration_or_zero("max_retry_after"),
            budget: reader.block("budget", budget::Settings::read),
            max_body: reader.size("max_body"),
        }
    }
}
