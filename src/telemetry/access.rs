//! One line a request, when it ends.

use std::time::Duration;

use crate::config;

/// What an access line tells. Header values and bodies never.
#[derive(Debug)]
pub struct Line<'a> {
    /// Upstream's name.
    pub upstream: &'a str,
    /// Route's name; empty for the upstream's own.
    pub route: &'a str,
    /// The app's method; `CONNECT` for tunnels.
    pub method: &'a str,
    /// Host (and port where it is not the scheme's own) as the app asked.
    pub host: &'a str,
    /// Path and query as the app asked; masked by the log.
    pub path: &'a str,
    /// What the app got; 499 where it hung up.
    pub status: u16,
    /// [`crate::error::Error::code`], or what broke the body.
    pub error: Option<&'a str>,
    /// The error's sentence.
    pub detail: Option<&'a str>,
    /// Attempts made.
    pub attempts: u32,
    /// Why a wanted retry was not made.
    pub no_retry: Option<&'a str>,
    /// From the app's head to the last byte.
    pub total: Duration,
    /// In back-off and queues.
    pub waited: Duration,
    /// Connecting.
    pub connecting: Duration,
    /// Until the response headers, where there were any.
    pub first_byte: Option<Duration>,
    /// Request body bytes.
    pub bytes_in: u64,
    /// Response body bytes.
    pub bytes_out: u64,
    /// 32 hexadecimal digits.
    pub trace_id: &'a str,
}

/// Where access lines go; made anew when `log` changes.
pub struct AccessLog {}

impl AccessLog {
    /// By the `log` block.
    pub fn new(_log: &config::Log) -> AccessLog {
        AccessLog {}
    }

    /// Whether a request that ended like this gets a line: asked first, so that nothing is put together in vain.
    pub fn wants(&self, _status: u16, _error: bool) -> bool {
        false
    }

    /// Writes the line. Never blocks.
    pub fn write(&self, _line: &Line<'_>) {}
}
