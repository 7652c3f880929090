//! The upstreams: HTTP/1 plain, HTTP/1 and HTTP/2 over TLS, each with faults that change every few seconds, on a port that
//! stays the same. They check whatever arrives whole.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::bytes::{Broken, Read, Text, empty, read, streamed};
use crate::tally::Tally;

/// Told by every answer that is an upstream's own.
pub(crate) const MARK: &str = "x-soak";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Speaks {
    Plain,
    Tls1,
    Tls2,
}

/// How an upstream treats requests.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Mood {
    Healthy,
    /// 503, half of them with Retry-After.
    Unavailable,
    /// The connection breaks before the answer.
    Breaks,
    Slow,
    /// The body breaks off.
    Cuts,
    /// No answer.
    Hangs,
    /// Every connection is told to end, and ends: GOAWAY, or a close between two requests.
    Drains,
    Refuses,
    /// Down and up again at once.
    Restarts,
}

const MOODS: [Mood; 14] = [
    Mood::Healthy,
    Mood::Healthy,
    Mood::Healthy,
    Mood::Healthy,
    Mood::Healthy,
    Mood::Healthy,
    Mood::Unavailable,
    Mood::Breaks,
    Mood::Slow,
    Mood::Cuts,
    Mood::Hangs,
    Mood::Drains,
    Mood::Refuses,
    Mood::Restarts,
];

pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

/// A certificate for the upstreams, which the proxy is told to trust.
pub(crate) fn authority(folder: &Path) -> Authority {
    let made = rcgen::generate_simple_self_signed(["tls1.test".to_owned(), "tls2.test".to_owned()]).unwrap();
    std::fs::write(folder.join("upstreams.crt"), made.cert.pem()).unwrap();
    Authority { certificate: made.cert.der().clone(), key: made.signing_key.serialize_der() }
}

pub(crate) struct Upstream {
    speaks: Speaks,
    address: SocketAddr,
    /// Bound and never listening: the port stays ours while it is down.
    _place: Socket,
    mood: AtomicU8,
    up: Mutex<Option<DropGuard>>,
    drains: watch::Sender<u32>,
    tls: Option<TlsAcceptor>,
    tally: Arc<Tally>,
}

/// A socket that others of ours can be bound beside, as long as only one listens.
fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

impl Upstream {
    pub(crate) fn start(speaks: Speaks, authority: &Authority, tally: Arc<Tally>) -> Arc<Upstream> {
        let place = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = place.local_addr().unwrap().as_socket().unwrap();
        let tls = (speaks != Speaks::Plain).then(|| {
            let key = PrivateKeyDer::Pkcs8(authority.key.clone().into());
            let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![authority.certificate.clone()], key)
                .unwrap();
            let protocol: &[u8] = if speaks == Speaks::Tls2 { b"h2" } else { b"http/1.1" };
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsAcceptor::from(Arc::new(config))
        });
        let upstream = Arc::new(Upstream {
            speaks,
            address,
            _place: place,
            mood: AtomicU8::new(Mood::Healthy as u8),
            up: Mutex::new(None),
            drains: watch::channel(0).0,
            tls,
            tally,
        });
        upstream.listen();
        upstream
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another mood every few seconds, for ever.
    pub(crate) async fn misbehave(self: Arc<Upstream>) {
        loop {
            let mood = MOODS[fastrand::usize(..MOODS.len())];
            self.tally.ended("upstream moods", format!("{mood:?}"));
            self.mood.store(mood as u8, Ordering::Relaxed);
            match mood {
                Mood::Refuses => *self.up.lock().unwrap() = None,
                Mood::Restarts => {
                    *self.up.lock().unwrap() = None;
                    self.heal().await;
                }
                Mood::Drains => self.drains.send_modify(|drains| *drains += 1),
                Mood::Healthy | Mood::Unavailable | Mood::Breaks | Mood::Slow | Mood::Cuts | Mood::Hangs => {}
            }
            sleep(Duration::from_millis(fastrand::u64(500..3_000))).await;
            self.heal().await;
        }
    }

    /// Is well again.
    pub(crate) async fn heal(self: &Arc<Upstream>) {
        self.mood.store(Mood::Healthy as u8, Ordering::Relaxed);
        // Where it has just gone down, what listened may not have closed yet.
        while !self.listen() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn listen(self: &Arc<Upstream>) -> bool {
        let mut up = self.up.lock().unwrap();
        if up.is_none() {
            let Ok(socket) = bound(self.address).and_then(|socket| socket.listen(1024).map(|()| socket)) else {
                return false;
            };
            socket.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(socket.into()).unwrap();
            let token = CancellationToken::new();
            tokio::spawn(self.clone().serve(listener, token.clone()));
            *up = Some(token.drop_guard());
        }
        true
    }

    async fn serve(self: Arc<Upstream>, listener: TcpListener, up: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = up.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, most likely: accepting at once again would only spin.
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (upstream, up) = (self.clone(), up.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = up.cancelled() => {}
                    () = upstream.accept(stream) => {}
                }
            });
        }
    }

    async fn accept(self: Arc<Upstream>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        self.tally.ended("upstream", "connections");
        match &self.tls {
            None => self.clone().speak(stream).await,
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    self.clone().speak(stream).await;
                }
            }
        }
    }

    async fn speak<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self: Arc<Upstream>, stream: S) {
        let mut drains = self.drains.subscribe();
        let upstream = self.clone();
        let service = service_fn(move |request| upstream.clone().answer(request));
        let io = TokioIo::new(stream);
        if self.speaks == Speaks::Tls2 {
            let mut server = http2::Builder::new(TokioExecutor::new());
            server.timer(TokioTimer::new()).max_concurrent_streams(20);
            let mut connection = pin!(server.serve_connection(io, service));
            tokio::select! {
                _ = &mut connection => return,
                _ = drains.changed() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        } else {
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new());
            let mut connection = pin!(server.serve_connection(io, service).with_upgrades());
            tokio::select! {
                _ = &mut connection => return,
                _ = drains.changed() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }
    }

    fn mood(&self) -> Mood {
        let mood = self.mood.load(Ordering::Relaxed);
        MOODS.into_iter().find(|one| *one as u8 == mood).unwrap_or(Mood::Healthy)
    }

    /// `/KIND/ID/SIZE`
    async fn answer(self: Arc<Upstream>, request: Request<Incoming>) -> Result<Response<Text>, Broken> {
        self.tally.ended("upstream", "requests");
        let path = request.uri().path().to_owned();
        let mut parts = path.split('/').skip(1);
        let (kind, id, size) = (parts.next(), parts.next().and_then(|id| id.parse().ok()), parts.next());
        let (Some(kind), Some(id), Some(size)) = (kind, id, size.and_then(|size| size.parse::<usize>().ok())) else {
            self.tally.broken(format!("an upstream was asked for {path}, which nobody sent"));
            return Err(Broken);
        };
        if request.method() == Method::POST && !request.headers().contains_key("idempotency-key") {
            self.tally.post(id);
        }
        let mood = if fastrand::f64() < 0.7 { self.mood() } else { Mood::Healthy };
        match mood {
            Mood::Breaks => return Err(Broken),
            Mood::Hangs => sleep(Duration::from_secs(8)).await,
            Mood::Slow => sleep(Duration::from_millis(fastrand::u64(100..1_500))).await,
            Mood::Unavailable => {
                let mut answer = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).header(MARK, "own");
                if fastrand::bool() {
                    answer = answer.header("retry-after", "1");
                }
                return Ok(answer.body(empty()).unwrap());
            }
            Mood::Healthy | Mood::Cuts | Mood::Drains | Mood::Refuses | Mood::Restarts => {}
        }
        let answer = Response::builder().header(MARK, id);
        if kind == "echo" {
            tokio::spawn(async move {
                let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
                let mut stream = TokioIo::new(upgraded);
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
            let answer = answer.status(StatusCode::SWITCHING_PROTOCOLS);
            return Ok(answer.header("connection", "upgrade").header("upgrade", "websocket").body(empty()).unwrap());
        }
        if request.method() != Method::GET {
            return match read(request.into_body(), id, size, Duration::ZERO).await {
                Read::Exact => Ok(answer.body(empty()).unwrap()),
                Read::Broken => Err(Broken),
                Read::Wrong(what) => {
                    self.tally.broken(format!("request {id} reached its upstream changed: {what}"));
                    Err(Broken)
                }
            };
        }
        let cut = (mood == Mood::Cuts).then(|| fastrand::usize(..=size));
        let wait = if kind == "big" { Duration::from_millis(1) } else { Duration::ZERO };
        let mut answer = answer;
        // Framed by length or by chunks.
        if id.is_multiple_of(2) {
            answer = answer.header("content-length", size);
        }
        Ok(answer.body(streamed(id, size, cut, wait)).unwrap())
    }
}
