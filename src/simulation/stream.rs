//! A TCP connection of the simulated network: two pipes, each with its delay, its window, its way of chopping, and at most
//! one misfortune at a given byte. Segments arrive in order; an end arrives behind them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What one direction of a connection is like.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// From a write to its arrival, at least.
    pub(crate) latency: Duration,
    /// At most so many milliseconds more, by chance.
    pub(crate) jitter: u64,
    /// Bytes that a write takes at most; 0: no bound.
    pub(crate) write: usize,
    /// Bytes that a read gets at most; 0: no bound.
    pub(crate) read: usize,
    /// Bytes that may be on their way or unread.
    pub(crate) window: usize,
    /// What happens behind a given byte.
    pub(crate) fate: Option<(u64, Fate)>,
}

/// A misfortune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Both ends get a reset.
    Reset,
    /// What came so far is all: the reader sees an end in good order, the writer learns later that nobody listens.
    End,
    /// Nothing arrives any more, either way, and nobody is told.
    Vanish,
}

impl Weather {
    /// Whole writes, at once, for ever.
    pub(crate) fn fair() -> Weather {
        Weather { latency: Duration::ZERO, jitter: 0, write: 0, read: 0, window: 64 * 1024, fate: None }
    }
}

/// Sees what the proxy does on its end of a connection.
pub(crate) trait Tap: Send {
    /// The proxy's socket took these bytes.
    fn wrote(&mut self, bytes: &[u8]);
    /// The proxy got these.
    fn read(&mut self, bytes: &[u8]);
    /// The proxy closed it.
    fn closed(&mut self);
}

/// One end of a connection.
pub struct Simulated {
    conn: Arc<Mutex<Conn>>,
    side: usize,
    /// Rings when what is on its way arrives.
    timer: Option<Pin<Box<Sleep>>>,
    tap: Option<Box<dyn Tap>>,
    local: SocketAddr,
    peer: SocketAddr,
}

struct Conn {
    /// By the side that writes.
    pipes: [Pipe; 2],
    rng: Rng,
    gone: bool,
    /// Nothing arrives before this.
    partitioned_until: Option<Instant>,
    linger_zero: [bool; 2],
    dropped: [bool; 2],
}

struct Pipe {
    weather: Weather,
    segments: VecDeque<(Instant, Vec<u8>, usize)>,
    held: usize,
    taken: u64,
    last_due: Instant,
    end: Option<(Instant, End)>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// Shuts a connection's ends off from each other for a while.
#[derive(Clone)]
pub(crate) struct Cable(std::sync::Weak<Mutex<Conn>>);

impl Cable {
    /// What was not delivered yet arrives at this time at the earliest.
    pub(crate) fn partition(&self, until: Instant) {
        let Some(conn) = self.0.upgrade() else { return };
        let mut conn = lock(&conn);
        conn.partitioned_until = Some(until);
        let now = Instant::now();
        for pipe in &mut conn.pipes {
            for (due, ..) in &mut pipe.segments {
                if *due > now {
                    *due = (*due).max(until);
                }
            }
            pipe.last_due = pipe.last_due.max(until);
            if let Some((due, _)) = &mut pipe.end
                && *due > now
            {
                *due = (*due).max(until);
            }
            pipe.wake_reader();
        }
    }

    /// Both ends get a reset now.
    pub(crate) fn reset(&self) {
        let Some(conn) = self.0.upgrade() else { return };
        let mut conn = lock(&conn);
        let now = Instant::now();
        conn.pipes.iter_mut().for_each(|pipe| pipe.reset(now, true));
    }
}

/// A connection's two ends. `weather` is that of the first end's writes, and of the second's.
pub(crate) fn pair(
    addresses: [SocketAddr; 2],
    weather: [Weather; 2],
    rng: Rng,
    tap: Option<Box<dyn Tap>>,
) -> (Simulated, Simulated, Cable) {
    let now = Instant::now();
    let conn = Arc::new(Mutex::new(Conn {
        pipes: weather.map(|weather| Pipe {
            weather,
            segments: VecDeque::new(),
            held: 0,
            taken: 0,
            last_due: now,
            end: None,
            reader: None,
            writer: None,
        }),
        rng,
        gone: false,
        partitioned_until: None,
        linger_zero: [false; 2],
        dropped: [false; 2],
    }));
    let cable = Cable(Arc::downgrade(&conn));
    let [local, peer] = addresses;
    let first = Simulated { conn: conn.clone(), side: 0, timer: None, tap, local, peer };
    let second = Simulated { conn, side: 1, timer: None, tap: None, local: peer, peer: local };
    (first, second, cable)
}

fn lock(conn: &Mutex<Conn>) -> MutexGuard<'_, Conn> {
    conn.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pipe {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    /// The reader gets a reset at `due`; `discards`: and nothing of what had not been read.
    fn reset(&mut self, due: Instant, discards: bool) {
        if matches!(self.end, Some((_, End::Reset))) {
            return;
        }
        if discards {
            self.segments.clear();
            self.held = 0;
        }
        self.end = Some((due, End::Reset));
        self.wake_reader();
        self.wake_writer();
    }

    fn is_reset(&self, now: Instant) -> bool {
        matches!(self.end, Some((due, End::Reset)) if due <= now)
    }
}

impl Conn {
    fn due(&mut self, side: usize, now: Instant) -> Instant {
        let weather = &self.pipes[side].weather;
        let (latency, jitter) = (weather.latency, weather.jitter);
        let extra = if jitter > 0 { self.rng.u64(0..=jitter) } else { 0 };
        let due = now + latency + Duration::from_millis(extra);
        let due = due.max(self.pipes[side].last_due);
        let due = self.partitioned_until.map_or(due, |until| due.max(until));
        self.pipes[side].last_due = due;
        due
    }

    fn piece(&mut self, most: usize, length: usize) -> usize {
        if most == 0 { length } else { self.rng.usize(1..=most).min(length) }
    }

    fn write(&mut self, side: usize, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let now = Instant::now();
        if self.pipes[1 - side].is_reset(now) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match self.pipes[side].end {
            Some((_, End::Fin)) if !self.gone => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some((_, End::Reset)) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some((_, End::Fin)) | None => {}
        }
        let pipe = &mut self.pipes[side];
        let room = pipe.weather.window.saturating_sub(pipe.held);
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let most = self.pipes[side].weather.write;
        let n = self.piece(most, bytes.len().min(room));
        if self.dropped[1 - side] {
            // Nobody is there: a reset comes back. What was sent is lost.
            let due = self.due(1 - side, now + self.pipes[side].weather.latency);
            self.pipes[1 - side].reset(due, false);
            return Poll::Ready(Ok(n));
        }
        let due = self.due(side, now);
        let gone = self.gone;
        let pipe = &mut self.pipes[side];
        let mut arriving = n;
        let mut fate = None;
        if let Some((at, what)) = pipe.weather.fate
            && pipe.taken + n as u64 >= at
        {
            arriving = usize::try_from(at.saturating_sub(pipe.taken)).unwrap_or(n).min(n);
            fate = Some(what);
        }
        pipe.taken += n as u64;
        pipe.held += n;
        if arriving > 0 && !gone {
            pipe.segments.push_back((due, bytes[..arriving].to_vec(), 0));
            pipe.held -= n - arriving;
            pipe.wake_reader();
        }
        match fate {
            Some(Fate::Reset) => {
                self.pipes[side].reset(due, false);
                let back = self.due(1 - side, due);
                self.pipes[1 - side].reset(back, false);
            }
            Some(Fate::End) => {
                let pipe = &mut self.pipes[side];
                pipe.end = Some((due, End::Fin));
                pipe.wake_reader();
                // Its process died: what comes for it is answered by a reset.
                self.dropped[side] = true;
            }
            Some(Fate::Vanish) => self.gone = true,
            None => {}
        }
        Poll::Ready(Ok(n))
    }

    /// Bytes, or when to look again.
    fn read(
        &mut self,
        side: usize,
        buf: &mut ReadBuf<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Poll<io::Result<()>>, Instant> {
        let now = Instant::now();
        let from = 1 - side;
        let most = self.pipes[from].weather.read;
        let room = self.piece(most, buf.remaining());
        let pipe = &mut self.pipes[from];
        let mut got = 0;
        while got < room {
            let Some((due, bytes, at)) = pipe.segments.front_mut() else { break };
            if *due > now {
                break;
            }
            let n = (bytes.len() - *at).min(room - got);
            buf.put_slice(&bytes[*at..*at + n]);
            *at += n;
            got += n;
            if *at == bytes.len() {
                pipe.segments.pop_front();
            }
        }
        if got > 0 {
            pipe.held = pipe.held.saturating_sub(got);
            pipe.wake_writer();
            return Ok(Poll::Ready(Ok(())));
        }
        pipe.reader = Some(cx.waker().clone());
        if let Some((due, ..)) = pipe.segments.front() {
            return Err(*due);
        }
        match pipe.end {
            Some((due, _)) if due > now => Err(due),
            Some((_, End::Fin)) => Ok(Poll::Ready(Ok(()))),
            Some((_, End::Reset)) => Ok(Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))),
            None => Ok(Poll::Pending),
        }
    }

    fn finish(&mut self, side: usize) {
        if self.pipes[side].end.is_some() || self.gone {
            return;
        }
        let due = self.due(side, Instant::now());
        let pipe = &mut self.pipes[side];
        pipe.end = Some((due, End::Fin));
        pipe.wake_reader();
    }

    fn close(&mut self, side: usize) {
        self.dropped[side] = true;
        let incoming = &mut self.pipes[1 - side];
        // Whatever nobody will read makes the end a reset.
        let unread = !incoming.segments.is_empty();
        incoming.segments.clear();
        incoming.held = 0;
        incoming.wake_writer();
        if self.gone {
            return;
        }
        if self.linger_zero[side] || unread {
            let due = self.due(side, Instant::now());
            // What was sent before arrives before it.
            self.pipes[side].reset(due, false);
        } else {
            self.finish(side);
        }
    }
}

impl Simulated {
    /// As of a socket.
    pub(crate) fn set_zero_linger(&self) -> io::Result<()> {
        lock(&self.conn).linger_zero[self.side] = true;
        Ok(())
    }

    /// As of a socket.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    /// As of a socket.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }

    fn taken(&mut self, polled: &Poll<io::Result<usize>>, bytes: &[u8]) {
        if let (Poll::Ready(Ok(n)), Some(tap)) = (polled, &mut self.tap) {
            tap.wrote(&bytes[..*n]);
        }
    }
}

impl AsyncRead for Simulated {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        loop {
            let before = buf.filled().len();
            let read = lock(&me.conn).read(me.side, buf, cx);
            match read {
                Ok(polled) => {
                    if let (Some(tap), true) = (&mut me.tap, buf.filled().len() > before) {
                        tap.read(&buf.filled()[before..]);
                    }
                    return polled;
                }
                Err(due) => {
                    let timer = me.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
                    if timer.deadline() != due {
                        timer.as_mut().reset(due);
                    }
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    if Instant::now() < due {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl AsyncWrite for Simulated {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = lock(&me.conn).write(me.side, buf, cx);
        me.taken(&polled, buf);
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = bufs {
            return self.poll_write(cx, one);
        }
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.poll_write(cx, &all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        lock(&me.conn).finish(me.side);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        if let Some(tap) = &mut self.tap {
            tap.closed();
        }
        lock(&self.conn).close(self.side);
    }
}
