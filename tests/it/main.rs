//! The whole proxy, in-process, through real sockets on loopback.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

mod admin;
mod bodies;
mod comparison;
mod config;
mod configmap;
mod dashboard;
mod demo;
mod docs;
mod explain;
mod hangups;
mod inject;
mod intercept;
mod limits;
mod operator;
#[cfg(feature = "otlp")]
mod otlp;
mod recipes;
mod reload;
mod schema;
mod shell;
mod shutdown;
mod support;
mod tunnels;
mod upgrades;
mod walks;
