//! Outrigger: a sidecar proxy that gives every outgoing call of an app its upstream's policy.
//!
//! Reading order for a newcomer: [`policy::pipeline`] (what happens to a request, in order), [`proxy`] (one request
//! from the app's socket to its answer), [`upstream::table`] (what is configured, as live state), then one policy.
//!
//! | room | owns |
//! | --- | --- |
//! | [`document`] | YAML with places, layered merge, reading without stopping at the first mistake; knows nothing of proxies |
//! | [`config`] | the valid configuration: loading, checking, watching |
//! | [`policy`] | timeouts, retry, breaker, rate limit, concurrency, and their order; knows no sockets and no files |
//! | [`upstream`] | the routing table, connection pool, DNS, TLS, egress rules |
//! | [`proxy`] | listeners, HTTP hygiene, tunnels, upgrades, and the answers that Outrigger gives itself |
//! | [`intercept`] | the local CA and the certificates that it signs, for tunnels that end here |
//! | [`admin`] | the dashboard, control and probe endpoints |
//! | [`inject`] | Kubernetes manifests with the sidecar added; knows nothing of the proxy |
//! | [`explain`] | what the proxy would do with a request, and why; asks the rooms above, and sends nothing |
//! | [`telemetry`] | metrics, access log, logging, the last minutes and failures, what is noted for spans |
//! | `otlp` | spans on their way to a collector; with the cargo feature of that name |
//! | [`app`], [`reload`], [`shutdown`] | composition root, the only writer of the live table, drain |
//! | `simulation` | the whole proxy between simulated apps and upstreams, in tests only (`docs/simulation.md`) |
//! | [`demo`] | the self-running demonstration, and the misbehaving upstream that tests use too |
//!
//! `main → cli → {demo → app, app} → {otlp, proxy, admin, reload} → upstream → policy`; `config → policy settings`;
//! `policy, config → document`. The leaves ([`error`], [`message`], [`origin`], [`address`], `descriptors`, `frames`, [`shared`], [`tcp`],
//! [`trailers`], [`units`]) use only each other.

pub mod address;
pub mod admin;
pub mod app;
mod background;
pub mod cli;
pub mod config;
pub mod demo;
pub(crate) mod descriptors;
pub mod document;
pub mod error;
pub mod explain;
pub mod fields;
mod frames;
pub mod inject;
pub mod intercept;
pub mod message;
pub mod origin;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod policy;
pub mod proxy;
pub mod reload;
pub mod shared;
pub mod shutdown;
#[cfg(test)]
mod simulation;
pub mod tcp;
pub mod telemetry;
pub mod trailers;
pub mod units;
pub mod upstream;
