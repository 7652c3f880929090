//! Drain: what is in flight, and when the process may end without cutting anything short.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::config;

/// How often the drain looks whether something came or went.
const TICK: Duration = Duration::from_millis(20);

/// How long the last answers may take once it has ended.
pub const FAREWELL: Duration = Duration::from_millis(500);

/// What is in flight, and whether the process is on its way out.
pub struct Drain {
    /// Cancelled when draining begins: HTTP/2 connections send GOAWAY, HTTP/1 answers carry `Connection: close`. New
    /// requests and connections are still served.
    pub begun: CancellationToken,
    /// Cancelled when it ends: listeners stop and whatever is left is closed.
    pub ended: CancellationToken,
    /// As `ended`, for those who look often.
    over: AtomicBool,
    in_flight: AtomicUsize,
    /// How many ever came, so that what comes and goes between two looks is noticed.
    arrivals: AtomicU64,
}

/// Something in flight (a request until its body's end, a tunnel, an upgraded stream) until it is dropped.
pub struct InFlight(Arc<Drain>);

impl Drain {
    /// Nothing in flight.
    pub fn new() -> Arc<Drain> {
        Arc::new(Drain {
            begun: CancellationToken::new(),
            ended: CancellationToken::new(),
            over: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            arrivals: AtomicU64::new(0),
        })
    }

    /// Something new came, and is in flight until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        self.arrivals.fetch_add(1, Ordering::SeqCst);
        InFlight(self.clone())
    }

    /// Whether it has ended: what has no answer yet gets one of ours now.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// How much is in flight now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Begins to drain and waits: until nothing was in flight and nothing new came for `quiet`, or for `grace`. Then ends.
    /// How much was still in flight then.
    pub async fn run(&self, settings: &config::Shutdown) -> usize {
        self.begun.cancel();
        let quiet = timeout(settings.grace, self.silence(settings.quiet)).await;
        let left = if quiet.is_ok() { 0 } else { self.in_flight() };
        self.over.store(true, Ordering::Relaxed);
        self.ended.cancel();
        if left > 0 {
            // A moment for the answers that end what had none.
            let _ = timeout(FAREWELL, self.silence(Duration::ZERO)).await;
        }
        left
    }

    /// Waits until nothing was in flight and nothing new came for `quiet`.
    async fn silence(&self, quiet: Duration) {
        let mut since = Instant::now();
        let mut arrivals = self.arrivals.load(Ordering::SeqCst);
        loop {
            let now = Instant::now();
            let came = self.arrivals.load(Ordering::SeqCst);
            if came != arrivals || self.in_flight() > 0 {
                arrivals = came;
                since = now;
            } else if now.saturating_duration_since(since) >= quiet {
                return;
            }
            sleep(TICK.min(quiet).max(Duration::from_millis(1))).await;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: config::Shutdown =
        config::Shutdown { quiet: Duration::from_secs(1), grace: Duration::from_secs(25) };

    /// How long the drain takes while `meanwhile` happens.
    async fn took(drain: &Arc<Drain>, meanwhile: impl Future<Output = ()>) -> Duration {
        let start = Instant::now();
        tokio::join!(drain.run(&SETTINGS), meanwhile);
        assert!(drain.begun.is_cancelled() && drain.ended.is_cancelled());
        start.elapsed()
    }

    fn about(took: Duration, expected_ms: u64) {
        let millis = took.as_millis() as u64;
        assert!((expected_ms..expected_ms + 100).contains(&millis), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_process_ends_after_quiet() {
        about(took(&Drain::new(), async {}).await, 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_is_waited_for() {
        let drain = Drain::new();
        let request = drain.enter();
        let end = async move {
            sleep(Duration::from_secs(5)).await;
            drop(request);
        };
        about(took(&drain, end).await, 6000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_came_and_went_between_two_looks_begins_the_quiet_anew() {
        let drain = Drain::new();
        let app = drain.clone();
        let calls = async move {
            for _ in 0..4 {
                sleep(Duration::from_millis(900)).await;
                drop(app.enter());
            }
        };
        about(took(&drain, calls).await, 4600);
    }

    #[tokio::test(start_paused = true)]
    async fn grace_is_the_end_whatever_is_left() {
        let drain = Drain::new();
        let _tunnel = drain.enter();
        about(took(&drain, async {}).await, 25_000 + FAREWELL.as_millis() as u64);
        assert_eq!(drain.in_flight(), 1);
    }
}
