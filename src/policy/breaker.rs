//! The circuit breaker. *Closed* lets traffic through and counts; *open* refuses it; *half-open* lets a few probes through.
//!
//! It opens after so many failures in a row, or at a share of failures over a window. Only what the upstream did counts;
//! everything else is neutral, and a neutral probe gives its place back. Each permit remembers the generation it was issued
//! in, so that a late result cannot flip a newer state.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::document::Reader;
use crate::error::Error;
use crate::policy::classify::Events;
use crate::policy::window::Window;
use crate::telemetry::report::{CircuitState, LaneReport};
use crate::units::Ratio;

/// `circuit_breaker`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This many failures in a row open the circuit.
    pub consecutive_failures: Option<NonZeroU32>,
    /// So does this share of failures.
    pub failure_rate: Option<FailureRate>,
    /// What counts as a failure.
    pub failures: Events,
    /// An attempt without response headers by then is a failure.
    pub slow_after: Option<Duration>,
    /// How long the first opening lasts; doubles for each failed probe.
    pub open_for: Duration,
    /// The longest opening.
    pub max_open_for: Duration,
    /// How many probes may be under way at once.
    pub half_open_requests: NonZeroU32,
}

/// `circuit_breaker.failure_rate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureRate {
    /// The share at which the circuit opens.
    pub threshold: Ratio,
    /// Over this long.
    pub window: Duration,
    /// And at least so many attempts.
    pub min_requests: NonZeroU32,
}

impl Settings {
    /// Reads the block.
    pub fn read(reader: &mut Reader<'_>) -> Settings {
        Settings {
            consecutive_failures: reader.count_or_off("consecutive_failures"),
            failure_rate: reader.block("failure_rate", |reader| FailureRate {
                threshold: reader.ratio("threshold"),
                window: reader.duration("window"),
                min_requests: reader.count("min_requests", "`failure_rate: off` switches the rate off"),
            }),
            failures: Events::read(reader, "failures"),
            slow_after: reader.clock("slow_after"),
            open_for: reader.duration("open_for"),
            max_open_for: reader.duration("max_open_for"),
            half_open_requests: reader.count("half_open_requests", "`circuit_breaker: off` switches the breaker off"),
        }
    }
}

/// What an operator ordered by `POST /api/upstreams/NAME/circuit`. Survives a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Override {
    /// The breaker decides.
    Auto,
    /// Held open.
    Open,
    /// Held closed.
    Closed,
}

/// What an attempt says about the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An answer below 400: a row of failures ends.
    Success,
    /// Another answer that is not in `failures`, or a tunnel's connection: closes a half-open circuit, else says nothing.
    Passing,
    /// In `failures`, or too slow.
    Failure,
    /// Not the upstream's doing.
    Neutral,
}

/// A probe that is not heard of for this long no longer keeps its place. Clocks settle probes much earlier; this is for
/// lanes that have them all off.
const PROBE_LIFETIME: Duration = Duration::from_secs(300);

/// The breaker of a lane.
pub struct Breaker {
    state: Mutex<State>,
    report: Arc<LaneReport>,
}

struct State {
    settings: Settings,
    mode: Mode,
    /// Goes up with each change of mode.
    generation: u64,
    /// Failures in a row.
    consecutive: u32,
    window: Window,
    manual: Override,
}

enum Mode {
    Closed,
    /// `failed_probes` since it was last closed.
    Open {
        until: Instant,
        failed_probes: u32,
    },
    /// When each probe that is under way began.
    HalfOpen {
        probes: Vec<Instant>,
        failed_probes: u32,
    },
}

/// A change to be reported once the lock is released.
type Change = Option<(CircuitState, Option<Duration>)>;

impl Breaker {
    /// A closed one.
    pub fn new(settings: Settings, report: Arc<LaneReport>, now: Instant) -> Arc<Breaker> {
        let span = settings.failure_rate.as_ref().map_or(Duration::from_secs(10), |rate| rate.window);
        let state = State {
            settings,
            mode: Mode::Closed,
            generation: 0,
            consecutive: 0,
            window: Window::new(span, now),
            manual: Override::Auto,
        };
        Arc::new(Breaker { state: Mutex::new(state), report })
    }

    /// A reload changed the settings: its state, its probes and a manual override live on; a window of another
    /// span begins empty.
    pub fn reconfigure(&self, settings: &Settings, now: Instant) {
        let mut state = self.lock();
        if let Some(rate) = &settings.failure_rate
            && rate.window != state.window.span()
        {
            state.window = Window::new(rate.window, now);
        }
        state.settings = settings.clone();
    }

    /// Asks to send an attempt.
    ///
    /// # Errors
    /// [`Error::CircuitOpen`] with the time to the next probe (1 s where it is not known).
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Permit, Error> {
        let mut state = self.lock();
        let (admitted, change) = state.admit(now);
        let permit = admitted.map(|probe| Permit {
            breaker: self.clone(),
            generation: state.generation,
            probe: probe.then_some(now),
            settled: false,
        });
        drop(state);
        self.tell(change);
        permit.map_err(Error::CircuitOpen)
    }

    /// An answer's body broke after its headers had settled the attempt: one more failure.
    pub fn body_broke(&self, generation: u64, now: Instant) {
        let mut state = self.lock();
        let change = state.settle(generation, None, Verdict::Failure, now);
        drop(state);
        self.tell(change);
    }

    /// What the operator orders.
    pub fn order(&self, order: Override) {
        let mut state = self.lock();
        let before = state.shown();
        state.manual = order;
        let after = state.shown();
        drop(state);
        self.tell((before != after).then_some((after, None)));
    }

    /// State as shown (a manual override first), time to the next probe, the override, failures in a row.
    pub fn status(&self, now: Instant) -> (CircuitState, Option<Duration>, Override, u32) {
        let state = self.lock();
        let next = match (&state.mode, state.manual) {
            (Mode::Open { until, .. }, Override::Auto) => Some(until.saturating_duration_since(now)),
            (Mode::Open { .. }, Override::Open | Override::Closed) | (Mode::Closed | Mode::HalfOpen { .. }, _) => None,
        };
        (state.shown(), next, state.manual, state.consecutive)
    }

    /// What counts as a failure, now.
    pub fn failures(&self) -> Events {
        self.lock().settings.failures.clone()
    }

    /// `slow_after`, now.
    pub fn slow_after(&self) -> Option<Duration> {
        self.lock().settings.slow_after
    }

    /// Grows with each change of state.
    #[cfg(test)]
    pub(super) fn generation(&self) -> u64 {
        self.lock().generation
    }

    fn tell(&self, change: Change) {
        if let Some((to, open_for)) = change {
            self.report.circuit(to, open_for);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the attempt may go, and as a probe; else how long until the next may.
    fn admit(&mut self, now: Instant) -> (Result<bool, Duration>, Change) {
        match self.manual {
            Override::Open => return (Err(Duration::from_secs(1)), None),
            Override::Closed => return (Ok(false), None),
            Override::Auto => {}
        }
        let mut change = None;
        if let Mode::Open { until, failed_probes } = self.mode {
            if now < until {
                return (Err(until - now), None);
            }
            change = self.enter(Mode::HalfOpen { probes: Vec::new(), failed_probes }, None);
        }
        let places = self.settings.half_open_requests.get() as usize;
        let lifetime = PROBE_LIFETIME.max(self.settings.max_open_for);
        match &mut self.mode {
            Mode::Closed | Mode::Open { .. } => (Ok(false), change),
            Mode::HalfOpen { probes, .. } => {
                probes.retain(|began| now.saturating_duration_since(*began) < lifetime);
                if probes.len() >= places {
                    return (Err(Duration::from_secs(1)), change);
                }
                probes.push(now);
                (Ok(true), change)
            }
        }
    }

    fn settle(&mut self, generation: u64, probe: Option<Instant>, verdict: Verdict, now: Instant) -> Change {
        if generation != self.generation || self.manual != Override::Auto {
            self.give_back(generation, probe);
            return None;
        }
        match &mut self.mode {
            Mode::Open { .. } => None,
            Mode::Closed => match verdict {
                Verdict::Success => {
                    self.consecutive = 0;
                    self.window.record(false, now);
                    None
                }
                Verdict::Failure => {
                    self.consecutive = self.consecutive.saturating_add(1);
                    self.window.record(true, now);
                    self.tripped(now).then(|| self.open(0, now)).flatten()
                }
                Verdict::Passing | Verdict::Neutral => None,
            },
            Mode::HalfOpen { failed_probes, .. } => {
                let failed_probes = *failed_probes;
                match verdict {
                    Verdict::Success | Verdict::Passing => {
                        self.consecutive = 0;
                        self.window.clear();
                        self.enter(Mode::Closed, None)
                    }
                    Verdict::Failure if probe.is_some() => self.open(failed_probes + 1, now),
                    Verdict::Failure => None,
                    Verdict::Neutral => {
                        self.give_back(generation, probe);
                        None
                    }
                }
            }
        }
    }

    fn give_back(&mut self, generation: u64, probe: Option<Instant>) {
        if let (true, Some(began), Mode::HalfOpen { probes, .. }) =
            (generation == self.generation, probe, &mut self.mode)
            && let Some(at) = probes.iter().position(|other| *other == began)
        {
            probes.swap_remove(at);
        }
    }

    fn tripped(&mut self, now: Instant) -> bool {
        if self.settings.consecutive_failures.is_some_and(|most| self.consecutive >= most.get()) {
            return true;
        }
        let Some(rate) = &self.settings.failure_rate else { return false };
        let (total, failures) = self.window.counts(now);
        total >= u64::from(rate.min_requests.get())
            && failures * u64::from(Ratio::SCALE) >= total * u64::from(rate.threshold.parts_per_million())
    }

    /// The first opening lasts exactly `open_for`, so that it can be relied on; later ones get up to 10 % on top,
    /// so that many proxies don't probe a struggling upstream in step.
    fn open(&mut self, failed_probes: u32, now: Instant) -> Change {
        let longest = self.settings.max_open_for.max(self.settings.open_for);
        let plain = self.settings.open_for.saturating_mul(1 << failed_probes.min(31)).min(longest);
        let lasts = if failed_probes == 0 { plain } else { plain.mul_f64(1.0 + 0.1 * fastrand::f64()) };
        self.enter(Mode::Open { until: now + lasts, failed_probes }, Some(lasts))
    }

    fn enter(&mut self, mode: Mode, open_for: Option<Duration>) -> Change {
        self.mode = mode;
        self.generation += 1;
        Some((self.shown(), open_for))
    }

    fn shown(&self) -> CircuitState {
        match (self.manual, &self.mode) {
            (Override::Open, _) | (Override::Auto, Mode::Open { .. }) => CircuitState::Open,
            (Override::Closed, _) | (Override::Auto, Mode::Closed) => CircuitState::Closed,
            (Override::Auto, Mode::HalfOpen { .. }) => CircuitState::HalfOpen,
        }
    }
}

/// Leave to send one attempt. Dropped without a verdict it is neutral: a probe gives its place back.
pub struct Permit {
    breaker: Arc<Breaker>,
    generation: u64,
    /// When it began, where it is a probe.
    probe: Option<Instant>,
    settled: bool,
}

impl Permit {
    /// Tells how the attempt went. Only the first verdict counts.
    pub fn settle(&mut self, verdict: Verdict, now: Instant) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let mut state = self.breaker.lock();
        let current = state.generation == self.generation;
        let change = state.settle(self.generation, self.probe, verdict, now);
        // A probe that closed the circuit goes on in the generation that it began, so that its body counts there.
        if current && change.is_some_and(|(to, _)| to == CircuitState::Closed) {
            self.generation = state.generation;
        }
        drop(state);
        self.breaker.tell(change);
    }

    /// Whether the state it was issued in has gone: the attempt must ask again before it is sent.
    pub fn is_stale(&self) -> bool {
        let state = self.breaker.lock();
        state.generation != self.generation || state.manual == Override::Open
    }

    /// For [`Breaker::body_broke`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The breaker it is of.
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.settled {
            self.breaker.lock().give_back(self.generation, self.probe);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let mut failures = Events::default();
        failures.add("5xx").unwrap();
        Settings {
            consecutive_failures: NonZeroU32::new(5),
            failure_rate: Some(FailureRate {
                threshold: Ratio::new(0.5).unwrap(),
                window: Duration::from_secs(10),
                min_requests: NonZeroU32::new(20).unwrap(),
            }),
            failures,
            slow_after: None,
            open_for: Duration::from_secs(30),
            max_open_for: Duration::from_secs(300),
            half_open_requests: NonZeroU32::MIN,
        }
    }

    fn breaker(settings: Settings) -> (Arc<Breaker>, Instant) {
        let now = Instant::now();
        (Breaker::new(settings, LaneReport::for_test(), now), now)
    }

    fn send(breaker: &Arc<Breaker>, verdict: Verdict, now: Instant) {
        breaker.admit(now).unwrap().settle(verdict, now);
    }

    fn trip(breaker: &Arc<Breaker>, now: Instant) {
        (0..5).for_each(|_| send(breaker, Verdict::Failure, now));
        assert_eq!(breaker.status(now).0, CircuitState::Open);
    }

    #[test]
    fn failures_in_a_row_open_it_for_exactly_open_for() {
        let (breaker, now) = breaker(settings());
        trip(&breaker, now);
        let just_before = now + Duration::from_millis(29_999);
        assert!(
            matches!(breaker.admit(just_before), Err(Error::CircuitOpen(left)) if left == Duration::from_millis(1))
        );
        let after = now + Duration::from_secs(30);
        let probe = breaker.admit(after).unwrap();
        assert!(breaker.admit(after).is_err(), "one probe only");
        drop(probe);
    }

    #[test]
    fn a_success_ends_a_row_and_a_404_does_not() {
        let (breaker, now) = breaker(settings());
        (0..4).for_each(|_| send(&breaker, Verdict::Failure, now));
        send(&breaker, Verdict::Passing, now);
        send(&breaker, Verdict::Neutral, now);
        assert_eq!(breaker.status(now).3, 4);
        send(&breaker, Verdict::Success, now);
        assert_eq!(breaker.status(now).3, 0);
    }

    #[test]
    fn a_share_of_failures_opens_it_once_there_are_enough() {
        let mut settings = settings();
        settings.consecutive_failures = None;
        let (breaker, now) = breaker(settings);
        for _ in 0..9 {
            send(&breaker, Verdict::Success, now);
            send(&breaker, Verdict::Failure, now);
        }
        send(&breaker, Verdict::Failure, now);
        assert_eq!(breaker.status(now).0, CircuitState::Closed, "19 are not enough");
        send(&breaker, Verdict::Failure, now);
        assert_eq!(breaker.status(now).0, CircuitState::Open);
    }

    #[test]
    fn a_cancelled_probe_gives_its_place_back() {
        let (breaker, now) = breaker(settings());
        trip(&breaker, now);
        let later = now + Duration::from_secs(30);
        for _ in 0..100 {
            drop(breaker.admit(later).unwrap());
            send(&breaker, Verdict::Neutral, later);
        }
        send(&breaker, Verdict::Passing, later);
        assert_eq!(breaker.status(later).0, CircuitState::Closed);
    }

    #[test]
    fn each_failed_probe_doubles_the_opening_up_to_the_most() {
        let (breaker, mut now) = breaker(settings());
        trip(&breaker, now);
        for plain in [60.0, 120.0, 240.0, 300.0, 300.0] {
            now += breaker.status(now).1.unwrap();
            send(&breaker, Verdict::Failure, now);
            let open_for = breaker.status(now).1.unwrap().as_secs_f64();
            assert!((plain..=plain * 1.1).contains(&open_for), "{open_for} for {plain}");
        }
        now += breaker.status(now).1.unwrap();
        send(&breaker, Verdict::Success, now);
        trip(&breaker, now);
        assert_eq!(breaker.status(now).1, Some(Duration::from_secs(30)), "it begins anew after a recovery");
    }

    #[test]
    fn a_late_result_does_not_flip_a_newer_state() {
        let (breaker, now) = breaker(settings());
        let mut early = breaker.admit(now).unwrap();
        let mut other = breaker.admit(now).unwrap();
        trip(&breaker, now);
        early.settle(Verdict::Success, now);
        assert_eq!(breaker.status(now).0, CircuitState::Open);
        let later = now + Duration::from_secs(30);
        let probe = breaker.admit(later).unwrap();
        other.settle(Verdict::Failure, later);
        assert_eq!(breaker.status(later).0, CircuitState::HalfOpen);
        drop(probe);
    }

    #[test]
    fn a_manual_override_holds_until_it_is_lifted() {
        let (breaker, now) = breaker(settings());
        breaker.order(Override::Open);
        assert!(breaker.admit(now).is_err());
        breaker.order(Override::Closed);
        (0..50).for_each(|_| send(&breaker, Verdict::Failure, now));
        breaker.order(Override::Auto);
        assert!(breaker.admit(now).is_ok());
        trip(&breaker, now);
        breaker.order(Override::Closed);
        assert!(breaker.admit(now).is_ok());
        breaker.reconfigure(&settings(), now);
        assert_eq!(breaker.status(now).2, Override::Closed);
    }

    #[test]
    fn an_open_circuit_stays_open_over_new_settings() {
        let (breaker, now) = breaker(settings());
        trip(&breaker, now);
        let mut new = settings();
        new.consecutive_failures = NonZeroU32::new(50);
        breaker.reconfigure(&new, now);
        assert!(breaker.admit(now + Duration::from_secs(29)).is_err());
    }

    #[test]
    fn a_waiting_attempt_learns_that_the_circuit_opened() {
        let (breaker, now) = breaker(settings());
        let waiting = breaker.admit(now).unwrap();
        assert!(!waiting.is_stale());
        trip(&breaker, now);
        assert!(waiting.is_stale());
    }

    #[test]
    fn a_probes_broken_body_counts_in_the_circuit_it_closed() {
        let (breaker, now) = breaker(settings());
        trip(&breaker, now);
        let later = now + Duration::from_secs(30);
        let mut probe = breaker.admit(later).unwrap();
        probe.settle(Verdict::Success, later);
        breaker.body_broke(probe.generation(), later);
        assert_eq!(breaker.status(later).3, 1);
    }
}
