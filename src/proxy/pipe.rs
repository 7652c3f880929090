//! Bytes from one socket to another without passing through our memory: splice(2), by way of a pipe. Nobody owns a pipe while
//! nothing is in it, so an idle tunnel has none.
//!
//! How many bytes came is all that this says of the source. That it is at its end, or has nothing, only a read can tell: splice(2)
//! says either in front of urgent data too, and sees nothing of what a BPF program redirected.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::descriptors::{self, Room};

/// Bytes that a pipe is asked to hold. It has a place for each 4 KiB of that; off a network a place often holds one packet.
const SIZE: usize = 256 * 1024;
/// One that holds less is not worth its system calls: what the system gives a user who has many already.
const LEAST: usize = 64 * 1024;
/// Pipes at most. Of `fs.pipe-user-pages-soft`, which all processes of the user share, these are a quarter.
const MOST: u64 = 64;
/// At most this share of all descriptors is in pipes, which have two each.
const SHARE: u64 = 8;

/// How many there are.
static OPEN: AtomicUsize = AtomicUsize::new(0);
/// How many there may be.
static ROOM: LazyLock<usize> =
    LazyLock::new(|| usize::try_from(MOST.min(descriptors::limit() / SHARE / 2)).unwrap_or(0));
/// The system will not do it for these sockets, or not at all: a sandbox, for example.
static REFUSED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The empty one that was used last. Making one costs five system calls and what it may be worth.
    static SPARE: Cell<Option<Pipe>> = const { Cell::new(None) };
}

/// See the module.
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes that it can hold.
    size: usize,
    /// Bytes that are in it.
    held: usize,
    _place: Place,
}

/// One of those that there may be.
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let taken = OPEN.fetch_add(1, Ordering::Relaxed);
        // Dropped where there is no room, which counts it out.
        Some(Place).filter(|_| taken < *ROOM)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipe {
    /// An empty one, where there is one to be had.
    pub(crate) fn take() -> Option<Pipe> {
        if REFUSED.load(Ordering::Relaxed) {
            return None;
        }
        SPARE.take().or_else(Pipe::new)
    }

    fn new() -> Option<Pipe> {
        let place = Place::take()?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Connections go first.
        if descriptors::room(&read) != Room::Enough || descriptors::room(&write) != Room::Enough {
            return None;
        }
        // Not granted to a user who has many: then it is what it is.
        let _ = fcntl_setpipe_size(&write, SIZE);
        let size = fcntl_getpipe_size(&write).ok().filter(|size| *size >= LEAST)?;
        Some(Pipe { read, write, size: size.min(SIZE), held: 0, _place: place })
    }

    /// Kept for the next, if it is empty.
    pub(crate) fn give_back(self) {
        if self.held == 0 {
            SPARE.set(Some(self));
        }
    }

    /// Bytes that are in it.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Fills one that is empty with what the socket has: how much. After 0, read: there may be something all the same.
    ///
    /// # Errors
    /// As of a read.
    pub(crate) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0, "what refuses more must be the socket");
        match splice(from, None, &self.write, None, self.size, SpliceFlags::NONBLOCK) {
            Ok(n) => self.held = n,
            Err(Errno::AGAIN | Errno::INTR | Errno::NOMEM) => {}
            Err(error) if is_refusal(error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.held)
    }

    /// Empties it into the socket: how much that took at once, or `None` where the system will not do it
    /// and what is in it is to be copied.
    ///
    /// # Errors
    /// As of a write.
    pub(crate) fn poll_empty(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<Option<usize>>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            let poured = to.try_io(Interest::WRITABLE, || {
                match splice(&self.read, None, to, None, self.held, SpliceFlags::NONBLOCK) {
                    Ok(n) => Ok(Some(n)),
                    // Copying waits for memory.
                    Err(Errno::NOMEM) => Ok(None),
                    Err(error) if is_refusal(error) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            });
            match poured {
                Ok(poured) => {
                    self.held -= poured.unwrap_or(0);
                    return Poll::Ready(Ok(poured));
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// What is in it.
    ///
    /// # Errors
    /// As of a read.
    pub(crate) fn into_bytes(self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.held];
        let mut got = 0;
        while got < bytes.len() {
            match rustix::io::read(&self.read, &mut bytes[got..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => got += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }
}

/// Whether the system will not do it at all. It isn't asked again. No connection breaks with one of these.
fn is_refusal(error: Errno) -> bool {
    let refused = matches!(error, Errno::INVAL | Errno::NOSYS | Errno::PERM);
    if refused && !REFUSED.swap(true, Ordering::Relaxed) {
        tracing::debug!(%error, "this system doesn't splice: tunnels go on by copying");
    }
    refused
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Tests of one process have all pipes in common.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// The two ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn what_one_socket_has_comes_out_of_the_other_or_out_of_the_pipe() {
        let _alone = ALONE.lock().await;
        let ((mut app, a), (b, mut upstream)) = (pair().await, pair().await);
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(&a).unwrap(), 0);
        app.write_all(b"first").await.unwrap();
        a.readable().await.unwrap();
        assert_eq!((pipe.fill(&a).unwrap(), pipe.held()), (5, 5));
        let poured = poll_fn(|cx| pipe.poll_empty(cx, &b)).await.unwrap();
        assert_eq!((poured, pipe.held()), (Some(5), 0));
        let mut got = [0; 5];
        upstream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"first");

        app.write_all(b"second").await.unwrap();
        a.readable().await.unwrap();
        while pipe.fill(&a).unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pipe.into_bytes().unwrap(), b"second");
    }

    #[tokio::test]
    async fn an_empty_pipe_is_used_again_and_one_that_holds_something_is_not() {
        let _alone = ALONE.lock().await;
        let (mut app, a) = pair().await;
        Pipe::take().unwrap().give_back();
        let mut pipe = SPARE.take().unwrap();
        app.write_all(b"something").await.unwrap();
        a.readable().await.unwrap();
        assert_eq!(pipe.fill(&a).unwrap(), 9);
        pipe.give_back();
        assert!(SPARE.take().is_none());
    }

    #[tokio::test]
    async fn there_are_so_many_pipes_and_no_more() {
        let _alone = ALONE.lock().await;
        let pipes: Vec<Pipe> = std::iter::from_fn(Pipe::new).take(1000).collect();
        assert!(pipes.len() <= *ROOM, "{}", pipes.len());
        assert!(Pipe::take().is_none());
        drop(pipes);
        assert!(Pipe::take().is_some());
    }

    #[tokio::test]
    async fn a_reset_of_the_source_is_an_error_and_its_end_is_left_to_a_read() {
        let _alone = ALONE.lock().await;
        let (app, a) = pair().await;
        drop(app);
        a.readable().await.unwrap();
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(&a).unwrap(), 0);

        let (app, a) = pair().await;
        app.set_zero_linger().unwrap();
        drop(app);
        a.readable().await.unwrap();
        assert_eq!(pipe.fill(&a).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
