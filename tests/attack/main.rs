//! Hostile apps, hostile upstreams and a machine that runs out of things, against the whole proxy through real sockets
//! on loopback. What each test shows is cited in `docs/threat-model.md` and `docs/guarantees.md`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

#[path = "../it/support/mod.rs"]
mod support;

mod smuggling;
mod uploads;
