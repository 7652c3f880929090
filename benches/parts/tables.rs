//! A configuration made live. Listeners and files are left out.

use std::hint::black_box;
use std::sync::Arc;

use super::Part;
use super::configuration::{Surroundings, config, upstreams};

const UPSTREAMS: usize = 1_000;

pub fn parts() -> Vec<Part> {
    vec![
        Part::new("table/first/1000", 2, first),
        Part::new("table/evolve/1000", 2, evolve),
        Part::new("table/reload/1000", 1, reload),
    ]
}

/// As at the start.
fn first() -> impl FnMut() {
    let config = config(&upstreams(UPSTREAMS, 80, ""));
    move || {
        black_box(Surroundings::new(&config).table(None, config.clone()));
    }
}

/// In the place of one that is the same: all state is carried over.
fn evolve() -> impl FnMut() {
    let config = config(&upstreams(UPSTREAMS, 80, ""));
    let around = Surroundings::new(&config);
    let mut table = around.table(None, config.clone());
    move || table = around.table(Some(&table), config.clone())
}

/// From the text, as a reload does it.
fn reload() -> impl FnMut() {
    let text: Arc<str> = upstreams(UPSTREAMS, 80, "").into();
    let first = config(&text);
    let around = Surroundings::new(&first);
    let mut table = around.table(None, first);
    move || table = around.table(Some(&table), config(&text))
}
