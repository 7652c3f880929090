//! The whole proxy, in-process, through real sockets on loopback.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

mod admin;
mod bodies;
mod config;
mod dashboard;
mod hangups;
mod limits;
mod operator;
mod reload;
mod shutdown;
mod smuggling;
mod support;
mod tunnels;
mod upgrades;
mod walks;
