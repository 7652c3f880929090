//! What the clocks add up to when everything takes as long as it may.

use std::time::Duration;

use serde::Serialize;

use crate::error::{ConnectFailure, Error, Sent};
use crate::explain::question::Body;
use crate::explain::retries::Request;
use crate::policy::classify::Event;
use crate::policy::retry::{Decision, Outcome};
use crate::policy::{policies, timeout};
use crate::units::show_duration;

/// Back-offs have stopped growing by then.
const GROWING: u32 = 40;

/// The worst case. Times are in milliseconds; `null` is "no bound".
#[derive(Debug, Serialize)]
pub struct Clocks {
    /// How many attempts there may be of this request.
    pub attempts: u32,
    /// What one attempt may wait before it begins: for a token, for a slot.
    pub wait_for_token_ms: u64,
    /// See above.
    pub wait_for_slot_ms: u64,
    /// How long connecting may take within an attempt.
    pub connect_ms: Option<u64>,
    /// How long an attempt may take that is then repeated.
    pub failed_attempt_ms: Option<u64>,
    /// How long the last one may take.
    pub last_attempt_ms: Option<u64>,
    /// All back-offs together.
    pub back_off_ms: u64,
    /// All of this together.
    pub sum_ms: Option<u64>,
    /// The same where each failed answer asks for the longest Retry-After that is waited for; `None` where none is.
    pub sum_with_retry_after_ms: Option<u64>,
    /// `timeouts.request`, shortened by a `grpc-timeout`.
    pub request_ms: Option<u64>,
    /// What the app waits at most for response headers, or for its tunnel.
    pub at_most_ms: Option<u64>,
    /// The same in words: how it adds up, what ends it, what comes after.
    pub lines: Vec<String>,
}

/// Adds up. `limit` is the request's deadline.
pub(super) fn add_up(request: &Request<'_>, policies: &policies::Settings, limit: Option<Duration>) -> Clocks {
    let timeouts = &policies.timeouts;
    let token = policies.rate_limit.as_ref().map_or(Duration::ZERO, |limit| limit.max_wait);
    let slot = policies.concurrency.as_ref().filter(|_| !request.tunnel).map_or(Duration::ZERO, |slots| slots.max_wait);
    let fails = Fails::of(request);
    let most = request.settings.map_or(1, |settings| settings.max_attempts.get());
    let attempts = if fails.any() { most } else { 1 };
    let shortest = |a: Option<Duration>, b: Option<Duration>| match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    };
    let last = if request.tunnel { shortest(timeouts.attempt, timeouts.connect) } else { timeouts.attempt };
    // Where the attempt has no clock, connecting has one, and nothing but a failed connection is repeated.
    let failed = match (last, fails.after_connecting) {
        (Some(attempt), _) => Some(attempt),
        (None, false) => timeouts.connect,
        (None, true) => None,
    };
    let waits = |retry_after: Option<Duration>| -> Duration {
        let retries = attempts - 1;
        let growing = (1..=retries.min(GROWING)).map(|retry| longest_wait(request, retry, retry_after));
        let grown =
            longest_wait(request, GROWING.min(retries), retry_after).saturating_mul(retries.saturating_sub(GROWING));
        growing.fold(grown, Duration::saturating_add)
    };
    let before = token.saturating_add(slot).saturating_mul(attempts);
    let sum = |waits: Duration| -> Option<Duration> {
        let failed = if attempts > 1 { failed?.saturating_mul(attempts - 1) } else { Duration::ZERO };
        Some(before.saturating_add(failed).saturating_add(last?).saturating_add(waits))
    };
    let retry_after = request
        .settings
        .map(|settings| settings.max_retry_after)
        .filter(|longest| fails.on_retry_after && attempts > 1 && !longest.is_zero());
    let plain = sum(waits(None));
    let asked = retry_after.and_then(|longest| sum(waits(Some(longest))));
    let unbounded = last.is_none() || (attempts > 1 && failed.is_none());
    let longest = if unbounded { None } else { asked.or(plain) };
    let at_most = shortest(longest, limit);
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let lines =
        Lines { token, slot, attempts, failed, last, back_off: waits(None), plain, asked, retry_after, limit, at_most };
    let mut lines = lines.write(request.tunnel);
    if attempts > 1 && !request.repeatable() {
        lines.insert(1, "only attempts that end before anything is sent are repeated".to_owned());
    }
    lines.push(after(timeouts, request));
    Clocks {
        attempts,
        wait_for_token_ms: ms(token),
        wait_for_slot_ms: ms(slot),
        connect_ms: timeouts.connect.map(ms),
        failed_attempt_ms: failed.filter(|_| attempts > 1).map(ms),
        last_attempt_ms: last.map(ms),
        back_off_ms: ms(waits(None)),
        sum_ms: plain.map(ms),
        sum_with_retry_after_ms: asked.map(ms),
        request_ms: limit.map(ms),
        at_most_ms: at_most.map(ms),
        lines,
    }
}

/// The longest wait before retry number `retry`.
fn longest_wait(request: &Request<'_>, retry: u32, retry_after: Option<Duration>) -> Duration {
    let connect = Error::Connect { failure: ConnectFailure::Refused, detail: String::new() };
    let timeout = |sent| Error::AttemptTimeout { sent };
    let reset = Error::Reset { sent: Sent::Maybe, reused: false, answer_began: false, detail: String::new() };
    let (before, after) = (timeout(Sent::No), timeout(Sent::Maybe));
    let failures = [&connect, &before, &after, &reset].map(|error| (Outcome::Failure(error), None));
    let answers = (400..600)
        .filter(|_| !request.tunnel)
        .map(|status| (Outcome::Answer(Event::Status(status)), retry_after.filter(|_| matches!(status, 429 | 503))));
    let wait = |(outcome, retry_after)| match request.decide(outcome, retry, true, retry_after) {
        Decision::Again(wait, _) => wait,
        Decision::Pass | Decision::Skip(_) => Duration::ZERO,
    };
    // A body that is too large to be sent again is no hindrance where nothing of it was sent.
    let unsent = match request.decide(Outcome::Failure(&connect), retry, false, None) {
        Decision::Again(wait, _) => wait,
        Decision::Pass | Decision::Skip(_) => Duration::ZERO,
    };
    failures.into_iter().chain(answers).map(wait).fold(unsent, Duration::max)
}

/// Which kinds of failures are repeated.
struct Fails {
    connecting: bool,
    after_connecting: bool,
    on_retry_after: bool,
}

impl Fails {
    fn of(request: &Request<'_>) -> Fails {
        let again = |decision| matches!(decision, Decision::Again(..));
        let failure = |error: &Error| again(request.decide(Outcome::Failure(error), 1, false, None));
        let sent = |error: &Error| again(request.decide(Outcome::Failure(error), 1, true, None));
        let answer = |status| request.decide(Outcome::Answer(Event::Status(status)), 1, true, None);
        let status = |status| !request.tunnel && again(answer(status));
        let reset = |sent| Error::Reset { sent, reused: false, answer_began: false, detail: String::new() };
        Fails {
            connecting: failure(&Error::Connect { failure: ConnectFailure::Refused, detail: String::new() }),
            after_connecting: failure(&Error::AttemptTimeout { sent: Sent::No })
                || !request.tunnel
                    && (failure(&reset(Sent::No))
                        || sent(&reset(Sent::Maybe))
                        || sent(&Error::AttemptTimeout { sent: Sent::Maybe })
                        || (400..600).any(status)),
            on_retry_after: status(429) || status(503),
        }
    }

    fn any(&self) -> bool {
        self.connecting || self.after_connecting
    }
}

struct Lines {
    token: Duration,
    slot: Duration,
    attempts: u32,
    failed: Option<Duration>,
    last: Option<Duration>,
    back_off: Duration,
    plain: Option<Duration>,
    asked: Option<Duration>,
    retry_after: Option<Duration>,
    limit: Option<Duration>,
    at_most: Option<Duration>,
}

impl Lines {
    fn write(&self, tunnel: bool) -> Vec<String> {
        let mut lines = vec![self.sum()];
        if let (Some(longest), Some(sum)) = (self.retry_after, self.asked) {
            let (longest, sum) = (show_duration(longest), show_duration(sum));
            lines.push(format!("{sum} where each failed answer asks for {longest} by Retry-After (and jitter on top)"));
        }
        let what = if tunnel { "its tunnel" } else { "response headers" };
        let longest = self.asked.or(self.plain);
        lines.push(match (self.at_most, self.limit) {
            (None, _) => format!(
                "so nothing bounds what the app waits for {what}: `timeouts.attempt` and `timeouts.request` are both off"
            ),
            (Some(at_most), Some(limit)) if longest.is_none_or(|longest| longest > limit) => {
                format!("`timeouts.request` ends it: the app waits at most {} for {what}", show_duration(at_most))
            }
            (Some(at_most), Some(limit)) => format!(
                "so the app waits at most {} for {what}; `timeouts.request` ({}) is not reached",
                show_duration(at_most),
                show_duration(limit)
            ),
            (Some(at_most), None) => {
                format!("so the app waits at most {} for {what}; `timeouts.request` is off", show_duration(at_most))
            }
        });
        lines
    }

    fn sum(&self) -> String {
        let mut each = Vec::new();
        if !self.token.is_zero() {
            each.push(format!("token {}", show_duration(self.token)));
        }
        if !self.slot.is_zero() {
            each.push(format!("slot {}", show_duration(self.slot)));
        }
        let clock = |clock: Option<Duration>| clock.map_or_else(|| "without a clock".to_owned(), show_duration);
        let alike = self.attempts == 1 || self.failed == self.last;
        let mut parts = Vec::new();
        if alike {
            each.push(format!("attempt {}", clock(self.last)));
            let each = each.join(" + ");
            parts.push(match self.attempts {
                1 => each,
                attempts if each.contains('+') => format!("{attempts} × ({each})"),
                attempts => format!("{attempts} × {each}"),
            });
        } else {
            let waits = each.join(" + ");
            if !waits.is_empty() {
                parts.push(format!("{} × ({waits})", self.attempts));
            }
            parts.push(format!("{} × failed connection {}", self.attempts - 1, clock(self.failed)));
            parts.push(format!("last attempt {}", clock(self.last)));
        }
        if !self.back_off.is_zero() {
            parts.push(format!("back-off {}", show_duration(self.back_off)));
        }
        let sum = parts.join(" + ");
        match self.plain {
            Some(plain) if sum.contains(['+', '×']) => format!("{sum} = {}", show_duration(plain)),
            Some(_) | None => sum,
        }
    }
}

/// What comes after the clocks.
fn after(timeouts: &timeout::Settings, request: &Request<'_>) -> String {
    let tunnel = request.tunnel;
    let silence = if tunnel { timeouts.tunnel_idle } else { timeouts.idle };
    let name = if tunnel { "`timeouts.tunnel_idle`" } else { "`timeouts.idle`" };
    let what = match request.body {
        _ if tunnel => "then the tunnel",
        Body::None => "then the answer's body",
        Body::Of(_) | Body::Untold => "both clocks stand still while the request's body is sent; a body",
    };
    match silence {
        Some(silence) => {
            format!("{what} takes as long as it flows: only {} of silence ends it ({name})", show_duration(silence))
        }
        None => format!("{what} takes as long as it likes: {name} is off"),
    }
}
