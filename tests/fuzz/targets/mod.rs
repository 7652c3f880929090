//! What reads foreign bytes, each as a function that takes any bytes and panics where a promise is broken. libFuzzer calls them
//! (`fuzz_targets`), and so does `cargo test --test fuzz` (`main.rs`).
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a broken promise panics, and the driver includes this"
)]

mod answers;
mod config;
mod control;
mod fields;
mod frames;
mod heads;
mod manifests;
mod requests;
mod rig;
mod streams;
mod strict;
mod tunnels;
mod urls;
mod values;

pub use answers::{answers, answers2};
pub use config::config;
pub use control::control;
pub use heads::heads;
pub use manifests::manifests;
pub use requests::requests;
pub use streams::streams;
pub use tunnels::tunnels;
pub use urls::urls;
pub use values::{hosts_file, units, waits};
