//! Hostile apps, hostile upstreams and a machine that runs out of things, against the whole proxy through real sockets
//! on loopback. What each test shows is cited in `docs/threat-model.md` and `docs/guarantees.md`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

#[path = "../fuzz/targets/strict.rs"]
mod strict;
#[path = "../it/support/mod.rs"]
mod support;

mod admin;
mod answers;
mod answers_http2;
mod bounds;
mod child;
mod closing;
mod corpus;
mod differential;
mod downgrade;
mod egress;
mod files;
mod frames;
mod h2_apps;
mod h2_floods;
mod h2_upstreams;
mod idle;
mod judge;
mod machine;
mod names;
mod refused;
mod requests;
mod secrets;
mod silence;
mod smuggling;
mod splice;
mod storms;
mod trailers;
mod uploads;
mod witness;
