//! What was counted so far, read for the dashboard. Nothing is counted for its sake on the way of a request that goes well.

use std::sync::atomic::Ordering;

use super::{AttemptResult, LaneReport, UpstreamReport};
use crate::telemetry::metrics::Histogram;

/// One more than the histograms have bounds: the last bucket has none.
pub const BUCKETS: usize = crate::telemetry::metrics::BOUNDS.len() + 1;

/// What an upstream counted since it has its name, over all its lanes. Numbers wrap: only differences mean something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that ended.
    pub requests: u32,
    /// Of these the app got 429, 5xx or a body that broke off.
    pub failed: u32,
    /// Of these the app hung up (499). They are no failures of anybody's.
    pub gone: u32,
    /// Attempts that ended by the upstream's doing.
    pub attempts: u32,
    /// Of these no answer came, or one of 429 or 5xx, or one that the breaker counts as a failure.
    pub attempts_failed: u32,
    /// Attempts that were made again.
    pub retries: u32,
    /// `request_duration_seconds`: how many took at most so long.
    pub app: [u32; BUCKETS],
    /// `attempt_duration_seconds`, likewise.
    pub upstream: [u32; BUCKETS],
}

/// Whether a request that got this status failed, as its app sees it. Other statuses of 4xx are the app's own affair.
pub fn failed(status: u16) -> bool {
    status == 429 || status >= 500
}

impl UpstreamReport {
    /// What it and its lanes counted so far.
    pub fn totals<'a>(&self, lanes: impl Iterator<Item = &'a LaneReport>) -> Totals {
        let retried = &self.retried;
        let plain = [&retried.connect_failure, &retried.reset, &retried.timeout, &retried.stale_connection];
        let mut totals =
            Totals { retries: plain.iter().map(|counter| wrapped(counter.get())).sum(), ..Totals::default() };
        retried.statuses.each(|_, count| totals.retries = totals.retries.wrapping_add(wrapped(count)));
        for (at, lane) in lanes.enumerate() {
            lane.add_to(&mut totals);
            add(&mut totals.app, &lane.request_duration);
            // All lanes of an upstream share this one.
            if at == 0 {
                add(&mut totals.upstream, &lane.attempt_duration);
            }
        }
        totals
    }
}

impl LaneReport {
    fn add_to(&self, totals: &mut Totals) {
        for codes in &self.by_code {
            codes.each(|code, count| {
                let count = wrapped(count);
                totals.requests = totals.requests.wrapping_add(count);
                if failed(code) {
                    totals.failed = totals.failed.wrapping_add(count);
                } else if code == 499 {
                    totals.gone = totals.gone.wrapping_add(count);
                }
            });
        }
        totals.failed = totals.failed.wrapping_add(self.broken.load(Ordering::Relaxed));
        let limited = self.limited.load(Ordering::Relaxed);
        totals.attempts_failed = totals.attempts_failed.wrapping_add(limited);
        for result in AttemptResult::ALL {
            let count = wrapped(self.attempts[result as usize].get());
            let failed = match result {
                AttemptResult::Cancelled => continue,
                AttemptResult::Success => false,
                AttemptResult::Failure
                | AttemptResult::ConnectFailure
                | AttemptResult::Reset
                | AttemptResult::Timeout => true,
            };
            totals.attempts = totals.attempts.wrapping_add(count);
            if failed {
                totals.attempts_failed = totals.attempts_failed.wrapping_add(count);
            }
        }
    }
}

fn add(buckets: &mut [u32; BUCKETS], histogram: &Histogram) {
    for (bucket, count) in buckets.iter_mut().zip(histogram.cumulative()) {
        *bucket = bucket.wrapping_add(wrapped(count));
    }
}

#[allow(clippy::cast_possible_truncation, reason = "only differences are looked at")]
fn wrapped(count: u64) -> u32 {
    count as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;

    use super::*;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::report::RetryReason;

    #[test]
    fn what_the_app_got_and_what_the_upstream_did_are_counted_apart() {
        let metrics = Metrics::new();
        let (upstream, own, route) = (metrics.upstream("a"), metrics.lane("a", ""), metrics.lane("a", "charges"));
        for (code, times) in [(200, 5), (404, 1), (429, 1), (499, 2), (503, 1)] {
            for _ in 0..times {
                own.request(&Method::GET, code, Duration::from_millis(20));
            }
        }
        route.request(&Method::POST, 200, Duration::from_secs(90));
        route.broke();
        for result in AttemptResult::ALL {
            own.attempt(result, Duration::from_millis(3));
        }
        own.limited();
        upstream.retried(RetryReason::Reset);
        upstream.retried(RetryReason::Status(503));
        let totals = upstream.totals([&*own, &*route].into_iter());
        assert_eq!((totals.requests, totals.failed, totals.gone), (11, 3, 2));
        assert_eq!((totals.attempts, totals.attempts_failed, totals.retries), (5, 5, 2));
        assert_eq!((totals.app[3], totals.app[4], totals.app[BUCKETS - 2], totals.app[BUCKETS - 1]), (0, 10, 10, 11));
        // Cancelled attempts say nothing about how fast the upstream is.
        assert_eq!((totals.upstream[1], totals.upstream[2]), (0, 5));
    }
}
