//! One line of the log: JSON, or text for people. Access lines and events are written alike.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// A line that is put together field by field.
pub(super) struct Line {
    text: String,
    json: bool,
}

impl Line {
    /// Begins with the time, the level and what happened.
    pub(super) fn new(json: bool, level: &str, message: &str) -> Line {
        let mut text = String::with_capacity(512);
        if json {
            text.push_str("{\"time\":\"");
            now(&mut text);
            text.push_str("\",\"level\":\"");
            text.push_str(&level.to_ascii_lowercase());
            text.push_str("\",\"message\":");
            quote(&mut text, message);
        } else {
            now(&mut text);
            let _ = write!(text, " {level:<5} ");
            plain(&mut text, message);
        }
        Line { text, json }
    }

    fn key(&mut self, key: &str) {
        if self.json {
            self.text.push_str(",\"");
            self.text.push_str(key);
            self.text.push_str("\":");
        } else {
            self.text.push(' ');
            self.text.push_str(key);
            self.text.push('=');
        }
    }

    /// A field of text.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        let bare = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'=');
        if !self.json && !value.is_empty() && value.bytes().all(bare) {
            self.text.push_str(value);
        } else {
            quote(&mut self.text, value);
        }
    }

    /// A field of text, where there is one.
    pub(super) fn optional(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// A field that is a whole number.
    pub(super) fn integer(&mut self, key: &str, value: impl itoa::Integer) {
        self.key(key);
        self.text.push_str(itoa::Buffer::new().format(value));
    }

    /// A field that is a number of any kind or a boolean.
    pub(super) fn number(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        let _ = write!(self.text, "{value}");
    }

    /// A field of milliseconds, with three decimals.
    pub(super) fn millis(&mut self, key: &str, value: Duration) {
        self.key(key);
        // More than there is room for is longer than anything lasts.
        let millis = value.as_secs().saturating_mul(1000).saturating_add(value.subsec_millis().into());
        self.text.push_str(itoa::Buffer::new().format(millis));
        self.text.push('.');
        digits(&mut self.text, value.subsec_micros() % 1000, 3);
    }

    /// The whole line.
    pub(super) fn finish(mut self) -> String {
        self.text.push_str(if self.json { "}\n" } else { "\n" });
        self.text
    }
}

/// The time in UTC, RFC 3339, to the microsecond. Digit by digit: that is most of what a line costs where it is left to formatting.
fn now(text: &mut String) {
    // A clock that is set to no year of four digits must not end what is logged.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = i64::try_from(since.as_secs()).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time(text, at.unwrap_or(OffsetDateTime::UNIX_EPOCH), since.subsec_micros());
}

fn time(text: &mut String, at: OffsetDateTime, micros: u32) {
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    for (value, width, behind) in [
        (year.unsigned_abs(), 4, '-'),
        (u32::from(u8::from(month)), 2, '-'),
        (u32::from(day), 2, 'T'),
        (u32::from(hour), 2, ':'),
        (u32::from(minute), 2, ':'),
        (u32::from(second), 2, '.'),
        (micros, 6, 'Z'),
    ] {
        digits(text, value, width);
        text.push(behind);
    }
}

/// A number's last digits, six at most, with zeros before it.
fn digits(text: &mut String, mut value: u32, width: usize) {
    let mut all = ['0'; 6];
    for digit in all[..width].iter_mut().rev() {
        *digit = char::from(b'0' + (value % 10) as u8);
        value /= 10;
    }
    text.extend(&all[..width]);
}

/// A JSON string (RFC 8259 section 7).
fn quote(text: &mut String, value: &str) {
    text.push('"');
    plain(text, value);
    text.push('"');
}

/// Without what could end a string or a line, or steer a terminal.
fn plain(text: &mut String, value: &str) {
    // Nearly all there is: looked through many bytes at once.
    let odd = |b: u8| !(0x20..0x7f).contains(&b) || b == b'"' || b == b'\\';
    if !value.bytes().fold(false, |any, b| any | odd(b)) {
        return text.push_str(value);
    }
    let mut from = 0;
    for (at, c) in value.char_indices() {
        let escape = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => "",
            _ => continue,
        };
        text.push_str(&value[from..at]);
        from = at + c.len_utf8();
        if escape.is_empty() {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push_str(escape);
        }
    }
    text.push_str(&value[from..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_survives_as_json_on_one_line(value in "\\PC*|[\\x00-\\x7f]*") {
            let mut line = Line::new(true, "INFO", &value);
            line.text("path", &value);
            line.number("status", 200);
            let text = line.finish();
            prop_assert_eq!(text.matches('\n').count(), 1);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(json["message"].as_str(), Some(&*value));
            prop_assert_eq!(json["path"].as_str(), Some(&*value));
            prop_assert_eq!(json["status"].as_u64(), Some(200));
        }
    }

    #[test]
    fn time_is_written_with_all_its_digits() {
        for (seconds, micros, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000001Z"),
            (1_795_363_199, 999_999, "2026-11-22T15:59:59.999999Z"),
        ] {
            let mut text = String::new();
            time(&mut text, OffsetDateTime::from_unix_timestamp(seconds).unwrap(), micros);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn milliseconds_have_three_decimals() {
        let mut line = Line::new(true, "INFO", "x");
        line.millis("a", Duration::from_nanos(1_234_567_891));
        line.millis("b", Duration::from_micros(7));
        let text = line.finish();
        assert!(text.ends_with(",\"a\":1234.567,\"b\":0.007}\n"), "{text}");
    }

    #[test]
    fn a_line_of_text_quotes_what_has_blanks() {
        let mut line = Line::new(false, "WARN", "the circuit changed");
        line.text("upstream", "stripe");
        line.text("detail", "it \"broke\"\n");
        line.text("route", "");
        let text = line.finish();
        let tail = text.split_once("WARN").unwrap().1;
        assert_eq!(tail, "  the circuit changed upstream=stripe detail=\"it \\\"broke\\\"\\n\" route=\"\"\n");
    }
}
