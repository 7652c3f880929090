//! The last quarter of an hour of each upstream, kept in memory for the dashboard: made from counters that are there
//! anyway, so that a request costs nothing more. An upstream without traffic holds next to nothing, another one at
//! most 12 KiB.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::metrics::BOUNDS;
use crate::telemetry::report::{BUCKETS, Totals};

/// How often a sample is taken.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// How many are kept: 15 minutes.
pub const SAMPLES: usize = 180;
/// What "recent" is: long enough for percentiles, short enough to see a change.
const MINUTE: Duration = Duration::from_secs(60);
/// What rates are taken over.
const RATE: Duration = Duration::from_secs(10);

/// How an upstream stood when a sample was taken; the worst of its circuits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// Traffic flows.
    #[default]
    Closed = 0,
    /// A circuit lets probes through only.
    HalfOpen = 1,
    /// A circuit is open.
    Open = 2,
    /// A bucket is shut by a Retry-After.
    Paused = 3,
}

/// What happened in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Requests that ended.
    pub requests: u32,
    /// See [`Totals::failed`].
    pub failed: u32,
    /// See [`Totals::gone`].
    pub gone: u32,
    /// See [`Totals::attempts`].
    pub attempts: u32,
    /// See [`Totals::attempts_failed`].
    pub attempts_failed: u32,
    /// Attempts made again.
    pub retries: u32,
    /// 95 % of the requests took at most so long. Milliseconds; `None` without requests.
    pub p95: Option<f32>,
    /// At its end.
    pub standing: Standing,
}

/// The last minute (less, where the process or the upstream is younger).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Recent {
    /// A second, over the last ten.
    pub requests_per_second: f64,
    /// A second, over the last ten.
    pub attempts_per_second: f64,
    /// A second, over the last ten.
    pub retries_per_second: f64,
    /// Counts of the minute.
    pub counts: Sample,
    /// How long requests took, for the app.
    pub app: Percentiles,
    /// How long attempts took to response headers.
    pub upstream: Percentiles,
}

/// Milliseconds, interpolated within the histogram's buckets; `None` where nothing was measured. The last bound, 60 s,
/// stands for whatever took longer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    /// Half of them took at most so long.
    pub p50: Option<f64>,
    /// 95 %.
    pub p95: Option<f64>,
    /// 99 %.
    pub p99: Option<f64>,
}

/// The history of all upstreams.
#[derive(Default)]
pub struct History {
    tracks: HashMap<Arc<str>, Track>,
    /// How many samples were taken since the process started.
    taken: u64,
    /// When the newest was taken; `None` where it is not known what was counted before the next one.
    at: Option<Instant>,
}

/// The history of one.
#[derive(Default)]
struct Track {
    /// Newest last; empty as long as there was no traffic.
    samples: VecDeque<Sample>,
    /// What was counted at the end of each sample of the last minute, newest last.
    marks: VecDeque<(Instant, Totals)>,
    /// How many samples ago there was traffic.
    idle: usize,
}

impl History {
    /// The process starts: nothing has been counted yet.
    pub fn begin(&mut self, now: Instant) {
        self.at = Some(now);
    }

    /// No samples are taken for now, and what is counted in the meantime belongs to none.
    pub fn pause(&mut self) {
        *self = History { taken: self.taken, ..History::default() };
    }

    /// Takes a sample of every upstream. What is known of others is forgotten.
    pub fn sample<'a>(&mut self, now: Instant, all: impl Iterator<Item = (&'a Arc<str>, Totals, Standing)>) {
        let mut tracks = HashMap::with_capacity(self.tracks.len());
        for (name, totals, standing) in all {
            let mut track = self.tracks.remove(name).unwrap_or_else(|| Track::from(self.at));
            track.sample(now, totals, standing);
            tracks.insert(name.clone(), track);
        }
        self.tracks = tracks;
        self.taken += 1;
        self.at = Some(now);
    }

    /// How many samples were taken since the process started: the number of the newest one.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// An upstream's samples, newest last; none where there was no traffic for as long as samples are kept.
    pub fn samples(&self, name: &str) -> impl DoubleEndedIterator<Item = &Sample> {
        self.tracks.get(name).into_iter().flat_map(|track| &track.samples)
    }

    /// The last minute up to `now`, when an upstream's counts are `totals`.
    pub fn recent(&self, name: &str, now: Instant, totals: &Totals) -> Recent {
        match self.tracks.get(name) {
            Some(track) => track.recent(now, totals),
            None => Track::from(self.at).recent(now, totals),
        }
    }
}

impl Track {
    /// Of an upstream that was not there when the newest sample was taken: it had counted nothing then.
    fn from(newest: Option<Instant>) -> Track {
        Track { marks: newest.map(|at| (at, Totals::default())).into_iter().collect(), ..Track::default() }
    }

    fn sample(&mut self, now: Instant, totals: Totals, standing: Standing) {
        if self.marks.back().is_some_and(|(_, last)| totals.is_behind(last)) {
            // A route is gone, or the upstream came back: what was counted before compares with nothing.
            self.marks.clear();
        }
        if let Some((_, last)) = self.marks.back() {
            let difference = totals.since(last);
            let sample = Sample { standing, ..difference.sample() };
            let eventful = difference.requests > 0 || difference.attempts > 0 || standing != Standing::Closed;
            self.idle = if eventful { 0 } else { self.idle + 1 };
            if self.idle >= SAMPLES {
                self.samples = VecDeque::new();
            } else if eventful || !self.samples.is_empty() {
                if self.samples.len() == SAMPLES {
                    self.samples.pop_front();
                }
                self.samples.push_back(sample);
            }
        }
        let since = now.checked_sub(MINUTE);
        while since.is_some_and(|since| self.marks.front().is_some_and(|(at, _)| *at < since)) {
            self.marks.pop_front();
        }
        // An upstream at rest needs one mark: all would be the same.
        if self.samples.is_empty() {
            self.marks.clear();
            self.marks.shrink_to_fit();
        }
        self.marks.push_back((now, totals));
    }

    fn recent(&self, now: Instant, totals: &Totals) -> Recent {
        let Some((_, oldest)) = self.marks.front() else { return Recent::default() };
        if totals.is_behind(oldest) {
            return Recent::default();
        }
        let difference = totals.since(oldest);
        // The newest mark that is old enough, or the oldest there is.
        let then = self.marks.iter().rev().find(|(at, _)| now.saturating_duration_since(*at) >= RATE);
        let (at, before) = then.or(self.marks.front()).map_or((now, oldest), |(at, mark)| (*at, mark));
        // Less than a second says nothing about a rate.
        let seconds = now.saturating_duration_since(at).as_secs_f64().max(1.0);
        let short = totals.since(before);
        let rate = |count: u32| f64::from(count) / seconds;
        Recent {
            requests_per_second: rate(short.requests),
            attempts_per_second: rate(short.attempts),
            retries_per_second: rate(short.retries),
            counts: difference.sample(),
            app: Percentiles::of(&difference.app),
            upstream: Percentiles::of(&difference.upstream),
        }
    }
}

impl Totals {
    /// What was counted between `before` and now.
    fn since(&self, before: &Totals) -> Totals {
        let buckets =
            |now: &[u32; BUCKETS], before: &[u32; BUCKETS]| std::array::from_fn(|at| now[at].wrapping_sub(before[at]));
        Totals {
            requests: self.requests.wrapping_sub(before.requests),
            failed: self.failed.wrapping_sub(before.failed),
            gone: self.gone.wrapping_sub(before.gone),
            attempts: self.attempts.wrapping_sub(before.attempts),
            attempts_failed: self.attempts_failed.wrapping_sub(before.attempts_failed),
            retries: self.retries.wrapping_sub(before.retries),
            app: buckets(&self.app, &before.app),
            upstream: buckets(&self.upstream, &before.upstream),
        }
    }

    /// Whether anything was counted backwards, numbers that wrapped aside.
    fn is_behind(&self, before: &Totals) -> bool {
        let difference = self.since(before);
        let counts = [
            difference.requests,
            difference.failed,
            difference.gone,
            difference.attempts,
            difference.attempts_failed,
            difference.retries,
        ];
        let buckets = difference.app.into_iter().chain(difference.upstream);
        counts.into_iter().chain(buckets).any(|count| count > u32::MAX / 2)
    }

    fn sample(&self) -> Sample {
        Sample {
            requests: self.requests,
            failed: self.failed,
            gone: self.gone,
            attempts: self.attempts,
            attempts_failed: self.attempts_failed,
            retries: self.retries,
            #[allow(clippy::cast_possible_truncation, reason = "seven digits are enough for a line on a screen")]
            p95: percentile(&self.app, 0.95).map(|millis| millis as f32),
            standing: Standing::Closed,
        }
    }
}

impl Percentiles {
    fn of(buckets: &[u32; BUCKETS]) -> Percentiles {
        let of = |share| percentile(buckets, share);
        Percentiles { p50: of(0.50), p95: of(0.95), p99: of(0.99) }
    }
}

/// Within which time, in milliseconds, this share of what the buckets count ended. A bucket's observations are taken to be
/// spread evenly.
fn percentile(buckets: &[u32; BUCKETS], share: f64) -> Option<f64> {
    let total = buckets[BUCKETS - 1];
    if total == 0 {
        return None;
    }
    let rank = share * f64::from(total);
    let mut below = (0.0, 0.0);
    for (bound, count) in BOUNDS.iter().zip(buckets) {
        let here = (bound * 1000.0, f64::from(*count));
        if here.1 >= rank && here.1 > below.1 {
            return Some(below.0 + (here.0 - below.0) * (rank - below.1) / (here.1 - below.1));
        }
        below = here;
    }
    BOUNDS.last().map(|bound| bound * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(requests: u32, failed: u32) -> Totals {
        let mut totals = Totals { requests, failed, attempts: requests, ..Totals::default() };
        // All of them took between 10 and 25 ms.
        totals.app[4..].fill(requests);
        totals
    }

    fn history(start: Instant, counts: &[(u32, u32)]) -> History {
        let mut history = History::default();
        for (at, (requests, failed)) in (0..).zip(counts) {
            let name: Arc<str> = "a".into();
            history.sample(start + INTERVAL * at, [(&name, totals(*requests, *failed), Standing::Closed)].into_iter());
        }
        history
    }

    #[test]
    fn a_sample_tells_what_happened_since_the_last_one() {
        let history = history(Instant::now(), &[(100, 5), (110, 6), (110, 6), (111, 6)]);
        let shown: Vec<_> = history.samples("a").map(|sample| (sample.requests, sample.failed)).collect();
        assert_eq!(shown, [(10, 1), (0, 0), (1, 0)]);
        assert_eq!(history.taken(), 4);
        assert_eq!(history.samples("b").count(), 0);
    }

    #[test]
    fn what_a_new_upstream_counts_before_its_first_sample_is_not_lost() {
        let start = Instant::now();
        let mut history = history(start, &[(100, 0)]);
        assert_eq!(history.recent("b", start + INTERVAL, &totals(3, 1)).counts.requests, 3);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let all = [(&a, totals(100, 0), Standing::Closed), (&b, totals(3, 1), Standing::Closed)];
        history.sample(start + INTERVAL, all.into_iter());
        assert_eq!(history.samples("b").map(|sample| sample.requests).collect::<Vec<_>>(), [3]);
        assert_eq!(history.samples("a").count(), 0);
    }

    #[test]
    fn what_is_counted_before_the_first_sample_is_the_processs_own_but_not_that_of_a_pause() {
        let start = Instant::now();
        let name: Arc<str> = "a".into();
        let mut history = History::default();
        history.begin(start);
        assert_eq!(history.recent("a", start, &totals(3, 0)).counts.requests, 3);
        history.sample(start, [(&name, totals(3, 0), Standing::Closed)].into_iter());
        assert_eq!(history.samples("a").map(|sample| sample.requests).collect::<Vec<_>>(), [3]);
        history.pause();
        history.sample(start, [(&name, totals(90, 0), Standing::Closed)].into_iter());
        assert_eq!((history.samples("a").count(), history.taken()), (0, 2));
    }

    #[test]
    fn an_upstream_at_rest_holds_nothing_and_gives_back_what_it_held() {
        let start = Instant::now();
        let mut counts = vec![(7, 0); 50];
        let history_at_rest = history(start, &counts);
        assert_eq!((history_at_rest.samples("a").count(), history_at_rest.tracks["a"].marks.len()), (0, 1));
        counts.push((8, 0));
        counts.extend(vec![(8, 0); SAMPLES - 1]);
        assert_eq!(history(start, &counts).samples("a").count(), SAMPLES);
        counts.push((8, 0));
        assert_eq!(history(start, &counts).samples("a").count(), 0);
    }

    #[test]
    fn no_more_samples_are_kept_than_are_shown() {
        let counts: Vec<_> = (0..500).map(|count| (count, 0)).collect();
        let history = history(Instant::now(), &counts);
        assert_eq!(history.samples("a").count(), SAMPLES);
        assert!(history.tracks["a"].marks.len() <= 13);
        // Queues grow by doubling.
        let held = size_of::<Sample>() * SAMPLES.next_power_of_two() + size_of::<(Instant, Totals)>() * 16;
        assert!(held <= 12 << 10, "{held}");
    }

    #[test]
    fn the_last_minute_ends_now_and_a_rate_is_that_of_ten_seconds() {
        let start = Instant::now();
        // Ten in each of 100 seconds, that is fifty a sample.
        let counts: Vec<_> = (0..=20).map(|at| (at * 50, at)).collect();
        let history = history(start, &counts);
        let now = start + Duration::from_secs(102);
        let recent = history.recent("a", now, &totals(1020, 20));
        assert_eq!((recent.counts.requests, recent.counts.failed), (620, 12));
        assert!((recent.requests_per_second - 10.0).abs() < 0.01, "{recent:?}");
        assert_eq!(recent.upstream, Percentiles::default());
        let p50 = recent.app.p50.unwrap();
        assert!((17.0..18.0).contains(&p50), "{p50}");
    }

    #[test]
    fn counters_that_go_back_begin_anew() {
        let start = Instant::now();
        let history = history(start, &[(100, 0), (110, 0), (5, 0), (7, 0)]);
        let shown: Vec<_> = history.samples("a").map(|sample| sample.requests).collect();
        assert_eq!(shown, [10, 2]);
        assert_eq!(history.recent("a", start, &totals(0, 0)), Recent::default());
        assert_eq!(history.recent("a", start + INTERVAL * 3, &totals(8, 0)).counts.requests, 3);
    }

    #[test]
    fn numbers_that_wrap_are_no_step_back() {
        let history = history(Instant::now(), &[(u32::MAX - 1, 0), (3, 0)]);
        assert_eq!(history.samples("a").next().unwrap().requests, 5);
    }

    #[test]
    fn percentiles_are_interpolated_and_end_at_the_last_bound() {
        let buckets = |upto: &[(usize, u32)]| {
            let mut buckets = [0; BUCKETS];
            for (at, count) in upto {
                buckets[*at..].fill(*count);
            }
            buckets
        };
        assert_eq!(percentile(&buckets(&[]), 0.5), None);
        // A hundred, all between 100 and 250 ms.
        assert_eq!(percentile(&buckets(&[(7, 100)]), 0.5), Some(175.0));
        // Ninety within a millisecond, ten over a minute.
        let mixed = buckets(&[(0, 90), (BUCKETS - 1, 100)]);
        assert_eq!((percentile(&mixed, 0.45), percentile(&mixed, 0.95)), (Some(0.5), Some(60_000.0)));
    }
}
