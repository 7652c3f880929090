//! An app's connection as hyper's HTTP/1 server reads it: only bytes that the inspector let pass.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, timeout};

use crate::error::Error;
use crate::proxy::head::{Bounds, Inspector, REFUSED_HEAD, Verdict};
use crate::proxy::link::Link;
use crate::proxy::socket::Socket;
use crate::tcp::Tcp;

/// How much is taken at once into our own memory, where hyper's own can't be used.
const PIECE: usize = 2048;
/// What an app may send behind a CONNECT before it has the answer.
const MAX_EARLY: usize = 16 * 1024;
/// After our last byte we go on reading what an app still sends, so that it reads the answer rather than a reset: as long as
/// it is never silent for so long…
const LINGER: Duration = Duration::from_secs(1);
/// …and no longer than this. Many clients read nothing before all is sent.
const MAX_LINGER: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct AppIo {
    /// `None` only once taken.
    stream: Option<Socket>,
    link: Arc<Link>,
    inspector: Inspector,
    /// Read but not passed on. The first `ready` bytes may be.
    held: BytesMut,
    ready: usize,
    /// `held` has bytes that were not inspected yet.
    fresh: bool,
    /// A head was refused, or a body broke: nothing more is passed on.
    over: Option<Over>,
    header_timeout: Duration,
    /// Runs while a head is half there.
    clock: Option<Pin<Box<Sleep>>>,
    stall: Stall,
    /// Until when bytes are read away after the last answer; `None` until that is sent.
    linger: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Refused,
    Broken,
}

impl AppIo {
    /// A connection of which `first` was read already. The clock of the first head ends at `deadline`.
    pub(crate) fn new(
        stream: Socket,
        first: BytesMut,
        deadline: Instant,
        link: Arc<Link>,
        bounds: Bounds,
        header_timeout: Duration,
    ) -> AppIo {
        AppIo {
            stream: Some(stream),
            link,
            inspector: Inspector::new(bounds),
            fresh: !first.is_empty(),
            held: first,
            ready: 0,
            over: None,
            header_timeout,
            clock: Some(Box::pin(tokio::time::sleep_until(deadline))),
            stall: Stall::default(),
            linger: None,
        }
    }

    /// The socket, and what was read of it but not passed on.
    pub(crate) fn into_parts(mut self) -> Option<(Socket, Bytes)> {
        let stream = self.stream.take()?;
        Some((stream, std::mem::take(&mut self.held).freeze()))
    }

    /// Waits for the app to say something or hang up, without hyper and without room for what it will say. The next read gets
    /// that.
    ///
    /// # Errors
    /// As a read.
    pub(crate) fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            self.fresh = ready!(self.fill(cx))? > 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes back what was passed on last.
    pub(crate) fn take_back(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let mut held = BytesMut::from(bytes);
            held.extend_from_slice(&self.held);
            self.held = held;
            self.ready += bytes.len();
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Socket>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Hands out what may be handed out.
    fn deliver(&mut self, buf: &mut ReadBuf<'_>) {
        let n = self.ready.min(buf.remaining());
        buf.put_slice(&self.held[..n]);
        self.held.advance(n);
        self.ready -= n;
        if self.held.is_empty() {
            // An idle connection keeps no memory here.
            self.held = BytesMut::new();
        }
    }

    /// The head that begins `ready` bytes into `held` is answered with an error, and nothing behind it is read.
    fn refuse(&mut self, error: Error) {
        self.link.bodiless.store(self.inspector.reads_head_request(), Ordering::Relaxed);
        self.held.truncate(self.ready);
        self.held.extend_from_slice(REFUSED_HEAD);
        self.ready = self.held.len();
        self.clock = None;
        self.over = Some(Over::Refused);
        *self.link.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// Tells the requests what hyper will not.
    fn tell(&mut self) {
        let options = self.inspector.take_options();
        if !options.is_empty() {
            self.link.options.lock().unwrap_or_else(PoisonError::into_inner).extend(options);
        }
    }

    /// Acts on a verdict about all of `held` from `ready` on.
    fn judge(&mut self) {
        self.fresh = false;
        let verdict = self.inspector.inspect(&self.held[self.ready..]);
        self.tell();
        match verdict {
            Verdict::Pass(n) => self.ready += n,
            Verdict::Refuse(n, error) => {
                self.ready += n;
                self.refuse(error);
            }
            Verdict::Broken(n, what) => {
                self.ready += n;
                self.broke(what);
            }
        }
        if !self.inspector.in_head() || self.held.len() == self.ready {
            // Of the next head nothing has come.
            self.clock = None;
        }
        self.link.arrived.store(self.inspector.between(), Ordering::Relaxed);
    }

    fn broke(&mut self, what: &'static str) {
        self.held.truncate(self.ready);
        self.over = Some(Over::Broken);
        *self.link.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    /// Reads into `held`. How much came; 0 is the end.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut piece = [0; PIECE];
        let mut piece = ReadBuf::new(&mut piece);
        ready!(self.stream()?.poll_read(cx, &mut piece))?;
        self.held.extend_from_slice(piece.filled());
        Poll::Ready(Ok(piece.filled().len()))
    }

    /// A head is half there: it has to be complete in time.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.inspector.in_head() || self.held.len() == self.ready {
            return Poll::Pending;
        }
        let timeout = self.header_timeout;
        self.clock.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout))).as_mut().poll(cx)
    }

    /// What a write came to. One that waits too long fails, so that a stuck app doesn't hold its upstream for ever. Inside TLS a
    /// flush waits where a bare socket's write would.
    fn wrote<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let taken = self.stream.as_ref().map_or(0, Socket::taken);
        if !self.stall.is_over(cx, polled.is_pending(), self.link.patience(), taken) {
            return polled;
        }
        // What the kernel still holds for it is not to be kept either.
        self.link.reset(true);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether the app may still be sending something that nobody will read.
    fn unfinished(&self) -> bool {
        self.over.is_some() || !self.inspector.between() || !self.held.is_empty()
    }
}

impl AsyncRead for AppIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        me.link.reads_nothing(false);
        if me.link.opaque.load(Ordering::Relaxed) && !me.inspector.opaque() {
            me.inspector.open();
        }
        loop {
            if me.ready > 0 {
                me.deliver(buf);
                return Poll::Ready(Ok(()));
            }
            match me.over {
                Some(Over::Broken) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                // The stand-in is the last request. Its answer ends the connection.
                Some(Over::Refused) => return Poll::Pending,
                None => {}
            }
            if me.fresh {
                me.judge();
                continue;
            }
            if me.inspector.undecided() && me.link.was_declined(cx) {
                me.inspector.go_on();
                me.clock = None;
                me.fresh = !me.held.is_empty();
                continue;
            }
            if me.inspector.opaque() || me.inspector.undecided() {
                // Kept for the tunnel, or until it is clear that there is none. Reading goes on for the sake of noticing that
                // the app hung up.
                if me.held.len() >= MAX_EARLY {
                    return Poll::Pending;
                }
                match ready!(me.fill(cx))? {
                    0 if me.held.is_empty() => return Poll::Ready(Ok(())),
                    0 => return Poll::Pending,
                    _ => continue,
                }
            }
            if me.held.is_empty() {
                let before = buf.filled().len();
                let polled = me.stream()?.poll_read(cx, buf);
                me.link.reads_nothing(polled.is_pending() && me.inspector.in_head());
                ready!(polled)?;
                let new = &buf.filled()[before..];
                if new.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let verdict = me.inspector.inspect(new);
                me.tell();
                let new = &buf.filled()[before..];
                let good = match verdict {
                    Verdict::Pass(n) => {
                        me.held.extend_from_slice(&new[n..]);
                        n
                    }
                    Verdict::Refuse(n, error) => {
                        me.refuse(error);
                        n
                    }
                    Verdict::Broken(n, what) => {
                        me.broke(what);
                        n
                    }
                };
                me.link.arrived.store(me.inspector.between(), Ordering::Relaxed);
                buf.set_filled(before + good);
                if me.held.is_empty() && me.inspector.in_head() {
                    me.clock = None;
                }
                if good > 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match me.fill(cx) {
                Poll::Ready(Ok(0)) if me.inspector.in_head() => {
                    me.refuse(Error::BadRequest("the connection ended in the middle of a head"));
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => me.judge(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(me.poll_clock(cx));
                    me.refuse(Error::AppSilent);
                }
            }
        }
    }
}

impl AsyncWrite for AppIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        me.link.holds(true);
        let polled = me.stream()?.poll_write(cx, buf);
        me.wrote(cx, polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        // hyper comes here when it has written all that it holds.
        let polled = me.stream()?.poll_flush(cx);
        me.link.holds(polled.is_pending());
        me.wrote(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        me.link.reads_nothing(false);
        if me.linger.is_none() {
            if me.link.reset.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            let polled = me.stream()?.poll_shutdown(cx);
            ready!(me.wrote(cx, polled))?;
            let now = Instant::now();
            if !me.unfinished() {
                me.linger = Some(now);
                return Poll::Ready(Ok(()));
            }
            me.clock = Some(Box::pin(tokio::time::sleep_until(now + LINGER)));
            me.linger = Some(now + MAX_LINGER);
        }
        while let Some(end) = me.linger.filter(|end| Instant::now() < *end) {
            me.held.clear();
            match me.fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => break,
                Poll::Ready(Ok(_)) => {
                    if let Some(clock) = &mut me.clock {
                        clock.as_mut().reset((Instant::now() + LINGER).min(end));
                    }
                }
                Poll::Pending => {
                    if let Some(clock) = &mut me.clock {
                        ready!(clock.as_mut().poll(cx));
                    }
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        me.link.holds(true);
        let polled = me.stream()?.poll_write_vectored(cx, bufs);
        me.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Drop for AppIo {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        // Dropped in the middle of an answer, as the end of the drain does.
        let cut = self.link.is_unflushed() && self.linger.is_none();
        if cut || self.link.reset.load(Ordering::Relaxed) {
            stream.abort();
        } else if matches!(stream, Socket::Tls(_))
            && self.linger.is_none()
            && let Ok(runtime) = Handle::try_current()
        {
            // hyper drops the connection of a CONNECT that was refused as it is. Inside TLS that would look cut off.
            runtime.spawn(async move { timeout(LINGER, stream.shutdown()).await });
        }
    }
}

/// Runs while an app takes nothing of what it is sent.
#[derive(Default)]
pub(crate) struct Stall {
    clock: Option<Pin<Box<Sleep>>>,
    /// What it had taken when that was looked at last.
    taken: u64,
}

impl Stall {
    /// Whether a write that is `pending` has been so for longer than `patience`, with nothing `taken` meanwhile.
    pub(crate) fn is_over(
        &mut self,
        cx: &mut Context<'_>,
        pending: bool,
        patience: Option<Duration>,
        taken: u64,
    ) -> bool {
        let Some(patience) = patience.filter(|_| pending) else {
            self.clock = None;
            return false;
        };
        if taken != self.taken {
            self.taken = taken;
            self.clock = None;
        }
        let clock = self.clock.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        clock.as_mut().poll(cx).is_ready()
    }
}

/// A connection of which some bytes were read already, and are read again.
pub(crate) struct Replayed {
    stream: Socket,
    first: Bytes,
    /// Bytes that were written.
    written: u64,
}

impl Replayed {
    /// `first` comes before what the stream has.
    pub(crate) fn new(stream: Socket, first: Bytes) -> Replayed {
        Replayed { stream, first, written: 0 }
    }

    /// The connection, and what is to be read before it.
    pub(crate) fn into_parts(self) -> (Socket, Bytes) {
        (self.stream, self.first)
    }

    /// The connection itself, where nothing is above it or to be read before it.
    pub(crate) fn plain(&self) -> Option<&Tcp> {
        match &self.stream {
            Socket::Tcp(stream) => Some(stream).filter(|_| self.first.is_empty()),
            Socket::Stream(_) | Socket::Tls(_) => None,
        }
    }

    /// Bytes that left so far, where a layer inside takes more than it passes on.
    pub(crate) fn taken(&self) -> u64 {
        self.stream.taken()
    }

    /// Bytes that were written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    fn wrote(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &polled {
            self.written += *n as u64;
        }
        polled
    }

    /// The end of it is to be a reset.
    pub(crate) fn abort(&self) {
        self.stream.abort();
    }
}

impl AsyncRead for Replayed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.first.is_empty() {
            return Pin::new(&mut me.stream).poll_read(cx, buf);
        }
        let n = me.first.len().min(buf.remaining());
        buf.put_slice(&me.first[..n]);
        me.first.advance(n);
        if me.first.is_empty() {
            me.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = Pin::new(&mut me.stream).poll_write(cx, buf);
        me.wrote(polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = Pin::new(&mut me.stream).poll_write_vectored(cx, bufs);
        me.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[tokio::test]
    async fn an_answer_that_is_dropped_half_written_ends_with_a_reset_and_a_written_one_in_good_order() {
        for whole in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut app = socket.connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
            let clock = Duration::from_secs(60);
            let bounds = Bounds { bytes: 1024, fields: 10 };
            let socket = Socket::Tcp(stream.into());
            let mut io = AppIo::new(socket, BytesMut::new(), Instant::now() + clock, Arc::default(), bounds, clock);
            io.write_all(b"answer").await.unwrap();
            io.flush().await.unwrap();
            // The rest waits in hyper until the app takes some.
            while !whole && io.write(&[0; 4096]).now_or_never().is_some() {}
            drop(io);
            let mut got = Vec::new();
            let end = tokio::time::timeout(clock, app.read_to_end(&mut got)).await.unwrap();
            assert_eq!(
                end.map_err(|error| error.kind()),
                if whole { Ok(6) } else { Err(io::ErrorKind::ConnectionReset) }
            );
        }
    }

    #[tokio::test]
    async fn what_hyper_gives_back_is_read_again_before_what_came_since() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut app = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let clock = Duration::from_secs(60);
        let bounds = Bounds { bytes: 1024, fields: 10 };
        let socket = Socket::Tcp(stream.into());
        let mut io = AppIo::new(socket, BytesMut::new(), Instant::now() + clock, Arc::default(), bounds, clock);
        app.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET").await.unwrap();
        let mut got = [0; 27];
        io.read_exact(&mut got).await.unwrap();
        io.take_back(&got[20..]);
        app.write_all(b" /2 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        std::future::poll_fn(|cx| io.poll_wake(cx)).await.unwrap();
        let mut got = [0; 35];
        io.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b": a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    }
}
