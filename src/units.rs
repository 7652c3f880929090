//! Durations, sizes and ratios as a configuration writes them, and back.

use std::time::Duration;

/// A share from 0 to 1, kept in parts per million so that sums are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(u32);

impl Ratio {
    /// One part in a million.
    pub const SCALE: u32 = 1_000_000;

    /// From a number between 0 and 1; `None` outside.
    pub fn new(value: f64) -> Option<Ratio> {
        (value.is_finite() && (0.0..=1.0).contains(&value))
            .then(|| Ratio((value * f64::from(Ratio::SCALE)).round() as u32))
    }

    /// In parts per million.
    pub fn parts_per_million(self) -> u32 {
        self.0
    }
}

/// The longest duration: far beyond any use, and safe to add to any instant.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// Units of durations with their milliseconds, the largest first.
pub const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of sizes with their bytes.
pub const SIZE_UNITS: [(&str, u64); 10] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

/// Parses `250ms`, `2s`, `1m30s`, `1h`, `1d`, and `0`.
///
/// # Errors
/// A sentence that says what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if let Some(number) = bare_number(text) {
        return Err(format!("`{text}` needs a unit: write `{number}s` or `{number}ms`"));
    }
    let wrong = || format!("`{text}` is not a duration: write for example `250ms`, `2s`, `1m30s` or `1h`");
    let mut rest = text;
    let mut total: u64 = 0;
    let mut previous = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = &rest[..letters];
        if matches!(unit, "us" | "ns") {
            return Err(format!("`{text}` is too fine: milliseconds (`ms`) are the smallest unit"));
        }
        let milliseconds = factor(&DURATION_UNITS, unit).ok_or_else(wrong)?;
        // `30s1m` and `1s1s` are slips.
        if milliseconds >= previous {
            return Err(wrong());
        }
        previous = milliseconds;
        rest = &rest[letters..];
        total = number.checked_mul(milliseconds).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
    }
    let duration = Duration::from_millis(total);
    if text.is_empty() {
        return Err(wrong());
    }
    if duration > LONGEST {
        return Err(format!("`{text}` is too long: a year (366d) is the longest"));
    }
    Ok(duration)
}

/// Parses `512B`, `64KiB`, `10MB`, and `0`. In bytes.
///
/// # Errors
/// A sentence that says what would be right.
pub fn parse_size(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    if let Some(number) = bare_number(text) {
        return Err(format!("`{text}` needs a unit: write `{number}B`, `{number}KiB` or `{number}MiB`"));
    }
    let wrong = || format!("`{text}` is not a size: write for example `512B`, `64KiB` or `10MB`");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let (unit, meant) = match &text[digits..] {
        "K" | "Ki" | "k" | "kb" | "kib" | "Kb" => ("", Some("KiB")),
        "M" | "Mi" | "m" | "mb" | "mib" | "Mb" => ("", Some("MiB")),
        "G" | "Gi" | "g" | "gb" | "gib" | "Gb" => ("", Some("GiB")),
        unit => (unit, None),
    };
    if let Some(meant) = meant {
        return Err(format!("`{text}` has no known unit: write `{number}{meant}`"));
    }
    let unit = factor(&SIZE_UNITS, unit).ok_or_else(wrong)?;
    number.checked_mul(unit).ok_or_else(|| format!("`{text}` is too large"))
}

/// A duration as a configuration would write it: `1m30s`, `250ms`.
pub fn show_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    if rest == 0 {
        return "0".to_owned();
    }
    let mut shown = String::new();
    for (unit, milliseconds) in DURATION_UNITS.map(|(unit, milliseconds)| (unit, u128::from(milliseconds))) {
        if rest >= milliseconds {
            shown.push_str(&format!("{}{unit}", rest / milliseconds));
            rest %= milliseconds;
        }
    }
    shown
}

/// A size as a configuration would write it: `64KiB`.
pub fn show_size(bytes: u64) -> String {
    if bytes == 0 {
        return "0".to_owned();
    }
    for (unit, size) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}B")
}

/// A number without a unit, as it should stand before one.
fn bare_number(text: &str) -> Option<&str> {
    let number = text.strip_prefix('+').unwrap_or(text);
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| match number.trim_start_matches('0') {
        "" => "0",
        trimmed => trimmed,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("2s", 2_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in [
            "",
            "10",
            "1.5s",
            "-1s",
            "s",
            "1 s",
            "1S",
            "1w",
            "1y",
            "1month",
            "30s1m",
            "1s1s",
            "5us",
            "400d",
            "1s2",
            "18446744073709551615d",
            "99999999999999999999s",
            "1\u{b5}s",
            "\u{661}s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_duration("10").unwrap_err().contains("write `10s` or `10ms`"));
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [("512B", 512), ("64KiB", 65_536), ("10MB", 10_000_000), ("1GiB", 1 << 30), ("0", 0)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "10", "1.5MiB", "-1B", "KiB", "1 KiB", "1K", "1Mi", "99999999999TiB", "1XB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert!(parse_size("64K").unwrap_err().contains("64KiB"));
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(milliseconds in 0u64..31_622_400_000, bytes in any::<u64>()) {
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_makes_reading_panic(text in ".{0,12}", near in "[0-9]{0,22}[a-zA-Z]{0,3}[0-9]{0,3}") {
            let _ = (parse_duration(&text), parse_size(&text), parse_duration(&near), parse_size(&near));
        }
    }
}
