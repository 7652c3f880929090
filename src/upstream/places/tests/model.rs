//! The pool against a plain list of connections and a plain list of who waits. Dials fail or turn out to speak either
//! protocol, connections close, age and grow room, callers leave, the pool retires, time stands still or jumps.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Ask {
        lane: usize,
        fresh: bool,
    },
    Leave(usize),
    DialEnds {
        nth: usize,
        makes: Makes,
    },
    Finish {
        nth: usize,
        clean: bool,
    },
    Close(usize),
    /// SETTINGS come: so many streams.
    Settle {
        nth: usize,
        room: usize,
    },
    Wait(u64),
    Sweep,
    Retire,
}

#[derive(Clone, Debug)]
enum Makes {
    Nothing,
    /// Seconds that it may live.
    Solo(Option<u64>),
    Multi {
        room: usize,
        settled: bool,
        lives: Option<u64>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let lives = || prop::option::weighted(0.3, (1..8_u64).prop_map(|times| times * 5));
    let makes = prop_oneof![
        1 => Just(Makes::Nothing),
        3 => lives().prop_map(Makes::Solo),
        3 => (1..4_usize, prop::bool::weighted(0.7), lives())
            .prop_map(|(room, settled, lives)| Makes::Multi { room, settled, lives }),
    ];
    prop_oneof![
        8 => (0..3_usize, prop::bool::weighted(0.1)).prop_map(|(lane, fresh)| Step::Ask { lane, fresh }),
        2 => (0..6_usize).prop_map(Step::Leave),
        6 => (0..6_usize, makes).prop_map(|(nth, makes)| Step::DialEnds { nth, makes }),
        6 => (0..6_usize, prop::bool::weighted(0.8)).prop_map(|(nth, clean)| Step::Finish { nth, clean }),
        1 => (0..6_usize).prop_map(Step::Close),
        1 => (0..6_usize, 1..4_usize).prop_map(|(nth, room)| Step::Settle { nth, room }),
        2 => prop::sample::select(vec![0, 1, 5, 10, 15, 7_200]).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
        1 => prop::bool::weighted(0.1).prop_map(|retire| if retire { Step::Retire } else { Step::Sweep }),
    ]
}

const LANES: [&str; 3] = ["a", "b", "plain"];
const IDLE: Duration = Duration::from_secs(15);

struct Connection {
    link: Fake,
    lane: usize,
    multi: Option<u64>,
    /// Requests that it carries.
    carries: usize,
    used: bool,
    since: Instant,
    expires: Option<Instant>,
}

impl Connection {
    fn ends(&self) -> Instant {
        self.expires.map_or(self.since + IDLE, |expires| expires.min(self.since + IDLE))
    }

    /// May carry one more request.
    fn is_free(&self, now: Instant, retired: bool) -> bool {
        let room = if self.multi.is_some() { self.link.0.room.get() } else { 1 };
        let old = self.expires.is_some_and(|expires| now >= expires);
        // A retired pool uses up what carries something, and begins nothing.
        let over = self.carries == 0 && (retired || now >= self.since + IDLE);
        !self.link.0.closed.get() && !old && !over && self.carries < room
    }
}

struct Waits {
    who: u32,
    lane: usize,
    ticket: u64,
    fresh: bool,
    told: bool,
}

/// One who is served: the lane, the connection, and its expiry as the pool gave it.
type Held = (usize, Grant<Fake, Fake>);

struct Model {
    story: Story,
    keys: Vec<Arc<Key>>,
    max: usize,
    max_idle: usize,
    connections: Vec<Connection>,
    dials: Vec<usize>,
    line: Vec<Waits>,
    held: Vec<Held>,
    /// The first of each lane who could count on no connection before this step, with its ticket.
    blocked: Vec<(usize, u64)>,
    retired: bool,
}

type Checked = Result<(), TestCaseError>;

fn number(grant: &Grant<Fake, Fake>) -> u32 {
    match grant {
        Grant::Solo { link, .. } | Grant::Stream { link, .. } => link.0.number,
    }
}

impl Model {
    fn new(max: usize, max_idle: usize, keep_lanes: bool) -> Model {
        let mut story = Story::new(max, max_idle, Speaks::Unknown);
        let limits = Limits { max, max_idle, idle_timeout: Some(IDLE), keep_lanes };
        story.places = Places::new(limits);
        let lane = |name| {
            let Key { origin, server, .. } = &*key(name);
            Arc::new(Key::new(origin.clone(), server.clone(), name == "plain"))
        };
        let keys = LANES.map(lane).to_vec();
        Model {
            story,
            keys,
            max,
            max_idle,
            connections: Vec::new(),
            dials: Vec::new(),
            line: Vec::new(),
            held: Vec::new(),
            blocked: Vec::new(),
            retired: false,
        }
    }

    fn first_blocked(&self, lane: usize) -> Option<u64> {
        let mut line = self.line.iter().filter(|waits| waits.lane == lane);
        line.nth(self.covered(lane)).map(|waits| waits.ticket)
    }

    fn lane_of(&self, key: &Arc<Key>) -> usize {
        self.keys.iter().position(|other| other == key).unwrap()
    }

    /// Checks that the connection may be given to a request, and counts it.
    fn granted(&mut self, lane: usize, grant: Grant<Fake, Fake>, made_now: Option<u32>) -> Checked {
        let (now, number) = (self.story.now, number(&grant));
        let connection = self.connections.iter_mut().find(|connection| connection.link.0.number == number);
        let Some(connection) = connection else { return Err(TestCaseError::fail("a closed connection is given away")) };
        prop_assert_eq!(connection.lane, lane, "a connection to somewhere else");
        let reused = match &grant {
            Grant::Solo { reused, .. } | Grant::Stream { reused, .. } => *reused,
        };
        prop_assert_eq!(reused, connection.used);
        // One that was made just now is given to who asked for it, whatever has become of it.
        prop_assert!(connection.is_free(now, self.retired) || (made_now == Some(number) && connection.carries == 0));
        connection.carries += 1;
        connection.used = true;
        self.held.push((lane, grant));
        Ok(())
    }

    fn act(&mut self, step: Step) -> Checked {
        let now = self.story.now;
        self.blocked = (0..LANES.len()).filter_map(|lane| Some((lane, self.first_blocked(lane)?))).collect();
        let mut made = None;
        let mut gave_back = None;
        match step {
            Step::Ask { lane, fresh } => {
                let key = self.keys[lane].clone();
                let who = self.line.iter().map(|waits| waits.who + 1).max().unwrap_or_default();
                match if fresh { None } else { self.story.take(&key) } {
                    Some(grant) => {
                        prop_assert!(
                            self.line.iter().all(|waits| waits.lane != lane || waits.fresh),
                            "jumped the line"
                        );
                        self.granted(lane, grant, None)?;
                    }
                    None => {
                        let free =
                            self.connections.iter().any(|other| other.lane == lane && other.is_free(now, self.retired));
                        prop_assert!(fresh || !free, "a free connection is not used");
                        // Before the effects: it may be granted at once.
                        let ticket = self.story.places.tickets + 1;
                        self.line.push(Waits { who, lane, ticket, fresh, told: false });
                        self.story.speaks = first_guess(&key, HttpVersion::Auto);
                        prop_assert_eq!(self.story.wait_for(&key, who, fresh), ticket);
                    }
                }
            }
            Step::Leave(nth) if !self.line.is_empty() => {
                let left = self.line.remove(nth % self.line.len());
                self.story.places.leave(&self.keys[left.lane], left.ticket, &mut self.story.fx);
            }
            Step::DialEnds { nth, makes } if !self.dials.is_empty() => {
                let nth = nth % self.dials.len();
                let lane = self.dials[nth];
                let counted = self.covered(lane);
                self.dials.remove(nth);
                let waiting = self.line.iter().filter(|waits| waits.lane == lane).count();
                let lost = waiting.min(counted).saturating_sub(self.covered(lane));
                let key = self.keys[lane].clone();
                let number = self.story.places.tickets as u32 * 100 + self.connections.len() as u32 + 1;
                let number = self.connections.iter().map(|other| other.link.0.number + 1).max().unwrap_or(number);
                let connection = |link: Fake, multi, lives: Option<u64>| Connection {
                    link,
                    lane,
                    multi,
                    carries: 0,
                    used: false,
                    since: now,
                    expires: lives.map(|lives| now + Duration::from_secs(lives)),
                };
                made = Some(number);
                match makes {
                    Makes::Nothing => {
                        let error = Error::Connect { failure: ConnectFailure::Refused, detail: String::new() };
                        self.story.places.dial_failed(&key, &error, &mut self.story.fx);
                        prop_assert_eq!(self.story.fx.failed.len(), lost, "those who counted on it, and no others");
                    }
                    Makes::Multi { room, settled, lives } if LANES[lane] != "plain" => {
                        let link = Fake::new(number, room);
                        link.0.settled.set(settled);
                        let id = self.story.places.members + 1;
                        let connection = connection(link.clone(), Some(id), lives);
                        let expires = connection.expires;
                        self.connections.push(connection);
                        self.story.places.dialled_multi(&key, link, expires, now, &mut self.story.fx);
                    }
                    Makes::Solo(lives) | Makes::Multi { lives, .. } => {
                        let link = Fake::new(number, 0);
                        let connection = connection(link.clone(), None, lives);
                        let expires = connection.expires;
                        self.connections.push(connection);
                        self.story.places.dialled_solo(&key, link, expires, now, &mut self.story.fx);
                    }
                }
            }
            Step::Finish { nth, clean } if !self.held.is_empty() => {
                let (lane, grant) = self.held.remove(nth % self.held.len());
                let (key, number) = (self.keys[lane].clone(), number(&grant));
                let at = self.connections.iter().position(|other| other.link.0.number == number).unwrap();
                self.connections[at].carries -= 1;
                if self.connections[at].carries == 0 {
                    self.connections[at].since = now;
                }
                gave_back = Some(number);
                let fx = &mut self.story.fx;
                match grant {
                    Grant::Solo { link, expires, .. } if clean => {
                        prop_assert_eq!(expires, self.connections[at].expires);
                        self.story.places.give_back(&key, link, expires, now, fx);
                    }
                    Grant::Solo { .. } => {
                        self.connections.remove(at);
                        self.story.places.closed(&key, fx);
                    }
                    Grant::Stream { id, .. } => {
                        prop_assert_eq!(Some(id), self.connections[at].multi);
                        self.story.places.stream_ended(&key, id, now, fx);
                    }
                }
            }
            Step::Close(nth) if !self.connections.is_empty() => {
                let connection = &self.connections[nth % self.connections.len()];
                connection.link.0.closed.set(true);
                let key = &self.keys[connection.lane];
                match connection.multi {
                    None => self.story.places.reap(key, &mut self.story.fx),
                    Some(_) => self.story.places.shared_changed(key, now, &mut self.story.fx),
                }
            }
            Step::Settle { nth, room } => {
                let multis: Vec<&Connection> = self.connections.iter().filter(|other| other.multi.is_some()).collect();
                if let Some(connection) = multis.get(nth % multis.len().max(1)) {
                    connection.link.0.settled.set(true);
                    connection.link.0.room.set(room);
                    let key = &self.keys[connection.lane];
                    self.story.places.shared_changed(key, now, &mut self.story.fx);
                }
            }
            Step::Wait(seconds) => self.story.now += Duration::from_secs(seconds),
            Step::Sweep => {
                let next = self.story.places.expire(now, &mut self.story.fx);
                self.effects(made, gave_back)?;
                let ends = self.connections.iter().filter(|other| other.carries == 0).map(Connection::ends).min();
                prop_assert_eq!(next, ends);
                prop_assert!(ends.is_none_or(|ends| ends > now));
            }
            Step::Retire => {
                self.retired = true;
                self.story.places.retire(&mut self.story.fx);
            }
            Step::Leave(_) | Step::DialEnds { .. } | Step::Finish { .. } | Step::Close(_) => {}
        }
        self.effects(made, gave_back)?;
        self.holds()
    }

    /// What was decided: to whom, and whether it was theirs.
    fn effects(&mut self, made: Option<u32>, gave_back: Option<u32>) -> Checked {
        let now = self.story.now;
        let Effects { granted, failed, told, dials, solos, multis } = std::mem::take(&mut self.story.fx);
        for (who, grant) in granted {
            let at = self.line.iter().position(|waits| waits.who == who);
            let Some(at) = at else { return Err(TestCaseError::fail("granted to one who has gone")) };
            let waits = self.line.remove(at);
            let earlier: Vec<&Waits> = self.line[..at].iter().filter(|other| other.lane == waits.lane).collect();
            let number = number(&grant);
            let (new, solo) = (made == Some(number), matches!(&grant, Grant::Solo { .. }));
            prop_assert!(!waits.fresh || new, "an old connection for one who wants a new one");
            let fair = match (new, solo) {
                (true, true) => earlier.is_empty(),
                // A shared one: whoever insists on a new connection first.
                (true, false) => earlier.iter().all(|other| other.fresh || waits.fresh),
                (false, _) => earlier.iter().all(|other| other.fresh),
            };
            prop_assert!(fair, "jumped the line");
            let first = self.connections.iter().any(|other| other.link.0.number == number && !other.used);
            let insists = self.line.iter().any(|other| other.lane == waits.lane && other.fresh);
            prop_assert!(
                !(new && !solo && first && insists) || waits.fresh,
                "who insists on a new connection is passed over"
            );
            // A place belongs to who waits longest, whatever its lane; streams are beside places.
            let older = self.blocked.iter().any(|(lane, ticket)| *lane != waits.lane && *ticket < waits.ticket);
            prop_assert!(new || !solo || !older, "a place is given to one who came later");
            self.granted(waits.lane, grant, made)?;
        }
        for (who, _) in failed {
            let at = self.line.iter().position(|waits| waits.who == who).unwrap();
            let lane = self.line.remove(at).lane;
            prop_assert!(self.line[..at].iter().all(|other| other.lane != lane), "not the first in its line failed");
        }
        let mut evicted = Vec::new();
        for link in solos.into_iter().chain(multis) {
            let at = self.connections.iter().position(|other| other.link.0.number == link.0.number);
            let Some(at) = at else { return Err(TestCaseError::fail("closed twice")) };
            let connection = self.connections.remove(at);
            prop_assert_eq!(connection.carries, 0, "a connection is closed under a request");
            if connection.is_free(now, self.retired) && gave_back != Some(link.0.number) {
                evicted.push(connection.since);
            }
        }
        // What had to go though it was good was used least recently.
        if let Some(latest) = evicted.into_iter().max() {
            let kept = self.connections.iter().filter(|other| other.carries == 0 && other.is_free(now, self.retired));
            prop_assert!(kept.map(|other| other.since).all(|since| since >= latest), "not the least recently used");
        }
        let dials: Vec<usize> = dials.iter().map(|(key, _)| self.lane_of(key)).collect();
        self.dials.extend(dials);
        for who in told {
            if let Some(waits) = self.line.iter_mut().find(|waits| waits.who == who) {
                prop_assert!(!waits.told, "told twice");
                waits.told = true;
            }
        }
        Ok(())
    }

    /// How many of a lane can count on a connection that is being made.
    fn covered(&self, lane: usize) -> usize {
        let dials = self.dials.iter().filter(|other| **other == lane).count();
        let Some(known) = self.story.places.lanes.get(&self.keys[lane]) else { return 0 };
        let fresh = self.line.iter().any(|waits| waits.lane == lane && waits.fresh);
        let unsettled = self.connections.iter().any(|other| {
            other.lane == lane && other.multi.is_some() && !other.link.0.settled.get() && !other.link.0.closed.get()
        });
        match known.speaks {
            _ if unsettled && !fresh => usize::MAX,
            Speaks::Unknown => {
                if dials > 0 {
                    usize::MAX
                } else {
                    0
                }
            }
            Speaks::Http1 => dials,
            Speaks::Http2 => dials * known.room,
        }
    }

    /// What must hold whenever nothing is being decided.
    fn holds(&self) -> Checked {
        let now = self.story.now;
        let idle = self.connections.iter().filter(|other| other.carries == 0).count();
        let census = Census { active: self.connections.len() - idle, idle, connecting: self.dials.len() };
        prop_assert_eq!(self.story.places.census(), census);
        let open = self.connections.len() + self.dials.len();
        prop_assert!(open <= self.max);
        prop_assert!(idle <= self.max_idle);
        prop_assert!(!self.retired || self.connections.iter().all(|other| other.carries > 0 || other.multi.is_some()));
        prop_assert_eq!(self.story.places.has_idle(), idle > 0);
        for (lane, key) in self.keys.iter().enumerate() {
            let line: Vec<&Waits> = self.line.iter().filter(|waits| waits.lane == lane).collect();
            let free = self.connections.iter().any(|other| other.lane == lane && other.is_free(now, self.retired));
            prop_assert!(!free || line.iter().all(|waits| waits.fresh), "somebody waits beside a free connection");
            let covered = self.covered(lane);
            prop_assert!(line.iter().take(covered).all(|waits| waits.told), "connecting, and not told");
            if line.len() > covered {
                prop_assert!(open == self.max && idle == 0, "somebody waits though there is a place");
            }
            let empty = line.is_empty()
                && !self.dials.contains(&lane)
                && self.connections.iter().all(|other| other.lane != lane);
            if empty && !self.story.places.limits.keep_lanes {
                prop_assert!(!self.story.places.lanes.contains_key(key), "a lane that is empty is kept");
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(crate::policy::crowd::cases())]

    #[test]
    fn the_pool_gives_shares_and_closes_connections_as_a_plain_list_would(
        steps in prop::collection::vec(step(), 1..120),
        max in 1..5_usize,
        max_idle in 1..4_usize,
        keep_lanes in any::<bool>(),
    ) {
        let mut model = Model::new(max, max_idle, keep_lanes);
        for step in steps {
            model.act(step)?;
        }
        // And at the end nothing is left: who waits is served, and what idles goes.
        for _ in 0..400 {
            model.act(Step::DialEnds { nth: 0, makes: Makes::Solo(None) })?;
            model.act(Step::Finish { nth: 0, clean: true })?;
        }
        prop_assert!(model.line.is_empty() && model.held.is_empty() && model.dials.is_empty());
        model.act(Step::Wait(100))?;
        model.act(Step::Sweep)?;
        prop_assert_eq!(model.story.places.open, 0);
    }
}
