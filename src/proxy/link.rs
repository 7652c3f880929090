//! What an app's HTTP/1 connection and the requests on it tell each other past hyper.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use http::Method;

use crate::error::Error;
use crate::proxy::head::REFUSED_METHOD;

/// See the module. Relaxed flags, and locks that nobody waits for.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// A 101 is on its way: what the app sends from now on is not HTTP.
    pub(super) opaque: AtomicBool,
    /// A request with `Upgrade` was answered with something else than 101.
    pub(super) declined: AtomicBool,
    /// Who waits for that.
    pub(super) waiting: Mutex<Option<Waker>>,
    /// For each OPTIONS that was read and not asked about yet: whether it is of a URL without a path.
    pub(super) options: Mutex<VecDeque<bool>>,
    /// Close with a reset: what was sent must not be taken for complete.
    pub(super) reset: AtomicBool,
    /// How long the app may leave what it is sent untaken, in milliseconds; 0: for ever.
    pub(super) patience: AtomicU64,
    /// The body of the request that is being read has come to its end.
    pub(super) arrived: AtomicBool,
    /// Why the body that is being read broke.
    pub(super) broken: Mutex<Option<&'static str>>,
    /// What the stand-in request is to be answered with.
    pub(super) refusal: Mutex<Option<Error>>,
    /// The request that it stands in for is a HEAD.
    pub(super) bodiless: AtomicBool,
    /// Requests whose heads hyper passed on; how many of them have ended, with their answers.
    pub(super) begun: AtomicU32,
    pub(super) ended: AtomicU32,
    /// hyper waits for a head of which no byte has come.
    pub(super) quiet: AtomicBool,
    /// hyper may hold bytes of an answer that it could not write yet.
    pub(super) unflushed: AtomicBool,
}

impl Link {
    /// What the app sends from now on is not HTTP.
    pub(crate) fn open(&self) {
        self.opaque.store(true, Ordering::Relaxed);
    }

    /// A request with `Upgrade` is answered with something else than 101: what the app sends behind it is HTTP.
    pub(crate) fn decline(&self) {
        self.declined.store(true, Ordering::Release);
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Whether it was, since this was asked with that outcome. If not, the task is woken when it is.
    pub(super) fn was_declined(&self, cx: &Context<'_>) -> bool {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        self.declined.swap(false, Ordering::AcqRel)
    }

    /// hyper passed a request on.
    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// All of its answer was given to hyper, or there is none.
    pub(crate) fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests hyper has passed on so far, in a circle.
    pub(crate) fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    /// hyper waits for a head of which no byte has come, or no longer does.
    pub(crate) fn reads_nothing(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Relaxed);
    }

    /// hyper may hold bytes that it could not write yet, or holds none.
    pub(crate) fn holds(&self, unflushed: bool) {
        self.unflushed.store(unflushed, Ordering::Relaxed);
    }

    pub(super) fn is_unflushed(&self) -> bool {
        self.unflushed.load(Ordering::Relaxed)
    }

    /// Whether nothing at all is under way: every answer has been written, and nothing of a next request has come.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.quiet.load(Ordering::Relaxed) && !self.is_unflushed() && self.begun() == self.ended.load(Ordering::Relaxed)
    }

    /// Whether an OPTIONS is of a URL without a path. To be asked once for each, in order.
    pub(crate) fn of_everything(&self) -> bool {
        self.options.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(false)
    }

    /// Whether the connection, if it ends now, is to end with a reset.
    pub(crate) fn reset(&self, reset: bool) {
        self.reset.store(reset, Ordering::Relaxed);
    }

    /// An app that takes nothing of its answer for so long is given up.
    pub(crate) fn wait_at_most(&self, patience: Option<Duration>) {
        let millis = patience.map_or(0, |patience| u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        self.patience.store(millis, Ordering::Relaxed);
    }

    /// Whether all of the request's body was read off the connection, if not by anybody yet.
    pub(crate) fn has_body(&self) -> bool {
        self.arrived.load(Ordering::Relaxed)
    }

    pub(super) fn patience(&self) -> Option<Duration> {
        Some(self.patience.load(Ordering::Relaxed)).filter(|millis| *millis > 0).map(Duration::from_millis)
    }

    /// Why a request is refused, where it is the stand-in for one. Requests before it may still be under way.
    pub(crate) fn refusal(&self, method: &Method) -> Option<Error> {
        if method.as_str() != REFUSED_METHOD {
            return None;
        }
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether a request is the stand-in for a HEAD, so that hyper would send a body with the refusal.
    pub(crate) fn stands_in_for_head(&self, method: &Method) -> bool {
        method.as_str() == REFUSED_METHOD && self.bodiless.load(Ordering::Relaxed)
    }

    /// What was wrong with the framing of the request's body, where it broke by that.
    pub(crate) fn broken(&self) -> Option<&'static str> {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
