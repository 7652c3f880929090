//! What an app's bytes come through: its socket, an HTTP/2 stream that became a tunnel, or TLS inside one of these.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::proxy::io::Replayed;

/// See the module. What is rare is boxed, so that a plain connection stays small.
pub(crate) enum Socket {
    /// A connection of its own.
    Tcp(TcpStream),
    /// A CONNECT stream of an HTTP/2 connection.
    Stream(Box<TokioIo<Upgraded>>),
    /// TLS that we ended.
    Tls(Box<TlsStream<Replayed>>),
}

impl Socket {
    /// The end of it is to be a reset, where it can be. An HTTP/2 stream's socket is out of reach; it is closed.
    pub(crate) fn abort(&self) {
        match self {
            // Where it fails the socket is gone already.
            Socket::Tcp(stream) => drop(stream.set_zero_linger()),
            Socket::Stream(_) => {}
            Socket::Tls(stream) => stream.get_ref().0.abort(),
        }
    }
}

impl Socket {
    /// Bytes that left so far, where a layer above the connection takes more than it passes on.
    pub(crate) fn taken(&self) -> u64 {
        match self {
            Socket::Tcp(_) | Socket::Stream(_) => 0,
            Socket::Tls(stream) => stream.get_ref().0.written(),
        }
    }
}

macro_rules! of {
    ($self:ident, $stream:ident => $does:expr) => {
        match $self.get_mut() {
            Socket::Tcp($stream) => $does,
            Socket::Stream($stream) => $does,
            Socket::Tls($stream) => $does,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        of!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        of!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        of!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Socket::Tcp(stream) => stream.is_write_vectored(),
            Socket::Stream(stream) => stream.is_write_vectored(),
            Socket::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
