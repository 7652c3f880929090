//! An answer's body under the policies, and an answer that is held back while a retry is tried.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::Instant;

use crate::error::{Error, Origin};
use crate::message::Exchange;
use crate::policy::breaker::Breaker;
use crate::policy::concurrency::Slot;
use crate::policy::timeout::Moving;

/// An answer's body under the policies: the idle clock, the slot, and the breaker's interest in a body that breaks.
/// For an upgraded stream it is kept (unread) as long as the stream lives.
pub struct Carry<B> {
    body: Source<B>,
    /// What was read of it while the answer was held back, to be passed on first.
    read: BytesMut,
    exchange: Arc<Exchange>,
    /// `timeouts.idle`
    idle: Option<Duration>,
    /// Set while the upstream is waited for.
    timer: Option<Moving>,
    /// Given back when the body ends, or is dropped.
    slot: Option<Slot>,
    /// Told once when the body breaks.
    breaker: Option<(Arc<Breaker>, u64)>,
}

enum Source<B> {
    Live(B),
    /// Read to its end while the answer was held back.
    Ended(Option<HeaderMap>),
    /// Broke while the answer was held back.
    Broken(Option<Error>),
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Carry<B> {
    /// For the body of an answer whose headers have just come. `breaker` with the generation that the attempt is of.
    pub fn new(
        body: B,
        exchange: Arc<Exchange>,
        idle: Option<Duration>,
        slot: Option<Slot>,
        breaker: Option<(Arc<Breaker>, u64)>,
    ) -> Carry<B> {
        Carry { body: Source::Live(body), read: BytesMut::new(), exchange, idle, timer: None, slot, breaker }
    }

    /// The answer is held back while a retry is tried: its slot must not keep the retry from one.
    pub fn give_slot_back(&mut self) {
        self.slot = None;
    }

    /// Reads a short body to its end, so that its connection is free for the retry and the answer can still be passed on
    /// if the retry is refused. A longer one is left where it is then. May be dropped at any await: nothing is lost.
    pub async fn keep(&mut self) {
        while let Source::Live(body) = &mut self.body {
            match body.frame().await {
                None => self.body = Source::Ended(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.read.extend_from_slice(&data);
                        if self.read.len() > MOST_KEPT {
                            return;
                        }
                    }
                    Err(frame) => self.body = Source::Ended(frame.into_trailers().ok()),
                },
                Some(Err(error)) => {
                    self.broke(&error);
                    self.body = Source::Broken(Some(error));
                }
            }
        }
    }

    /// Whether it no longer needs its connection.
    pub fn is_kept(&self) -> bool {
        match self.body {
            Source::Live(_) => false,
            Source::Ended(_) | Source::Broken(_) => true,
        }
    }

    fn broke(&mut self, error: &Error) {
        self.slot = None;
        if error.origin() == Origin::Upstream
            && let Some((breaker, generation)) = self.breaker.take()
        {
            breaker.body_broke(generation, Instant::now());
        }
    }

    /// The idle clock: silence in both directions for longer than `idle`.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let Some(idle) = self.idle else { return Poll::Pending };
        let until = self.exchange.last_activity() + idle;
        self.timer.get_or_insert_with(|| Moving::new(until)).poll(cx, until).map(|()| Error::UpstreamSilent)
    }
}

/// The most that is read of an answer that is held back, in bytes: error pages are shorter.
const MOST_KEPT: usize = 64 * 1024;

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for Carry<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let carry = self.get_mut();
        if !carry.read.is_empty() {
            let data = carry.read.split().freeze();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let frame = match &mut carry.body {
            Source::Live(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => match carry.poll_silence(cx) {
                    Poll::Ready(error) => Some(Err(error)),
                    Poll::Pending => return Poll::Pending,
                },
            },
            Source::Ended(trailers) => trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
            Source::Broken(error) => error.take().map(Err),
        };
        match &frame {
            Some(Ok(_)) => carry.exchange.touch(Instant::now()),
            Some(Err(error)) => carry.broke(error),
            None => carry.slot = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty()
            && match &self.body {
                Source::Live(body) => body.is_end_stream(),
                Source::Ended(trailers) => trailers.is_none(),
                Source::Broken(error) => error.is_none(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.len() as u64;
        match &self.body {
            Source::Live(body) => match body.size_hint().exact() {
                Some(rest) => SizeHint::with_exact(read + rest),
                None => SizeHint::default(),
            },
            Source::Ended(_) => SizeHint::with_exact(read),
            // How long it would have been is not known.
            Source::Broken(_) => SizeHint::default(),
        }
    }
}
