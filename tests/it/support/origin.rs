//! A server that does what a script says, mistakes included, and remembers what it was sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The raw head, without its last empty line.
    pub(crate) head: String,
    /// The decoded body.
    pub(crate) body: Vec<u8>,
    /// Which connection it came on, from 0.
    pub(crate) connection: usize,
}

impl Seen {
    /// The request line.
    pub(crate) fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap()
    }

    /// The values of a field, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }
}

/// See the module.
pub(crate) struct Origin {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection, as a script sees it.
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    held: Vec<u8>,
    seen: Arc<Mutex<Vec<Seen>>>,
    index: usize,
}

impl Origin {
    /// Runs the script on each connection.
    pub(crate) async fn scripted<F>(script: impl Fn(Conn) -> F + Send + 'static) -> Origin
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            for index in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                stream.set_nodelay(true).unwrap();
                tokio::spawn(script(Conn { stream, held: Vec::new(), seen: Arc::clone(&log), index }));
            }
        });
        Origin { address, seen, task }
    }

    /// Answers every request with these bytes, for as long as the connection lasts.
    pub(crate) async fn answering(answer: impl Into<Vec<u8>>) -> Origin {
        let answer: Arc<Vec<u8>> = Arc::new(answer.into());
        Origin::scripted(move |mut conn| {
            let answer = Arc::clone(&answer);
            async move {
                while conn.request().await.is_some() {
                    if conn.stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }

    /// Answers every request with these bytes and closes.
    pub(crate) async fn closing(answer: impl Into<Vec<u8>>) -> Origin {
        let answer: Arc<Vec<u8>> = Arc::new(answer.into());
        Origin::scripted(move |mut conn| {
            let answer = Arc::clone(&answer);
            async move {
                if conn.request().await.is_some() {
                    let _ = conn.stream.write_all(&answer).await;
                }
            }
        })
        .await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The only request so far.
    pub(crate) fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }
}

impl Conn {
    async fn more(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.held).await {
            Ok(n) if n > 0 => Some(()),
            Ok(_) | Err(_) => None,
        }
    }

    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.held.windows(end.len()).position(|w| w == end) {
                let taken = self.held.drain(..at + end.len()).take(at).collect();
                return Some(taken);
            }
            self.more().await?;
        }
    }

    /// So many bytes.
    pub(crate) async fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.held.len() < n {
            self.more().await?;
        }
        Some(self.held.drain(..n).collect())
    }

    /// A head, not remembered. `None` where the proxy closed before.
    pub(crate) async fn head(&mut self) -> Option<Seen> {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await?).unwrap();
        Some(Seen { head, body: Vec::new(), connection: self.index })
    }

    /// The body that a head announces. Trailers are appended to the head, each behind a `+`.
    pub(crate) async fn body(&mut self, seen: &mut Seen) -> Option<()> {
        if let Some(length) = seen.all("content-length").first() {
            seen.body = self.take(length.parse().unwrap()).await?;
        } else if !seen.all("transfer-encoding").is_empty() {
            loop {
                let line = String::from_utf8(self.until(b"\r\n").await?).unwrap();
                let size = usize::from_str_radix(line.split(';').next().unwrap(), 16).unwrap();
                if size == 0 {
                    break;
                }
                seen.body.extend(self.take(size).await?);
                self.until(b"\r\n").await?;
            }
            loop {
                let line = String::from_utf8(self.until(b"\r\n").await?).unwrap();
                if line.is_empty() {
                    break;
                }
                seen.head.push_str(&format!("\r\n+{line}"));
            }
        }
        Some(())
    }

    /// A whole request, remembered. `None` where the proxy closed before its end.
    pub(crate) async fn request(&mut self) -> Option<Seen> {
        let mut seen = self.head().await?;
        self.body(&mut seen).await?;
        self.remember(&seen);
        Some(seen)
    }

    /// Adds to what the origin was sent.
    pub(crate) fn remember(&self, seen: &Seen) {
        self.seen.lock().unwrap().push(seen.clone());
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// An error where the proxy has closed its side.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Which connection this is, from 0.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Waits until the proxy closed its side.
    pub(crate) async fn closed(&mut self) {
        while self.more().await.is_some() {}
    }
}
