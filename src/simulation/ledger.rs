//! What everybody saw: the log of a run, and the promises that are checked against it as it grows and at its end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::shared::Shared;
use crate::simulation::stream::Tap;
use crate::simulation::wire::{self, Item, Reader};
use crate::telemetry::report::CircuitState;
use crate::upstream::table::Table;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The proxy asks for a name.
    Lookup(String, &'static str),
    /// The proxy dials an address.
    Dial(String, String),
    /// The first bytes of a request went into a connection: (request, connection).
    Sent(u32, u32),
    /// An upstream has a request's head, and what it makes of it.
    Delivered(u32, u32, String),
    /// The proxy has read the head of the answer.
    Answered(u32, u16),
    /// The proxy closed a connection.
    Closed(u32),
    /// An app begins a request.
    Asks(u32, String),
    /// An app has the head of an answer: (request, status).
    Got(u32, u16),
    /// How a request ended for its app.
    Ends(u32, String),
    /// A circuit changed.
    Circuit(String, CircuitState),
    /// What the director did.
    Directs(String),
    /// A step of the run itself.
    Note(&'static str),
}

/// The largest values of the configurations that a run uses.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// `retry.max_attempts`
    pub(crate) attempts: usize,
    /// `circuit_breaker.half_open_requests`
    pub(crate) probes: usize,
    /// `concurrency.max_in_flight`, by upstream.
    pub(crate) in_flight: BTreeMap<String, usize>,
    /// `rate_limit`, by upstream: burst, tokens a second, and how long one that has its token may wait to be sent.
    pub(crate) tokens: BTreeMap<String, (f64, f64, Duration)>,
    /// `retry.budget`, by upstream: ratio and floor a second.
    pub(crate) budget: BTreeMap<String, (f64, f64)>,
}

/// A request as its app means it.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// It may be repeated.
    repeatable: bool,
    upstream: String,
    sendings: Vec<Sending>,
}

/// One time that it went into a connection.
#[derive(Debug)]
struct Sending {
    connection: u32,
    at: Instant,
    /// The connection had carried a request before.
    reused: bool,
    /// Over HTTP/2: the upstream refused the stream.
    refused: bool,
    /// The proxy has read a byte of the answer.
    answer_began: bool,
    /// The proxy has the head of the answer, or closed the connection.
    settled: bool,
    http1: bool,
    /// The generation of the half-open circuit that it went through.
    probe: Option<u64>,
}

/// Shared by everybody in a run.
#[derive(Clone)]
pub(crate) struct Ledger(Arc<Mutex<Book>>);

/// What is in it.
pub(crate) struct Book {
    start: Instant,
    /// Milliseconds, event.
    pub(crate) events: Vec<(u64, Event)>,
    pub(crate) violations: Vec<String>,
    requests: BTreeMap<u32, Entry>,
    bounds: Bounds,
    table: Option<Arc<Shared<Table>>>,
    /// By upstream: state, generation, since when it is known.
    circuits: BTreeMap<String, (CircuitState, u64, Instant)>,
    /// Connections to upstreams that the proxy holds.
    pub(crate) open: usize,
    connections: u32,
    pub(crate) drain_over: bool,
}

impl Ledger {
    pub(crate) fn new(bounds: Bounds) -> Ledger {
        Ledger(Arc::new(Mutex::new(Book {
            start: Instant::now(),
            events: Vec::new(),
            violations: Vec::new(),
            requests: BTreeMap::new(),
            bounds,
            table: None,
            circuits: BTreeMap::new(),
            open: 0,
            connections: 0,
            drain_over: false,
        })))
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose circuits are watched.
    pub(crate) fn watch(&self, table: Arc<Shared<Table>>) {
        self.book().table = Some(table);
    }

    pub(crate) fn note(&self, event: Event) {
        self.book().note(event);
    }

    /// A promise was broken.
    pub(crate) fn violation(&self, what: String) {
        self.book().violation(what);
    }

    /// An app is about to ask.
    pub(crate) fn asks(&self, id: u32, upstream: &str, repeatable: bool, what: String) {
        let mut book = self.book();
        let upstream = upstream.to_owned();
        book.requests.insert(id, Entry { repeatable, upstream, sendings: Vec::new() });
        book.note(Event::Asks(id, what));
    }

    /// A connection was made; its number.
    pub(crate) fn connected(&self) -> u32 {
        let mut book = self.book();
        book.open += 1;
        book.connections += 1;
        book.connections
    }

    /// The proxy closed a connection.
    pub(crate) fn closed(&self, connection: u32) {
        let mut book = self.book();
        book.open -= 1;
        for entry in book.requests.values_mut() {
            entry
                .sendings
                .iter_mut()
                .filter(|sending| sending.connection == connection)
                .for_each(|it| it.settled = true);
        }
        book.note(Event::Closed(connection));
    }

    /// A request's first bytes were taken by a socket (HTTP/1), or its head has come (HTTP/2).
    pub(crate) fn sent(&self, id: u32, connection: u32, reused: bool, http1: bool, refused: bool) {
        let mut book = self.book();
        let now = Instant::now();
        book.note(Event::Sent(id, connection));
        let Some(entry) = book.requests.get(&id) else {
            return book.violation(format!("an upstream got a request {id} that nobody asked for"));
        };
        let upstream = entry.upstream.clone();
        let mut probe = None;
        if http1 && let Some((state, generation, since)) = book.circuits.get(&upstream).copied() {
            match state {
                CircuitState::Open if since < now => {
                    book.violation(format!("request {id} was sent to {upstream} while its circuit was open"));
                }
                CircuitState::Open | CircuitState::Closed => {}
                CircuitState::HalfOpen => probe = Some(generation),
            }
        }
        let sending =
            Sending { connection, at: now, reused, refused, answer_began: false, settled: false, http1, probe };
        if let Some(entry) = book.requests.get_mut(&id) {
            entry.sendings.push(sending);
        }
        book.check_sending(id, &upstream, probe);
    }

    /// The proxy read a byte of the answer on this connection.
    pub(crate) fn answer_began(&self, id: u32, connection: u32) {
        let mut book = self.book();
        book.with_sending(id, connection, |sending| sending.answer_began = true);
    }

    /// The proxy has the head of the answer.
    pub(crate) fn answered(&self, id: u32, connection: u32, status: u16) {
        let mut book = self.book();
        book.with_sending(id, connection, |sending| sending.settled = true);
        book.note(Event::Answered(id, status));
    }
}

impl Book {
    fn with_sending(&mut self, id: u32, connection: u32, act: impl FnOnce(&mut Sending)) {
        let entry = self.requests.get_mut(&id);
        if let Some(sending) = entry.and_then(|it| it.sendings.iter_mut().rfind(|it| it.connection == connection)) {
            act(sending);
        }
    }

    /// An upstream got it, or a part of it.
    pub(crate) fn was_sent(&self, id: u32) -> bool {
        self.requests.get(&id).is_some_and(|entry| !entry.sendings.is_empty())
    }

    /// Nobody's circuits any more.
    pub(crate) fn unwatch(&mut self) {
        self.table = None;
    }

    fn millis(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub(crate) fn note(&mut self, event: Event) {
        let at = self.millis();
        self.look_at_circuits(at);
        self.events.push((at, event));
    }

    pub(crate) fn violation(&mut self, what: String) {
        let at = self.millis();
        self.violations.push(format!("at {at} ms: {what}"));
    }

    fn look_at_circuits(&mut self, at: u64) {
        let Some(table) = &self.table else { return };
        let now = Instant::now();
        for upstream in &table.load().upstreams {
            let Some((state, generation)) = upstream.lane.policies.circuit(now) else { continue };
            match self.circuits.get_mut(&*upstream.name) {
                Some(known) if (known.0, known.1) == (state, generation) => {}
                Some(known) => {
                    *known = (state, generation, now);
                    self.events.push((at, Event::Circuit(upstream.name.to_string(), state)));
                }
                None => {
                    self.circuits.insert(upstream.name.to_string(), (state, generation, now));
                }
            }
        }
    }

    fn check_sending(&mut self, id: u32, upstream: &str, probe: Option<u64>) {
        let entry = &self.requests[&id];
        let delivered = entry.sendings.iter().filter(|sending| !sending.refused).count();
        if !entry.repeatable && delivered > 1 {
            self.violation(format!("request {id} is not repeatable and was sent {delivered} times"));
        }
        let http1 = |sending: &&Sending| sending.http1 && !sending.settled;
        let of_it = || self.requests.values().filter(|entry| entry.upstream == upstream);
        let under_way = of_it().flat_map(|entry| &entry.sendings).filter(http1).count();
        let probes = of_it()
            .flat_map(|entry| &entry.sendings)
            .filter(http1)
            .filter(|sending| probe.is_some() && sending.probe == probe)
            .count();
        if probes > self.bounds.probes {
            self.violation(format!("{probes} probes are under way to {upstream} at once"));
        }
        if let Some(most) = self.bounds.in_flight.get(upstream)
            && under_way > *most
        {
            self.violation(format!("{under_way} requests are in flight to {upstream}, which allows {most}"));
        }
    }

    /// What can be judged only at the end.
    pub(crate) fn audit(&mut self) {
        let mut wrong = Vec::new();
        for (id, entry) in &self.requests {
            // A kept connection that closed before a byte of the answer is replaced for free, also where the upstream's refusal was
            // lost with it.
            let moment = |at: Instant| at.duration_since(self.start).as_millis() as u64;
            let lost = |pair: &[Sending]| {
                let between = moment(pair[0].at)..=moment(pair[1].at);
                let closed = |event: &Event| matches!(event, Event::Closed(which) if *which == pair[0].connection);
                self.events.iter().any(|(when, event)| between.contains(when) && closed(event))
            };
            let free = |pair: &&[Sending]| pair[0].reused && !pair[0].answer_began && (!pair[0].refused || lost(pair));
            let free = entry.sendings.windows(2).filter(free).count();
            let made = entry.sendings.len() - free;
            if made > self.bounds.attempts {
                wrong.push(format!("request {id} was sent {made} times, not counting {free} for free"));
            }
        }
        let duration = self.start.elapsed().as_secs_f64();
        for (upstream, (ratio, floor)) in &self.bounds.budget {
            let of_it = || self.requests.values().filter(|entry| entry.upstream == *upstream);
            let free = |pair: &&[Sending]| pair[0].reused && !pair[0].answer_began && !pair[0].refused;
            let retries: usize = of_it()
                .map(|entry| entry.sendings.len().saturating_sub(1) - entry.sendings.windows(2).filter(free).count())
                .sum();
            let windows = (duration / 10.0).floor() + 1.0;
            let allowed = ratio * 2.0 * of_it().count() as f64 + floor * 10.0 * windows;
            if retries as f64 > allowed {
                wrong.push(format!("{retries} retries to {upstream}, where the budget allows {allowed}"));
            }
        }
        for (upstream, (burst, rate, delay)) in &self.bounds.tokens {
            let of_it = self.requests.values().filter(|entry| entry.upstream == *upstream);
            let free = |index: usize, sendings: &[Sending]| {
                index > 0 && {
                    let before = &sendings[index - 1];
                    before.reused && !before.answer_began
                }
            };
            let mut times: Vec<Instant> = of_it
                .flat_map(|entry| {
                    entry.sendings.iter().enumerate().filter(|(at, _)| !free(*at, &entry.sendings)).map(|(_, it)| it.at)
                })
                .collect();
            times.sort();
            for (first, from) in times.iter().enumerate() {
                for (last, to) in times.iter().enumerate().skip(first) {
                    let sent = (last - first + 1) as f64;
                    let span = (*to - *from + *delay).as_secs_f64();
                    if sent > burst + rate * span + 1.0 {
                        wrong.push(format!("{sent} requests went to {upstream} within {span} s, past its rate limit"));
                    }
                }
            }
        }
        wrong.into_iter().for_each(|what| self.violation(what));
    }
}

/// Reads along on an HTTP/1.1 connection to an upstream.
pub(crate) struct Http1Tap {
    ledger: Ledger,
    connection: u32,
    requests: Reader,
    answers: Reader,
    current: Option<u32>,
    served: u32,
    lost: bool,
}

impl Http1Tap {
    pub(crate) fn new(ledger: Ledger, connection: u32) -> Http1Tap {
        let (requests, answers) = (Reader::requests(), Reader::answers());
        Http1Tap { ledger, connection, requests, answers, current: None, served: 0, lost: false }
    }

    fn sent(&mut self, id: u32) {
        if self.current != Some(id) {
            self.current = Some(id);
            self.ledger.sent(id, self.connection, self.served > 0, true, false);
        }
    }
}

impl Tap for Http1Tap {
    fn wrote(&mut self, bytes: &[u8]) {
        self.requests.push(bytes);
        loop {
            match self.requests.next() {
                Ok(Some(Item::Head(head))) => {
                    self.answers.expect(head.first.split(' ').next().unwrap_or(""));
                    match head.id() {
                        Some(id) => self.sent(id),
                        None => self.ledger.violation(format!("the proxy sent {head:?}")),
                    }
                }
                Ok(Some(Item::Data(_))) => {}
                Ok(Some(Item::End)) => self.served += 1,
                Ok(None) => break,
                Err(what) => return self.ledger.violation(format!("the proxy sent what is no request: {what}")),
            }
        }
        if let Some(id) = wire::id_in(self.requests.partial_head()) {
            self.sent(id);
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let Some(id) = self.current else { return };
        self.ledger.answer_began(id, self.connection);
        if self.lost {
            return;
        }
        self.answers.push(bytes);
        loop {
            match self.answers.next() {
                Ok(Some(Item::Head(head))) if head.status() >= 200 => {
                    self.ledger.answered(id, self.connection, head.status());
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    self.lost = true;
                    break;
                }
            }
        }
    }

    fn closed(&mut self) {
        self.ledger.closed(self.connection);
    }
}

/// Counts a connection that is not read along.
pub(crate) struct Counted(pub(crate) Ledger, pub(crate) u32);

impl Tap for Counted {
    fn wrote(&mut self, _: &[u8]) {}

    fn read(&mut self, _: &[u8]) {}

    fn closed(&mut self) {
        self.0.closed(self.1);
    }
}
