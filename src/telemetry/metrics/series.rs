//! Counters, gauges and histograms, and the families that hold them by their labels: small, since there are some fifty for
//! each upstream, whether it is called or not.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::BOUNDS;

/// Between the values of a key. Names, routes and statuses have none, so keys sort as their values do.
const BETWEEN: char = '\0';

/// Only ever grows.
#[derive(Clone, Default)]
pub(in crate::telemetry) struct IntCounter(Arc<AtomicU64>);

impl IntCounter {
    pub(in crate::telemetry) fn inc(&self) {
        self.inc_by(1);
    }

    pub(in crate::telemetry) fn inc_by(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(in crate::telemetry) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down.
#[derive(Clone, Default)]
pub(in crate::telemetry) struct IntGauge(Arc<AtomicI64>);

impl IntGauge {
    pub(in crate::telemetry) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::telemetry) fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(in crate::telemetry) fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(in crate::telemetry) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A point in time, in seconds of the Unix epoch.
#[derive(Clone, Default)]
pub(in crate::telemetry) struct Timestamp(Arc<AtomicU64>);

impl Timestamp {
    pub(in crate::telemetry) fn set(&self, seconds: f64) {
        self.0.store(seconds.to_bits(), Ordering::Relaxed);
    }
}

/// How many observations were at most so long, for each of [`BOUNDS`].
#[derive(Clone, Default)]
pub(in crate::telemetry) struct Histogram(Arc<Observed>);

#[derive(Default)]
struct Observed {
    /// Each observation is in one of them; the last has no bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// Seconds, as the bits of a float.
    sum: AtomicU64,
}

impl Histogram {
    pub(in crate::telemetry) fn observe(&self, seconds: f64) {
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.0.buckets[at].fetch_add(1, Ordering::Relaxed);
        let add = |sum: u64| Some((f64::from_bits(sum) + seconds).to_bits());
        // It never fails, since there is always a new sum.
        let _ = self.0.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// How many took at most so long; the last number is that of all.
    pub(in crate::telemetry) fn cumulative(&self) -> [u64; BOUNDS.len() + 1] {
        let mut sum = 0;
        std::array::from_fn(|at| {
            sum += self.0.buckets[at].load(Ordering::Relaxed);
            sum
        })
    }
}

/// What a family has one of for each of its labels' values.
pub(in crate::telemetry) trait Series: Clone + Default + Send + Sync + 'static {
    /// As the exposition format calls it.
    const TYPE: &'static str;

    /// Writes its lines. `labels` is without braces.
    fn write(&self, out: &mut String, name: &str, labels: &str);
}

impl Series for IntCounter {
    const TYPE: &'static str = "counter";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        line(out, name, labels, self.get());
    }
}

impl Series for IntGauge {
    const TYPE: &'static str = "gauge";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        line(out, name, labels, self.get());
    }
}

impl Series for Timestamp {
    const TYPE: &'static str = "gauge";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        line(out, name, labels, f64::from_bits(self.0.load(Ordering::Relaxed)));
    }
}

impl Series for Histogram {
    const TYPE: &'static str = "histogram";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let counts = self.cumulative();
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in BOUNDS.iter().zip(counts) {
            // Writing to a text can't fail.
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
        }
        let all = counts[BOUNDS.len()];
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {all}");
        for (what, value) in [("sum", f64::from_bits(self.0.sum.load(Ordering::Relaxed))), ("count", all as f64)] {
            out.push_str(name);
            out.push('_');
            line(out, what, labels, value);
        }
    }
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = match labels {
        "" => writeln!(out, "{name} {value}"),
        labels => writeln!(out, "{name}{{{labels}}} {value}"),
    };
}

/// All series of one name.
pub(in crate::telemetry) struct Family<S> {
    name: String,
    help: &'static str,
    /// As callers give their values.
    labels: &'static [&'static str],
    /// Which of them is shown first, second, …: by name.
    order: Vec<usize>,
    /// By the values, in the order in which they are shown.
    series: RwLock<BTreeMap<Box<str>, S>>,
}

impl<S: Series> Family<S> {
    pub(super) fn new(name: &str, help: &'static str, labels: &'static [&'static str]) -> Family<S> {
        let mut order: Vec<usize> = (0..labels.len()).collect();
        order.sort_unstable_by_key(|at| labels[*at]);
        Family { name: format!("outrigger_{name}"), help, labels, order, series: RwLock::default() }
    }

    /// The series of these labels, one for each of the family's. It begins with nothing.
    pub(in crate::telemetry) fn with_label_values(&self, values: &[&str]) -> S {
        let key = self.key(values);
        if let Some(known) = self.series.read().unwrap_or_else(PoisonError::into_inner).get(&*key) {
            return known.clone();
        }
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        series.entry(key.into_boxed_str()).or_default().clone()
    }

    /// The series of these labels is shown no longer; `None`: there was none.
    pub(in crate::telemetry) fn remove_label_values(&self, values: &[&str]) -> Option<S> {
        let key = self.key(values);
        if !self.series.read().unwrap_or_else(PoisonError::into_inner).contains_key(&*key) {
            return None;
        }
        self.series.write().unwrap_or_else(PoisonError::into_inner).remove(&*key)
    }

    /// Removes every series whose `upstream` and `route` (empty where it has none) are not to be kept.
    pub(super) fn retain(&self, keep: &dyn Fn(&str, &str) -> bool) {
        let place = |label: &str| self.order.iter().position(|at| self.labels[*at] == label);
        let (upstream, route) = (place("upstream"), place("route"));
        self.series.write().unwrap_or_else(PoisonError::into_inner).retain(|key, _| {
            let value = |place: Option<usize>| place.and_then(|at| key.split(BETWEEN).nth(at)).unwrap_or_default();
            keep(value(upstream), value(route))
        });
    }

    fn key(&self, values: &[&str]) -> String {
        let mut key = String::with_capacity(values.iter().map(|value| value.len() + 1).sum());
        for (place, at) in self.order.iter().enumerate() {
            if place > 0 {
                key.push(BETWEEN);
            }
            key.push_str(values.get(*at).copied().unwrap_or_default());
        }
        key
    }
}

/// A family of any kind, as a scrape sees it.
pub(in crate::telemetry) trait Shown: Send + Sync {
    fn name(&self) -> &str;

    /// Appends it in the text exposition format. Without series it shows nothing.
    fn write(&self, out: &mut String);
}

impl<S: Series> Shown for Family<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn write(&self, out: &mut String) {
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        if series.is_empty() {
            return;
        }
        // Writing to a text can't fail.
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {} {}", self.name, self.help, self.name, S::TYPE);
        let mut labels = String::new();
        for (key, one) in series.iter() {
            labels.clear();
            for (at, value) in self.order.iter().zip(key.split(BETWEEN)) {
                let comma = if labels.is_empty() { "" } else { "," };
                let _ = write!(labels, "{comma}{}=\"", self.labels[*at]);
                escape(&mut labels, value);
                labels.push('"');
            }
            one.write(out, &self.name, &labels);
        }
    }
}

fn escape(out: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<S: Series>(family: &Family<S>) -> String {
        let mut out = String::new();
        family.write(&mut out);
        out
    }

    #[test]
    fn series_are_shown_by_their_labels_in_the_order_of_the_alphabet() {
        let family: Family<IntCounter> = Family::new("x_total", "What.", &["upstream", "reason"]);
        assert_eq!(shown(&family), "");
        family.with_label_values(&["b", "one"]).inc();
        family.with_label_values(&["a", "two"]).inc_by(7);
        family.with_label_values(&["a", "two"]).inc();
        family.with_label_values(&["a\"\\\n", "two"]);
        let expected = "# HELP outrigger_x_total What.\n# TYPE outrigger_x_total counter\n\
            outrigger_x_total{reason=\"one\",upstream=\"b\"} 1\n\
            outrigger_x_total{reason=\"two\",upstream=\"a\"} 8\n\
            outrigger_x_total{reason=\"two\",upstream=\"a\\\"\\\\\\n\"} 0\n";
        assert_eq!(shown(&family), expected);
    }

    #[test]
    fn what_is_not_kept_and_what_is_removed_is_not_shown() {
        let family: Family<IntGauge> = Family::new("x", "What.", &["upstream", "route"]);
        for (upstream, route) in [("a", ""), ("a", "r"), ("b", "")] {
            family.with_label_values(&[upstream, route]).set(-3);
        }
        family.retain(&|upstream, route| upstream == "a" && route == "r" || upstream == "b");
        assert!(family.remove_label_values(&["b", ""]).is_some() && family.remove_label_values(&["b", ""]).is_none());
        let lines = shown(&family);
        assert_eq!(lines.lines().skip(2).collect::<Vec<_>>(), [r#"outrigger_x{route="r",upstream="a"} -3"#]);
    }

    #[test]
    fn an_observation_is_in_the_first_bucket_that_holds_it_and_in_all_above() {
        let family: Family<Histogram> = Family::new("x_seconds", "What.", &["upstream"]);
        let histogram = family.with_label_values(&["a"]);
        for seconds in [0.001, 0.0011, 59.0, 61.0] {
            histogram.observe(seconds);
        }
        let text = shown(&family);
        for line in [
            r#"outrigger_x_seconds_bucket{upstream="a",le="0.001"} 1"#,
            r#"outrigger_x_seconds_bucket{upstream="a",le="0.0025"} 2"#,
            r#"outrigger_x_seconds_bucket{upstream="a",le="30"} 2"#,
            r#"outrigger_x_seconds_bucket{upstream="a",le="60"} 3"#,
            r#"outrigger_x_seconds_bucket{upstream="a",le="+Inf"} 4"#,
            r#"outrigger_x_seconds_sum{upstream="a"} 120.0021"#,
            r#"outrigger_x_seconds_count{upstream="a"} 4"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }
}
