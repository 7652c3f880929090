//! The request body as one attempt sends it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::error::Error;
use crate::policy::replay::Cursor;

/// The body of one attempt.
pub struct AttemptBody {
    kind: Kind,
    /// For `Expect: 100-continue`: nothing is taken from the app before the upstream said so, or a while passed.
    gate: Option<(Arc<Gate>, Pin<Box<Sleep>>)>,
}

enum Kind {
    Empty,
    Full(Option<Bytes>),
    Replay(Cursor),
}

impl AttemptBody {
    /// No body.
    pub fn empty() -> AttemptBody {
        AttemptBody { kind: Kind::Empty, gate: None }
    }

    /// A body that is all there.
    pub fn from_bytes(bytes: Bytes) -> AttemptBody {
        AttemptBody { kind: Kind::Full((!bytes.is_empty()).then_some(bytes)), gate: None }
    }

    /// The app's body, as this attempt may read it.
    pub fn replayed(cursor: Cursor) -> AttemptBody {
        AttemptBody { kind: Kind::Replay(cursor), gate: None }
    }

    /// Holds the body back until the gate opens, or `patience` passed: an upstream that never says 100 gets the body all
    /// the same (RFC 9110 section 10.1.1).
    pub fn behind(mut self, gate: Arc<Gate>, patience: Duration) -> AttemptBody {
        self.gate = Some((gate, Box::pin(tokio::time::sleep(patience))));
        self
    }
}

impl Body for AttemptBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let body = self.get_mut();
        if let Some((gate, patience)) = &mut body.gate {
            if !gate.is_open(cx) && patience.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            body.gate = None;
        }
        match &mut body.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Replay(cursor) => Pin::new(cursor).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Replay(cursor) => cursor.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Replay(cursor) => cursor.size_hint(),
        }
    }
}

/// Shut until the upstream answers `100 Continue`.
#[derive(Debug, Default)]
pub struct Gate {
    open: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Gate {
    /// Lets the body through. On an explicit 100 only: opened for any other reason it would make hyper's server say
    /// `100 Continue` in front of a final answer.
    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
        let waker = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn is_open(&self, cx: &Context<'_>) -> bool {
        if self.open.load(Ordering::Acquire) {
            return true;
        }
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        // It may have opened between the look and the registration.
        self.open.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gate_holds_the_body_until_it_opens_or_patience_ends() {
        let gate = Arc::new(Gate::default());
        let body = AttemptBody::from_bytes("x".into()).behind(gate.clone(), Duration::from_secs(1));
        let reader = tokio::spawn(body.collect());
        tokio::time::sleep(Duration::from_millis(300)).await;
        gate.open();
        let start = Instant::now();
        assert_eq!(reader.await.unwrap().unwrap().to_bytes(), "x");
        assert_eq!(start.elapsed(), Duration::ZERO);

        let body = AttemptBody::from_bytes("x".into()).behind(Arc::new(Gate::default()), Duration::from_secs(1));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "x");
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }
}
