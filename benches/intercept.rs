//! What `https: intercept` costs: CPU time of the process for a request on a connection that stands, beside the same without TLS
//! and beside TLS alone, and for new connections beside bare rustls. `cargo bench --bench intercept`; Linux only.
//!
//! Each server is a process of its own, so that its time can be told from the client's. Rounds take turns, and medians are
//! shown: what else runs on the machine then touches all of them alike.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on panics, and prints what it saw"
)]
#![allow(missing_docs, reason = "a program")]

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ROUNDS: usize = 5;
/// On each of the connections, after as many to warm up as a tenth of it.
const REQUESTS: usize = 2_000;
/// At once.
const CONNECTIONS: usize = 4;
/// In a round, one after the other.
const HANDSHAKES: usize = 300;

const ABSOLUTE: &[u8] = b"GET http://api.test/a HTTP/1.1\r\nHost: api.test\r\n\r\n";
const ORIGIN: &[u8] = b"GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through Outrigger, without TLS.
    Plain,
    /// Through Outrigger, which ends TLS.
    Intercepted,
    /// A bare hyper.
    Bare,
    /// A bare hyper behind a bare rustls.
    BareTls,
}

/// A server in a process of its own, until it is dropped.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Where it fails it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// This program again, as a server that says where it listens.
    fn bare(kind: &str, certificate: &Path) -> Server {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Server::start(command.args(["serve", kind]).arg(certificate), |line| line.parse().ok())
    }

    fn outrigger(config: &Path) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        Server::start(command.args(["run", "--config"]).arg(config), |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["proxy"].as_str()?.parse().ok()
        })
    }

    fn start(command: &mut Command, address: impl Fn(&str) -> Option<SocketAddr>) -> Server {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines.find_map(|line| address(&line.unwrap())).expect("it says where it listens");
        // Nothing more is read; neither of them logs more than fits.
        std::mem::forget(lines);
        Server { process, address }
    }

    /// CPU time so far.
    fn time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let nanos = tasks.map(|task| {
            let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0)
        });
        Duration::from_nanos(nanos.sum())
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match arguments.get(1).map(String::as_str) {
        Some("serve") => runtime.block_on(serve(&arguments[2], Path::new(&arguments[3]))),
        Some(_) | None => runtime.block_on(compare()),
    }
}

async fn compare() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = dir.path().join("bare.pem");
    let plain = Server::bare("plain", &certificate);
    let tls = Server::bare("tls", &certificate);
    let config = dir.path().join("outrigger.yaml");
    let text = format!(
        "version: 1\nlisteners: {{proxy: \"127.0.0.1:0\", admin: off, probes: off}}\nlog: {{access: off}}\nintercept: {{generate: true, \
         dir: {}}}\nupstreams:\n  api: {{hosts: [api.test], to: [\"http://{}\"], https: intercept}}\n",
        dir.path().display(),
        plain.address
    );
    std::fs::write(&config, text).unwrap();
    let proxy = Server::outrigger(&config);
    let trust = connector(&[certificate.as_path(), dir.path().join("ca.crt").as_path()]);

    let ways = [
        (Way::Plain, &proxy, "through Outrigger, plain"),
        (Way::Intercepted, &proxy, "through Outrigger, intercepted"),
        (Way::Bare, &plain, "bare hyper, plain"),
        (Way::BareTls, &tls, "bare hyper and rustls"),
    ];
    println!("CPU time for a request on a connection that stands, {} requests a round:", REQUESTS * CONNECTIONS);
    let mut seen = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for ((way, server, _), seen) in ways.iter().zip(&mut seen) {
            seen.push(requests(*way, server, &trust).await);
        }
    }
    let medians = seen.map(median);
    for ((_, _, what), micros) in ways.iter().zip(medians) {
        println!("  {what:<34} {micros:>8.1} µs");
    }
    let [through, intercepted, bare, bare_tls] = medians;
    println!(
        "  intercepted / (plain + what TLS alone costs): {:.2}",
        intercepted / (through + (bare_tls - bare).max(0.0))
    );

    println!("a new connection, one handshake and one request:");
    let ways = [(Way::Intercepted, &proxy, "intercepted"), (Way::BareTls, &tls, "bare hyper and rustls")];
    let mut seen = [const { (Vec::new(), Vec::new()) }; 2];
    for _ in 0..ROUNDS {
        for ((way, server, _), (micros, rate)) in ways.iter().zip(&mut seen) {
            let one = handshakes(*way, server, &trust).await;
            micros.push(one.0);
            rate.push(one.1);
        }
    }
    for ((_, _, what), (micros, rate)) in ways.iter().zip(seen) {
        println!("  {what:<34} {:>8.1} µs {:>8.0} connections/s, one after the other", median(micros), median(rate));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Microseconds of CPU time for a request.
async fn requests(way: Way, server: &Server, trust: &TlsConnector) -> f64 {
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        streams.push(open(way, server.address, trust).await);
    }
    let request = if way == Way::Plain { ABSOLUTE } else { ORIGIN };
    let mut begun = Duration::ZERO;
    for count in [REQUESTS / 10, REQUESTS] {
        begun = server.time();
        let asking = streams.iter_mut().map(|stream| async move {
            for _ in 0..count {
                ask(stream, request).await;
            }
        });
        futures_util::future::join_all(asking).await;
    }
    (server.time() - begun).as_secs_f64() * 1e6 / (REQUESTS * CONNECTIONS) as f64
}

/// Microseconds of CPU time for a connection, and connections a second.
async fn handshakes(way: Way, server: &Server, trust: &TlsConnector) -> (f64, f64) {
    let (time, clock) = (server.time(), Instant::now());
    for _ in 0..HANDSHAKES {
        ask(&mut open(way, server.address, trust).await, ORIGIN).await;
    }
    let micros = (server.time() - time).as_secs_f64() * 1e6 / HANDSHAKES as f64;
    (micros, HANDSHAKES as f64 / clock.elapsed().as_secs_f64())
}

/// A connection to the server.
enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

async fn open(way: Way, address: SocketAddr, trust: &TlsConnector) -> Stream {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    if way == Way::Intercepted {
        exchange(&mut tcp, b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n", b"\r\n\r\n").await;
    }
    match way {
        Way::Plain | Way::Bare => Stream::Tcp(tcp),
        Way::Intercepted | Way::BareTls => {
            let name = ServerName::try_from("api.test").unwrap();
            Stream::Tls(Box::new(trust.connect(name, tcp).await.unwrap()))
        }
    }
}

async fn ask(stream: &mut Stream, request: &[u8]) {
    match stream {
        Stream::Tcp(tcp) => exchange(tcp, request, b"ok").await,
        Stream::Tls(tls) => exchange(tls.as_mut(), request, b"ok").await,
    }
}

/// Sends, and reads up to `end` of an answer that is a success.
async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8], end: &[u8]) {
    stream.write_all(request).await.unwrap();
    let (mut got, mut n) = ([0; 1024], 0);
    while !got[..n].ends_with(end) {
        let more = stream.read(&mut got[n..]).await.unwrap();
        assert!(more > 0, "{}", String::from_utf8_lossy(&got[..n]));
        n += more;
    }
    assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got[..n]));
}

/// An app that trusts these, and makes every handshake whole.
fn connector(files: &[&Path]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for file in files {
        roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

/// A bare server. The one with TLS writes its certificate.
async fn serve(kind: &str, certificate: &Path) {
    let acceptor = (kind == "tls").then(|| {
        let own = rcgen::generate_simple_self_signed(["api.test".to_owned()]).unwrap();
        std::fs::write(certificate, own.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            match acceptor {
                None => answer(tcp).await,
                Some(acceptor) => match acceptor.accept(tcp).await {
                    Ok(tls) => answer(tls).await,
                    Err(error) => panic!("{error}"),
                },
            }
        });
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let ok = |_: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok")))) };
    // However it ends, the client noticed.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(ok)).await;
}
