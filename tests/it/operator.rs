//! An Outrigger with a file of its own, an upstream behind it, and a client that shows every byte.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrigger::app::App;
use outrigger::config::load;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

pub(crate) struct Rig {
    pub(crate) app: App,
    pub(crate) path: PathBuf,
    _dir: TempDir,
}

/// Starts with this configuration; listeners that it doesn't name are on free ports.
pub(crate) fn start(yaml: &str) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outrigger.yaml");
    std::fs::write(&path, yaml).unwrap();
    start_at(dir, path)
}

/// Starts with the file that is there; the directory lives as long as the proxy.
pub(crate) fn start_at(dir: TempDir, path: PathBuf) -> Rig {
    let loaded = load::load(&path, load::Options::default()).unwrap();
    let config = loaded.config.unwrap_or_else(|| panic!("{:#?}", loaded.problems));
    Rig { app: App::start(config, path.clone()).unwrap(), path, _dir: dir }
}

/// A configuration with one upstream `a` for a.test, and `more` indented below it.
pub(crate) fn config(upstream: SocketAddr, more: &str) -> String {
    format!(
        "version: 1\n\
         listeners: {{proxy: '127.0.0.1:0', admin: '127.0.0.1:0', probes: '127.0.0.1:0'}}\n\
         upstreams:\n  a:\n    hosts: [a.test]\n    to: ['http://{upstream}']\n{more}"
    )
}

impl Rig {
    pub(crate) fn write(&self, yaml: &str) {
        std::fs::write(&self.path, yaml).unwrap();
    }

    /// A request to one of Outrigger's listeners.
    pub(crate) async fn ask(&self, place: &str, method: &str, path: &str, fields: &str, body: &str) -> Answer {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{fields}\r\n{body}"
        );
        send(self.app.address(place), &text).await
    }

    pub(crate) async fn get(&self, place: &str, path: &str) -> Answer {
        send(self.app.address(place), &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("admin", "POST", path, "", body).await
    }

    /// A request of the app's for upstream `a`.
    pub(crate) async fn through(&self, path: &str) -> Answer {
        through(self.app.address("proxy"), path).await
    }
}

pub(crate) async fn through(proxy: SocketAddr, path: &str) -> Answer {
    send(proxy, &format!("GET http://a.test{path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n")).await
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Sends these bytes and reads until the far side closes.
pub(crate) async fn send(to: SocketAddr, text: &str) -> Answer {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// An upstream that answers `ok` to whatever comes, once it is let go.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<AtomicUsize>,
    /// A permit for each answer.
    pub(crate) gate: Arc<Semaphore>,
}

impl Upstream {
    pub(crate) fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }

    /// Waits until a request came.
    pub(crate) async fn arrived(&self) {
        let came = async {
            while self.seen() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), came).await.expect("a request comes");
    }
}

/// An upstream that answers at once.
pub(crate) async fn upstream() -> Upstream {
    let upstream = held_upstream().await;
    upstream.gate.add_permits(1_000_000);
    upstream
}

/// An upstream that answers as often as its gate lets it.
pub(crate) async fn held_upstream() -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let upstream = Upstream { address, seen: seen.clone(), gate: gate.clone() };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, gate) = (seen.clone(), gate.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                loop {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        seen.fetch_add(1, Ordering::SeqCst);
                        gate.acquire().await.unwrap().forget();
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    }
                }
            });
        }
    });
    upstream
}
