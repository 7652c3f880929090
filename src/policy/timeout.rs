//! The clocks before response headers: one attempt, and all of them together. Both stand still while request body bytes
//! are being sent, so that an upload of any size passes; a stalled one ends by the idle clock.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, Sleep};

use crate::error::{Error, Result};
use crate::message::{Exchange, Phase};

use crate::document::Reader;

/// `timeouts`: each may be off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// One connection set-up: DNS, TCP over all addresses, TLS.
    pub connect: Option<Duration>,
    /// One attempt, from its slot to response headers.
    pub attempt: Option<Duration>,
    /// All attempts and waits together, until the app has response headers.
    pub request: Option<Duration>,
    /// Silence between body bytes, in either direction.
    pub idle: Option<Duration>,
    /// Silence in tunnels and upgraded streams.
    pub tunnel_idle: Option<Duration>,
}

impl Settings {
    /// Reads the block.
    pub fn read(reader: &mut Reader<'_>) -> Settings {
        Settings {
            connect: reader.clock("connect"),
            attempt: reader.clock("attempt"),
            request: reader.clock("request"),
            idle: reader.clock("idle"),
            tunnel_idle: reader.clock("tunnel_idle"),
        }
    }
}

/// The request deadline: `timeouts.request`, shortened by the `grpc-timeout` of a gRPC caller.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Duration>);

impl Deadline {
    /// For a request with these headers.
    pub fn new(settings: &Settings, headers: &HeaderMap, grpc: bool) -> Deadline {
        let caller = if grpc { headers.get("grpc-timeout").and_then(|v| grpc_timeout(v.as_bytes())) } else { None };
        Deadline(match (settings.request, caller) {
            (Some(request), Some(caller)) => Some(request.min(caller)),
            (request, caller) => request.or(caller),
        })
    }

    /// How long all attempts and waits may take together, less the time that the request's body takes.
    pub(crate) fn limit(self) -> Option<Duration> {
        self.0
    }

    /// When it is over, as far as is known at `now`: it moves on while the upload flows.
    pub fn at(&self, exchange: &Exchange, now: Instant) -> Option<Instant> {
        self.0.map(|limit| exchange.start + limit + exchange.upload.paused(|| exchange.nanos(now)))
    }
}

/// `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// What bounds one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// `timeouts.attempt`
    pub attempt: Option<Duration>,
    /// The request's deadline.
    pub deadline: Deadline,
    /// `timeouts.idle`, for a request body that stalls.
    pub idle: Option<Duration>,
    /// `circuit_breaker.slow_after`
    pub slow_after: Option<Duration>,
    /// Whether there is a request body that could stall.
    pub body: bool,
}

/// What the clocks ask of the attempt that they bound.
pub trait Supervised {
    /// How far it has got.
    fn phase(&self) -> Phase;

    /// Asked each time before it goes on. `begins`: it has not begun yet.
    ///
    /// # Errors
    /// What ends it.
    fn before_poll(&mut self, begins: bool) -> Result<()>;

    /// `slow_after` is over. Told once.
    fn slow(&mut self, now: Instant);
}

/// The share of an attempt's time that may be spent in line for a connection. Past it the attempt is given up: first come, first
/// served, whoever comes to the head of a line that long has no time left for an answer, so that under more load than the
/// upstream can take all requests would fail, not just those that are too many.
const IN_LINE: u32 = 2;

/// A clock that rings so much too late was not heard: the process itself stood still (stopped, frozen, throttled).
const OVERSLEPT: Duration = Duration::from_millis(200);

/// What came while the process stood still is read within this.
const MOMENT: Duration = Duration::from_millis(500);

/// Where the process itself stood still, what came meanwhile is read before a clock is taken at its word: its sockets were
/// full, and all clocks rang at once.
#[derive(Debug)]
struct Alarm {
    due: Instant,
    spared: bool,
}

impl Alarm {
    /// Rings at `due`.
    fn at(due: Instant) -> Alarm {
        Alarm { due, spared: false }
    }

    /// It rang at `now`. Where that is much too late, the one more moment to wait for.
    fn overslept(&mut self, now: Instant) -> Option<Instant> {
        if self.spared || now.saturating_duration_since(self.due) < OVERSLEPT {
            return None;
        }
        self.spared = true;
        Some(now + MOMENT)
    }
}

/// A clock whose end moves on all the time: it is only set anew when it rings, so that what moves it costs no timer.
#[derive(Debug)]
pub(crate) struct Moving {
    sleep: Pin<Box<Sleep>>,
    alarm: Alarm,
}

impl Moving {
    /// Rings at `until`.
    pub(crate) fn new(until: Instant) -> Moving {
        Moving { sleep: Box::pin(tokio::time::sleep_until(until)), alarm: Alarm::at(until) }
    }

    /// Ready when it is past `until`, as that stands now.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let now = Instant::now();
            if until > now {
                self.alarm = Alarm::at(until);
                self.sleep.as_mut().reset(until);
            } else if let Some(moment) = self.alarm.overslept(now) {
                self.sleep.as_mut().reset(moment);
            } else {
                return Poll::Ready(());
            }
        }
    }
}

/// While an upload flows, clocks that stand still are looked at again no more often than this.
const LOOK: Duration = Duration::from_millis(100);

impl Clocks {
    /// Runs `send`, which began just now, until it is done or a clock is over. It is taken by reference since it is large: by value each layer that
    /// passes it on would hold room for it twice.
    ///
    /// # Errors
    /// The attempt's own, what [`Supervised::before_poll`] says, or the clock's: [`Error::AttemptTimeout`], [`Error::Deadline`],
    /// [`Error::NoConnection`] where half of the time passed and connecting had not begun, [`Error::AppSilent`] and [`Error::UpstreamSilent`].
    pub async fn run<T>(
        &self,
        exchange: &Exchange,
        began: Instant,
        mut send: Pin<&mut impl Future<Output = Result<T>>>,
        supervised: &mut impl Supervised,
    ) -> Result<T> {
        let paused_before = exchange.upload.paused(|| exchange.nanos(began));
        let mut watch = Watch { clocks: *self, exchange, began, paused_before, slow_told: false };
        let first = watch.look(began, supervised)?;
        let mut armed = first.is_some();
        let mut alarm = Alarm::at(first.unwrap_or(began));
        let mut timer = pin!(tokio::time::sleep_until(first.unwrap_or(began)));
        let mut begins = true;
        poll_fn(|cx| {
            supervised.before_poll(std::mem::take(&mut begins))?;
            if let Poll::Ready(result) = send.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            while armed {
                ready!(timer.as_mut().poll(cx));
                let now = Instant::now();
                if let Some(moment) = alarm.overslept(now) {
                    timer.as_mut().reset(moment);
                    continue;
                }
                match watch.look(now, supervised)? {
                    Some(next) => {
                        alarm = Alarm::at(next);
                        timer.as_mut().reset(next);
                    }
                    None => armed = false,
                }
            }
            Poll::Pending
        })
        .await
    }
}

struct Watch<'a> {
    clocks: Clocks,
    exchange: &'a Exchange,
    began: Instant,
    paused_before: Duration,
    slow_told: bool,
}

impl Watch<'_> {
    /// When to look again; an error when a clock is over.
    fn look(&mut self, now: Instant, supervised: &mut impl Supervised) -> Result<Option<Instant>> {
        let upload = &self.exchange.upload;
        let paused = upload.paused(|| self.exchange.nanos(now)).saturating_sub(self.paused_before);
        let ran = now.saturating_duration_since(self.began).saturating_sub(paused);
        let flowing = upload.flowing();

        if !self.slow_told && self.clocks.slow_after.is_some_and(|slow_after| ran >= slow_after) {
            self.slow_told = true;
            supervised.slow(now);
        }
        let deadline = self.clocks.deadline.at(self.exchange, now);
        let attempt = self.clocks.attempt.map(|limit| self.began + limit + paused);
        let over = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        let phase = supervised.phase();
        let end = [deadline, attempt].into_iter().flatten().min();
        let in_line = end.filter(|_| phase == Phase::Waiting).map(|end| self.began + (end - self.began) / IN_LINE);
        if over(end) || over(in_line) {
            let sent = phase.sent();
            return Err(match phase {
                Phase::Waiting => Error::NoConnection,
                Phase::Connecting | Phase::Sending if over(deadline) => Error::Deadline { sent, ran },
                Phase::Connecting | Phase::Sending => Error::AttemptTimeout { sent },
            });
        }
        let silent = match self.clocks.idle {
            Some(idle) if self.clocks.body && flowing => Some(self.exchange.last_activity() + idle),
            // It may begin to flow at any moment after this.
            Some(idle) if self.clocks.body => Some(now + idle),
            Some(_) | None => None,
        };
        if over(silent) {
            let awaits_app = upload.awaits_app.load(Ordering::Relaxed);
            return Err(if awaits_app { Error::AppSilent } else { Error::UpstreamSilent });
        }
        let slow_at = self.clocks.slow_after.filter(|_| !self.slow_told).map(|limit| self.began + limit + paused);
        let next = [end, in_line, silent, slow_at].into_iter().flatten().min();
        // Clocks that stand still would ask to be looked at again and again.
        Ok(next.map(|next| if flowing { next.max(now + LOOK) } else { next }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Sent;

    fn clocks(attempt: u64, request: u64) -> Clocks {
        let ms = |ms| (ms > 0).then(|| Duration::from_millis(ms));
        Clocks { attempt: ms(attempt), deadline: Deadline(ms(request)), idle: ms(60_000), slow_after: None, body: true }
    }

    struct At(Phase, Vec<Instant>);

    impl Supervised for At {
        fn phase(&self) -> Phase {
            self.0
        }

        fn before_poll(&mut self, _: bool) -> Result<()> {
            Ok(())
        }

        fn slow(&mut self, now: Instant) {
            self.1.push(now);
        }
    }

    async fn hang(clocks: Clocks, exchange: &Exchange, phase: Phase) -> (Error, Duration) {
        let start = Instant::now();
        let send = pin!(std::future::pending::<Result<()>>());
        let error = clocks.run(exchange, start, send, &mut At(phase, Vec::new())).await.unwrap_err();
        (error, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_clock_ends_an_attempt_and_says_how_far_it_had_got() {
        let exchange = Exchange::new(Instant::now());
        let (error, after) = hang(clocks(100, 5000), &exchange, Phase::Sending).await;
        assert!(matches!(error, Error::AttemptTimeout { sent: Sent::Maybe }));
        assert_eq!(after.as_millis(), 100);
        let (error, after) = hang(clocks(0, 5000), &exchange, Phase::Connecting).await;
        assert!(matches!(error, Error::Deadline { sent: Sent::No, ran } if ran.as_millis() == 4900), "{error:?}");
        assert_eq!(after.as_millis(), 4900);
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_the_time_is_kept_for_the_answer_whoever_stands_in_line() {
        let exchange = Exchange::new(Instant::now());
        let (error, after) = hang(clocks(100, 0), &exchange, Phase::Waiting).await;
        assert!(matches!(error, Error::NoConnection));
        assert_eq!(after.as_millis(), 50);
        // What is left of the request is all that there is.
        let (error, after) = hang(clocks(1000, 150), &exchange, Phase::Waiting).await;
        assert!(matches!(error, Error::NoConnection));
        assert_eq!(after.as_millis(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_stand_still_while_the_upload_flows() {
        let exchange = Exchange::new(Instant::now());
        let upload = async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                exchange.touch(Instant::now());
                exchange.upload.begin(exchange.nanos(Instant::now()));
            }
            exchange.upload.end(exchange.nanos(Instant::now()));
            std::future::pending::<Result<()>>().await
        };
        let start = Instant::now();
        let mut sending = At(Phase::Sending, Vec::new());
        let error = clocks(3000, 5000).run(&exchange, start, pin!(upload), &mut sending).await.unwrap_err();
        assert!(matches!(error, Error::AttemptTimeout { .. }));
        // One second before the first byte, two after the last.
        let after = start.elapsed().as_millis();
        assert!((102_000..102_200).contains(&after), "{after}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_upload_ends_by_the_idle_clock_and_names_who_was_silent() {
        for (awaits_app, expected) in [(true, "app_silent"), (false, "upstream_silent")] {
            let exchange = Exchange::new(Instant::now());
            exchange.touch(Instant::now());
            exchange.upload.begin(0);
            exchange.upload.awaits_app.store(awaits_app, Ordering::Relaxed);
            let (error, after) = hang(clocks(3000, 5000), &exchange, Phase::Sending).await;
            assert_eq!(error.code(), expected);
            assert!((60_000..60_200).contains(&after.as_millis()), "{after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slowness_is_told_once_when_it_is_reached() {
        let exchange = Exchange::new(Instant::now());
        let mut clocks = clocks(5000, 0);
        clocks.slow_after = Some(Duration::from_millis(700));
        let start = Instant::now();
        let send = pin!(std::future::pending::<Result<()>>());
        let mut sending = At(Phase::Sending, Vec::new());
        clocks.run(&exchange, start, send, &mut sending).await.unwrap_err();
        assert_eq!(sending.1, [start + Duration::from_millis(700)]);
    }

    #[test]
    fn a_clock_that_rings_much_too_late_gives_one_more_moment() {
        let due = Instant::now();
        let mut alarm = Alarm::at(due);
        assert_eq!(alarm.overslept(due + OVERSLEPT / 2), None);
        let late = due + Duration::from_secs(30);
        assert_eq!(alarm.overslept(late), Some(late + MOMENT));
        // Not again and again, on a machine that is always late.
        assert_eq!(alarm.overslept(late + Duration::from_secs(30)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_came_while_the_process_stood_still_counts() {
        let exchange = Exchange::new(Instant::now());
        let (tell, answer) = tokio::sync::oneshot::channel();
        let send = pin!(async { answer.await.map_err(|_| Error::Panic) });
        let mut sending = At(Phase::Sending, Vec::new());
        let attempt = clocks(1000, 5000);
        let stood_still = async {
            // One step of the clock, past every deadline, before anything else runs.
            tokio::time::advance(Duration::from_secs(30)).await;
            tokio::task::yield_now().await;
            tell.send(200).unwrap();
        };
        let (answer, ()) = tokio::join!(attempt.run(&exchange, exchange.start, send, &mut sending), stood_still);
        assert_eq!(answer.unwrap(), 200);
    }

    #[test]
    fn grpc_timeouts_shorten_the_request() {
        assert_eq!(grpc_timeout(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout(b"2S"), Some(Duration::from_secs(2)));
        for bad in [&b""[..], b"S", b"123456789S", b"1s", b"-1S", b"1.5S"] {
            assert_eq!(grpc_timeout(bad), None);
        }
    }
}
