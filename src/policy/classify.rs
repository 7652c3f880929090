//! What a result is called.

use std::ops::RangeInclusive;

use http::{HeaderMap, StatusCode};

use crate::error::{Error, Origin, Sent};

/// What an attempt's result is called in `retry.on` and `circuit_breaker.failures`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// No connection could be made, or it refused the request.
    ConnectFailure,
    /// Closed or malformed before response headers.
    Reset,
    /// The attempt clock.
    Timeout,
    /// An answer with this status (a gRPC status already translated).
    Status(u16),
}

impl Event {
    /// What an answer is called. A gRPC answer of trailers only tells its status in its head: 14, 4 and 8 count as 503,
    /// 504 and 429. `grpc` says whether the request was a gRPC one.
    pub fn of_answer(status: StatusCode, headers: &HeaderMap, grpc: bool) -> Event {
        let translated = if grpc && status == StatusCode::OK {
            match headers.get("grpc-status").map(|value| value.as_bytes()) {
                Some(b"14") => Some(503),
                Some(b"4") => Some(504),
                Some(b"8") => Some(429),
                Some(_) | None => None,
            }
        } else {
            None
        };
        Event::Status(translated.unwrap_or(status.as_u16()))
    }

    /// What an error of the upstream's is called; `None` for Outrigger's own refusals and the app's doing.
    pub fn of_error(error: &Error) -> Option<Event> {
        match error {
            Error::Connect { .. } => Some(Event::ConnectFailure),
            Error::Reset { .. } | Error::BadAnswer(_) => Some(Event::Reset),
            Error::AttemptTimeout { .. } | Error::Deadline { .. } | Error::UpstreamSilent => Some(Event::Timeout),
            Error::BadRequest(_)
            | Error::UriTooLong
            | Error::Expectation
            | Error::Misdirected
            | Error::HeadersTooLarge(_)
            | Error::AppSilent
            | Error::AppGone
            | Error::Loop
            | Error::Denied(_)
            | Error::CircuitOpen(_)
            | Error::RateLimited(_)
            | Error::ConcurrencyLimited
            | Error::NoConnection
            | Error::Overloaded(_)
            | Error::ShuttingDown
            | Error::Panic => {
                debug_assert_ne!(error.origin(), Origin::Upstream);
                None
            }
        }
    }
}

/// A set of events, as `on` and `failures` list them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// `connect_failure`
    pub connect_failure: bool,
    /// `reset`
    pub reset: bool,
    /// `timeout`
    pub timeout: bool,
    /// A bit for each status from 400 to 599.
    statuses: [u64; 4],
}

impl Events {
    /// The words besides statuses, for "did you mean".
    pub const WORDS: &[&str] = &["connect_failure", "reset", "timeout", "4xx", "5xx"];
    /// The statuses that can be listed.
    pub const STATUSES: RangeInclusive<u16> = 400..=599;

    /// Whether a failed attempt is in the set. A reset before a byte was sent is as good as a failure to connect.
    pub fn contains_error(&self, error: &Error) -> bool {
        match Event::of_error(error) {
            Some(Event::Reset) if error.sent() == Sent::No => self.reset || self.connect_failure,
            Some(event) => self.contains(event),
            None => false,
        }
    }

    /// Whether the event is in the set.
    pub fn contains(&self, event: Event) -> bool {
        match event {
            Event::ConnectFailure => self.connect_failure,
            Event::Reset => self.reset,
            Event::Timeout => self.timeout,
            Event::Status(status) => match status.checked_sub(400) {
                Some(bit) if bit < 200 => self.statuses[usize::from(bit / 64)] >> (bit % 64) & 1 == 1,
                Some(_) | None => false,
            },
        }
    }

    /// Adds what one word of the configuration means.
    ///
    /// # Errors
    /// A sentence that lists the words there are.
    pub fn add(&mut self, word: &str) -> Result<(), String> {
        match word {
            "connect_failure" => self.connect_failure = true,
            "reset" => self.reset = true,
            "timeout" => self.timeout = true,
            "4xx" => (400..500).for_each(|status| self.add_status(status)),
            "5xx" => (500..600).for_each(|status| self.add_status(status)),
            _ => match word.parse::<u16>() {
                Ok(status) if Events::STATUSES.contains(&status) => self.add_status(status),
                Ok(_) | Err(_) => {
                    return Err(format!(
                        "`{word}` is not connect_failure, reset, timeout, 4xx, 5xx or a status from 400 to 599"
                    ));
                }
            },
        }
        Ok(())
    }

    fn add_status(&mut self, status: u16) {
        let bit = status - 400;
        self.statuses[usize::from(bit / 64)] |= 1 << (bit % 64);
    }

    /// Reads a list of words.
    pub fn read(reader: &mut crate::document::Reader<'_>, key: &'static str) -> Events {
        let mut events = Events::default();
        reader.list(key, |word| events.add(word));
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(words: &[&str]) -> Events {
        let mut events = Events::default();
        words.iter().for_each(|word| events.add(word).unwrap());
        events
    }

    #[test]
    fn statuses_and_their_classes_are_words() {
        let set = events(&["429", "5xx"]);
        for (status, expected) in [(200, false), (400, false), (429, true), (499, false), (500, true), (599, true)] {
            assert_eq!(set.contains(Event::Status(status)), expected, "{status}");
        }
        assert!(Events::default().add("600").is_err());
        assert!(Events::default().add("conect_failure").is_err());
    }

    #[test]
    fn grpc_answers_of_trailers_only_count_by_their_grpc_status() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", "14".parse().unwrap());
        assert_eq!(Event::of_answer(StatusCode::OK, &headers, true), Event::Status(503));
        assert_eq!(Event::of_answer(StatusCode::OK, &headers, false), Event::Status(200));
        headers.insert("grpc-status", "5".parse().unwrap());
        assert_eq!(Event::of_answer(StatusCode::OK, &headers, true), Event::Status(200));
    }
}
