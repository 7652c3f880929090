//! One connection to an upstream: the bytes, counted, and HTTP/1.1 or HTTP/2 spoken over them. What a connection is used
//! for is the pool's business.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::frames::Traffic;
use crate::message::Attempt;
use crate::tcp::Tcp;
use crate::upstream::upload::SendBody;

/// Read buffer of an HTTP/1.1 connection. hyper's own default grows to 400 KiB and keeps it while the connection idles.
const BUFFER: usize = 32 * 1024;

/// Windows of an HTTP/2 connection and of one of its streams. What apps leave unread takes from both: the connection's is
/// large, so that a few apps that stopped reading don't stop the answers of all others.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
const STREAM_WINDOW: u32 = 256 * 1024;

/// While an HTTP/2 connection carries a request, a PING goes out after this silence…
const PING_AFTER: Duration = Duration::from_secs(15);
/// …and no answer for this long means that the peer is gone. Idle connections get none: they are closed soon anyway.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A clock that is shorter says nothing about a connection over which nothing came.
const IN_VAIN: Duration = Duration::from_millis(250);

/// What a TLS record holds at most. Bytes.
const RECORD: usize = 16 * 1024;

/// Streams that are used of one HTTP/2 connection at most, whatever the peer allows.
const MAX_STREAMS: usize = 1000;

/// Bounds of an answer's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    /// Bytes.
    pub(super) bytes: usize,
    /// Fields.
    pub(super) fields: usize,
}

/// The bytes to and from an upstream.
pub(super) enum Stream {
    /// TCP as it is.
    Plain(Tcp),
    /// TLS over it.
    Tls(Box<TlsStream<Tcp>>),
}

impl Stream {
    /// Whether HTTP/2 was agreed on by ALPN.
    pub(super) fn agreed_on_h2(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(tcp) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// What went over a connection: the evidence of whether a request can have been seen.
#[derive(Debug, Default)]
pub(super) struct Wire {
    written: AtomicU64,
    read: AtomicU64,
    /// Set while the peer's HTTP/2 SETTINGS are awaited.
    awaiting_settings: AtomicBool,
    settings_seen: AtomicBool,
    settings_waker: Mutex<Option<Waker>>,
}

impl Wire {
    /// Bytes that the socket (or TLS above it) took.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Bytes that came.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Acquire)
    }

    /// A read that follows bytes means that those were processed: SETTINGS are always the first frame.
    fn reads_on(&self) {
        if self.read() > 0 && self.awaiting_settings.swap(false, Ordering::AcqRel) {
            self.settings_seen.store(true, Ordering::Release);
            if let Some(waker) = self.settings_waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
                waker.wake();
            }
        }
    }
}

/// A stream that counts.
///
/// A peer that answers and closes before it took the whole request (413 is often sent like that) makes our next write fail while
/// its answer lies unread. So such a failure is kept until that was read: then reading tells it. Where reading is at its end
/// already nothing would, so there writing does.
pub(super) struct Metered {
    stream: Stream,
    wire: Arc<Wire>,
    /// Present on HTTP/2.
    traffic: Option<Box<Traffic>>,
    /// A write failed since the peer is gone.
    lost: bool,
    /// The peer sends no more.
    ended: bool,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.wire.awaiting_settings.load(Ordering::Relaxed) {
            self.wire.reads_on();
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            let new = &buf.filled()[before..];
            let read = new.len();
            self.wire.read.fetch_add(read as u64, Ordering::Release);
            if self.traffic.as_mut().is_some_and(|traffic| traffic.read(new).is_err()) {
                return Poll::Ready(Err(io::Error::other("a flood of HTTP/2 frames without content")));
            }
            if read == 0 && buf.remaining() > 0 {
                // The failed write has taken the reset with it, and this must not look like an end in good order.
                if self.lost {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                self.ended = true;
            }
        }
        polled
    }
}

impl Metered {
    fn new(stream: Stream, wire: Arc<Wire>, traffic: Option<Box<Traffic>>) -> Metered {
        Metered { stream, wire, traffic, lost: false, ended: false }
    }

    /// Counts what was written of `all` bytes.
    fn wrote(&mut self, polled: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        let written = match &polled {
            Poll::Ready(Ok(written)) => *written as u64,
            // TLS writes several records for it, of which the first may have arrived.
            Poll::Ready(Err(_)) if all > RECORD && matches!(self.stream, Stream::Tls(_)) => 1,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        self.wire.written.fetch_add(written, Ordering::Release);
        self.forgive(polled, all)
    }

    /// Puts `instead` in the place of a failure that reading is to tell.
    fn forgive<T>(&mut self, polled: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(Err(error))
                if !self.ended
                    && matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.lost = true;
                Poll::Ready(Ok(instead))
            }
            other => other,
        }
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.lost {
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let (Some(traffic), Poll::Ready(Ok(n))) = (&mut self.traffic, &polled) {
            traffic.wrote(&buf[..*n]);
        }
        self.wrote(polled, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = || bufs.iter().map(|buf| buf.len()).sum();
        if self.lost {
            return Poll::Ready(Ok(all()));
        }
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if let (Some(traffic), Poll::Ready(Ok(n))) = (&mut self.traffic, &polled) {
            traffic.wrote_vectored(bufs, *n);
        }
        self.wrote(polled, all())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lost {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.forgive(polled, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An HTTP/1.1 connection. Dropped while idle it is closed in good order.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<SendBody>,
    pub(super) driver: JoinHandle<()>,
    pub(super) wire: Arc<Wire>,
}

impl Http1 {
    /// Speaks HTTP/1.1 over `stream`. `ended` runs when the connection is no more.
    ///
    /// # Errors
    /// As hyper's handshake, which does no I/O.
    pub(super) async fn start(
        stream: Stream,
        limits: HeadLimits,
        ended: impl FnOnce() + Send + 'static,
    ) -> hyper::Result<Http1> {
        let wire = Arc::new(Wire::default());
        let mut builder = http1::Builder::new();
        builder.preserve_header_case(true).max_buf_size(BUFFER.max(limits.bytes)).max_header_size(limits.bytes);
        // hyper's default is 100 as well, but a number that was set costs two allocations a message.
        if limits.fields != 100 {
            builder.max_headers(limits.fields);
        }
        let io = TokioIo::new(Metered::new(stream, wire.clone(), None));
        let (sender, connection) = builder.handshake(io).await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an upstream ended");
            }
            ended();
        });
        Ok(Http1 { sender, driver, wire })
    }

    /// Closes it at once, whatever it is doing.
    pub(super) fn kill(self) {
        self.driver.abort();
    }
}

/// An HTTP/2 connection, shared.
#[derive(Clone)]
pub(super) struct Http2 {
    pub(super) sender: http2::SendRequest<SendBody>,
    state: Arc<Http2State>,
}

struct Http2State {
    wire: Arc<Wire>,
    room: AtomicUsize,
    settled: AtomicBool,
    ended: AtomicBool,
    /// A request waited in vain while not a byte came.
    doubted: AtomicBool,
}

/// Watches a connection while a request waits for its answer. Where one of our clocks ends that and nothing at all came meanwhile,
/// the peer may be gone without a word: new requests go elsewhere at once, rather than when the PING is overdue. An app that hangs
/// up says nothing: some upstreams are slow, and each connection costs a handshake.
pub(super) struct Vigil<'a> {
    attempt: &'a Attempt,
    state: Arc<Http2State>,
    read: u64,
    since: Instant,
}

impl Drop for Vigil<'_> {
    fn drop(&mut self) {
        let in_vain = self.attempt.timed_out() && self.since.elapsed() >= IN_VAIN;
        if in_vain && self.state.wire.read() == self.read {
            self.state.doubted.store(true, Ordering::Release);
        }
    }
}

impl Http2 {
    /// Speaks HTTP/2 over `stream`. `changed` runs when the peer's SETTINGS have come, and when the connection takes no
    /// streams any more.
    ///
    /// # Errors
    /// As hyper's handshake: the preface could not be written.
    pub(super) async fn start(
        stream: Stream,
        limits: HeadLimits,
        changed: impl Fn() + Send + Sync + 'static,
    ) -> hyper::Result<Http2> {
        let wire = Arc::new(Wire { awaiting_settings: AtomicBool::new(true), ..Wire::default() });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            // One stream goes at once; how many more may go is known when the peer's SETTINGS have come.
            .initial_max_send_streams(1)
            .max_header_list_size(u32::try_from(limits.bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false);
        let traffic = Box::new(Traffic::new(false, Instant::now()));
        let io = TokioIo::new(Metered::new(stream, wire.clone(), Some(traffic)));
        let (sender, connection) = builder.handshake(io).await?;
        let state = Arc::new(Http2State {
            wire: wire.clone(),
            room: AtomicUsize::new(1),
            settled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
        });
        let watched = state.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let result = std::future::poll_fn(|cx| {
                if !watched.settled.load(Ordering::Relaxed) {
                    *wire.settings_waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
                    if wire.settings_seen.load(Ordering::Acquire) {
                        watched.room.store(connection.current_max_send_streams().min(MAX_STREAMS), Ordering::Relaxed);
                        watched.settled.store(true, Ordering::Release);
                        changed();
                    }
                }
                let polled = connection.as_mut().poll(cx);
                if watched.settled.load(Ordering::Relaxed) {
                    watched.room.store(connection.current_max_send_streams().min(MAX_STREAMS), Ordering::Relaxed);
                }
                polled
            })
            .await;
            if let Err(error) = result {
                tracing::debug!(%error, "an HTTP/2 connection to an upstream ended");
            }
            watched.ended.store(true, Ordering::Release);
            changed();
        });
        Ok(Http2 { sender, state })
    }

    /// How many streams it takes at once.
    pub(super) fn room(&self) -> usize {
        self.state.room.load(Ordering::Relaxed)
    }

    /// Whether the peer's SETTINGS have come.
    pub(super) fn is_settled(&self) -> bool {
        self.state.settled.load(Ordering::Acquire)
    }

    /// Whether it takes no new streams, or should not.
    pub(super) fn is_closed(&self) -> bool {
        self.state.ended.load(Ordering::Acquire)
            || self.state.doubted.load(Ordering::Acquire)
            || self.sender.is_closed()
    }

    /// A request is about to be sent; the vigil lasts until there is an answer.
    pub(super) fn watch<'a>(&self, attempt: &'a Attempt) -> Vigil<'a> {
        Vigil { attempt, state: self.state.clone(), read: self.state.wire.read(), since: Instant::now() }
    }
}

/// The HTTP/2 error inside one of hyper's.
pub(super) fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref::<h2::Error>() {
            return Some(found);
        }
        source = inner.source();
    }
    None
}

/// hyper's words and those of what caused it, which often say more.
pub(crate) fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_a_peer_said_before_it_left_is_read_although_writing_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = Tcp::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        peer.write_all(b"answer").await.unwrap();
        peer.set_zero_linger().unwrap();
        drop(peer);
        let wire = Arc::new(Wire::default());
        let mut metered = Metered::new(Stream::Plain(stream), wire.clone(), None);
        while !metered.lost {
            metered.write_all(b"request").await.unwrap();
            tokio::task::yield_now().await;
        }
        let written = wire.written();
        metered.write_all(b"more").await.unwrap();
        assert_eq!(wire.written(), written, "what went nowhere counts as sent");
        let mut answer = [0; 6];
        metered.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        assert_eq!(metered.read(&mut answer).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_write_fails_at_once_where_reading_can_tell_nothing_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = Tcp::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        let mut metered = Metered::new(Stream::Plain(stream), Arc::default(), None);
        drop(peer);
        assert_eq!(metered.read(&mut [0; 6]).await.unwrap(), 0);
        let written = async { while metered.write_all(b"frame").await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(20), written).await.expect("it is told");
    }
}
