//! Tests that use the crate as a whole, in one binary.

// Helpers outside of test functions may unwrap too.
#![allow(clippy::unwrap_used)]

mod config;
