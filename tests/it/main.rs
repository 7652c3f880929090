//! The whole proxy, in-process, through real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod bodies;
mod hangups;
mod limits;
mod smuggling;
mod support;
mod tunnels;
mod upgrades;
mod walks;
