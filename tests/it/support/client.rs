//! A client that writes and reads raw bytes.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    held: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, held: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads on. 0 is the end.
    async fn more(&mut self) -> io::Result<usize> {
        timeout(PATIENCE, self.stream.read_buf(&mut self.held)).await.expect("the proxy says something")
    }

    /// Takes everything up to and with `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.held.windows(end.len()).position(|w| w == end.as_bytes()) {
                let taken: Vec<u8> = self.held.drain(..at + end.len()).collect();
                return String::from_utf8(taken).unwrap();
            }
            let n = self.more().await.unwrap();
            assert!(n > 0, "closed before {end:?}: {:?}", String::from_utf8_lossy(&self.held));
        }
    }

    /// Takes a head.
    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Takes so many bytes.
    pub(crate) async fn take(&mut self, n: usize) -> Vec<u8> {
        while self.held.len() < n {
            assert!(self.more().await.unwrap() > 0, "closed after {} of {n} bytes", self.held.len());
        }
        self.held.drain(..n).collect()
    }

    /// Takes everything until the connection is closed, and says how it was.
    pub(crate) async fn end(&mut self) -> (Vec<u8>, io::Result<()>) {
        loop {
            match self.more().await {
                Ok(0) => return (std::mem::take(&mut self.held), Ok(())),
                Ok(_) => {}
                Err(error) => return (std::mem::take(&mut self.held), Err(error)),
            }
        }
    }

    /// Takes everything until the connection is closed cleanly.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let (bytes, end) = self.end().await;
        end.unwrap();
        bytes
    }
}
