//! The simulated network: names, addresses, what becomes of a dial, and every connection's weather, all by chance from one
//! seed.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::proxy::Entry;
use crate::proxy::Proxy;
use crate::proxy::listener::{self, Door};
use crate::simulation::ledger::{Counted, Event, Http1Tap, Ledger};
use crate::simulation::stream::{self, Cable, Fate, Simulated, Tap, Weather};
use crate::simulation::upstream;
use crate::tcp::Tcp;
use crate::upstream::dns::{Answer, Lookup, LookupError, LookupFuture};
use crate::upstream::eyeballs::{Dial, DialFuture};

/// Where the proxy listens.
const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 255, 0, 1)), 7171);
/// What is behind this port gives back what it gets.
pub(crate) const ECHO: u16 = 7777;
/// What is behind this port speaks HTTP/2.
pub(crate) const HTTP2: u16 = 8080;

/// The machines, by their first address; others of theirs follow it.
const MACHINES: &[(&str, u8)] =
    &[("one-a.sim", 1), ("one-b.sim", 2), ("two.sim", 3), ("three.sim", 4), ("free.sim", 5), ("one.sim", 6)];

/// How rough it is: chances in a thousand.
#[derive(Clone, Debug)]
pub(crate) struct Mood {
    /// That a dial, a connection, a look-up or an answer goes wrong.
    pub(crate) faults: u32,
    /// That an upstream's answer is an error.
    pub(crate) errors: u32,
    /// Longest one-way delay in milliseconds.
    pub(crate) delay: u64,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Network {
    state: Arc<Mutex<State>>,
    pub(crate) ledger: Ledger,
    pub(crate) mood: Mood,
}

struct State {
    rng: Rng,
    machines: BTreeMap<u8, Machine>,
    tasks: Vec<AbortHandle>,
}

#[derive(Default)]
struct Machine {
    /// Dials are refused.
    down: bool,
    partitioned_until: Option<Instant>,
    cables: Vec<Cable>,
}

impl Network {
    pub(crate) fn new(rng: Rng, ledger: Ledger, mood: Mood) -> Network {
        let machines = MACHINES.iter().map(|(_, number)| (*number, Machine::default())).collect();
        Network { state: Arc::new(Mutex::new(State { rng, machines, tasks: Vec::new() })), ledger, mood }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task of the simulated world, which ends with it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = tokio::spawn(task).abort_handle();
        self.lock().tasks.push(handle);
    }

    /// The end of the world outside of the proxy.
    pub(crate) fn end(&self) {
        let tasks = std::mem::take(&mut self.lock().tasks);
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Randomness of somebody's own.
    pub(crate) fn fork(&self) -> Rng {
        self.lock().rng.fork()
    }

    /// A machine stops: its connections are reset and dials refused; or it is there again.
    pub(crate) fn set_down(&self, machine: u8, down: bool) {
        let cables = {
            let mut state = self.lock();
            let Some(machine) = state.machines.get_mut(&machine) else { return };
            machine.down = down;
            if down { std::mem::take(&mut machine.cables) } else { Vec::new() }
        };
        cables.iter().for_each(Cable::reset);
    }

    /// Nothing reaches a machine, or comes from it, for a while.
    pub(crate) fn partition(&self, machine: u8, lasts: Duration) {
        let until = Instant::now() + lasts;
        let cables = {
            let mut state = self.lock();
            let Some(machine) = state.machines.get_mut(&machine) else { return };
            machine.partitioned_until = Some(until);
            machine.cables.clone()
        };
        cables.iter().for_each(|cable| cable.partition(until));
    }

    /// An app's connection to the proxy; true: nothing will befall it.
    pub(crate) fn to_proxy(&self, proxy: &Arc<Proxy>, number: u16) -> (Simulated, bool) {
        let (rng, up, down, fair) = {
            let mut state = self.lock();
            let unlucky = state.rng.u32(0..1000) < self.mood.faults / 2;
            let up = weather(&mut state.rng, &self.mood, unlucky, false);
            let down = weather(&mut state.rng, &self.mood, unlucky, false);
            (state.rng.fork(), up, down, !unlucky)
        };
        let app = SocketAddr::new(Ipv4Addr::new(10, 1, (number >> 8) as u8, number as u8).into(), 40_000);
        let (app, theirs, _) = stream::pair([app, PROXY], [up, down], rng, None);
        listener::admit(Tcp::Simulated(theirs), &Door::Plain(Entry::Any), &Arc::default(), proxy);
        (app, fair)
    }

    async fn connect(self, address: SocketAddr) -> io::Result<Tcp> {
        let number = last(address.ip());
        let (fate, delay) = {
            let mut state = self.lock();
            let delay = state.rng.u64(0..=self.mood.delay);
            let unlucky = state.rng.u32(0..1000) < self.mood.faults;
            let fate = match state.machines.get(&number) {
                None => Err(io::ErrorKind::HostUnreachable),
                Some(machine) if machine.down => Err(io::ErrorKind::ConnectionRefused),
                Some(_) if !unlucky => Ok(Duration::ZERO),
                Some(_) => match state.rng.u32(0..5) {
                    0 => Err(io::ErrorKind::ConnectionRefused),
                    1 => Err(io::ErrorKind::TimedOut),
                    2 => Ok(Duration::from_secs(60)),
                    3 => Err(io::ErrorKind::ConnectionReset),
                    _ => Ok(Duration::from_millis(state.rng.u64(0..1500))),
                },
            };
            (fate, delay)
        };
        self.ledger.note(Event::Dial(address.to_string(), format!("{fate:?}")));
        if delay > 0 {
            sleep(Duration::from_millis(delay)).await;
        }
        let slow = fate?;
        if !slow.is_zero() {
            sleep(slow).await;
        }
        let until = self.lock().machines.get(&number).and_then(|machine| machine.partitioned_until);
        if let Some(until) = until.filter(|until| *until > Instant::now()) {
            sleep_until(until).await;
        }
        let connection = self.ledger.connected();
        let http2 = address.port() == HTTP2;
        let (ours, theirs, whole) = {
            let mut state = self.lock();
            let unlucky = state.rng.u32(0..1000) < self.mood.faults * 2;
            let up = weather(&mut state.rng, &self.mood, unlucky, true);
            let down = weather(&mut state.rng, &self.mood, unlucky, true);
            let whole = down.write == 0 && down.read == 0 && down.window == Weather::fair().window;
            let rng = state.rng.fork();
            let tap: Box<dyn Tap> = if http2 || address.port() == ECHO {
                Box::new(Counted(self.ledger.clone(), connection))
            } else {
                Box::new(Http1Tap::new(self.ledger.clone(), connection))
            };
            let local = SocketAddr::new(Ipv4Addr::new(10, 255, 0, 1).into(), 50_000);
            let (ours, theirs, cable) = stream::pair([local, address], [up, down], rng, Some(tap));
            if let Some(machine) = state.machines.get_mut(&number) {
                machine.cables.push(cable);
            }
            (ours, theirs, whole)
        };
        let world = self.clone();
        let rng = self.fork();
        match address.port() {
            ECHO => self.spawn(upstream::echo(theirs)),
            HTTP2 => self.spawn(upstream::http2::serve(theirs, world, rng, connection)),
            _ => self.spawn(upstream::http1::serve(theirs, world, rng, connection, whole)),
        }
        Ok(Tcp::Simulated(ours))
    }
}

fn weather(rng: &mut Rng, mood: &Mood, unlucky: bool, upstream: bool) -> Weather {
    let mut weather = Weather::fair();
    weather.latency = Duration::from_millis(rng.u64(0..=mood.delay));
    if rng.u32(0..4) == 0 {
        weather.jitter = rng.u64(0..=mood.delay);
    }
    match rng.u32(0..12) {
        0 => weather.write = rng.usize(1..60),
        1 => weather.read = rng.usize(1..60),
        2 => weather.window = rng.usize(300..4000),
        3 if rng.u32(0..4) == 0 => weather.read = 1,
        _ => {}
    }
    if unlucky {
        // Most bytes that matter are early ones.
        let at = if rng.bool() { rng.u64(0..400) } else { rng.u64(0..6000) };
        let fate = match rng.u32(0..4) {
            0 => Fate::Vanish,
            1 if upstream => Fate::End,
            _ => Fate::Reset,
        };
        weather.fate = Some((at, fate));
    }
    weather
}

fn last(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    }
}

impl Dial for Network {
    fn dial(&self, address: SocketAddr) -> DialFuture {
        Box::pin(self.clone().connect(address))
    }
}

impl Lookup for Network {
    fn lookup(&self, name: &str) -> LookupFuture {
        let name = name.to_owned();
        let (delay, answer, what) = {
            let mut state = self.lock();
            let rng = &mut state.rng;
            let unlucky = rng.u32(0..1000) < self.mood.faults;
            let mut delay = rng.u64(0..=self.mood.delay);
            let number = MACHINES.iter().find(|(other, _)| *other == name).map(|(_, number)| *number);
            let (answer, what) = match (number, unlucky, rng.u32(0..5)) {
                (None, ..) => (Err(LookupError::NoAddress("no such name".into())), "nothing"),
                (_, true, 0) => (Err(LookupError::Failed("server failure".into())), "a failure"),
                (_, true, 1) => (Err(LookupError::NoAddress("no such name".into())), "nothing"),
                (_, true, 2) => {
                    delay = 5000;
                    (Err(LookupError::TimedOut("no answer".into())), "silence")
                }
                (Some(number), unlucky, chance) => {
                    if unlucky {
                        delay += rng.u64(0..2000);
                    }
                    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::new(10, 0, 0, number).into()];
                    if chance == 1 {
                        addresses.push(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into());
                    }
                    if chance == 2 && unlucky {
                        // Nobody is there.
                        addresses.insert(0, Ipv4Addr::new(10, 0, 0, 99).into());
                    }
                    let ttl = Duration::from_millis(rng.u64(0..4000));
                    (Ok(Answer { addresses, ttl }), "addresses")
                }
            };
            (delay, answer, what)
        };
        self.ledger.note(Event::Lookup(name, what));
        Box::pin(async move {
            if delay > 0 {
                sleep(Duration::from_millis(delay)).await;
            }
            answer
        })
    }
}
