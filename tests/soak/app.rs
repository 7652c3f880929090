//! The apps: every way of using the proxy that there is, at a bounded rate, each answer looked at to its last byte.

mod ways;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::bytes::{Read, Text, empty, read, streamed};
use crate::settings::Place;
use crate::tally::Tally;
use crate::upstream::MARK;

/// No request takes longer than this, whatever happens: `timeouts.request` is 5 s, and bodies never fall silent for `idle`.
const PATIENCE: Duration = Duration::from_secs(60);

const HOSTS: [&str; 3] = ["plain.test", "tls1.test", "tls2.test"];

/// What every app has.
pub(crate) struct App {
    proxy: SocketAddr,
    /// The plain upstream, for tunnels.
    direct: SocketAddr,
    tls: [TlsConnector; 2],
    ids: AtomicU64,
    tally: Arc<Tally>,
}

/// What one request asks for.
struct Asks {
    id: u64,
    method: &'static str,
    /// `http://host` before the path; empty within a tunnel.
    origin: String,
    kind: &'static str,
    /// Of the answer of a GET, else of the request.
    size: usize,
    key: bool,
    /// Between two parts of the body.
    wait: Duration,
}

/// How it went.
enum Went {
    /// The answer came, and what it was.
    Answered(String),
    /// No answer came.
    Lost(String),
}

impl App {
    fn get(&self, size: usize) -> Asks {
        let origin = format!("http://{}", HOSTS[fastrand::usize(..HOSTS.len())]);
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        Asks { id, method: "GET", origin, kind: "get", size, key: false, wait: Duration::ZERO }
    }

    fn write(&self, size: usize) -> Asks {
        let (method, key) = [("POST", false), ("POST", true), ("PUT", false)][fastrand::usize(..3)];
        Asks { method, key, ..self.get(size) }
    }

    /// Looks at an answer to its end.
    async fn judge(&self, who: &'static str, asks: &Asks, answer: Response<Incoming>) -> String {
        let (head, body) = answer.into_parts();
        let field = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let status = head.status.as_u16();
        if status == 200 && field(MARK) == asks.id.to_string() {
            let size = if asks.method == "GET" { asks.size } else { 0 };
            return match read(body, asks.id, size, asks.wait).await {
                Read::Exact => "exact".to_owned(),
                Read::Broken => "broken off, visibly".to_owned(),
                Read::Wrong(what) => {
                    self.tally.broken(format!("{who}: request {}: {what}", asks.id));
                    "wrong".to_owned()
                }
            };
        }
        if status == 503 && field(MARK) == "own" {
            return "the upstream's own 503".to_owned();
        }
        if field("content-type") == "application/problem+json" {
            let error = field("proxy-status").split("; ").find_map(|part| part.strip_prefix("error="));
            if let Some(error) = error {
                return format!("Outrigger's {status}, {error}");
            }
        }
        self.tally.broken(format!("{who}: request {} was answered with {status} {:?}", asks.id, head.headers));
        "unexplained".to_owned()
    }

    /// Notes how it went. True where the connection may be used again.
    fn note(&self, who: &'static str, asks: &Asks, went: Option<Went>) -> bool {
        match went {
            Some(Went::Answered(how)) => {
                let whole = how != "broken off, visibly";
                self.tally.ended(who, how);
                whole
            }
            Some(Went::Lost(why)) => {
                self.tally.broken(format!("{who}: {} {} was not answered: {why}", asks.method, asks.id));
                false
            }
            None => {
                self.tally.broken(format!("{who}: {} {} took longer than {PATIENCE:?}", asks.method, asks.id));
                false
            }
        }
    }
}

impl Asks {
    fn request(&self) -> Request<Text> {
        let Asks { id, method, origin, kind, size, key, wait } = self;
        let mut request = Request::builder().method(*method).uri(format!("{origin}/{kind}/{id}/{size}"));
        request = request.header("host", origin.strip_prefix("http://").unwrap_or("tunnel"));
        if *key {
            request = request.header("idempotency-key", format!("key-{id}"));
        }
        if *method == "GET" {
            return request.body(empty()).unwrap();
        }
        if id.is_multiple_of(2) {
            request = request.header("content-length", *size);
        }
        request.body(streamed(*id, *size, None, *wait)).unwrap()
    }
}

pub(crate) struct Apps {
    tasks: JoinSet<()>,
    end: CancellationToken,
}

impl Apps {
    pub(crate) fn start(proxy: SocketAddr, place: &Place, tally: Arc<Tally>) -> Apps {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(place.made_ca()).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let tls = [b"http/1.1".as_slice(), b"h2"].map(|protocol| {
            let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(config))
        });
        let app = Arc::new(App { proxy, direct: place.plain, tls, ids: AtomicU64::new(1), tally });
        let mut apps = Apps { tasks: JoinSet::new(), end: CancellationToken::new() };
        // How many of each, and how long one waits between two rounds: about 150 requests a second in all.
        for _ in 0..6 {
            apps.run(&app, 100, |app, end| async move { app.keep_alive(&end).await });
            apps.run(&app, 250, |app, _| async move { app.one_shot().await });
        }
        for _ in 0..2 {
            apps.run(&app, 150, |app, end| async move { app.h2c(&end).await });
            apps.run(&app, 250, |app, _| async move { app.intercepted().await });
            apps.run(&app, 200, |app, _| async move { app.tunnel().await });
            apps.run(&app, 300, |app, _| async move { app.websocket().await });
            apps.run(&app, 700, |app, _| async move { app.big().await });
            apps.run(&app, 500, |app, _| async move { app.slow_reader().await });
            apps.run(&app, 100, |app, _| async move { app.hangs_up().await });
        }
        apps
    }

    /// Rounds of one app until the end, with waits of `pause` milliseconds, give or take half.
    fn run<F>(&mut self, app: &Arc<App>, pause: u64, round: impl Fn(Arc<App>, CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (app, end) = (app.clone(), self.end.clone());
        self.tasks.spawn(async move {
            while !end.is_cancelled() {
                sleep(Duration::from_millis(fastrand::u64(pause / 2..pause * 3 / 2))).await;
                round(app.clone(), end.clone()).await;
            }
        });
    }

    /// Lets each end what it does.
    pub(crate) async fn stop(mut self) {
        self.end.cancel();
        let _ = timeout(PATIENCE * 2, async { while self.tasks.join_next().await.is_some() {} }).await;
        self.tasks.shutdown().await;
    }
}
