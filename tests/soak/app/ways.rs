//! One round of each app.

use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{App, Asks, PATIENCE, Went};
use crate::bytes::{Text, empty, part};

type Sender1 = http1::SendRequest<Text>;

/// A connection whose task ends with it.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn http1<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S) -> Result<(Sender1, Task), String> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let task = tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok((sender, Task(task.abort_handle())))
}

async fn http2<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
) -> Result<(http2::SendRequest<Text>, Task), String> {
    let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = made.map_err(|error| error.to_string())?;
    let task = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok((sender, Task(task.abort_handle())))
}

fn told(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error} {source}")
}

impl App {
    async fn connect(&self) -> Result<TcpStream, String> {
        let stream = TcpStream::connect(self.proxy).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(stream)
    }

    async fn ask1(&self, who: &'static str, sender: &mut Sender1, asks: &Asks) -> bool {
        let asked = async {
            match sender.send_request(asks.request()).await {
                Ok(answer) => Went::Answered(self.judge(who, asks, answer).await),
                Err(error) => Went::Lost(told(&error)),
            }
        };
        self.note(who, asks, timeout(PATIENCE, asked).await.ok())
    }

    async fn connect1(&self, who: &'static str) -> Option<(Sender1, Task)> {
        let made = async { http1(self.connect().await?).await }.await;
        made.inspect_err(|why| self.tally.broken(format!("{who}: no connection to the proxy: {why}"))).ok()
    }

    fn any(&self) -> Asks {
        match fastrand::u8(..10) {
            0..6 => self.get(fastrand::usize(..6_000)),
            _ => self.write(fastrand::usize(..40_000)),
        }
    }

    /// One request after the other on a connection that stands.
    pub(super) async fn keep_alive(self: Arc<App>, end: &CancellationToken) {
        const WHO: &str = "h1 keep-alive";
        let Some((mut sender, _task)) = self.connect1(WHO).await else { return };
        let mut first = true;
        while !end.is_cancelled() {
            // Closed after an answer that said so, or whose body broke.
            if sender.ready().await.is_err() {
                if first {
                    self.tally.broken(format!("{WHO}: a new connection was closed"));
                }
                return;
            }
            first = false;
            let asks = self.any();
            if !self.ask1(WHO, &mut sender, &asks).await {
                return;
            }
            sleep(Duration::from_millis(fastrand::u64(50..150))).await;
        }
    }

    /// A connection for each request.
    pub(super) async fn one_shot(self: Arc<App>) {
        const WHO: &str = "h1 one-shot";
        let Some((mut sender, _task)) = self.connect1(WHO).await else { return };
        let asks = self.any();
        self.ask1(WHO, &mut sender, &asks).await;
    }

    /// Several at once on one connection, by prior knowledge.
    pub(super) async fn h2c(self: Arc<App>, end: &CancellationToken) {
        const WHO: &str = "h2c";
        let made = async { http2(self.connect().await?).await }.await;
        let Ok((mut sender, _task)) = made.inspect_err(|why| self.tally.broken(format!("{WHO}: {why}"))) else {
            return;
        };
        for _ in 0..50 {
            if end.is_cancelled() || sender.ready().await.is_err() {
                return;
            }
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..fastrand::u8(1..4) {
                let (app, mut sender) = (self.clone(), sender.clone());
                all.spawn(async move {
                    let mut asks = app.any();
                    asks.wait = Duration::ZERO;
                    app.ask2(WHO, &mut sender, &asks).await;
                });
            }
            while all.join_next().await.is_some() {}
            sleep(Duration::from_millis(fastrand::u64(50..250))).await;
        }
    }

    async fn ask2(&self, who: &'static str, sender: &mut http2::SendRequest<Text>, asks: &Asks) {
        let mut request = asks.request();
        request.headers_mut().remove("host");
        let asked = async {
            match sender.send_request(request).await {
                Ok(answer) => Went::Answered(self.judge(who, asks, answer).await),
                Err(error) => Went::Lost(told(&error)),
            }
        };
        self.note(who, asks, timeout(PATIENCE, asked).await.ok());
    }

    /// Bodies that are never in memory at once.
    pub(super) async fn big(self: Arc<App>) {
        const WHO: &str = "big bodies";
        let Some((mut sender, _task)) = self.connect1(WHO).await else { return };
        let size = fastrand::usize(500_000..3_000_000);
        let mut asks = if fastrand::bool() { self.get(size) } else { self.write(size) };
        asks.kind = "big";
        self.ask1(WHO, &mut sender, &asks).await;
    }

    /// Takes its time over every part of a long answer.
    pub(super) async fn slow_reader(self: Arc<App>) {
        const WHO: &str = "slow readers";
        let Some((mut sender, _task)) = self.connect1(WHO).await else { return };
        let asks = Asks { kind: "big", wait: Duration::from_millis(fastrand::u64(5..40)), ..self.get(1_000_000) };
        self.ask1(WHO, &mut sender, &asks).await;
    }

    /// Gone at any moment.
    pub(super) async fn hangs_up(self: Arc<App>) {
        const WHO: &str = "hang up";
        let Some((mut sender, _task)) = self.connect1(WHO).await else { return };
        let mut asks = if fastrand::bool() { self.get(200_000) } else { self.write(200_000) };
        asks.wait = Duration::from_millis(2);
        let asked = async {
            match sender.send_request(asks.request()).await {
                Ok(answer) => Some(self.judge(WHO, &asks, answer).await),
                Err(_) => None,
            }
        };
        let gone = timeout(Duration::from_millis(fastrand::u64(..120)), asked).await;
        self.tally.ended(WHO, gone.ok().flatten().unwrap_or_else(|| "gone".to_owned()));
    }

    /// A tunnel, or what came instead.
    async fn open(&self, who: &'static str, target: &str) -> Option<TcpStream> {
        let opened = async {
            let mut stream = self.connect().await?;
            let asked = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
            stream.write_all(asked.as_bytes()).await.map_err(|error| error.to_string())?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                // Byte by byte: what follows is not ours.
                head.push(stream.read_u8().await.map_err(|error| format!("CONNECT was not answered: {error}"))?);
            }
            Ok((stream, String::from_utf8_lossy(&head).to_lowercase()))
        };
        let (stream, head) = match timeout(PATIENCE, opened).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(why)) => {
                let why: String = why;
                self.tally.broken(format!("{who}: {why}"));
                return None;
            }
            Err(_) => {
                self.tally.broken(format!("{who}: CONNECT was not answered in {PATIENCE:?}"));
                return None;
            }
        };
        if head.starts_with("http/1.1 200 ") {
            return Some(stream);
        }
        match head.split_once("proxy-status: outrigger; error=") {
            Some((_, rest)) => {
                let error: String = rest.chars().take_while(|c| *c != ';').collect();
                let status = head.get(9..12).unwrap_or_default();
                self.tally.ended(who, format!("Outrigger's {status}, {error}"));
            }
            None => self.tally.broken(format!("{who}: CONNECT was answered with {head}")),
        }
        None
    }

    /// HTTP inside a tunnel, which the proxy does not look at: what breaks there is the upstream's.
    pub(super) async fn tunnel(self: Arc<App>) {
        const WHO: &str = "tunnels";
        let Some(stream) = self.open(WHO, &self.direct.to_string()).await else { return };
        let Ok((mut sender, _task)) = http1(stream).await else { return };
        for _ in 0..3 {
            let mut asks = self.get(fastrand::usize(..100_000));
            asks.origin = String::new();
            let asked = async {
                match sender.send_request(asks.request()).await {
                    Ok(answer) => self.judge(WHO, &asks, answer).await,
                    Err(_) => "broken off by the upstream".to_owned(),
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(how) => {
                    let broken = how.starts_with("broken");
                    self.tally.ended(WHO, how);
                    if broken {
                        return;
                    }
                }
                Err(_) => {
                    self.tally.broken(format!("{WHO}: a request took longer than {PATIENCE:?}"));
                    return;
                }
            }
            sleep(Duration::from_millis(fastrand::u64(..100))).await;
        }
    }

    /// TLS that ends in the proxy.
    pub(super) async fn intercepted(self: Arc<App>) {
        const WHO: &str = "intercepted";
        let host = ["tls1.test", "tls2.test"][fastrand::usize(..2)];
        let second = fastrand::bool();
        let Some(stream) = self.open(WHO, &format!("{host}:443")).await else { return };
        let name = ServerName::try_from(host).expect("it is a name");
        let stream = match timeout(PATIENCE, self.tls[usize::from(second)].connect(name, stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.tally.broken(format!("{WHO}: TLS failed: {error}")),
            Err(_) => return self.tally.broken(format!("{WHO}: TLS took longer than {PATIENCE:?}")),
        };
        if second {
            let Ok((mut sender, _task)) = http2(stream).await else { return };
            for _ in 0..3 {
                if sender.ready().await.is_err() {
                    return;
                }
                let asks = Asks { origin: format!("https://{host}"), ..self.any() };
                self.ask2(WHO, &mut sender, &asks).await;
            }
        } else {
            let Ok((mut sender, _task)) = http1(stream).await else { return };
            for _ in 0..3 {
                if sender.ready().await.is_err() {
                    return;
                }
                let mut asks = self.any();
                asks.origin = String::new();
                let mut request = asks.request();
                request.headers_mut().insert("host", host.parse().expect("it is a value"));
                let asked = async {
                    match sender.send_request(request).await {
                        Ok(answer) => Went::Answered(self.judge(WHO, &asks, answer).await),
                        Err(error) => Went::Lost(told(&error)),
                    }
                };
                if !self.note(WHO, &asks, timeout(PATIENCE, asked).await.ok()) {
                    return;
                }
            }
        }
    }

    /// An upgraded stream that gives back what it is given.
    pub(super) async fn websocket(self: Arc<App>) {
        const WHO: &str = "WebSocket";
        let Some((mut sender, _task)) = self.connect1(WHO).await else { return };
        let asks = Asks { kind: "echo", ..self.get(0) };
        let mut request: Request<Text> = asks.request();
        *request.body_mut() = empty();
        let fields = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in fields {
            request.headers_mut().insert(name, value.parse().expect("it is a value"));
        }
        // An HTTP/2 upstream knows no upgrade.
        if asks.origin.ends_with("tls2.test") {
            *request.uri_mut() = format!("http://plain.test/echo/{}/0", asks.id).parse().expect("it is a URI");
            request.headers_mut().insert("host", "plain.test".parse().expect("it is a value"));
        }
        let answer = match timeout(PATIENCE, sender.send_request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.note(WHO, &asks, Some(Went::Lost(told(&error))));
                return;
            }
            Err(_) => {
                self.note(WHO, &asks, None);
                return;
            }
        };
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let how = self.judge(WHO, &asks, answer).await;
            self.tally.ended(WHO, how);
            return;
        }
        let Ok(upgraded) = hyper::upgrade::on(answer).await else {
            return self.tally.ended(WHO, "broken off by the upstream");
        };
        let mut stream = TokioIo::new(upgraded);
        let echoed = async {
            for message in 0..fastrand::u64(1..20) {
                let sent = part(asks.id + message, 0, fastrand::usize(1..5_000));
                let mut back = vec![0; sent.len()];
                if stream.write_all(&sent).await.is_err() || stream.read_exact(&mut back).await.is_err() {
                    return "broken off by the upstream";
                }
                if back != sent {
                    self.tally.broken(format!("{WHO}: an echo came back changed"));
                    return "wrong";
                }
                sleep(Duration::from_millis(fastrand::u64(..60))).await;
            }
            "exact"
        };
        match timeout(PATIENCE, echoed).await {
            Ok(how) => self.tally.ended(WHO, how),
            Err(_) => self.tally.broken(format!("{WHO}: an echo took longer than {PATIENCE:?}")),
        }
    }
}
