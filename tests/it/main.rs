//! The whole proxy, in-process, through real sockets on loopback.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

mod admin;
mod bodies;
mod config;
mod configmap;
mod explain;
mod docs;
mod demo;
mod hangups;
mod inject;
mod limits;
mod operator;
mod recipes;
#[cfg(feature = "otlp")]
mod otlp;
mod reload;
mod schema;
mod shell;
mod shutdown;
mod smuggling;
mod support;
mod tunnels;
mod upgrades;
mod walks;
