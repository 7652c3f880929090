//! What an app has not taken yet of its answers. hyper and h2 wait for that without an end, so the bytes themselves tell.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::Response;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::error::Error;
use crate::message::Exchange;
use crate::proxy::body::ResponseBody;
use crate::proxy::http2::conduct::Conduct;

/// One request and its answer, as the connection sees them.
pub(super) struct Stream {
    conduct: Arc<Conduct>,
    began: Instant,
    answer: OnceLock<Answer>,
    /// Bytes of the answer that were handed to h2 and not written to the app yet.
    untaken: AtomicU64,
}

struct Answer {
    exchange: Option<Arc<Exchange>>,
    /// When it began.
    at: Instant,
    /// `timeouts.idle`
    patience: Option<Duration>,
}

impl Stream {
    pub(super) fn new(conduct: Arc<Conduct>) -> Stream {
        Stream { conduct, began: Instant::now(), answer: OnceLock::new(), untaken: AtomicU64::new(0) }
    }

    /// One whose app has yet to take a byte of its answer, which began now.
    #[cfg(test)]
    pub(super) fn stuck(conduct: &Arc<Conduct>, patience: Duration) -> Arc<Stream> {
        let (at, stream) = (Instant::now(), Stream::new(Arc::clone(conduct)));
        let answer = Answer { exchange: Some(Exchange::new(at)), at, patience: Some(patience) };
        assert!(stream.answer.set(answer).is_ok());
        stream.untaken.store(1, Ordering::Relaxed);
        Arc::new(stream)
    }

    /// How long ago it began.
    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether there was an answer before it ended.
    pub(super) fn is_answered(&self) -> bool {
        self.answer.get().is_some()
    }

    /// Whether the app has yet to take some of it.
    pub(super) fn has_untaken(&self) -> bool {
        self.untaken.load(Ordering::Relaxed) > 0
    }

    /// When the app has taken nothing for too long, if it is its turn.
    pub(super) fn until(&self) -> Option<Instant> {
        let Answer { exchange: Some(exchange), patience: Some(patience), at } = self.answer.get()? else { return None };
        self.has_untaken().then(|| exchange.last_activity().max(*at) + *patience)
    }
}

/// An answer's body whose bytes tell when they were written.
pub(super) struct Paced {
    body: ResponseBody,
    stream: Arc<Stream>,
}

impl Paced {
    /// The answer to the stream's request.
    pub(super) fn answer(answer: Response<ResponseBody>, stream: &Arc<Stream>) -> Response<Paced> {
        answer.map(|body| {
            let (exchange, patience) = body.pace();
            stream.conduct.answers(patience);
            // Each request has one answer.
            let _ = stream.answer.set(Answer { exchange, patience, at: Instant::now() });
            Paced { body, stream: Arc::clone(stream) }
        })
    }
}

impl Body for Paced {
    type Data = Piece;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        polled.map_ok(|frame| {
            frame.map_data(|bytes| {
                self.stream.untaken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Piece { bytes, stream: Arc::clone(&self.stream) }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes on their way to the app.
pub(super) struct Piece {
    bytes: Bytes,
    stream: Arc<Stream>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [std::io::IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(into)
    }

    fn advance(&mut self, n: usize) {
        self.bytes.advance(n);
        self.stream.untaken.fetch_sub(n as u64, Ordering::Relaxed);
        if let Some(exchange) = self.stream.answer.get().and_then(|answer| answer.exchange.as_ref()) {
            exchange.touch(Instant::now());
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.stream.untaken.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}
