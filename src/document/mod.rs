//! A YAML document whose every value knows its place: parsed once, merged in layers, and read without stopping at the
//! first mistake. Knows nothing of proxies.

pub mod expand;
pub(crate) mod file;
pub mod known;
pub mod parse;
pub mod problem;
pub mod read;
pub mod tree;
mod veil;

pub(crate) use problem::printable;
pub use problem::{Place, Problem, Problems};
pub use read::Reader;
pub use tree::{Layer, Node};
