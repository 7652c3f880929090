//! What the figures say, in sentences. Every number in them was measured.

use std::time::Duration;

use crate::demo::acts::{Acts, Counts};
use crate::demo::app::THREADS;
use crate::demo::board::{Board, Measured, Row};
use crate::demo::phase::Phase;
use crate::demo::table::{percent, wait};

/// Which policies acted in a phase, and how: a name and a sentence each.
pub fn acted(acts: &Acts) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let (made, skipped) = (acts.retries.total(), acts.skipped.total());
    if made + skipped > 0 {
        let made = (made > 0)
            .then(|| format!("{} made again{}", counted(made, "attempt"), listed(&acts.retries, retry_reason)));
        let skipped = (skipped > 0).then(|| {
            let retries = if skipped == 1 { "retry" } else { "retries" };
            format!("{skipped} {retries} not made{}", listed(&acts.skipped, skip_reason))
        });
        lines.push(("retry", made.into_iter().chain(skipped).collect::<Vec<_>>().join("; ")));
    }
    let cut = acts.attempts.of("timeout");
    if cut > 0 {
        lines.push(("timeouts", format!("{} cut off, since no answer came in time", counted(cut, "attempt"))));
    }
    let (opened, refused) = (acts.transitions.of("open"), acts.rejected.of("circuit_open"));
    if opened + refused + acts.transitions.of("closed") > 0 || acts.now.circuit == "open" {
        let mut text = match &*acts.now.circuit {
            "open" => match acts.now.next_probe {
                Some(probe) => format!("open, next probe in {}", wait(probe, false)),
                None => "open, a probe is due".to_owned(),
            },
            "half_open" => "half-open, a probe is under way".to_owned(),
            _ => "closed".to_owned(),
        };
        text.push_str(&format!("; {} answered at once", counted(refused, "call")));
        lines.push(("circuit", text));
    }
    if acts.token_waits > Duration::from_millis(1) {
        let shut = match acts.now.paused {
            Some(paused) => format!("shut by Retry-After for another {}; ", wait(paused, false)),
            None => String::new(),
        };
        let mean = acts.token_waits.div_f64(acts.tokens.max(1) as f64);
        lines.push(("rate limit", format!("{shut}attempts waited {} for a token on average", wait(mean, false))));
    }
    if lines.is_empty() {
        lines.push(("policies", "none had to act".to_owned()));
    }
    lines
}

/// `1 call`, `2 calls`
fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// ` (96 after a 503, 47 after a reset)`
fn listed(counts: &Counts, name: fn(&str) -> String) -> String {
    let all: Vec<String> =
        counts.largest_first().into_iter().map(|(label, n)| format!("{n} {}", name(label))).collect();
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}

fn retry_reason(label: &str) -> String {
    match label {
        "reset" => "after a reset".to_owned(),
        "timeout" => "after a time-out".to_owned(),
        "connect_failure" => "not connected".to_owned(),
        "stale_connection" => "after a kept connection broke".to_owned(),
        status => format!("after a {status}"),
    }
}

fn skip_reason(label: &str) -> String {
    match label {
        "not_idempotent" => "POST without key".to_owned(),
        "circuit_open" => "circuit open".to_owned(),
        other => other.replace('_', " "),
    }
}

/// What a phase showed.
pub fn outcome(row: &Row) -> Option<String> {
    let measured = row.measured.as_ref()?;
    let Measured { with, without, upstream, acts } = measured;
    let calls = with.figures.calls();
    let (failed, failed_without) = (percent(with.failed()), percent(without.failed()));
    let reads = &with.figures.reads;
    let none_or_some = match reads.failed {
        0 => format!("None of the app's {} calls failed", reads.calls),
        some => format!("{some} of the app's {} calls failed", reads.calls),
    };
    let refused = with.figures.reads.refused + with.figures.keyed.refused + with.figures.unkeyed.refused;
    let upstream_failed = percent(measured.upstream_failed());
    let per_call = measured.per_call().map_or("-".to_owned(), |n| format!("{n:.2}"));
    let typical = wait(with.waits.typical, with.waits.typical_open);
    let longest = wait(with.waits.longest, with.waits.longest_open);
    Some(match row.phase {
        Phase::Healthy => format!(
            "{none_or_some}, for {per_call} requests per call. A call took {typical}, {} without Outrigger.",
            wait(without.waits.typical, without.waits.typical_open)
        ),
        Phase::Flaky => format!(
            "Of GETs, the upstream failed {upstream_failed} of its requests; the app saw {failed}, for {per_call} \
             requests per call. Without Outrigger it saw {failed_without}."
        ),
        Phase::Down => {
            let noticed = match row.noticed {
                Some(after) => {
                    format!(" Once the upstream was well, a probe noticed after {}.", wait(after, false))
                }
                None => String::new(),
            };
            format!(
                "{refused} of {calls} calls got an honest 503 at once, and the upstream was left alone: it got {} \
                 requests. Without Outrigger the app made {} calls, and typically waited {} for each to fail.{noticed}",
                upstream.requests(),
                without.figures.calls(),
                wait(without.waits.typical, without.waits.typical_open)
            )
        }
        Phase::Slow => format!(
            "Slow is worse than down: without Outrigger {} of the app's {THREADS} threads hung, and it made {} calls. With \
             it no call waited longer than {longest}, and {refused} of {calls} got an honest 503 at once.",
            without.stuck,
            without.figures.calls()
        ),
        Phase::RateLimited => format!(
            "Without Outrigger the upstream refused {failed_without} of the calls. With it {upstream_failed} of the \
             requests, since each Retry-After made all calls wait; the app saw {failed}, and waited {longest} at the \
             longest."
        ),
        Phase::Recovered => {
            let closed = if acts.transitions.of("closed") > 0 {
                "The first requests were probes: they found the upstream well, and the circuit closed."
            } else {
                "The circuit was closed already."
            };
            format!("{closed} {none_or_some}, for {per_call} requests per call.")
        }
    })
}

/// What became of POSTs while the upstream was flaky; `None` where that was not measured.
pub fn orders(board: &Board) -> Option<String> {
    let flaky = board.rows.iter().find(|row| row.phase == Phase::Flaky)?.measured.as_ref()?;
    let (keyed, unkeyed) = (&flaky.with.figures.keyed, &flaky.with.figures.unkeyed);
    Some(format!(
        "While it was flaky, {} of {} POSTs with an Idempotency-Key failed: {} were sent again under the same key. Of {} \
         without a key {} failed: what may have been carried out is never sent again. POSTs without a key that the \
         upstream got twice, in all phases: {}.",
        keyed.failed, keyed.calls, flaky.upstream.keyed.repeated, unkeyed.calls, unkeyed.failed, board.twice
    ))
}

/// Breaks a text into lines of at most `width` characters, words kept whole.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let fits = lines.last().is_some_and(|line| line.is_empty() || line.len() + 1 + word.len() <= width);
        match lines.last_mut() {
            Some(line) if fits => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("a bb ccc dddd", 6), ["a bb", "ccc", "dddd"]);
        assert_eq!(wrap("longerthanallofit a", 5), ["longerthanallofit", "a"]);
    }

    #[test]
    fn where_no_policy_acted_that_is_said() {
        assert_eq!(acted(&Acts::default()), [("policies", "none had to act".to_owned())]);
    }
}
