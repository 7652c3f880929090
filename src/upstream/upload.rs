//! The request body on its way into a connection, watched: whether it was sent to its end, why it failed, and a way to
//! stop it when nobody wants the answer any more.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::error::Error;
use crate::policy::body::AttemptBody;

/// An attempt's body, as hyper gets it.
pub(super) struct SendBody {
    body: AttemptBody,
    /// `None` where there is nothing to send.
    watch: Option<Arc<Watch>>,
    /// Bytes that are left, where that is known: hyper stops asking when it has them.
    left: Option<u64>,
}

/// How a request body stands.
#[derive(Debug, Default)]
pub(super) struct Watch {
    done: AtomicBool,
    cancelled: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    error: Option<Error>,
    waker: Option<Waker>,
}

impl Watch {
    /// It was handed over to its end.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Why it failed, if it did: the app's doing, or a clock's.
    pub(super) fn error(&self) -> Option<Error> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).error.clone()
    }

    /// Stops it: an HTTP/2 stream is reset, an HTTP/1.1 connection closes.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        let waker = self.inner.lock().unwrap_or_else(PoisonError::into_inner).waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl SendBody {
    /// Watches `body`; the watch is `None` where there is nothing to send.
    pub(super) fn new(body: AttemptBody) -> (SendBody, Option<Arc<Watch>>) {
        let watch = (!body.is_end_stream()).then(Arc::<Watch>::default);
        let left = body.size_hint().exact();
        (SendBody { body, watch: watch.clone(), left }, watch)
    }

    /// Whether there is anything to send.
    pub(super) fn will_send(&self) -> bool {
        self.watch.is_some()
    }

    /// Whether hyper must be told to chunk it: it leaves bodies of unknown length out of GET and HEAD.
    pub(super) fn is_of_unknown_length(&self) -> bool {
        self.watch.is_some() && self.left.is_none()
    }
}

impl Body for SendBody {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Box<dyn StdError + Send + Sync>>>> {
        let this = self.get_mut();
        let Some(watch) = &this.watch else { return Poll::Ready(None) };
        if watch.cancelled.load(Ordering::Acquire) {
            return Poll::Ready(Some(Err(Cancelled::error())));
        }
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                if this.left == Some(0) || this.body.is_end_stream() {
                    watch.done.store(true, Ordering::Release);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                watch.inner.lock().unwrap_or_else(PoisonError::into_inner).error = Some(error.clone());
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                watch.done.store(true, Ordering::Release);
                Poll::Ready(None)
            }
            Poll::Pending => {
                watch.inner.lock().unwrap_or_else(PoisonError::into_inner).waker = Some(cx.waker().clone());
                // It may have been cancelled while the waker was not there yet.
                if watch.cancelled.load(Ordering::Acquire) {
                    return Poll::Ready(Some(Err(Cancelled::error())));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.watch.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.watch {
            Some(_) => self.body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// Nobody wants the answer any more. Its source makes hyper reset the stream with CANCEL.
#[derive(Debug)]
struct Cancelled(h2::Error);

impl Cancelled {
    fn error() -> Box<dyn StdError + Send + Sync> {
        Box::new(Cancelled(h2::Reason::CANCEL.into()))
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was given up")
    }
}

impl StdError for Cancelled {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}
