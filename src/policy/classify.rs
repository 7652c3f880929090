//! What a result is called.

use crate::error::{Error, Origin};

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
            | Error::HeadersTooLarge
            | Error::AppSilent
            | Error::AppGone
            | Error::Loop
            | Error::Denied(_)
            | Error::CircuitOpen(_)
            | Error::RateLimited(_)
            | Error::ConcurrencyLimited
            | Error::NoConnection
            | Error::Overloaded
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
                Ok(status) if (400..600).contains(&status) => self.add_status(status),
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
