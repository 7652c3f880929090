//! A TCP connection, of an app's to us or of ours to an upstream: all that the proxy knows of sockets. In tests it may be a
//! simulated one; otherwise there is one kind, and this type is nothing but that.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::descriptors::{self, Room};
#[cfg(test)]
use crate::simulation::stream::Simulated;

/// See the module.
pub enum Tcp {
    /// The system's.
    System(TcpStream),
    /// That of a simulated network.
    #[cfg(test)]
    Simulated(Simulated),
}

macro_rules! of {
    ($self:expr, $stream:ident => $does:expr) => {
        match $self {
            Tcp::System($stream) => $does,
            #[cfg(test)]
            Tcp::Simulated($stream) => $does,
        }
    };
}

impl Tcp {
    /// Connects.
    ///
    /// # Errors
    /// As connect(2).
    pub async fn connect(address: SocketAddr) -> io::Result<Tcp> {
        TcpStream::connect(address).await.map(Tcp::System)
    }

    /// The system's socket, where it is one.
    pub(crate) fn system(&self) -> Option<&TcpStream> {
        match self {
            Tcp::System(stream) => Some(stream),
            #[cfg(test)]
            Tcp::Simulated(_) => None,
        }
    }

    /// Whether the process has descriptors left for it.
    pub(crate) fn room(&self) -> Room {
        match self {
            Tcp::System(stream) => descriptors::room(stream),
            #[cfg(test)]
            Tcp::Simulated(_) => Room::Enough,
        }
    }

    /// What is written is sent at once.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Tcp::System(stream) => stream.set_nodelay(true),
            #[cfg(test)]
            Tcp::Simulated(_) => Ok(()),
        }
    }

    /// A peer that is gone is noticed although nothing is sent.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_keepalive(&self, keepalive: &TcpKeepalive) -> io::Result<()> {
        match self {
            Tcp::System(stream) => SockRef::from(stream).set_tcp_keepalive(keepalive),
            #[cfg(test)]
            Tcp::Simulated(_) => Ok(()),
        }
    }

    /// What is sent and not acknowledged for so long breaks the connection.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_user_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Tcp::System(stream) => SockRef::from(stream).set_tcp_user_timeout(Some(timeout)),
            #[cfg(test)]
            Tcp::Simulated(_) => Ok(()),
        }
    }

    /// Its end is to be a reset.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_zero_linger(&self) -> io::Result<()> {
        of!(self, stream => stream.set_zero_linger())
    }

    /// Our end.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        of!(self, stream => stream.local_addr())
    }

    /// The other end.
    ///
    /// # Errors
    /// As getpeername(2).
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        of!(self, stream => stream.peer_addr())
    }
}

impl From<TcpStream> for Tcp {
    fn from(stream: TcpStream) -> Tcp {
        Tcp::System(stream)
    }
}

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        of!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        of!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        of!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        of!(self, stream => stream.is_write_vectored())
    }
}
