//! The replay buffer: the app's body is kept while it streams, so that a later attempt can send the same bytes again.
//! It never delays the stream, and when it would grow past its bounds it lets go: the body streams on, and can't be sent again.

#[cfg(test)]
mod model;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::error::Error;
use crate::message::{AppBody, Exchange};

/// `limits.replay_memory`: bytes held by all replay buffers of the process.
#[derive(Debug)]
pub struct ReplayMemory {
    cap: AtomicU64,
    held: AtomicU64,
    refused: AtomicU64,
}

impl ReplayMemory {
    /// With a cap in bytes.
    pub fn new(cap: u64) -> Arc<ReplayMemory> {
        Arc::new(ReplayMemory { cap: AtomicU64::new(cap), held: AtomicU64::new(0), refused: AtomicU64::new(0) })
    }

    /// A reload changed the cap.
    pub fn set_cap(&self, cap: u64) {
        self.cap.store(cap, Ordering::Relaxed);
    }

    /// Bytes held now (`outrigger_replay_bytes`).
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// How often the cap was met.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn reserve(&self, bytes: u64) -> bool {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.cap.load(Ordering::Relaxed);
        if !fits {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    fn release(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// An app's body that attempts share.
pub struct Replay {
    /// The body's length, where the app told it.
    total: Option<u64>,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    body: AppBody,
    /// Frames that were taken from the body and may be needed again, oldest first.
    kept: VecDeque<Bytes>,
    kept_bytes: u64,
    /// How many frames were taken and dropped before those in `kept`.
    dropped: usize,
    /// Frames are kept for a later attempt.
    keeping: bool,
    /// The most that is kept.
    cap: u64,
    complete: bool,
    trailers: Option<HeaderMap>,
    /// The attempt that may take; earlier ones are cut off.
    current: u32,
    memory: Arc<ReplayMemory>,
    exchange: Arc<Exchange>,
}

impl Replay {
    /// Keeps up to `cap` bytes of `body`.
    pub fn new(body: AppBody, cap: u64, memory: Arc<ReplayMemory>, exchange: Arc<Exchange>) -> Replay {
        Replay {
            total: body.size_hint().exact(),
            shared: Arc::new(Mutex::new(Shared {
                body,
                kept: VecDeque::new(),
                kept_bytes: 0,
                dropped: 0,
                keeping: true,
                cap,
                complete: false,
                trailers: None,
                current: 0,
                memory,
                exchange,
            })),
        }
    }

    /// The body from its first byte for one more attempt. Earlier attempts' bodies are cut off.
    pub fn cursor(&self) -> Cursor {
        let mut shared = lock(&self.shared);
        shared.current += 1;
        Cursor { attempt: shared.current, next: 0, trailers_read: false, left: self.total, shared: self.shared.clone() }
    }

    /// Whether another attempt can send the same bytes.
    pub fn replayable(&self) -> bool {
        lock(&self.shared).keeping
    }

    /// No other attempt will come: what was sent is let go, and nothing more is kept.
    pub fn release(&self) {
        let mut shared = lock(&self.shared);
        shared.keeping = false;
        // The first attempt is always past all that is kept. A later one frees it as it goes.
        if shared.current == 1 {
            shared.forget_up_to(usize::MAX);
        }
    }
}

/// The app's body as one attempt reads it: what was kept, then the stream.
pub struct Cursor {
    attempt: u32,
    /// The frame to read next, counted from the body's first.
    next: usize,
    trailers_read: bool,
    /// Bytes still to come, where that is known.
    left: Option<u64>,
    shared: Arc<Mutex<Shared>>,
}

impl Body for Cursor {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let cursor = self.get_mut();
        let mut shared = lock(&cursor.shared);
        if shared.current != cursor.attempt {
            // The attempt is over; nobody waits for what its connection still tries to send.
            return Poll::Ready(Some(Err(Error::AppGone)));
        }
        if cursor.trailers_read {
            return Poll::Ready(None);
        }
        let frame = ready!(shared.poll(cursor.next, cx));
        let now = Instant::now();
        let exchange = &shared.exchange;
        Poll::Ready(match frame {
            Some(Ok(Taken::Data(data))) => {
                cursor.next += 1;
                cursor.left = cursor.left.map(|left| left.saturating_sub(data.len() as u64));
                exchange.touch(now);
                if cursor.left == Some(0) {
                    exchange.upload.whole.store(true, Ordering::Relaxed);
                    exchange.upload.end(exchange.nanos(now));
                } else {
                    exchange.upload.begin(exchange.nanos(now));
                }
                Some(Ok(Frame::data(data)))
            }
            Some(Ok(Taken::Trailers(trailers))) => {
                cursor.trailers_read = true;
                exchange.upload.whole.store(true, Ordering::Relaxed);
                exchange.upload.end(exchange.nanos(now));
                Some(Ok(Frame::trailers(trailers)))
            }
            Some(Err(error)) => {
                exchange.upload.app_gone.store(true, Ordering::Relaxed);
                Some(Err(error))
            }
            None => {
                exchange.upload.whole.store(true, Ordering::Relaxed);
                exchange.upload.end(exchange.nanos(now));
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        let frames_read = self.next == shared.dropped + shared.kept.len();
        let trailers_read = self.trailers_read || shared.trailers.is_none();
        frames_read && trailers_read && (shared.complete || shared.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

enum Taken {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Shared {
    fn poll(&mut self, next: usize, cx: &mut Context<'_>) -> Poll<Option<Result<Taken, Error>>> {
        if !self.keeping {
            self.forget_up_to(next);
        }
        if let Some(data) = next.checked_sub(self.dropped).and_then(|at| self.kept.get(at)) {
            return Poll::Ready(Some(Ok(Taken::Data(data.clone()))));
        }
        if self.complete {
            return Poll::Ready(self.trailers.clone().map(|trailers| Ok(Taken::Trailers(trailers))));
        }
        loop {
            let frame = Pin::new(&mut self.body).poll_frame(cx);
            self.exchange.upload.awaits_app.store(frame.is_pending(), Ordering::Relaxed);
            match ready!(frame) {
                None => {
                    self.complete = true;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.exchange.bytes_in.fetch_add(data.len() as u64, Ordering::Relaxed);
                        self.keep(&data);
                        return Poll::Ready(Some(Ok(Taken::Data(data))));
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.complete = true;
                            self.trailers = Some(trailers.clone());
                            return Poll::Ready(Some(Ok(Taken::Trailers(trailers))));
                        }
                    }
                },
            }
        }
    }

    fn keep(&mut self, data: &Bytes) {
        let bytes = data.len() as u64;
        if self.keeping && self.kept_bytes + bytes <= self.cap && self.memory.reserve(bytes + FRAME) {
            self.kept.push_back(data.clone());
            self.kept_bytes += bytes;
        } else {
            // The body is only read at its end, so whoever reads is past everything that was kept.
            self.keeping = false;
            self.forget_up_to(usize::MAX);
            self.dropped += 1;
        }
    }

    /// Lets go of the frames before number `next`.
    fn forget_up_to(&mut self, next: usize) {
        while self.dropped < next {
            let Some(data) = self.kept.pop_front() else { return };
            self.dropped += 1;
            self.kept_bytes -= data.len() as u64;
            self.memory.release(data.len() as u64 + FRAME);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.memory.release(self.kept_bytes + self.kept.len() as u64 * FRAME);
    }
}

/// What keeping a frame costs besides its bytes, so that a body of tiny chunks can't hold much more than is counted.
const FRAME: u64 = 64;

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    struct App {
        frames: mpsc::UnboundedSender<Result<Frame<Bytes>, Error>>,
    }

    fn replay(cap: u64, memory: &Arc<ReplayMemory>) -> (App, Replay) {
        let (frames, mut receiver) = mpsc::unbounded_channel();
        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let body = AppBody::Boxed(StreamBody::new(stream).boxed_unsync());
        (App { frames }, Replay::new(body, cap, memory.clone(), Exchange::new(Instant::now())))
    }

    impl App {
        fn send(&self, data: &'static str) {
            self.frames.send(Ok(Frame::data(Bytes::from_static(data.as_bytes())))).unwrap();
        }
    }

    async fn next(cursor: &mut Cursor) -> Option<String> {
        let frame = cursor.frame().await?.unwrap();
        Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_second_attempt_sends_the_same_bytes_and_goes_on() {
        let memory = ReplayMemory::new(1000);
        let (app, replay) = replay(100, &memory);
        app.send("one ");
        app.send("two ");
        let mut first = replay.cursor();
        assert_eq!(next(&mut first).await.unwrap(), "one ");
        assert_eq!(next(&mut first).await.unwrap(), "two ");
        let second = replay.cursor();
        assert!(first.frame().await.unwrap().is_err(), "the first is cut off");
        app.send("three");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        app.frames.send(Ok(Frame::trailers(trailers.clone()))).unwrap();
        drop(app);
        let all = second.collect().await.unwrap();
        assert_eq!(all.trailers(), Some(&trailers));
        assert_eq!(all.to_bytes(), "one two three");
        let third = replay.cursor().collect().await.unwrap();
        assert_eq!(third.trailers(), Some(&trailers));
        assert_eq!(third.to_bytes(), "one two three");
        assert_eq!(memory.held(), 13 + 3 * FRAME);
        drop((first, replay));
        assert_eq!(memory.held(), 0);
    }

    #[tokio::test]
    async fn a_body_over_its_cap_streams_on_and_is_not_kept() {
        let memory = ReplayMemory::new(1000);
        let (app, replay) = replay(5, &memory);
        app.send("12345");
        let mut cursor = replay.cursor();
        assert_eq!(next(&mut cursor).await.unwrap(), "12345");
        assert!(replay.replayable());
        app.send("6");
        app.send("7");
        drop(app);
        assert_eq!(cursor.collect().await.unwrap().to_bytes(), "67");
        assert!(!replay.replayable());
        assert_eq!((memory.held(), memory.refused()), (0, 0));
    }

    #[tokio::test]
    async fn the_process_wide_cap_holds_too() {
        let memory = ReplayMemory::new(8 + 2 * FRAME);
        let (app, one) = replay(100, &memory);
        let (other, two) = replay(100, &memory);
        app.send("12345");
        other.send("12345");
        next(&mut one.cursor()).await;
        next(&mut two.cursor()).await;
        assert!(one.replayable() && !two.replayable());
        assert_eq!((memory.held(), memory.refused()), (5 + FRAME, 1));
    }

    #[tokio::test]
    async fn after_release_what_is_sent_is_freed_as_it_goes() {
        let memory = ReplayMemory::new(1000);
        let (app, replay) = replay(100, &memory);
        ["1", "2", "3", "4"].into_iter().for_each(|data| app.send(data));
        let mut first = replay.cursor();
        for _ in 0..4 {
            next(&mut first).await;
        }
        let mut second = replay.cursor();
        assert_eq!(next(&mut second).await.unwrap(), "1");
        assert_eq!(next(&mut second).await.unwrap(), "2");
        replay.release();
        assert_eq!(next(&mut second).await.unwrap(), "3");
        assert_eq!(memory.held(), 2 + 2 * FRAME);
        app.send("5");
        drop(app);
        assert_eq!(second.collect().await.unwrap().to_bytes(), "45");
        assert_eq!(memory.held(), 0);
    }
}
