//! What the process takes of the machine, and what it says of itself, second by second: whether it grows.

use std::fmt::Write;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::process::Process;

/// What is watched: its name, how to get it, and how much more of it there may be in the last quarter than in the first.
/// Traffic is chance, so there is some play; what grows with each request would be far beyond it after half an hour.
const WATCHED: [(&str, Source, f64); 9] = [
    ("resident memory, MiB", Source::Memory, 8.0),
    ("file descriptors", Source::Descriptors, 40.0),
    ("threads", Source::Threads, 1.0),
    ("requests in flight", Source::Gauge("outrigger_requests_in_flight"), 25.0),
    ("requests queued", Source::Gauge("outrigger_requests_queued"), 25.0),
    ("connections to upstreams", Source::Gauge("outrigger_upstream_connections"), 25.0),
    ("connections of apps", Source::Gauge("outrigger_downstream_connections"), 25.0),
    ("tunnels", Source::Gauge("outrigger_tunnels"), 15.0),
    ("replay memory, MiB", Source::Replay, 4.0),
];

/// These are 0 when nobody asks for anything.
const AT_REST: [&str; 5] = [
    "outrigger_requests_in_flight",
    "outrigger_requests_queued",
    "outrigger_tunnels",
    "outrigger_replay_bytes",
    "outrigger_downstream_connections",
];

#[derive(Clone, Copy)]
enum Source {
    Memory,
    Descriptors,
    Threads,
    Gauge(&'static str),
    Replay,
}

pub(crate) struct Figures {
    pid: u32,
    start: Instant,
    /// By time, then as in `WATCHED`.
    samples: Vec<[f64; WATCHED.len()]>,
    cpu: f64,
    at_rest: Option<[f64; WATCHED.len()]>,
}

fn gauge(metrics: &str, name: &str) -> f64 {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    metrics.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

impl Figures {
    pub(crate) fn new(pid: u32) -> Figures {
        Figures { pid, start: Instant::now(), samples: Vec::new(), cpu: 0.0, at_rest: None }
    }

    fn look(&self, metrics: &str) -> [f64; WATCHED.len()] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        WATCHED.map(|(_, source, _)| match source {
            Source::Memory => field("VmRSS:").unwrap_or_default() / 1024.0,
            Source::Threads => field("Threads:").unwrap_or_default(),
            Source::Descriptors => {
                std::fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0.0, |all| all.count() as f64)
            }
            Source::Gauge(name) => gauge(metrics, name),
            Source::Replay => gauge(metrics, "outrigger_replay_bytes") / (1024.0 * 1024.0),
        })
    }

    pub(crate) async fn sample(&mut self, process: &Process) {
        let Some(metrics) = process.metrics().await else { return };
        self.samples.push(self.look(&metrics));
        self.cpu = gauge(&metrics, "process_cpu_seconds_total");
    }

    pub(crate) fn now(&self) -> String {
        let last = self.samples.last().copied().unwrap_or_default();
        format!("{:.1} MiB, {} descriptors, {} in flight", last[0], last[1], last[3])
    }

    /// Waits until nothing is left of the apps.
    pub(crate) async fn rest(&mut self, process: &Process, patience: Duration) -> Result<(), String> {
        let until = Instant::now() + patience;
        loop {
            let Some(metrics) = process.metrics().await else { return Err("no metrics at rest".to_owned()) };
            self.at_rest = Some(self.look(&metrics));
            let left: Vec<String> = AT_REST
                .iter()
                .filter(|name| gauge(&metrics, name) != 0.0)
                .map(|name| format!("{name} {}", gauge(&metrics, name)))
                .collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("{patience:?} after the last request there is still: {}", left.join(", ")));
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    /// Medians of the first quarter, without the warming up before it, and of the last; and the most there was.
    fn quarters(&self, of: usize) -> (f64, f64, f64) {
        let after = self.samples.len() / 20;
        let quarter = (self.samples.len() / 4).max(1);
        let median = |part: &[[f64; WATCHED.len()]]| {
            let mut values: Vec<f64> = part.iter().map(|sample| sample[of]).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let first = &self.samples[after.min(self.samples.len())..(after + quarter).min(self.samples.len())];
        let last = &self.samples[self.samples.len().saturating_sub(quarter)..];
        (median(first), median(last), self.samples.iter().map(|sample| sample[of]).fold(0.0, f64::max))
    }

    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        let _ = writeln!(
            table,
            "{:<28}{:>12}{:>14}{:>13}{:>10}{:>10}",
            "", "at start", "first quarter", "last quarter", "most", "at rest"
        );
        for (of, (name, ..)) in WATCHED.iter().enumerate() {
            let (first, last, most) = self.quarters(of);
            let start = self.samples.first().map_or(0.0, |sample| sample[of]);
            let rest = self.at_rest.map_or(0.0, |sample| sample[of]);
            let _ = writeln!(table, "{name:<28}{start:>12.1}{first:>14.1}{last:>13.1}{most:>10.1}{rest:>10.1}");
        }
        let seconds = self.start.elapsed().as_secs_f64();
        let _ = writeln!(table, "{:.0} s, of which {:.1} s of processor time", seconds, self.cpu);
        table
    }

    pub(crate) fn wrong(&self) -> Vec<String> {
        let grown = WATCHED.iter().enumerate().filter_map(|(of, (name, _, play))| {
            let (first, last, _) = self.quarters(of);
            let most = first * 1.2 + play;
            (last > most).then(|| format!("{name}: {first:.1} in the first quarter, {last:.1} in the last"))
        });
        grown.collect()
    }
}
