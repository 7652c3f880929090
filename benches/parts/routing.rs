//! From a host and a path to the policies that a request goes by.

use std::hint::black_box;

use http::Method;
use outrigger::origin::Host;

use super::Part;
use super::configuration::{Surroundings, config, host, path, routes, upstreams};

pub fn parts() -> Vec<Part> {
    vec![
        Part::new("routing/upstreams/1", 4_000, || hosts(1)),
        Part::new("routing/upstreams/100", 4_000, || hosts(100)),
        Part::new("routing/upstreams/1000", 4_000, || hosts(1_000)),
        Part::new("routing/routes/1", 4_000, || last_route(1)),
        Part::new("routing/routes/10", 4_000, || last_route(10)),
        Part::new("routing/routes/100", 4_000, || last_route(100)),
    ]
}

/// One upstream after the other.
fn hosts(count: usize) -> impl FnMut() {
    let config = config(&upstreams(count, 80, ""));
    let table = Surroundings::new(&config).table(None, config);
    let hosts: Vec<Host> = (0..count).map(|n| Host::parse(&host(n)).expect("a host")).collect();
    let mut turns = (0..count).cycle();
    move || {
        let host = &hosts[turns.next().expect("it has no end")];
        let upstream = table.find(black_box(host), 80).expect("an upstream has it");
        black_box(upstream.lane(&Method::GET, "/v1/charges"));
    }
}

/// The worst case: the first route that matches is taken, and here it is the last.
fn last_route(count: usize) -> impl FnMut() {
    let config = config(&upstreams(1, 80, &routes(count)));
    let table = Surroundings::new(&config).table(None, config);
    let path = path(count - 1);
    move || {
        let lane = table.upstreams[0].lane(black_box(&Method::POST), black_box(&path));
        assert!(!lane.route.is_empty());
        black_box(lane);
    }
}
