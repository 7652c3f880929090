//! Apps: what they ask, and how they judge what they get.

pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use crate::proxy::Proxy;
use crate::simulation::ledger::{Event, Ledger};
use crate::simulation::network::Network;
use crate::simulation::wire;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) id: u32,
    pub(crate) method: &'static str,
    /// The name of the upstream, and the host that leads there.
    pub(crate) upstream: &'static str,
    /// It carries an idempotency key.
    pub(crate) keyed: bool,
    pub(crate) body: usize,
    /// The body is sent in so many pieces, with a pause between them.
    pub(crate) pieces: usize,
    pub(crate) pause: Duration,
    /// Its length is not told.
    pub(crate) chunked: bool,
    /// In absolute form.
    pub(crate) absolute: bool,
    /// Before it.
    pub(crate) wait: Duration,
    /// The app waits no longer.
    pub(crate) hang_up: Option<Duration>,
    /// The app hangs up after so many bytes of the answer's body.
    pub(crate) enough: Option<u64>,
    /// It pauses so long after each of its first reads.
    pub(crate) slow: Duration,
}

impl Asked {
    pub(crate) fn draw(rng: &mut Rng, id: u32, hang_ups: u32) -> Asked {
        let (method, keyed) = match rng.u32(0..10) {
            0..4 => ("GET", false),
            4..7 => ("POST", false),
            7 => ("POST", true),
            8 => ("PUT", false),
            _ => ("HEAD", false),
        };
        let body = match (method, rng.u32(0..10)) {
            ("GET" | "HEAD", _) => 0,
            (_, 0) => 0,
            (_, 1) => rng.usize(2000..30_000),
            _ => rng.usize(1..1500),
        };
        let upstream = ["one", "one", "two", "three", "three", "free"][rng.usize(0..6)];
        let longest = if rng.bool() { 60 } else { 3000 };
        let hangs_up = rng.u32(0..1000) < hang_ups;
        Asked {
            id,
            method,
            upstream,
            keyed,
            body,
            pieces: if rng.bool() { 1 } else { rng.usize(1..5) },
            pause: Duration::from_millis(if rng.u32(0..20) == 0 { rng.u64(0..2500) } else { rng.u64(0..20) }),
            chunked: rng.u32(0..3) == 0,
            absolute: rng.bool(),
            wait: Duration::from_millis(match rng.u32(0..8) {
                // Some of these find their connection taken for idle, or are there at the very moment.
                0..2 => rng.u64(0..2500),
                2 => rng.u64(450..1100),
                _ => rng.u64(0..40),
            }),
            hang_up: (hangs_up && rng.bool()).then(|| Duration::from_millis(rng.u64(0..longest))),
            enough: (hangs_up && rng.u32(0..3) == 0).then(|| rng.u64(0..3000)),
            slow: Duration::from_millis(if rng.u32(0..30) == 0 { rng.u64(0..500) } else { 0 }),
        }
    }

    pub(crate) fn host(&self) -> String {
        format!("{}.sim", self.upstream)
    }

    pub(crate) fn is_repeatable(&self) -> bool {
        self.keyed || self.method != "POST"
    }

    /// How long the app's own sending takes at most, the network left out.
    fn sending(&self) -> Duration {
        self.pause * self.pieces as u32
    }
}

/// How long anything may take.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    /// `timeouts.request`
    pub(crate) request: Duration,
    /// `timeouts.idle`
    pub(crate) idle: Duration,
    /// What the network and our own rounding add.
    pub(crate) slack: Duration,
}

/// How many reads a slow app pauses after. Behind a network that hands out single bytes it would never end otherwise.
pub(crate) const SLOW_READS: usize = 8;

/// What an app needs.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) network: Network,
    pub(crate) ledger: Ledger,
    pub(crate) patience: Patience,
}

impl Surroundings {
    /// How long a request may go without the head of an answer.
    pub(crate) fn until_head(&self, asked: &Asked) -> Duration {
        let Patience { request, idle, slack } = self.patience;
        // The clocks stand still while a body flows; one that stalls is ended by the idle clock, in each attempt.
        if asked.body == 0 { request + slack } else { request + asked.sending() + idle * 3 + slack }
    }

    pub(crate) fn begins(&self, asked: &Asked) {
        self.ledger.asks(asked.id, asked.upstream, asked.is_repeatable(), format!("{asked:?}"));
    }

    pub(crate) fn ends(&self, id: u32, how: impl Into<String>) {
        self.ledger.note(Event::Ends(id, how.into()));
    }
}

/// An answer as it comes in, judged byte for byte.
pub(crate) struct Judge {
    id: u32,
    ledger: Ledger,
    /// Seed and length of the body that an upstream meant to send; `None`: the proxy's own answer.
    meant: Option<(u32, u64)>,
    got: u64,
    bare: bool,
}

impl Judge {
    /// With a head. `label`: what the upstream says of its answer; `own`: the proxy says that it is its own.
    pub(crate) fn new(asked: &Asked, ledger: &Ledger, status: u16, label: Option<&str>, own: bool) -> Judge {
        ledger.note(Event::Got(asked.id, status));
        let mut judge =
            Judge { id: asked.id, ledger: ledger.clone(), meant: None, got: 0, bare: asked.method == "HEAD" };
        let id = asked.id;
        match label.map(|label| label.split('.').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>()) {
            Some(Some(parts)) if parts.len() == 3 => {
                if parts[0] != u64::from(id) {
                    ledger.violation(format!("request {id} got the answer to {}", parts[0]));
                }
                judge.meant = Some((parts[1] as u32, parts[2]));
            }
            Some(_) => ledger.violation(format!("request {id} got a broken label {label:?}")),
            None if !own => ledger.violation(format!("request {id} got {status} from nobody")),
            None if status < 400 || status == 500 => {
                ledger.violation(format!("request {id} got {status} from the proxy itself"));
            }
            None => {}
        }
        judge
    }

    pub(crate) fn data(&mut self, data: &[u8]) {
        if let Some((seed, length)) = self.meant {
            if !wire::is_body(seed, self.got, data) {
                self.ledger.violation(format!("the answer to {} is wrong from byte {} on", self.id, self.got));
            }
            if self.got + data.len() as u64 > length {
                self.ledger.violation(format!("the answer to {} is longer than it was", self.id));
            }
        }
        self.got += data.len() as u64;
    }

    pub(crate) fn got(&self) -> u64 {
        self.got
    }

    /// The answer is complete, by its framing.
    pub(crate) fn complete(&self) {
        if let Some((_, length)) = self.meant
            && !self.bare
            && self.got != length
        {
            let (id, got) = (self.id, self.got);
            self.ledger.violation(format!("the answer to {id} ended well after {got} of {length} bytes"));
        }
    }
}
