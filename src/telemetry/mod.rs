//! What Outrigger tells: metrics, the access log, logging. A thing that happens is one method of [`report`].

pub mod access;
pub mod export;
mod line;
pub mod logging;
pub mod metrics;
pub mod report;
pub mod spans;
