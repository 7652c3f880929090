//! The app of the demonstration: a few threads that call an API at a steady beat, each waiting for its answer before it
//! calls again. It has no timeouts and no retries of its own, as many apps have none.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::demo::figures::{Figures, Outcome};
use crate::demo::seen::{KEY, Kind};
use crate::demo::upstream::expected;

/// How many threads the app has.
pub const THREADS: usize = 10;
/// How long each waits from one call to the next; longer where the answer takes longer.
const BEAT: Duration = Duration::from_millis(100);
/// For an answer of the `admin` listener.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the app's calls go.
#[derive(Clone, Debug)]
pub enum Way {
    /// To an API of this name, through a proxy.
    Through {
        /// The proxy.
        proxy: SocketAddr,
        /// The API's name.
        host: &'static str,
    },
    /// Straight to the API.
    Straight(SocketAddr),
}

impl Way {
    fn address(&self) -> SocketAddr {
        match self {
            Way::Through { proxy, .. } => *proxy,
            Way::Straight(address) => *address,
        }
    }
}

/// The app, calling until it is told to stop.
pub struct Traffic {
    figures: Arc<Mutex<Figures>>,
    stop: CancellationToken,
    threads: JoinSet<()>,
}

impl Traffic {
    /// Calls from now on. `number` makes each call one of its kind, over all traffic that shares it.
    pub fn start(way: &Way, number: &Arc<AtomicU64>) -> Traffic {
        let figures = Arc::new(Mutex::new(Figures::new(THREADS)));
        let stop = CancellationToken::new();
        let mut threads = JoinSet::new();
        for index in 0..THREADS {
            let thread = Thread {
                index,
                line: Line { way: way.clone(), sender: None },
                figures: figures.clone(),
                number: number.clone(),
            };
            threads.spawn(thread.work(stop.clone()));
        }
        Traffic { figures, stop, threads }
    }

    /// What it saw so far.
    pub fn figures(&self) -> Figures {
        lock(&self.figures).clone()
    }

    /// Makes no new calls from now on.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Stops, waits this long for calls that are under way, and counts those that still have no answer as such.
    pub async fn end(mut self, patience: Duration) -> Figures {
        self.stop();
        let all_answered = async { while self.threads.join_next().await.is_some() {} };
        if timeout(patience, all_answered).await.is_err() {
            self.threads.shutdown().await;
        }
        let mut figures = lock(&self.figures);
        figures.give_up(Instant::now());
        figures.clone()
    }
}

struct Thread {
    index: usize,
    line: Line,
    figures: Arc<Mutex<Figures>>,
    number: Arc<AtomicU64>,
}

impl Thread {
    async fn work(mut self, stop: CancellationToken) {
        // One thread after the other, so that the traffic is even.
        let offset = BEAT * u32::try_from(self.index).unwrap_or(0) / THREADS as u32;
        let mut beat = interval_at(Instant::now() + offset, BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = beat.tick() => {}
            }
            let number = self.number.fetch_add(1, Ordering::Relaxed);
            let kind = match number % 5 {
                3 => Kind::Keyed,
                4 => Kind::Unkeyed,
                _ => Kind::Read,
            };
            lock(&self.figures).begin(self.index, kind, Instant::now());
            let outcome = self.line.call(kind, number).await;
            lock(&self.figures).end(self.index, outcome, Instant::now());
        }
    }
}

/// A connection that is kept, as an HTTP client does.
struct Line {
    way: Way,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Line {
    /// Makes one call and looks at the whole answer.
    async fn call(&mut self, kind: Kind, number: u64) -> Outcome {
        match self.exchange(kind, number).await {
            Ok(outcome) => outcome,
            // Refused or broken: the next call gets a new connection.
            Err(Gone) => {
                self.sender = None;
                Outcome::Failed
            }
        }
    }

    async fn exchange(&mut self, kind: Kind, number: u64) -> Result<Outcome, Gone> {
        let kept = match self.sender.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let mut sender = match kept {
            Some(sender) => sender,
            None => connect(self.way.address()).await?,
        };
        let (method, path, body) = match kind {
            Kind::Read => (Method::GET, format!("/items/{number}"), Bytes::new()),
            Kind::Keyed | Kind::Unkeyed => {
                (Method::POST, "/orders".to_owned(), Bytes::from(format!("{{\"order\": {number}}}")))
            }
        };
        let (uri, host) = match &self.way {
            Way::Through { host, .. } => (format!("http://{host}{path}"), (*host).to_owned()),
            Way::Straight(address) => (path.clone(), address.to_string()),
        };
        let mut request = Request::builder().method(method).uri(uri).header(HOST, host);
        if kind == Kind::Keyed {
            request = request.header(KEY, format!("order-{number}"));
        }
        let request = request.body(Full::new(body)).map_err(|_| Gone)?;
        let answer = sender.send_request(request).await.map_err(|_| Gone)?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|_| Gone)?.to_bytes();
        self.sender = Some(sender);
        Ok(match head.status {
            StatusCode::OK if body == expected(&path) => Outcome::Answered,
            _ if own(&head.headers) => Outcome::Refused,
            _ => Outcome::Failed,
        })
    }
}

/// The connection is of no use any more.
struct Gone;

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Gone> {
    let stream = TcpStream::connect(address).await.map_err(|_| Gone)?;
    // Where it fails, requests are late, not wrong.
    let _ = stream.set_nodelay(true);
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Gone)?;
    // It ends with its sender; how, its requests tell.
    tokio::spawn(connection);
    Ok(sender)
}

/// Whether Outrigger itself answered, without asking the upstream.
fn own(headers: &HeaderMap) -> bool {
    let status = headers.get("proxy-status").map(|value| value.as_bytes());
    status.is_some_and(|value| value.starts_with(b"outrigger; error=") && !value.windows(9).any(|w| w == b"attempts="))
}

/// Asks something of Outrigger's `admin` listener. `None` where it gives no answer, or one other than 200.
pub(super) async fn ask(admin: SocketAddr, path: &str) -> Option<Bytes> {
    let answer = async {
        let mut sender = connect(admin).await.ok()?;
        let request = Request::get(path).header(HOST, admin.to_string()).body(Full::default()).ok()?;
        let answer = sender.send_request(request).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        Some(answer.into_body().collect().await.ok()?.to_bytes())
    };
    timeout(PATIENCE, answer).await.ok().flatten()
}

fn lock(figures: &Mutex<Figures>) -> MutexGuard<'_, Figures> {
    figures.lock().unwrap_or_else(PoisonError::into_inner)
}
