//! Tests that use the crate as a whole, in one binary.

mod config;
