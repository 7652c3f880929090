//! Bytes both ways between two streams: tunnels and upgraded connections. An idle relay holds no buffers.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::proxy::io::Replayed;
use crate::tcp::Tcp;

/// One read. Each worker thread has one such buffer; a relay only owns what the other side didn't take.
const PIECE: usize = 32 * 1024;
/// How long nothing may move once one side has ended. The other may still have an answer to finish; but where it was the app
/// that is gone and the upstream doesn't care, nothing would ever come, and nobody would notice.
const HALF_CLOSED: Duration = Duration::from_secs(5 * 60);
/// Pieces that one direction moves before the others have their turn.
const TURNS: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into_boxed_slice());
}

/// One end of a relay.
pub(crate) trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The other side was reset: so is this one to be, where it can.
    fn abort(&self);
}

impl Side for Tcp {
    fn abort(&self) {
        // Where it fails the socket is gone already.
        let _ = self.set_zero_linger();
    }
}

impl Side for Replayed {
    fn abort(&self) {
        Replayed::abort(self);
    }
}

impl Side for TokioIo<Upgraded> {
    /// Its socket is out of reach; it is closed.
    fn abort(&self) {}
}

#[cfg(test)]
impl Side for tokio::io::DuplexStream {
    fn abort(&self) {}
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Both sides said that they are done.
    Closed,
    /// Nothing moved for the idle time.
    Idle,
    /// One side broke.
    Broken(io::Error),
}

/// One way.
#[derive(Default)]
struct Way {
    /// What was read and not written yet.
    pending: Vec<u8>,
    written: usize,
    state: Flow,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Open,
    /// The reading end is at its end; the writing end is being told.
    Closing,
    Closed,
}

/// Copies both ways until both are done, one breaks, or nothing moved for `idle`. One side's end is passed on as such and
/// the other way goes on, as TCP does, but not for long where nothing moves on it. `up` counts from `a` to `b`, `down` the other way.
pub(crate) async fn relay<A: Side, B: Side>(
    a: &mut A,
    b: &mut B,
    mut idle: Option<Duration>,
    up: &AtomicU64,
    down: &AtomicU64,
) -> Ended {
    let (mut forth, mut back) = (Way::default(), Way::default());
    let mut last = Instant::now();
    let mut half_closed = false;
    let mut clock: Option<Pin<Box<Sleep>>> = idle.map(|idle| Box::pin(tokio::time::sleep(idle)));
    let ended = poll_fn(|cx| {
        let mut moved = 0;
        let result = both(cx, a, b, &mut forth, &mut back, up, down, &mut moved);
        if moved > 0 {
            last = Instant::now();
        }
        match result {
            Err(error) => return Poll::Ready(Ended::Broken(error)),
            Ok(true) => return Poll::Ready(Ended::Closed),
            Ok(false) => {}
        }
        if !half_closed && (forth.has_ended() || back.has_ended()) {
            half_closed = true;
            last = Instant::now();
            idle = idle.map(|idle| idle.min(HALF_CLOSED));
            if let (Some(clock), Some(idle)) = (&mut clock, idle) {
                clock.as_mut().reset(last + idle);
            }
        }
        // The clock is only moved when it rings: most bytes cost no timer.
        if let (Some(clock), Some(idle)) = (&mut clock, idle) {
            while clock.as_mut().poll(cx).is_ready() {
                if last.elapsed() >= idle {
                    return Poll::Ready(Ended::Idle);
                }
                clock.as_mut().reset(last + idle);
            }
        }
        Poll::Pending
    })
    .await;
    if let Ended::Broken(_) = ended {
        a.abort();
        b.abort();
    }
    ended
}

/// Moves what can be moved. True when both ways are done.
#[expect(clippy::too_many_arguments, reason = "the two halves of one loop")]
fn both<A: Side, B: Side>(
    cx: &mut Context<'_>,
    a: &mut A,
    b: &mut B,
    forth: &mut Way,
    back: &mut Way,
    up: &AtomicU64,
    down: &AtomicU64,
    moved: &mut u64,
) -> io::Result<bool> {
    let forth = forth.poll(cx, a, b, up, moved)?;
    let back = back.poll(cx, b, a, down, moved)?;
    Ok(forth.is_ready() && back.is_ready())
}

impl Way {
    /// Its reading end is at its end.
    fn has_ended(&self) -> bool {
        match self.state {
            Flow::Open => false,
            Flow::Closing | Flow::Closed => true,
        }
    }

    /// Ready once this way is done.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        counter: &AtomicU64,
        moved: &mut u64,
    ) -> io::Result<Poll<()>> {
        for _ in 0..TURNS {
            match self.step(cx, from, to, counter, moved) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(true)) => return Ok(Poll::Ready(())),
                Poll::Ready(Ok(false)) => {}
            }
        }
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    /// One read and its writes. True once this way is done.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        counter: &AtomicU64,
        moved: &mut u64,
    ) -> Poll<io::Result<bool>> {
        while self.written < self.pending.len() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.written..]))?;
            self.count(n, counter, moved)?;
            self.written += n;
        }
        if !self.pending.is_empty() {
            self.pending = Vec::new();
            self.written = 0;
        }
        match self.state {
            Flow::Open => {}
            Flow::Closing => {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.state = Flow::Closed;
                return Poll::Ready(Ok(true));
            }
            Flow::Closed => return Poll::Ready(Ok(true)),
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut piece = ReadBuf::new(scratch);
            match Pin::new(&mut *from).poll_read(cx, &mut piece) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    // Layers that buffer (TLS) must not keep what was written.
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
            let mut rest = piece.filled();
            if rest.is_empty() {
                self.state = Flow::Closing;
                return Poll::Ready(Ok(false));
            }
            while rest.has_remaining() {
                match Pin::new(&mut *to).poll_write(cx, rest) {
                    Poll::Ready(n) => {
                        let n = n?;
                        self.count(n, counter, moved)?;
                        rest.advance(n);
                    }
                    Poll::Pending => {
                        self.pending = rest.to_vec();
                        return Poll::Pending;
                    }
                }
            }
            Poll::Ready(Ok(false))
        })
    }

    fn count(&self, n: usize, counter: &AtomicU64, moved: &mut u64) -> io::Result<()> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        counter.fetch_add(n as u64, Ordering::Relaxed);
        *moved += n as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_both_ways_and_an_end_leaves_the_other_way_open() {
        let (mut app, mut a) = duplex(16);
        let (mut b, mut upstream) = duplex(16);
        let relayed = tokio::spawn(async move {
            let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
            let ended = relay(&mut a, &mut b, Some(Duration::from_secs(60)), &up, &down).await;
            (ended, up.into_inner(), down.into_inner())
        });
        let sent = vec![7; 100_000];
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            app.write_all(&copy).await.unwrap();
            app.shutdown().await.unwrap();
            let mut got = Vec::new();
            app.read_to_end(&mut got).await.unwrap();
            got
        });
        let mut got = Vec::new();
        upstream.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, sent);
        upstream.write_all(b"late").await.unwrap();
        drop(upstream);
        assert_eq!(writer.await.unwrap(), b"late");
        let (ended, up, down) = relayed.await.unwrap();
        assert!(matches!(ended, Ended::Closed), "{ended:?}");
        assert_eq!((up, down), (100_000, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_either_way_puts_that_off() {
        let (mut app, mut a) = duplex(16);
        let (mut b, mut upstream) = duplex(16);
        let start = Instant::now();
        let relayed = tokio::spawn(async move {
            let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
            relay(&mut a, &mut b, Some(Duration::from_secs(10)), &up, &down).await
        });
        tokio::time::sleep(Duration::from_secs(8)).await;
        upstream.write_all(b"x").await.unwrap();
        app.read_u8().await.unwrap();
        tokio::time::sleep(Duration::from_secs(8)).await;
        app.write_all(b"y").await.unwrap();
        upstream.read_u8().await.unwrap();
        assert!(matches!(relayed.await.unwrap(), Ended::Idle));
        assert_eq!(start.elapsed().as_secs(), 26);
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_stream_lives_while_bytes_come_and_not_much_longer() {
        let (mut app, mut a) = duplex(16);
        let (mut b, mut upstream) = duplex(16);
        let start = Instant::now();
        let relayed = tokio::spawn(async move {
            let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
            relay(&mut a, &mut b, Some(Duration::from_secs(3600)), &up, &down).await
        });
        // Silence before the end doesn't count.
        tokio::time::sleep(HALF_CLOSED * 2).await;
        app.shutdown().await.unwrap();
        assert_eq!(upstream.read(&mut [0; 16]).await.unwrap(), 0);
        for _ in 0..3 {
            tokio::time::sleep(HALF_CLOSED - Duration::from_secs(1)).await;
            upstream.write_all(b"x").await.unwrap();
            app.read_u8().await.unwrap();
        }
        assert!(matches!(relayed.await.unwrap(), Ended::Idle));
        assert_eq!(start.elapsed(), HALF_CLOSED * 6 - Duration::from_secs(3));
    }
}
