//! One line a request, when it ends.

use std::io::Write;
use std::time::Duration;

use tracing_appender::non_blocking::NonBlocking;

use crate::config;
use crate::telemetry::line;

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
pub struct AccessLog {
    json: bool,
    which: config::AccessLog,
    path: config::LogPath,
    /// Shared with the log, so that lines don't mix and a reader who is too slow costs lines, not requests.
    writer: Option<NonBlocking>,
}

impl AccessLog {
    /// By the `log` block. Lines go nowhere until [`AccessLog::to`] says where.
    pub fn new(log: &config::Log) -> AccessLog {
        AccessLog { json: log.json, which: log.access, path: log.path, writer: None }
    }

    /// Lines go to this writer.
    pub fn to(mut self, writer: NonBlocking) -> AccessLog {
        self.writer = Some(writer);
        self
    }

    /// Whether a request that ended like this gets a line: asked first, so that nothing is put together in vain.
    /// `access: errors` means a status from 400 on, an app that hung up, and a body that broke.
    pub fn wants(&self, status: u16, error: bool) -> bool {
        self.writer.is_some()
            && match self.which {
                config::AccessLog::All => true,
                config::AccessLog::Errors => error || status >= 400,
                config::AccessLog::Off => false,
            }
    }

    /// Writes the line. Never blocks.
    pub fn write(&self, line: &Line<'_>) {
        if let Some(writer) = &self.writer {
            // A writer that drops lines when it is full reports no errors.
            let _ = writer.clone().write_all(self.format(line).as_bytes());
        }
    }

    /// Path and query as they are shown; `None` where `path` is `off`.
    pub fn path(&self, target: &str) -> Option<String> {
        let mut path = match self.path {
            config::LogPath::Masked => shown(target, true),
            config::LogPath::Full => shown(target, false),
            config::LogPath::Off => return None,
        };
        if path.len() > MOST_OF_PATH {
            path.truncate(cut(&path, MOST_OF_PATH).len());
            path.push('…');
        }
        Some(path)
    }

    fn format(&self, line: &Line<'_>) -> String {
        let mut out = line::Line::new(self.json, "INFO", "request");
        out.text("upstream", line.upstream);
        out.text("route", line.route);
        out.text("method", cut(line.method, MOST_OF_METHOD));
        out.text("host", line.host);
        if let Some(path) = self.path(line.path) {
            out.text("path", &path);
        }
        out.integer("status", line.status);
        out.optional("error", line.error);
        out.optional("detail", line.detail.map(|detail| cut(detail, MOST_OF_PATH)));
        out.integer("attempts", line.attempts);
        out.optional("no_retry", line.no_retry);
        out.millis("total_ms", line.total);
        out.millis("waited_ms", line.waited);
        out.millis("connecting_ms", line.connecting);
        if let Some(first_byte) = line.first_byte {
            out.millis("first_byte_ms", first_byte);
        }
        out.integer("bytes_in", line.bytes_in);
        out.integer("bytes_out", line.bytes_out);
        out.text("trace_id", line.trace_id);
        out.finish()
    }
}

/// Of a path or a sentence, in bytes. Lines may have to wait for a slow reader, many of them.
const MOST_OF_PATH: usize = 1024;
/// Of a method, in bytes: apps may make their own.
const MOST_OF_METHOD: usize = 32;

/// The first `most` bytes, without half a character.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// The path as the log shows it. Query values are hidden always, and so is a query that is a word without a value,
/// since that word may be a token.
fn shown(target: &str, masked: bool) -> String {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let mut out = String::with_capacity(target.len());
    for (at, segment) in path.split('/').enumerate() {
        if at > 0 {
            out.push('/');
        }
        out.push_str(if masked && looks_secret(segment) { HIDDEN } else { segment });
    }
    for (at, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        out.push(if at == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((key, _)) if !(masked && looks_secret(key)) => {
                out.push_str(key);
                out.push('=');
                out.push_str(HIDDEN);
            }
            Some(_) => {
                out.push_str(HIDDEN);
                out.push('=');
                out.push_str(HIDDEN);
            }
            None if pair.is_empty() => {}
            None => out.push_str(HIDDEN),
        }
    }
    out
}

/// What stands where something is hidden.
const HIDDEN: &str = "***";

/// A secret or an identifier, by its looks: over 20 characters, or over 8 with letters and digits mixed.
fn looks_secret(segment: &str) -> bool {
    let length = segment.chars().count();
    let letter = segment.chars().any(char::is_alphabetic);
    let digit = segment.chars().any(char::is_numeric);
    length > 20 || (length > 8 && letter && digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> config::Log {
        config::Log {
            json: true,
            level: config::LogLevel::Info,
            access: config::AccessLog::All,
            path: config::LogPath::Masked,
        }
    }

    fn line() -> Line<'static> {
        Line {
            upstream: "stripe",
            route: "charges",
            method: "POST",
            host: "api.stripe.com",
            path: "/v1/charges/ch_3MmlLrLkdIwHu7ix?key=sk_live_1&expand=all",
            status: 503,
            error: Some("circuit_open"),
            detail: Some("the circuit is \"open\""),
            attempts: 2,
            no_retry: Some("budget"),
            total: Duration::from_micros(12_345),
            waited: Duration::from_millis(10),
            connecting: Duration::ZERO,
            first_byte: None,
            bytes_in: 17,
            bytes_out: 5 << 30,
            trace_id: "4bf92f3577b34da6a3ce929d0e0e4736",
        }
    }

    #[test]
    fn segments_that_look_like_a_secret_are_masked() {
        for (path, expected) in [
            ("/v1/charges", "/v1/charges"),
            ("/v1/ch_3MmlLrLk", "/v1/***"),
            ("/customers/12345678/edit", "/customers/12345678/edit"),
            ("/a/abcdefgh1", "/a/***"),
            ("/a/abcdefg1", "/a/abcdefg1"),
            ("/a/abcdefghijklmnopqrst", "/a/abcdefghijklmnopqrst"),
            ("/a/abcdefghijklmnopqrstu", "/a/***"),
            ("/", "/"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(shown(path, true), expected, "{path}");
        }
        assert_eq!(shown("/v1/ch_3MmlLrLk", false), "/v1/ch_3MmlLrLk");
    }

    #[test]
    fn query_values_are_hidden_always() {
        assert_eq!(shown("/a?b=secret&c=&d=x=y", false), "/a?b=***&c=***&d=***");
        assert_eq!(shown("/a?token", false), "/a?***");
        assert_eq!(shown("/a?", true), "/a?");
        assert_eq!(shown("/a?x=1?y=2&&z", true), "/a?x=***&&***");
        assert_eq!(shown("/a?sk_live_4eC39HqLyjWD=", true), "/a?***=***");
    }

    #[test]
    fn a_line_has_every_field_and_no_secret() {
        let text = AccessLog::new(&log()).format(&line());
        assert!(!text.contains("sk_live") && !text.contains("ch_3"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["path"], "/v1/charges/***?key=***&expand=***");
        assert_eq!(json["status"], 503);
        assert_eq!(json["total_ms"], 12.345);
        assert_eq!(json["bytes_out"], 5_u64 << 30);
        assert_eq!(json["detail"], "the circuit is \"open\"");
        assert!(json.get("first_byte_ms").is_none() && json["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_line_is_short_whatever_the_app_asks_for() {
        let (path, method) = ("/é".repeat(20_000), "X".repeat(30_000));
        let text = AccessLog::new(&log()).format(&Line { path: &path, method: &method, ..line() });
        assert!(text.len() < 2048 && text.contains("…"), "{}", text.len());
        assert!(text.contains("\"XXXXXXXX"), "{text}");
    }

    #[test]
    fn text_is_one_line_too() {
        let text = AccessLog::new(&config::Log { json: false, ..log() }).format(&line());
        assert!(text.contains(" upstream=stripe route=charges method=POST host=api.stripe.com"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn what_gets_a_line_is_the_operators_choice() {
        let (writer, _guard) = NonBlocking::new(std::io::sink());
        let of = |access| AccessLog::new(&config::Log { access, ..log() }).to(writer.clone());
        let errors = of(config::AccessLog::Errors);
        assert!(errors.wants(499, false) && errors.wants(200, true) && !errors.wants(302, false));
        assert!(of(config::AccessLog::All).wants(200, false));
        assert!(!of(config::AccessLog::Off).wants(503, true));
        assert!(!AccessLog::new(&log()).wants(200, false));
    }
}
