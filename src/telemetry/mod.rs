//! What Outrigger tells: metrics, the access log, logging, and what is kept of the last minutes. A thing that happens is one
//! method of [`report`].

pub mod access;
pub mod export;
pub mod failures;
pub mod history;
mod line;
pub mod logging;
pub mod metrics;
pub mod report;
pub mod spans;
