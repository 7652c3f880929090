//! The pool's decisions as stories, and at random.

mod model;

use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::config::HttpVersion;
use crate::error::ConnectFailure;
use crate::origin::Scheme;

#[derive(Clone, Debug)]
struct Fake(Rc<FakeState>);

#[derive(Debug)]
struct FakeState {
    number: u32,
    closed: Cell<bool>,
    room: Cell<usize>,
    settled: Cell<bool>,
}

impl Fake {
    fn new(number: u32, room: usize) -> Fake {
        Fake(Rc::new(FakeState { number, closed: Cell::new(false), room: Cell::new(room), settled: Cell::new(true) }))
    }
}

impl Solo for Fake {
    fn is_closed(&self) -> bool {
        self.0.closed.get()
    }
}

impl Multi for Fake {
    fn is_closed(&self) -> bool {
        self.0.closed.get()
    }

    fn room(&self) -> usize {
        self.0.room.get()
    }

    fn is_settled(&self) -> bool {
        self.0.settled.get()
    }
}

type Fx = Effects<Fake, Fake, u32>;

fn key(name: &str) -> Arc<Key> {
    let host = Host::parse(name).unwrap();
    Arc::new(Key::new(Origin { scheme: Scheme::Https, host: host.clone(), port: 443 }, host, false))
}

/// The core with its effects, so that a test reads as a story.
struct Story {
    places: Places<Fake, Fake, u32>,
    fx: Fx,
    now: Instant,
    speaks: Speaks,
}

impl Story {
    fn new(max: usize, max_idle: usize, speaks: Speaks) -> Story {
        let idle_timeout = Some(Duration::from_secs(15));
        let places = Places::new(Limits { max, max_idle, idle_timeout, keep_lanes: false });
        Story { places, fx: Fx::default(), now: Instant::now(), speaks }
    }

    fn take(&mut self, key: &Arc<Key>) -> Option<Grant<Fake, Fake>> {
        self.places.take(key, self.now, &mut self.fx)
    }

    fn wait(&mut self, key: &Arc<Key>, who: u32) -> u64 {
        self.wait_for(key, who, false)
    }

    fn wait_for(&mut self, key: &Arc<Key>, who: u32, fresh: bool) -> u64 {
        let want = Want { speaks: self.speaks, fresh, limit: None };
        self.places.wait(key, want, who, &mut self.fx)
    }

    fn dialled(&mut self, key: &Arc<Key>, number: u32) -> Fake {
        let fake = Fake::new(number, 0);
        self.places.dialled_solo(key, fake.clone(), None, self.now, &mut self.fx);
        fake
    }

    fn shared(&mut self, key: &Arc<Key>, number: u32, room: usize) -> Fake {
        let fake = Fake::new(number, room);
        self.places.dialled_multi(key, fake.clone(), None, self.now, &mut self.fx);
        fake
    }

    fn give_back(&mut self, key: &Arc<Key>, link: Fake) {
        self.places.give_back(key, link, None, self.now, &mut self.fx);
    }

    fn dials(&mut self) -> usize {
        std::mem::take(&mut self.fx.dials).len()
    }

    /// Who was granted what, since last asked.
    fn granted(&mut self) -> Vec<(u32, u32)> {
        let number = |grant: &Grant<Fake, Fake>| match grant {
            Grant::Solo { link, .. } | Grant::Stream { link, .. } => link.0.number,
        };
        std::mem::take(&mut self.fx.granted).iter().map(|(who, grant)| (*who, number(grant))).collect()
    }

    fn closed(&mut self) -> Vec<u32> {
        let links = std::mem::take(&mut self.fx.solos).into_iter().chain(std::mem::take(&mut self.fx.multis));
        links.map(|link| link.0.number).collect()
    }
}

#[test]
fn the_line_is_first_in_first_out() {
    let (mut story, a) = (Story::new(1, 9, Speaks::Http1), key("a"));
    for who in 0..4 {
        story.wait(&a, who);
    }
    assert_eq!(story.dials(), 1);
    let link = story.dialled(&a, 7);
    for who in 0..4 {
        assert_eq!(story.granted(), [(who, 7)]);
        story.give_back(&a, link.clone());
    }
    assert_eq!(story.places.census(), Census { active: 0, idle: 1, connecting: 0 });
}

#[test]
fn a_connection_that_becomes_free_serves_one_whose_dial_goes_on() {
    let (mut story, a) = (Story::new(9, 9, Speaks::Http1), key("a"));
    story.wait(&a, 0);
    let first = story.dialled(&a, 1);
    story.wait(&a, 1);
    assert_eq!(story.dials(), 2);
    story.granted();
    story.give_back(&a, first);
    assert_eq!(story.granted(), [(1, 1)]);
    story.dialled(&a, 2);
    assert!(story.granted().is_empty());
    assert_eq!(story.places.census(), Census { active: 1, idle: 1, connecting: 0 });
}

#[test]
fn an_idle_connection_of_another_lane_makes_room_at_the_cap() {
    let (mut story, a, b) = (Story::new(2, 9, Speaks::Http1), key("a"), key("b"));
    let links = [1, 2].map(|number| {
        story.wait(&a, number);
        story.dialled(&a, number)
    });
    for link in links {
        story.now += Duration::from_secs(1);
        story.give_back(&a, link);
    }
    story.dials();
    story.wait(&b, 9);
    assert_eq!(story.closed(), [1], "the least recently used one");
    assert_eq!(story.fx.dials[0].0, b);
    assert_eq!(story.places.open, 2);
}

#[test]
fn who_waits_longest_gets_the_place_whatever_its_lane() {
    let (mut story, a, b) = (Story::new(1, 9, Speaks::Http1), key("a"), key("b"));
    story.wait(&a, 0);
    let link = story.dialled(&a, 1);
    story.wait(&b, 1);
    story.wait(&a, 2);
    story.granted();
    story.dials();
    story.give_back(&a, link);
    assert_eq!(story.closed(), [1]);
    assert_eq!(story.fx.dials[0].0, b);
}

#[test]
fn one_that_leaves_does_not_hold_up_the_line() {
    let (mut story, a) = (Story::new(1, 9, Speaks::Http1), key("a"));
    story.wait(&a, 0);
    let ticket = story.wait(&a, 1);
    story.wait(&a, 2);
    let link = story.dialled(&a, 1);
    story.places.leave(&a, ticket, &mut story.fx);
    story.granted();
    story.give_back(&a, link);
    assert_eq!(story.granted(), [(2, 1)]);
}

#[test]
fn who_inherits_a_dial_from_one_that_left_is_told_that_it_is_connecting() {
    let (mut story, a) = (Story::new(1, 9, Speaks::Http1), key("a"));
    let ticket = story.wait(&a, 0);
    story.wait(&a, 1);
    assert_eq!(std::mem::take(&mut story.fx.told), [0]);
    story.places.leave(&a, ticket, &mut story.fx);
    assert_eq!(story.fx.told, [1]);
}

#[test]
fn one_dial_is_made_where_http2_is_possible_and_the_rest_when_it_is_not() {
    let (mut story, a) = (Story::new(99, 99, Speaks::Unknown), key("a"));
    for who in 0..10 {
        story.wait(&a, who);
    }
    assert_eq!(story.dials(), 1);
    assert_eq!(story.fx.told.len(), 10);
    story.dialled(&a, 1);
    assert_eq!(story.dials(), 9);
}

#[test]
fn streams_are_shared_and_another_connection_is_dialled_for_the_rest() {
    let (mut story, a) = (Story::new(99, 99, Speaks::Unknown), key("a"));
    for who in 0..7 {
        story.wait(&a, who);
    }
    story.dials();
    let first = story.shared(&a, 1, 3);
    assert_eq!(story.granted(), [(0, 1), (1, 1), (2, 1)]);
    story.places.shared_changed(&a, story.now, &mut story.fx);
    assert_eq!(story.dials(), 2, "four who wait, three to a connection");
    first.0.closed.set(true);
    for _ in 0..3 {
        let now = story.now;
        story.places.stream_ended(&a, 1, now, &mut story.fx);
    }
    assert_eq!(story.closed(), [1]);
}

#[test]
fn unsettled_connections_are_not_doubled() {
    let (mut story, a) = (Story::new(99, 99, Speaks::Http2), key("a"));
    story.wait(&a, 0);
    story.wait(&a, 1);
    story.dials();
    let link = Fake::new(1, 1);
    link.0.settled.set(false);
    story.places.dialled_multi(&a, link.clone(), None, story.now, &mut story.fx);
    assert_eq!((story.granted().len(), story.dials()), (1, 0));
    link.0.settled.set(true);
    link.0.room.set(100);
    story.places.shared_changed(&a, story.now, &mut story.fx);
    assert_eq!((story.granted().len(), story.dials()), (1, 0));
}

#[test]
fn a_failed_dial_fails_one_of_many_or_all_who_shared_it() {
    let error = Error::Connect { failure: ConnectFailure::Refused, detail: String::new() };
    for (speaks, failed) in [(Speaks::Http1, 1), (Speaks::Unknown, 5)] {
        let (mut story, a) = (Story::new(99, 99, speaks), key("a"));
        for who in 0..5 {
            story.wait(&a, who);
        }
        story.places.dial_failed(&a, &error, &mut story.fx);
        assert_eq!(story.fx.failed.len(), failed);
    }
}

#[test]
fn a_fresh_one_takes_none_that_was_used() {
    let (mut story, a) = (Story::new(9, 9, Speaks::Http1), key("a"));
    story.wait(&a, 0);
    let link = story.dialled(&a, 1);
    story.wait_for(&a, 1, true);
    story.granted();
    story.give_back(&a, link);
    assert!(story.granted().is_empty());
    story.dialled(&a, 2);
    assert_eq!(story.granted(), [(1, 2)]);
}

#[test]
fn idle_and_old_connections_go() {
    let (mut story, a) = (Story::new(9, 9, Speaks::Http1), key("a"));
    story.wait(&a, 0);
    let link = story.dialled(&a, 1);
    story.give_back(&a, link);
    let next = story.places.expire(story.now, &mut story.fx).unwrap();
    assert_eq!(next, story.now + Duration::from_secs(15));
    story.now = next;
    assert!(story.take(&a).is_none());
    assert_eq!(story.closed(), [1]);

    story.wait(&a, 0);
    let old = Fake::new(2, 0);
    let expires = Some(story.now + Duration::from_secs(10));
    story.places.dialled_solo(&a, old.clone(), expires, story.now, &mut story.fx);
    story.now += Duration::from_secs(10);
    story.places.give_back(&a, old, expires, story.now, &mut story.fx);
    assert_eq!(story.closed(), [2]);
    assert_eq!(story.places.open, 0);
}

#[test]
fn no_more_idle_ones_are_kept_than_asked_for() {
    let (mut story, a) = (Story::new(9, 2, Speaks::Http1), key("a"));
    let links: Vec<Fake> = (0..4)
        .map(|number| {
            story.wait(&a, number);
            story.dialled(&a, number)
        })
        .collect();
    for link in links {
        story.now += Duration::from_millis(1);
        story.give_back(&a, link);
    }
    assert_eq!(story.closed(), [0, 1]);
    assert_eq!(story.places.census(), Census { active: 0, idle: 2, connecting: 0 });
}

#[test]
fn what_a_lane_speaks_is_guessed_from_scheme_and_settings() {
    let a = key("a");
    assert_eq!(first_guess(&a, HttpVersion::Auto), Speaks::Unknown);
    assert_eq!(first_guess(&Key::new(a.origin.clone(), a.server.clone(), true), HttpVersion::Auto), Speaks::Http1);
    assert_eq!(first_guess(&a, HttpVersion::Http2), Speaks::Http2);
}

/// One step of a random story.
#[derive(Clone, Debug)]
enum Step {
    Ask { lane: usize, fresh: bool },
    Leave(usize),
    DialDone { nth: usize, ok: bool, shared: bool },
    Finish { nth: usize, clean: bool },
    Close(usize),
    Tick(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..3_usize, prop::bool::weighted(0.1)).prop_map(|(lane, fresh)| Step::Ask { lane, fresh }),
        1 => (0..9_usize).prop_map(Step::Leave),
        4 => (0..9_usize, prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(nth, ok, shared)| Step::DialDone { nth, ok, shared }),
        4 => (0..9_usize, prop::bool::weighted(0.8)).prop_map(|(nth, clean)| Step::Finish { nth, clean }),
        1 => (0..9_usize).prop_map(Step::Close),
        1 => (0..20_u64).prop_map(Step::Tick),
    ]
}

proptest! {
    /// Whatever happens, the cap holds, nobody is forgotten, and at the end nothing is left.
    #[test]
    fn places_add_up(steps in prop::collection::vec(step(), 1..200), max in 1..5_usize) {
        let mut story = Story::new(max, 3, Speaks::Unknown);
        let lanes = [key("a"), key("b"), key("c")];
        let mut tickets: Vec<(u32, usize, u64)> = Vec::new();
        let mut dials: Vec<Arc<Key>> = Vec::new();
        let mut held: Vec<(Arc<Key>, Grant<Fake, Fake>)> = Vec::new();
        let mut links: Vec<Fake> = Vec::new();
        let mut who_lane: HashMap<u32, usize> = HashMap::new();
        let (mut who, mut number) = (0, 0);
        let error = Error::Connect { failure: ConnectFailure::Refused, detail: String::new() };
        let drain = 400;
        for at in 0..steps.len() + drain {
            let step = steps.get(at).cloned().unwrap_or(match at % 3 {
                0 => Step::DialDone { nth: 0, ok: true, shared: false },
                1 => Step::Finish { nth: 0, clean: true },
                _ => Step::Tick(1),
            });
            let now = story.now;
            match step {
                Step::Ask { lane, fresh } => {
                    let taken = if fresh { None } else { story.take(&lanes[lane]) };
                    match taken {
                        Some(grant) => held.push((lanes[lane].clone(), grant)),
                        None => {
                            who += 1;
                            who_lane.insert(who, lane);
                            let ticket = story.wait_for(&lanes[lane], who, fresh);
                            tickets.push((who, lane, ticket));
                        }
                    }
                }
                Step::Leave(nth) => {
                    if nth < tickets.len() {
                        let (_, lane, ticket) = tickets.remove(nth);
                        story.places.leave(&lanes[lane], ticket, &mut story.fx);
                    }
                }
                Step::DialDone { nth, ok, shared } => {
                    if !dials.is_empty() {
                        let key = dials.remove(nth % dials.len());
                        number += 1;
                        let fake = Fake::new(number, 2);
                        match (ok, shared) {
                            (false, _) => story.places.dial_failed(&key, &error, &mut story.fx),
                            (true, true) => {
                                links.push(fake.clone());
                                story.places.dialled_multi(&key, fake, None, now, &mut story.fx);
                            }
                            (true, false) => {
                                links.push(fake.clone());
                                story.places.dialled_solo(&key, fake, None, now, &mut story.fx);
                            }
                        }
                    }
                }
                Step::Finish { nth, clean } => {
                    if !held.is_empty() {
                        let (key, grant) = held.remove(nth % held.len());
                        match grant {
                            Grant::Solo { link, expires, .. } if clean => {
                                story.places.give_back(&key, link, expires, now, &mut story.fx);
                            }
                            Grant::Solo { .. } => story.places.closed(&key, &mut story.fx),
                            Grant::Stream { id, .. } => story.places.stream_ended(&key, id, now, &mut story.fx),
                        }
                    }
                }
                Step::Close(nth) => {
                    if let Some(link) = links.get(nth) {
                        link.0.closed.set(true);
                        for lane in &lanes {
                            story.places.reap(lane, &mut story.fx);
                            story.places.shared_changed(lane, now, &mut story.fx);
                        }
                    }
                }
                Step::Tick(seconds) => {
                    story.now += Duration::from_secs(seconds);
                    story.places.expire(story.now, &mut story.fx);
                }
            }
            for (who, grant) in std::mem::take(&mut story.fx.granted) {
                tickets.retain(|(other, ..)| *other != who);
                held.push((lanes[who_lane[&who]].clone(), grant));
            }
            for (who, _) in std::mem::take(&mut story.fx.failed) {
                tickets.retain(|(other, ..)| *other != who);
            }
            dials.extend(std::mem::take(&mut story.fx.dials).into_iter().map(|(key, _)| key));
            story.closed();
            let census = story.places.census();
            prop_assert!(story.places.open <= max);
            prop_assert_eq!(census.connecting, dials.len());
            prop_assert_eq!(story.places.waiting, tickets.len());
            prop_assert_eq!(census.active + census.idle + census.connecting, story.places.open);
            if !tickets.is_empty() {
                prop_assert!(!dials.is_empty() || !held.is_empty(), "somebody waits for nothing");
            }
        }
        story.now += Duration::from_secs(100);
        story.places.expire(story.now, &mut story.fx);
        prop_assert!(tickets.is_empty());
        prop_assert_eq!(story.places.open, 0);
        prop_assert!(story.places.lanes.is_empty());
    }
}
