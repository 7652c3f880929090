//! The time that the parts take: `cargo bench --bench times [FILTER]`. See benches/README.md.
#![allow(clippy::expect_used, reason = "a benchmark that cannot go on panics")]
#![allow(missing_docs, unreachable_pub, reason = "a program")]

mod parts;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for part in parts::all() {
        // What is seldom counted takes long.
        criterion = criterion.sample_size(if part.times < 10 { 10 } else { 50 });
        criterion.bench_function(part.name, |bencher| {
            let mut act = part.set_up();
            bencher.iter(&mut act);
        });
    }
    criterion.final_summary();
}
