//! The configuration, in as many variants as there are reloads.

use std::net::SocketAddr;
use std::path::PathBuf;

/// What does not change.
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) plain: SocketAddr,
    pub(crate) tls1: SocketAddr,
    pub(crate) tls2: SocketAddr,
}

impl Place {
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join("outrigger.yaml")
    }

    /// The CA that the intercepting proxy makes.
    pub(crate) fn made_ca(&self) -> PathBuf {
        self.folder.join("ca/ca.crt")
    }

    /// The file as it is after so many reloads.
    pub(crate) fn text(&self, reload: u64) -> String {
        let of = |of: &[&'static str], every: u64| of[(reload / every) as usize % of.len()];
        let attempts = 1 + reload % 4;
        let budget = of(&["{ratio: 0.2, min_per_second: 5}", "off", "{ratio: 1.0, min_per_second: 1}"], 2);
        let breaker = of(
            &[
                "{consecutive_failures: 5, open_for: 1s, max_open_for: 3s}",
                "off",
                "{consecutive_failures: off, failure_rate: {threshold: 0.5, window: 2s, min_requests: 10}, open_for: 500ms, max_open_for: 2s, half_open_requests: 3}",
                "{consecutive_failures: 50, open_for: 2s, slow_after: 500ms}",
            ],
            3,
        );
        let rate = of(
            &[
                "off",
                "{requests: 300, per: 1s, max_wait: 300ms}",
                "{requests: 20, per: 500ms, burst: 5, max_wait: 100ms}",
            ],
            5,
        );
        let slots = of(
            &[
                "off",
                "{max_in_flight: 64, max_queue: 64, max_wait: 250ms}",
                "{max_in_flight: 6, max_queue: 12, max_wait: 200ms}",
            ],
            4,
        );
        let most = of(&["{}", "{max: 12, max_idle: 3, idle_timeout: 2s, max_age: 5s}"], 7);
        let attempt = of(&["1s", "2s", "700ms"], 6);
        let memory = of(&["16MiB", "1MiB"], 8);
        let Place { plain, tls1, tls2, .. } = self;
        let folder = self.folder.display();
        format!(
            r#"version: 1
listeners: {{proxy: "127.0.0.1:0", admin: "127.0.0.1:0", probes: off}}
intercept: {{generate: true, dir: {folder}/ca, key_dir: {folder}/key}}
limits: {{replay_memory: {memory}}}
log: {{access: off}}
shutdown: {{quiet: 200ms, grace: 10s}}
defaults:
  timeouts: {{connect: 1s, attempt: {attempt}, request: 5s, idle: 6s, tunnel_idle: 30s}}
  retry: {{max_attempts: {attempts}, backoff: {{base: 20ms, max: 200ms}}, max_retry_after: 2s, budget: {budget}}}
  circuit_breaker: {breaker}
  rate_limit: {rate}
  concurrency: {slots}
  connections: {most}
upstreams:
  plain:
    hosts: [plain.test]
    to: ["http://{plain}"]
    routes:
      - {{name: big, match: {{path: "/big/*"}}, concurrency: {{max_in_flight: 4, max_queue: 20, max_wait: 2s}}, rate_limit: off}}
  tls1:
    hosts: [tls1.test]
    to: ["https://{tls1}"]
    https: intercept
    tls: {{ca_file: {folder}/upstreams.crt, server_name: tls1.test}}
  tls2:
    hosts: [tls2.test]
    to: ["https://{tls2}"]
    https: intercept
    tls: {{ca_file: {folder}/upstreams.crt, server_name: tls2.test}}
  tunnels:
    hosts: ["127.0.0.1"]
    allow_addresses: [loopback]
"#
        )
    }
}
