//! An upstream that reads with the strict reader whatever it is sent, and says with each answer which request it is for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::strict::{Read, Request, request};

/// The field that names the request an answer is for.
pub(crate) const SERIAL: &str = "X-Serial";

/// See the module.
pub(crate) struct Witness {
    address: SocketAddr,
    log: Arc<Mutex<Log>>,
    task: tokio::task::JoinHandle<()>,
}

/// What came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// Requests, whole.
    pub(crate) whole: Vec<Request>,
    /// What was neither a request nor the beginning of one.
    pub(crate) wrong: Vec<String>,
    /// Requests whose connection ended before they did.
    pub(crate) parts: Vec<String>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Witness {
    pub(crate) async fn start() -> Witness {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        let shared = Arc::clone(&log);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Witness { address, log, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// All that came so far.
    pub(crate) fn log(&self) -> Log {
        self.log.lock().unwrap().clone()
    }

    /// The requests from the `from`th on.
    pub(crate) fn since(&self, from: usize) -> Vec<Request> {
        self.log.lock().unwrap().whole[from..].to_vec()
    }

    pub(crate) fn count(&self) -> usize {
        self.log.lock().unwrap().whole.len()
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Log>>) {
    let mut held = Vec::new();
    loop {
        match request(&held) {
            Read::Whole(request, length) => {
                held.drain(..length);
                let head = request.method == "HEAD";
                let serial = {
                    let mut log = log.lock().unwrap();
                    log.whole.push(request);
                    log.whole.len() - 1
                };
                let body = serial.to_string();
                let shown = if head { "" } else { &*body };
                let answer =
                    format!("HTTP/1.1 200 OK\r\n{SERIAL}: {serial}\r\nContent-Length: {}\r\n\r\n{shown}", body.len());
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
            Read::Bad(what) => {
                log.lock().unwrap().wrong.push(format!("{what}: {:?}", String::from_utf8_lossy(&held)));
                return;
            }
            Read::Part(_) => match stream.read_buf(&mut held).await {
                Ok(n) if n > 0 => {}
                Ok(_) | Err(_) => {
                    if !held.is_empty() {
                        log.lock().unwrap().parts.push(String::from_utf8_lossy(&held).into_owned());
                    }
                    return;
                }
            },
        }
    }
}
