//! Reading a merged tree into types that cannot be wrong, noting every mistake on the way.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::units::Ratio;

/// A cursor over one mapping. Each method reads one key; a mistake is noted and reading goes on with a harmless stand-in,
/// since a document with mistakes is never used. [`Reader::finish`] notes the keys that nobody asked for.
pub struct Reader<'t> {
    _private: std::marker::PhantomData<&'t ()>,
}

impl<'t> Reader<'t> {
    /// Whether the key is there and not null (an inherited or built-in value counts).
    pub fn has(&self, _key: &str) -> bool {
        todo!()
    }

    /// A duration above 0.
    pub fn duration(&mut self, _key: &'static str) -> Duration {
        todo!()
    }

    /// A duration, or 0.
    pub fn duration_or_zero(&mut self, _key: &'static str) -> Duration {
        todo!()
    }

    /// A duration above 0, or `off`.
    pub fn clock(&mut self, _key: &'static str) -> Option<Duration> {
        todo!()
    }

    /// A whole number of at least 1. `meaning_of_less` tells what to write instead of 0, e.g. "1 switches retries off".
    pub fn count(&mut self, _key: &'static str, _meaning_of_less: &str) -> NonZeroU32 {
        todo!()
    }

    /// A whole number of at least 1, or `off`.
    pub fn count_or_off(&mut self, _key: &'static str) -> Option<NonZeroU32> {
        todo!()
    }

    /// A whole number of at least 1, or nothing where the key is absent.
    pub fn optional_count(&mut self, _key: &'static str) -> Option<NonZeroU32> {
        todo!()
    }

    /// A number above 0 and at most 1.
    pub fn ratio(&mut self, _key: &'static str) -> Ratio {
        todo!()
    }

    /// A size in bytes above 0.
    pub fn size(&mut self, _key: &'static str) -> u64 {
        todo!()
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, _key: &'static str) -> bool {
        todo!()
    }

    /// One of some words.
    pub fn choice<T: Clone>(&mut self, _key: &'static str, _words: &[(&str, T)]) -> T {
        todo!()
    }

    /// A scalar, as text, parsed by `parse`, whose error is the problem's message. Numbers and booleans arrive as written.
    pub fn parsed<T>(&mut self, _key: &'static str, _parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        todo!()
    }

    /// A list of scalars, each parsed by `parse`; items that fail are noted, each at its own place, and left out.
    /// An absent key is an empty list.
    pub fn list<T>(&mut self, _key: &'static str, _parse: impl FnMut(&str) -> Result<T, String>) -> Vec<T> {
        todo!()
    }

    /// A block of keys, read and finished; `None` where it is absent, `off` or `false`.
    pub fn block<T>(&mut self, _key: &'static str, _read: impl FnOnce(&mut Reader<'_>) -> T) -> Option<T> {
        todo!()
    }

    /// Notes a problem at the place of `key` (or of the whole block where it is absent).
    pub fn problem(&mut self, _key: &str, _message: String, _help: Option<String>) {
        todo!()
    }
}
