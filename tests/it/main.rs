//! Outrigger through real sockets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

mod admin;
mod operator;
mod reload;
mod shutdown;
