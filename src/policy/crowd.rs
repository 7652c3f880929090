//! What model tests share: callers who wait, each polled only once it was woken: a wake-up that is lost shows as a caller who waits for ever. Between
//! two calls of [`Crowd::settle`] anything may happen to those who were woken, their leaving included.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use proptest::prelude::ProptestConfig;

/// How often a model test tries; `PROPTEST_CASES` overrides it. No file is written: a failing case prints its few steps.
pub(crate) fn cases() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Caller<T> {
    id: u32,
    woken: Arc<Woken>,
    wait: Pin<Box<dyn Future<Output = T>>>,
}

/// Those who wait, in the order in which they came.
pub(crate) struct Crowd<T>(Vec<Caller<T>>);

impl<T> Crowd<T> {
    pub(crate) fn new() -> Crowd<T> {
        Crowd(Vec::new())
    }

    /// One more, who asks at once.
    pub(crate) fn join(&mut self, id: u32, wait: impl Future<Output = T> + 'static) -> Option<T> {
        let mut caller = Caller { id, woken: Arc::new(Woken(AtomicBool::new(true))), wait: Box::pin(wait) };
        let outcome = caller.poll();
        if outcome.is_none() {
            self.0.push(caller);
        }
        outcome
    }

    /// Hangs up.
    pub(crate) fn leave(&mut self, id: u32) {
        self.0.retain(|caller| caller.id != id);
    }

    /// Lets everybody go on who was woken, until nobody is. Who came to an end, and how.
    pub(crate) fn settle(&mut self) -> Vec<(u32, T)> {
        let mut ended = Vec::new();
        while let Some(at) = self.0.iter().position(|caller| caller.woken.0.load(Ordering::Relaxed)) {
            if let Some(outcome) = self.0[at].poll() {
                ended.push((self.0.remove(at).id, outcome));
            }
        }
        ended
    }
}

impl<T> Caller<T> {
    fn poll(&mut self) -> Option<T> {
        if !self.woken.0.swap(false, Ordering::Relaxed) {
            return None;
        }
        let waker = Waker::from(self.woken.clone());
        match self.wait.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }
}
