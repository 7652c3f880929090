//! The whole proxy in a world of chance: apps, a network, names and upstreams that are simulated, on a clock that is, and
//! everything that happens follows from one number. After each step the promises are checked. `docs/simulation.md` says how
//! to replay a failure and what this can't see.

mod app;
mod ledger;
mod network;
mod scenario;
pub(crate) mod stream;
mod tests;
mod upstream;
mod wire;
mod world;
