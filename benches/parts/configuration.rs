//! Configurations of any size.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use outrigger::config::Config;
use outrigger::config::load::{Options, load_text};
use outrigger::policy::replay::ReplayMemory;
use outrigger::telemetry::metrics::Metrics;
use outrigger::upstream::connect::Connector;
use outrigger::upstream::table::Table;

/// Every policy on.
pub const POLICIES: &str = include_str!("policies.yaml");

/// `count` upstreams on one port: `api-0000.test` and so on, with all policies. `more` goes into each.
pub fn upstreams(count: usize, port: u16, more: &str) -> String {
    let mut text = format!("{POLICIES}upstreams:\n");
    for n in 0..count {
        let _ =
            writeln!(text, "  api-{n:04}:\n    hosts: [{}]\n    to: [\"http://127.0.0.1:{port}\"]\n{more}", host(n));
    }
    text
}

/// The host of an upstream.
pub fn host(n: usize) -> String {
    format!("api-{n:04}.test")
}

/// So many routes, each with a path of its own, to be written into an upstream.
pub fn routes(count: usize) -> String {
    let mut text = String::from("    routes:\n");
    for n in 0..count {
        let _ = writeln!(
            text,
            "      - {{name: route-{n:03}, match: {{path: \"{}\"}}, timeouts: {{attempt: 3s}}}}",
            path(n)
        );
    }
    text
}

/// The path that a route takes.
pub fn path(n: usize) -> String {
    format!("/v1/part-{n:03}/charges")
}

/// What a text says.
pub fn config(text: &str) -> Arc<Config> {
    let loaded = load_text(text, Path::new("parts.yaml"), Options::default(), &|_| None);
    match loaded.config {
        Some(config) => Arc::new(config),
        None => panic!("{:?}", loaded.problems.errors),
    }
}

/// What a table is made with.
pub struct Surroundings {
    pub metrics: Arc<Metrics>,
    replay: Arc<ReplayMemory>,
    connector: Arc<Connector>,
}

impl Surroundings {
    /// For all tables of a process.
    pub fn new(config: &Config) -> Surroundings {
        Surroundings {
            metrics: Metrics::new(),
            replay: ReplayMemory::new(config.limits.replay_memory),
            connector: Connector::new(&config.dns, &config.egress, Vec::new()).expect("the system resolves names"),
        }
    }

    /// A table in the place of `old`, as a reload does it, files and listeners left out.
    pub fn table(&self, old: Option<&Table>, config: Arc<Config>) -> Table {
        let table = Table::evolve(old, config, self.connector.clone(), &self.metrics, &self.replay);
        let table = table.unwrap_or_else(|problems| panic!("{problems:?}"));
        table.take_over(old, &self.metrics);
        table
    }
}
