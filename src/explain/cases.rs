//! Everything that can happen to an attempt, and what becomes of it.

use std::time::Duration;

use serde::Serialize;

use crate::error::{ConnectFailure, Error, Sent};
use crate::explain::retries::Request;
use crate::policy::classify::Event;
use crate::policy::retry::{self, Decision, Outcome};
use crate::telemetry::report::Skipped;
use crate::units::show_duration;

/// One thing that can happen to an attempt.
#[derive(Debug, Serialize)]
pub struct Case {
    /// The words of `retry.on` that mean it; empty where none does.
    pub on: Vec<String>,
    /// How far the request got: `never_sent`, `maybe_sent`, `answered`, or `passed_on`.
    pub stage: &'static str,
    /// What happens.
    pub when: String,
    /// Whether it is sent again.
    pub retried: bool,
    /// Why not: `not_listed`, `last_attempt`, `certificate`, `passed_on`, or a reason of `outrigger_retries_skipped_total`.
    pub reason: Option<&'static str>,
    /// One sentence.
    pub why: String,
}

/// What becomes of a failure.
#[derive(PartialEq)]
struct Verdict {
    retried: bool,
    reason: Option<&'static str>,
    why: String,
}

impl Request<'_> {
    /// In the order in which they can happen.
    pub(super) fn cases(&self) -> Vec<Case> {
        let mut cases = if self.tunnel { self.tunnel_cases() } else { self.request_cases() };
        if !self.attempt_clock {
            cases.retain(|case| case.on != ["timeout"]);
        }
        cases
    }

    fn request_cases(&self) -> Vec<Case> {
        let connect = |failure| Error::Connect { failure, detail: String::new() };
        let reset = |sent| Error::Reset { sent, reused: false, answer_began: false, detail: String::new() };
        let mut cases = vec![
            self.failure(
                &["connect_failure"],
                "no connection: DNS, refused, unreachable, TLS, `timeouts.connect`",
                &connect(ConnectFailure::Refused),
                false,
            ),
            self.failure(
                &["connect_failure"],
                "the upstream's certificate is not accepted",
                &connect(ConnectFailure::Certificate),
                false,
            ),
            self.failure(
                &["connect_failure"],
                "HTTP/2 refuses the stream unprocessed (REFUSED_STREAM, GOAWAY)",
                &connect(ConnectFailure::Refusal),
                true,
            ),
            self.failure(
                &["connect_failure", "reset"],
                "a new connection closes before a byte is sent",
                &reset(Sent::No),
                false,
            ),
            self.failure(
                &["timeout"],
                "`timeouts.attempt` passes while it waits for a connection",
                &Error::AttemptTimeout { sent: Sent::No },
                false,
            ),
            self.stale(Sent::No),
            self.stale(Sent::Maybe),
            self.failure(
                &["reset"],
                "the connection breaks, or the answer is no HTTP, before the answer's headers",
                &reset(Sent::Maybe),
                true,
            ),
            self.failure(
                &["timeout"],
                "`timeouts.attempt` passes without an answer",
                &Error::AttemptTimeout { sent: Sent::Maybe },
                true,
            ),
        ];
        cases.extend(self.statuses());
        cases.push(Case {
            on: Vec::new(),
            stage: "passed_on",
            when: "the answer's body breaks".to_owned(),
            retried: false,
            reason: Some("passed_on"),
            why: "its headers were passed on: the app sees it break".to_owned(),
        });
        cases
    }

    fn tunnel_cases(&self) -> Vec<Case> {
        let refused = Error::Connect { failure: ConnectFailure::Refused, detail: String::new() };
        vec![
            self.failure(
                &["connect_failure"],
                "no connection: DNS, refused, unreachable, `timeouts.connect`",
                &refused,
                false,
            ),
            self.failure(
                &["timeout"],
                "`timeouts.attempt` passes while it is connected",
                &Error::AttemptTimeout { sent: Sent::No },
                false,
            ),
            Case {
                on: Vec::new(),
                stage: "passed_on",
                when: "anything inside the tunnel, once it is connected".to_owned(),
                retried: false,
                reason: Some("passed_on"),
                why: "Outrigger can't see it".to_owned(),
            },
        ]
    }

    fn failure(&self, words: &[&str], when: &str, error: &Error, body_sent: bool) -> Case {
        let decision = self.decide(Outcome::Failure(error), 1, body_sent, None);
        let stage = match error.sent() {
            Sent::No => "never_sent",
            Sent::Maybe => "maybe_sent",
        };
        let listed = self.settings.is_some_and(|settings| settings.on.contains_error(error));
        let certificate = matches!(error, Error::Connect { failure: ConnectFailure::Certificate, .. });
        let Verdict { retried, reason, why } = if certificate && self.settings.is_some() {
            let why = "it does not get valid by asking again".to_owned();
            Verdict { retried: false, reason: Some("certificate"), why }
        } else {
            self.verdict(decision, listed, words)
        };
        let on = words.iter().map(ToString::to_string).collect();
        Case { on, stage, when: when.to_owned(), retried, reason, why }
    }

    /// Replaced for free, whatever `retry` says.
    fn stale(&self, sent: Sent) -> Case {
        let replayable = sent == Sent::No || self.replayable();
        let retried = retry::replaces_stale(sent, self.repeatable(), replayable);
        let reason = if self.repeatable() { Skipped::BodyTooLarge } else { Skipped::NotIdempotent };
        let why = if retried { "once, over a new connection: free, not counted" } else { because(reason) };
        let (stage, when) = match sent {
            Sent::No => ("never_sent", "a pooled connection turns out to be closed before a byte is sent"),
            Sent::Maybe => ("maybe_sent", "a pooled connection closes before a byte of the answer"),
        };
        Case {
            on: Vec::new(),
            stage,
            when: when.to_owned(),
            retried,
            reason: (!retried).then_some(reason.as_str()),
            why: why.to_owned(),
        }
    }

    /// Statuses that meet the same fate, together.
    fn statuses(&self) -> Vec<Case> {
        let is_listed =
            |status: &u16| self.settings.is_some_and(|settings| settings.on.contains(Event::Status(*status)));
        let listed: Vec<u16> = (400..600).filter(is_listed).collect();
        let mut cases: Vec<(&str, Verdict, Vec<u16>)> = Vec::new();
        let mut add = |suffix, verdict: Verdict, status| match cases
            .iter_mut()
            .find(|(other, fate, _)| *other == suffix && *fate == verdict)
        {
            Some((_, _, statuses)) => statuses.push(status),
            None => cases.push((suffix, verdict, vec![status])),
        };
        for status in listed.iter().copied() {
            let outcome = || Outcome::Answer(Event::Status(status));
            let mut plain = self.verdict(self.decide(outcome(), 1, true, None), true, &[]);
            if plain.retried && status == 429 {
                let least = show_duration(retry::SHORTEST_AFTER_429);
                plain.why = match plain.why.as_str() {
                    "at once" => format!("after {least}"),
                    why => format!("{why}, and at least {least}"),
                };
            }
            // Of these two a Retry-After counts.
            if !plain.retried || !matches!(status, 429 | 503) {
                add("", plain, status);
                continue;
            }
            add(" without Retry-After", plain, status);
            let shortest = Some(Duration::from_secs(1));
            let mut asked = self.verdict(self.decide(outcome(), 1, true, shortest), true, &[]);
            asked.why = self.after_retry_after();
            add(" with Retry-After", asked, status);
        }
        let all = if cases.is_empty() { "any answer" } else { "any other answer" };
        let mut cases: Vec<Case> = cases
            .into_iter()
            .map(|(suffix, verdict, statuses)| {
                let on = ranges(&statuses);
                let when = format!("answered {}{suffix}", on.join(", "));
                let Verdict { retried, reason, why } = verdict;
                Case { on, stage: "answered", when, retried, reason, why }
            })
            .collect();
        cases.push(Case {
            on: Vec::new(),
            stage: "answered",
            when: all.to_owned(),
            retried: false,
            reason: Some("not_listed"),
            why: "passed on as it is".to_owned(),
        });
        cases
    }

    fn after_retry_after(&self) -> String {
        let longest = self.settings.map_or(Duration::ZERO, |settings| settings.max_retry_after);
        if longest.is_zero() {
            return "`retry.max_retry_after` is 0: no Retry-After is waited for".to_owned();
        }
        format!(
            "after as long as it asks for, where that is at most {} and leaves time; else passed on",
            show_duration(longest)
        )
    }

    fn verdict(&self, decision: Decision, listed: bool, words: &[&str]) -> Verdict {
        let no = |reason, why: String| Verdict { retried: false, reason: Some(reason), why };
        let Some(settings) = self.settings else { return no("not_listed", "`retry` is off".to_owned()) };
        match decision {
            Decision::Again(..) => Verdict { retried: true, reason: None, why: self.waits() },
            Decision::Pass if !listed => no("not_listed", format!("{} is not in `retry.on`", words.join(" or "))),
            Decision::Pass => no("last_attempt", format!("`retry.max_attempts` is {}", settings.max_attempts)),
            Decision::Skip(skipped) => no(skipped.as_str(), because(skipped).to_owned()),
        }
    }

    /// When each retry is made.
    fn waits(&self) -> String {
        let Some(settings) = self.settings else { return String::new() };
        let retries = settings.max_attempts.get().saturating_sub(1);
        let bounds = (1..=retries.min(3)).map(|retry| settings.backoff.wait(retry, 1.0));
        if settings.backoff.base.is_zero() {
            return "at once".to_owned();
        }
        let mut shown: Vec<String> = bounds.map(|bound| format!("0–{}", show_duration(bound))).collect();
        if retries > 3 {
            shown.push("…".to_owned());
        }
        format!("after {}", shown.join(", then "))
    }
}

fn because(skipped: Skipped) -> &'static str {
    match skipped {
        Skipped::NotIdempotent => "it may have been carried out, and is not known to be repeatable",
        Skipped::BodyTooLarge => "its body was not kept",
        Skipped::Budget => "the budget is spent",
        Skipped::Deadline => "no time is left",
        Skipped::RetryAfterTooLong => "it asks for a longer wait than is allowed",
        Skipped::CircuitOpen => "the circuit is open",
        Skipped::RateLimited => "the bucket is empty",
        Skipped::Concurrency => "no slot is free",
    }
}

/// `500, 502–504`
fn ranges(statuses: &[u16]) -> Vec<String> {
    let mut shown = Vec::new();
    let mut at = 0;
    while let Some(first) = statuses.get(at) {
        let run = statuses[at..].iter().zip(*first..).take_while(|(status, expected)| *status == expected).count();
        if run > 2 {
            shown.push(format!("{first}–{}", statuses[at + run - 1]));
        } else {
            shown.extend(statuses[at..at + run].iter().map(ToString::to_string));
        }
        at += run;
    }
    shown
}
