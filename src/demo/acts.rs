//! What Outrigger did, as it tells itself: its metrics and its API, read through its `admin` listener like anybody would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::demo::app::ask;

/// What Outrigger did for one upstream, counted since it started, and how that upstream's policies stand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Acts {
    /// Attempts made again, by reason.
    pub retries: Counts,
    /// Retries that were not made, by reason.
    pub skipped: Counts,
    /// Requests that it refused by itself, by reason.
    pub rejected: Counts,
    /// How attempts ended.
    pub attempts: Counts,
    /// Changes of the circuit's state, by the new state.
    pub transitions: Counts,
    /// Attempts that asked for a token of the rate limit.
    pub tokens: u64,
    /// How long all of them together waited for it.
    pub token_waits: Duration,
    /// How it stands.
    pub now: Standing,
}

/// How an upstream's policies stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// `closed`, `half_open`, `open`; empty where that is not known.
    pub circuit: String,
    /// Until an open circuit lets a probe through.
    pub next_probe: Option<Duration>,
    /// Until a Retry-After of the upstream's is over.
    pub paused: Option<Duration>,
}

/// Numbers by their label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// The number of one label.
    pub fn of(&self, label: &str) -> u64 {
        self.0.get(label).copied().unwrap_or(0)
    }

    /// All labels together.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Label and number, the largest first, zeros left out.
    pub fn largest_first(&self) -> Vec<(&str, u64)> {
        let mut all: Vec<(&str, u64)> =
            self.0.iter().filter(|(_, n)| **n > 0).map(|(label, n)| (&**label, *n)).collect();
        all.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        all
    }

    fn since(&self, before: &Counts) -> Counts {
        Counts(self.0.iter().map(|(label, n)| (label.clone(), n.saturating_sub(before.of(label)))).collect())
    }
}

impl Acts {
    /// Asks Outrigger. `None` where it does not answer.
    pub(super) async fn of(admin: SocketAddr, upstream: &str) -> Option<Acts> {
        let metrics = ask(admin, "/metrics").await?;
        let upstreams = ask(admin, "/api/upstreams").await?;
        let shown: Value = serde_json::from_slice(&upstreams).ok()?;
        let mut acts = Acts::read(&String::from_utf8_lossy(&metrics), upstream);
        acts.now = Standing::read(&shown, upstream);
        Some(acts)
    }

    /// What was done since `before`; how things stand is as of now.
    pub fn since(&self, before: &Acts) -> Acts {
        Acts {
            retries: self.retries.since(&before.retries),
            skipped: self.skipped.since(&before.skipped),
            rejected: self.rejected.since(&before.rejected),
            attempts: self.attempts.since(&before.attempts),
            transitions: self.transitions.since(&before.transitions),
            tokens: self.tokens.saturating_sub(before.tokens),
            token_waits: self.token_waits.saturating_sub(before.token_waits),
            now: self.now.clone(),
        }
    }

    fn read(metrics: &str, upstream: &str) -> Acts {
        let mut acts = Acts::default();
        for line in metrics.lines() {
            let Some((name, labels, value)) = sample(line) else { continue };
            if label(labels, "upstream") != Some(upstream) {
                continue;
            }
            let (counts, by) = match name {
                "outrigger_retries_total" => (&mut acts.retries, "reason"),
                "outrigger_retries_skipped_total" => (&mut acts.skipped, "reason"),
                "outrigger_rejected_total" => (&mut acts.rejected, "reason"),
                "outrigger_attempts_total" => (&mut acts.attempts, "result"),
                "outrigger_circuit_transitions_total" => (&mut acts.transitions, "to"),
                "outrigger_rate_limit_wait_seconds_count" => {
                    acts.tokens = value as u64;
                    continue;
                }
                "outrigger_rate_limit_wait_seconds_sum" => {
                    acts.token_waits = Duration::try_from_secs_f64(value).unwrap_or_default();
                    continue;
                }
                _ => continue,
            };
            if let Some(label) = label(labels, by) {
                *counts.0.entry(label.to_owned()).or_default() += value as u64;
            }
        }
        acts
    }
}

impl Standing {
    fn read(shown: &Value, upstream: &str) -> Standing {
        let upstreams = shown["upstreams"].as_array().map_or(&[][..], |all| all);
        let Some(found) = upstreams.iter().find(|one| one["name"] == upstream) else { return Standing::default() };
        let lane = &found["lanes"][0];
        let millis = |value: &Value| value.as_u64().filter(|ms| *ms > 0).map(Duration::from_millis);
        Standing {
            circuit: lane["circuit"]["state"].as_str().unwrap_or_default().to_owned(),
            next_probe: millis(&lane["circuit"]["next_probe_ms"]),
            paused: millis(&lane["paused_ms"]),
        }
    }
}

/// Name, labels and value of a line of the text exposition format.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{')?;
    Some((name, labels.strip_suffix('}')?, value.parse().ok()?))
}

/// Values here are names and words, so that no quote or comma stands in them.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.strip_prefix('"')?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counters_of_one_upstream_are_read_and_subtracted() {
        let text = "# HELP x\n\
            outrigger_retries_total{reason=\"503\",upstream=\"api\"} 4\n\
            outrigger_retries_total{reason=\"reset\",upstream=\"api\"} 7\n\
            outrigger_retries_total{reason=\"503\",upstream=\"quota\"} 9\n\
            outrigger_attempts_total{result=\"timeout\",route=\"\",upstream=\"api\"} 2\n\
            outrigger_rate_limit_wait_seconds_sum{upstream=\"api\"} 1.5\n\
            outrigger_rate_limit_wait_seconds_count{upstream=\"api\"} 3\n";
        let before = Acts::read(&text.replace("} 7", "} 1"), "api");
        let acts = Acts::read(text, "api");
        assert_eq!(acts.retries.largest_first(), [("reset", 7), ("503", 4)]);
        assert_eq!(acts.since(&before).retries.largest_first(), [("reset", 6)]);
        assert_eq!((acts.attempts.of("timeout"), acts.tokens, acts.token_waits), (2, 3, Duration::from_millis(1500)));
    }

    #[test]
    fn a_standing_is_that_of_the_upstreams_own_policies() {
        let shown = json!({"upstreams": [{"name": "api", "lanes": [
            {"route": "", "circuit": {"state": "open", "next_probe_ms": 700}, "paused_ms": null},
        ]}]});
        let standing = Standing::read(&shown, "api");
        assert_eq!((&*standing.circuit, standing.next_probe), ("open", Some(Duration::from_millis(700))));
        assert_eq!(Standing::read(&shown, "other"), Standing::default());
    }
}
