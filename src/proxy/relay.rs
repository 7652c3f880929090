//! Bytes both ways between two streams: tunnels and upgraded connections. An idle relay holds no buffers. What comes in bulk from
//! one socket to another is left to the kernel; the rest is copied.

mod pace;

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
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::proxy::io::Replayed;
use crate::proxy::pipe::Pipe;
use crate::proxy::relay::pace::Pace;
use crate::tcp::Tcp;

/// One read. Each worker thread has one such buffer; a relay only owns what the other side didn't take.
const PIECE: usize = 32 * 1024;
/// How long nothing may move once one side has ended. The other may still have an answer to finish; but where it was the app
/// that is gone and the upstream doesn't care, nothing would ever come, and nobody would notice.
const HALF_CLOSED: Duration = Duration::from_secs(5 * 60);
/// How long nothing may move once writing to one side failed: for what it said before, which the other may be slow to take.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Pieces that one direction moves before the others have their turn.
const TURNS: usize = 16;
/// Bytes after which the others have theirs, too.
const TURN: u64 = 1024 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into_boxed_slice());
}

/// One end of a relay.
pub(crate) trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The other side was reset: so is this one to be, where it can.
    fn abort(&self);

    /// The socket, where nothing is between it and us. From then on nothing ever is.
    fn plain(&self) -> Option<&TcpStream>;
}

impl Side for Tcp {
    fn abort(&self) {
        // Where it fails the socket is gone already.
        let _ = self.set_zero_linger();
    }

    fn plain(&self) -> Option<&TcpStream> {
        self.system()
    }
}

impl Side for Replayed {
    fn abort(&self) {
        Replayed::abort(self);
    }

    fn plain(&self) -> Option<&TcpStream> {
        Replayed::plain(self)?.system()
    }
}

impl Side for TokioIo<Upgraded> {
    /// Its socket is out of reach; it is closed.
    fn abort(&self) {}

    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

#[cfg(test)]
impl Side for tokio::io::DuplexStream {
    fn abort(&self) {}

    fn plain(&self) -> Option<&TcpStream> {
        None
    }
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
struct Way<'c> {
    /// What was read and not written yet.
    pending: Vec<u8>,
    written: usize,
    /// The same, where it was not copied.
    pipe: Option<Pipe>,
    pace: Pace,
    state: Flow,
    /// Why its writing end takes nothing any more.
    lost: Option<io::Error>,
    /// Writing to its reading end failed: what that said before is still read.
    last_words: bool,
    /// Bytes that were written.
    counter: &'c AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    /// The reading end is at its end; the writing end is being told.
    Closing,
    Closed,
}

/// Which end of a way broke.
enum Broke {
    Reading(io::Error),
    Writing(io::Error),
}

/// How far a relay has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Both,
    HalfClosed,
    LastWords,
}

impl Stage {
    fn of(forth: &Way<'_>, back: &Way<'_>) -> Stage {
        if forth.lost.is_some() || back.lost.is_some() {
            Stage::LastWords
        } else if forth.has_ended() || back.has_ended() {
            Stage::HalfClosed
        } else {
            Stage::Both
        }
    }

    /// How long nothing may move.
    fn patience(self, idle: Option<Duration>) -> Option<Duration> {
        match self {
            Stage::Both => idle,
            Stage::HalfClosed => idle.map(|idle| idle.min(HALF_CLOSED)),
            Stage::LastWords => Some(idle.map_or(LAST_WORDS, |idle| idle.min(LAST_WORDS))),
        }
    }
}

/// Copies both ways until both are done, one breaks, or nothing moved for `idle`. One side's end is passed on as such and
/// the other way goes on, as TCP does, but not for long where nothing moves on it. Of a side that breaks, what it said before is
/// passed on. `up` counts from `a` to `b`, `down` the other way.
pub(crate) async fn relay<A: Side, B: Side>(
    a: &mut A,
    b: &mut B,
    mut idle: Option<Duration>,
    up: &AtomicU64,
    down: &AtomicU64,
) -> Ended {
    let (mut forth, mut back) = (Way::new(up), Way::new(down));
    let mut last = Instant::now();
    let mut stage = Stage::Both;
    let mut clock: Option<Pin<Box<Sleep>>> = idle.map(|idle| Box::pin(tokio::time::sleep(idle)));
    let ended = poll_fn(|cx| {
        let mut moved = 0;
        let result = both(cx, a, b, &mut forth, &mut back, &mut moved);
        if moved > 0 {
            last = Instant::now();
        }
        match result {
            Err(error) => return Poll::Ready(Ended::Broken(error)),
            Ok(true) => return Poll::Ready(Ended::Closed),
            Ok(false) => {}
        }
        let now = Stage::of(&forth, &back);
        if stage != now {
            stage = now;
            last = Instant::now();
            idle = stage.patience(idle);
            if let Some(idle) = idle {
                match &mut clock {
                    Some(clock) => clock.as_mut().reset(last + idle),
                    None => clock = Some(Box::pin(tokio::time::sleep(idle))),
                }
            }
        }
        // The clock is only moved when it rings: most bytes cost no timer.
        if let (Some(clock), Some(idle)) = (&mut clock, idle) {
            while clock.as_mut().poll(cx).is_ready() {
                if last.elapsed() >= idle {
                    let lost = forth.lost.take().or_else(|| back.lost.take());
                    return Poll::Ready(lost.map_or(Ended::Idle, Ended::Broken));
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
fn both<A: Side, B: Side>(
    cx: &mut Context<'_>,
    a: &mut A,
    b: &mut B,
    forth: &mut Way<'_>,
    back: &mut Way<'_>,
    moved: &mut u64,
) -> io::Result<bool> {
    let forth_done = forth.poll(cx, a, b, moved)?;
    back.last_words = forth.lost.is_some();
    let back_done = match back.poll(cx, b, a, moved) {
        Ok(done) => done,
        // What broke first says more.
        Err(error) => return Err(forth.lost.take().unwrap_or(error)),
    };
    forth.last_words = back.lost.is_some();
    if (back.has_ended() || back.lost.is_some())
        && let Some(error) = forth.lost.take()
    {
        return Err(error);
    }
    if forth.has_ended()
        && let Some(error) = back.lost.take()
    {
        return Err(error);
    }
    Ok(forth_done.is_ready() && back_done.is_ready())
}

impl<'c> Way<'c> {
    fn new(counter: &'c AtomicU64) -> Way<'c> {
        Way {
            pending: Vec::new(),
            written: 0,
            pipe: None,
            pace: Pace::new(),
            state: Flow::Open,
            lost: None,
            last_words: false,
            counter,
        }
    }

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
        from: &mut impl Side,
        to: &mut impl Side,
        moved: &mut u64,
    ) -> io::Result<Poll<()>> {
        let result = self.turn(cx, from, to, moved);
        // What waits for a source needs none.
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.held() == 0) {
            pipe.give_back();
        }
        result
    }

    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
        moved: &mut u64,
    ) -> io::Result<Poll<()>> {
        if self.lost.is_some() {
            return Ok(Poll::Pending);
        }
        let end = self.pace.carried + TURN;
        for _ in 0..TURNS {
            if self.pace.carried >= end {
                break;
            }
            match self.step(cx, from, to, moved) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(Broke::Reading(error))) => return Err(error),
                Poll::Ready(Err(Broke::Writing(error))) => {
                    if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                        return Err(error);
                    }
                    // A peer that closes before it has read all makes writing fail while its last words lie unread.
                    self.lost = Some(error);
                    self.pending = Vec::new();
                    self.pipe = None;
                    return Ok(Poll::Pending);
                }
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
        from: &mut impl Side,
        to: &mut impl Side,
        moved: &mut u64,
    ) -> Poll<Result<bool, Broke>> {
        ready!(self.empty_pipe(cx, to, moved))?;
        while self.written < self.pending.len() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.written..])).map_err(Broke::Writing)?;
            self.count(n, moved)?;
            self.written += n;
        }
        if !self.pending.is_empty() {
            self.pending = Vec::new();
            self.written = 0;
        }
        match self.state {
            Flow::Open => {}
            Flow::Closing => {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Broke::Writing)?;
                self.state = Flow::Closed;
                return Poll::Ready(Ok(true));
            }
            Flow::Closed => return Poll::Ready(Ok(true)),
        }
        if self.pace.by_pipe && self.fill_pipe(cx, from, to)? {
            ready!(self.empty_pipe(cx, to, moved))?;
            return Poll::Ready(Ok(false));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut piece = ReadBuf::new(scratch);
            match Pin::new(&mut *from).poll_read(cx, &mut piece) {
                Poll::Ready(result) => result.map_err(Broke::Reading)?,
                Poll::Pending => {
                    self.pace.dry();
                    // Layers that buffer (TLS) must not keep what was written.
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broke::Writing)?;
                    return Poll::Pending;
                }
            }
            let mut rest = piece.filled();
            self.pace.came(rest.len());
            if rest.is_empty() {
                if self.last_words {
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broke::Writing)?;
                    // The failed write has taken the reset with it.
                    return Poll::Ready(Err(Broke::Reading(io::ErrorKind::ConnectionReset.into())));
                }
                self.state = Flow::Closing;
                return Poll::Ready(Ok(false));
            }
            while rest.has_remaining() {
                match Pin::new(&mut *to).poll_write(cx, rest) {
                    Poll::Ready(n) => {
                        let n = n.map_err(Broke::Writing)?;
                        self.count(n, moved)?;
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

    /// Takes what the source has into a pipe, if there is one to be had. Otherwise it is to be read.
    fn fill_pipe(&mut self, cx: &mut Context<'_>, from: &impl Side, to: &impl Side) -> Result<bool, Broke> {
        let (Some(source), Some(_)) = (from.plain(), to.plain()) else {
            self.pace.refused();
            return Ok(false);
        };
        if source.poll_read_ready(cx).is_pending() {
            return Ok(false);
        }
        if self.pipe.is_none() {
            self.pipe = Pipe::take();
        }
        let Some(pipe) = &mut self.pipe else {
            self.pace.refused();
            return Ok(false);
        };
        match pipe.fill(source).map_err(Broke::Reading)? {
            0 => {
                self.pace.read_first();
                Ok(false)
            }
            n => {
                self.pace.came(n);
                Ok(true)
            }
        }
    }

    /// Ready once nothing is in the pipe.
    fn empty_pipe(&mut self, cx: &mut Context<'_>, to: &impl Side, moved: &mut u64) -> Poll<Result<(), Broke>> {
        while let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) {
            let taken = match to.plain() {
                Some(to) => ready!(pipe.poll_empty(cx, to)).map_err(Broke::Writing)?,
                None => None,
            };
            match taken {
                Some(n) => self.count(n, moved)?,
                None => {
                    if let Some(pipe) = self.pipe.take() {
                        self.pending = pipe.into_bytes().map_err(Broke::Writing)?;
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn count(&self, n: usize, moved: &mut u64) -> Result<(), Broke> {
        if n == 0 {
            return Err(Broke::Writing(io::ErrorKind::WriteZero.into()));
        }
        self.counter.fetch_add(n as u64, Ordering::Relaxed);
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

    #[tokio::test(start_paused = true)]
    async fn what_a_side_said_before_it_broke_is_passed_on_and_its_end_is_not_taken_for_a_good_one() {
        let (mut app, mut a) = duplex(16);
        let (mut b, mut upstream) = duplex(16);
        upstream.write_all(b"no more").await.unwrap();
        drop(upstream);
        app.write_all(b"goes on").await.unwrap();
        let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
        let ended = relay(&mut a, &mut b, Some(Duration::from_secs(60)), &up, &down).await;
        assert!(matches!(&ended, Ended::Broken(error) if error.kind() == io::ErrorKind::BrokenPipe), "{ended:?}");
        let mut got = [0; 7];
        tokio::time::timeout(LAST_WORDS, app.read_exact(&mut got)).await.expect("it was passed on").unwrap();
        assert_eq!(&got, b"no more");
        let end = tokio::time::timeout(LAST_WORDS, app.read(&mut got)).await;
        assert!(end.is_err(), "an end was passed on: {end:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_long_for_the_last_words_to_be_taken() {
        for idle in [None, Some(Duration::from_secs(60))] {
            let (mut app, mut a) = duplex(4);
            let (mut b, mut upstream) = duplex(16);
            upstream.write_all(b"no more").await.unwrap();
            drop(upstream);
            app.write_all(b"on").await.unwrap();
            let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
            let start = Instant::now();
            let ended = relay(&mut a, &mut b, idle, &up, &down).await;
            assert!(matches!(ended, Ended::Broken(_)), "{ended:?}");
            assert_eq!((start.elapsed(), down.into_inner()), (LAST_WORDS, 4));
        }
    }
}
