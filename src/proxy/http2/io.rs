//! An app's bytes on an HTTP/2 connection, watched: floods, heads that never end, and an app that takes nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, timeout};

use crate::frames::{self, Traffic};
use crate::proxy::http2::conduct::Conduct;
use crate::proxy::io::{Replayed, Stall};

/// How long, and how much, is read away behind the last GOAWAY, so that an app that still sends reads that rather than a
/// reset.
const LINGER: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: usize = 4 * 1024 * 1024;

/// See the module.
pub(super) struct FramedIo {
    /// `None` only once dropped.
    stream: Option<Replayed>,
    conduct: Arc<Conduct>,
    traffic: Traffic,
    header_timeout: Duration,
    /// Runs while the app owes the rest of a head: which one.
    clock: Option<(u32, Pin<Box<Sleep>>)>,
    stall: Stall,
}

impl FramedIo {
    /// A connection of which nothing was read yet, the preface included.
    pub(super) fn new(stream: Replayed, conduct: Arc<Conduct>, header_timeout: Duration) -> FramedIo {
        let traffic = Traffic::new(true, Instant::now());
        FramedIo { stream: Some(stream), conduct, traffic, header_timeout, clock: None, stall: Stall::default() }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Replayed>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// A head is half there: it has to be complete in time.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(debt) = self.traffic.owed() else {
            self.clock = None;
            return Poll::Pending;
        };
        if self.clock.as_ref().is_none_or(|(of, _)| *of != debt) {
            self.clock = Some((debt, Box::pin(tokio::time::sleep(self.header_timeout))));
        }
        let Some((_, clock)) = &mut self.clock else { return Poll::Pending };
        ready!(clock.as_mut().poll(cx));
        self.conduct.count_slow_head();
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the app left a head half sent")))
    }

    /// What a write came to. One that waits too long fails, so that a stuck app doesn't hold its upstreams for ever. Inside TLS a
    /// flush waits where a bare socket's write would.
    fn wrote<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let taken = self.stream.as_ref().map_or(0, Replayed::taken);
        if !self.stall.is_over(cx, polled.is_pending(), self.conduct.patience(), taken) {
            return polled;
        }
        // What the kernel still holds for it is not to be kept either.
        if let Some(stream) = &self.stream {
            stream.abort();
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the app takes nothing")))
    }
}

impl AsyncRead for FramedIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        let Poll::Ready(read) = me.stream()?.poll_read(cx, buf) else { return me.poll_clock(cx) };
        read?;
        if me.traffic.read(&buf.filled()[before..]).is_err() {
            me.conduct.end_for_flood();
            return Poll::Ready(Err(io::Error::other("a flood of frames without content")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FramedIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = me.stream()?.poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = &polled {
            me.traffic.wrote(&buf[..*n]);
        }
        me.wrote(cx, polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let polled = me.stream()?.poll_flush(cx);
        me.wrote(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let polled = me.stream()?.poll_shutdown(cx);
        me.wrote(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = me.stream()?.poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(n)) = &polled {
            me.traffic.wrote_vectored(bufs, *n);
        }
        me.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Drop for FramedIo {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        let Some(code) = self.conduct.farewell().filter(|_| self.traffic.is_between_frames()) else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(timeout(LINGER, async move {
            stream.write_all(&frames::goaway(code)).await?;
            stream.shutdown().await?;
            let (mut rest, mut left) = ([0; 4096], MAX_LINGER_BYTES);
            while left > 0 {
                match stream.read(&mut rest).await? {
                    0 => break,
                    n => left = left.saturating_sub(n),
                }
            }
            Ok::<_, io::Error>(())
        }));
    }
}
