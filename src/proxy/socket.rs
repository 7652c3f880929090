//! What an app's bytes come through: its socket, an HTTP/2 stream that became a tunnel, or TLS inside one of these.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::proxy::io::Replayed;
use crate::tcp::Tcp;

/// See the module. What is rare is boxed, so that a plain connection stays small.
pub(crate) enum Socket {
    /// A connection of its own.
    Tcp(Tcp),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::{Bytes, BytesMut};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
    use socket2::SockRef;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::{Instant, timeout};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::proxy::head::Bounds;
    use crate::proxy::io::AppIo;
    use crate::proxy::link::Link;

    #[tokio::test]
    async fn an_app_that_reads_nothing_is_given_up_inside_tls_too() {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();

        // The system takes little, so that most stays with TLS.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let app = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
        let name = ServerName::try_from("a.test").unwrap();
        let accepting =
            TlsAcceptor::from(Arc::new(server)).accept(Replayed::new(Socket::Tcp(stream.into()), Bytes::new()));
        let (tls, app) = tokio::join!(accepting, TlsConnector::from(Arc::new(client)).connect(name, app));
        let _reads_nothing = app.unwrap();

        let link = Arc::new(Link::default());
        link.wait_at_most(Some(Duration::from_millis(100)));
        let bounds = Bounds { bytes: 1024, fields: 10 };
        let clock = Duration::from_secs(60);
        let socket = Socket::Tls(Box::new(tls.unwrap()));
        let mut io = AppIo::new(socket, BytesMut::new(), Instant::now() + clock, link, bounds, clock);
        io.write_all(&[b'x'; 48 * 1024]).await.unwrap();
        let flushed = timeout(Duration::from_secs(20), io.flush()).await.expect("it is given up");
        assert_eq!(flushed.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
