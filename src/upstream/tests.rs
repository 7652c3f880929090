//! The way out over real sockets, against upstreams that do exactly what a script says.

mod secure;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::address::AddressSet;
use crate::config;
use crate::error::{ConnectFailure, Error, Result, Sent};
use crate::message::{Attempt, Exchange, Phase};
use crate::origin::{Host, Origin, Scheme};
use crate::policy::body::AttemptBody;
use crate::policy::{Destination, Transport as _};
use crate::telemetry::report::UpstreamReport;
use crate::upstream::connect::Connector;
use crate::upstream::connect::tests::connector;
use crate::upstream::transport::{Counts, Settings, Transport, UpstreamBody};

pub(super) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

pub(super) fn settings(to: &[Origin]) -> Settings {
    Settings {
        to: to.to_vec(),
        tls: config::Tls {
            roots: None,
            identity: None,
            server_name: None,
            tls13_only: false,
            ca_file: None,
            client_cert: None,
        },
        connections: config::Connections {
            max: NonZeroU32::new(256).unwrap(),
            max_idle: NonZeroU32::new(32).unwrap(),
            idle_timeout: Some(Duration::from_secs(15)),
            max_age: Some(Duration::from_secs(300)),
            http: config::HttpVersion::Auto,
        },
        allow_addresses: AddressSet::default(),
        max_header_bytes: 32 * 1024,
        max_headers: 100,
    }
}

pub(super) fn http(address: SocketAddr) -> Origin {
    Origin { scheme: Scheme::Http, host: Host::Ip(address.ip()), port: address.port() }
}

pub(super) fn transport(settings: Settings) -> Arc<Transport> {
    transport_by(settings, connector(vec![None], vec![], vec![]))
}

pub(super) fn transport_by(settings: Settings, connector: Arc<Connector>) -> Arc<Transport> {
    Transport::new(settings, connector, UpstreamReport::for_test("test")).unwrap()
}

pub(super) fn attempt() -> Attempt {
    Attempt::new(Exchange::new(Instant::now()), Some(Duration::from_secs(5)))
}

pub(super) async fn send(
    transport: &Transport,
    request: http::request::Builder,
    body: AttemptBody,
    attempt: &Attempt,
) -> Result<http::Response<UpstreamBody>> {
    let head = request.body(()).unwrap().into_parts().0;
    let origin = Origin { scheme: Scheme::Http, host: Host::parse("app.test").unwrap(), port: 80 };
    transport.send(head, body, &Destination { origin, keep_host: true }, attempt).await
}

pub(super) fn get() -> http::request::Builder {
    Request::get("/x?y=1").header("host", "app.test")
}

pub(super) async fn fetch(transport: &Transport) -> Result<Bytes> {
    let response = send(transport, get(), AttemptBody::empty(), &attempt()).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

/// An upstream that runs `script` for each connection, numbered from 0.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
}

impl Server {
    pub(super) async fn start<F>(script: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Server
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(script(stream, count.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Server { address, connections }
    }

    /// One that answers each request with these bytes.
    async fn answering(answer: &'static [u8]) -> Server {
        Server::start(move |mut stream, _| async move {
            while read_head(&mut stream).await.is_some() {
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads to the end of a head; `None` at the end of the connection.
pub(super) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

/// Waits until `check` holds; it must.
async fn until(check: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(10), async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("it becomes true");
}

#[tokio::test]
async fn a_connection_is_reused_after_a_clean_answer() {
    let server = Server::answering(OK).await;
    let transport = transport(settings(&[http(server.address)]));
    for _ in 0..5 {
        assert_eq!(fetch(&transport).await.unwrap(), "ok");
    }
    assert_eq!(server.count(), 1);
    assert_eq!(transport.counts(), Counts { active: 0, idle: 1, connecting: 0 });
}

#[tokio::test]
async fn the_cap_holds_and_all_are_served() {
    let busy = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (b, m) = (busy.clone(), most.clone());
    let server = Server::start(move |mut stream, _| {
        let (busy, most) = (b.clone(), m.clone());
        async move {
            while read_head(&mut stream).await.is_some() {
                most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(2)).await;
                busy.fetch_sub(1, Ordering::SeqCst);
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let mut settings = settings(&[http(server.address)]);
    settings.connections.max = NonZeroU32::new(3).unwrap();
    let transport = transport(settings);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let transport = transport.clone();
        tasks.spawn(async move { fetch(&transport).await.unwrap() });
    }
    assert!(tasks.join_all().await.iter().all(|body| body == "ok"));
    assert!(most.load(Ordering::SeqCst) <= 3);
    assert!(server.count() <= 3);
}

#[tokio::test]
async fn one_in_line_that_hangs_up_leaves_it_and_was_never_sent() {
    let server = Server::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut settings = settings(&[http(server.address)]);
    settings.connections.max = NonZeroU32::new(1).unwrap();
    let transport = transport(settings);
    let first = tokio::spawn({
        let transport = transport.clone();
        async move { fetch(&transport).await }
    });
    until(|| transport.counts().active == 1).await;
    let waiting = attempt();
    let cut = tokio::time::timeout(Duration::from_millis(20), send(&transport, get(), AttemptBody::empty(), &waiting));
    assert!(cut.await.is_err());
    assert_eq!(waiting.phase(), Phase::Waiting);
    first.abort();
    until(|| transport.counts() == Counts::default()).await;
}

#[tokio::test]
async fn a_connection_that_died_while_idle_is_replaced_unseen() {
    let server = Server::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let transport = transport(settings(&[http(server.address)]));
    for round in 1..=3 {
        assert_eq!(fetch(&transport).await.unwrap(), "ok");
        until(|| transport.counts() == Counts::default()).await;
        assert_eq!(server.count(), round);
    }
}

#[tokio::test]
async fn bytes_after_the_answer_close_the_connection() {
    let server = Server::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n").await;
    let transport = transport(settings(&[http(server.address)]));
    assert_eq!(fetch(&transport).await.unwrap(), "ok");
    until(|| transport.counts() == Counts::default()).await;
    assert_eq!(fetch(&transport).await.unwrap(), "ok");
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_body_dropped_early_closes_the_connection() {
    let (gone, closed) = tokio::sync::oneshot::channel();
    let gone = std::sync::Mutex::new(Some(gone));
    let server = Server::start(move |mut stream, _| {
        let gone = gone.lock().unwrap().take();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx").await.unwrap();
            let _ = stream.read_u8().await;
            let _ = gone.unwrap().send(());
        }
    })
    .await;
    let transport = transport(settings(&[http(server.address)]));
    drop(send(&transport, get(), AttemptBody::empty(), &attempt()).await.unwrap());
    closed.await.unwrap();
    assert_eq!(transport.counts(), Counts::default());
}

#[tokio::test]
async fn a_body_cut_short_is_an_error() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let server = Server::start(move |mut stream, _| async move {
            read_head(&mut stream).await;
            stream.write_all(answer).await.unwrap();
        })
        .await;
        let transport = transport(settings(&[http(server.address)]));
        let error = fetch(&transport).await.unwrap_err();
        assert!(matches!(error, Error::Reset { sent: Sent::Maybe, answer_began: true, .. }), "{error:?}");
        until(|| transport.counts() == Counts::default()).await;
    }
}

#[tokio::test]
async fn malformed_answers_are_named_and_never_reused() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Header: x\r\n\r\n",
    ] {
        let server = Server::answering(answer).await;
        let transport = transport(settings(&[http(server.address)]));
        let error = fetch(&transport).await.unwrap_err();
        assert!(matches!(error, Error::BadAnswer(_)), "{}: {error:?}", String::from_utf8_lossy(answer));
        until(|| transport.counts() == Counts::default()).await;
    }
}

#[tokio::test]
async fn heads_up_to_the_limit_are_read_and_larger_ones_are_bad_answers() {
    for (size, fits) in [(31 * 1024, true), (40 * 1024, false)] {
        let server = Server::start(move |mut stream, _| async move {
            read_head(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: {}\r\n\r\nok", "x".repeat(size));
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.read_u8().await;
        })
        .await;
        let result = fetch(&transport(settings(&[http(server.address)]))).await;
        assert_eq!(result.is_ok(), fits, "{size}: {result:?}");
        assert!(matches!(result, Ok(_) | Err(Error::BadAnswer(_))));
    }
}

#[tokio::test]
async fn a_connection_closed_without_an_answer_says_what_is_known() {
    let server = Server::start(|mut stream, _| async move {
        read_head(&mut stream).await;
    })
    .await;
    let error = fetch(&transport(settings(&[http(server.address)]))).await.unwrap_err();
    assert!(matches!(error, Error::Reset { sent: Sent::Maybe, reused: false, answer_began: false, .. }), "{error:?}");
}

#[tokio::test]
async fn a_stale_connection_that_took_the_request_is_told_to_be_reused() {
    let server = Server::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        read_head(&mut stream).await;
    })
    .await;
    let transport = transport(settings(&[http(server.address)]));
    fetch(&transport).await.unwrap();
    let error = fetch(&transport).await.unwrap_err();
    assert!(matches!(error, Error::Reset { sent: Sent::Maybe, reused: true, answer_began: false, .. }), "{error:?}");
    let fresh = attempt();
    fresh.renew();
    assert!(send(&transport, get(), AttemptBody::empty(), &fresh).await.is_ok());
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_fresh_attempt_takes_no_idle_connection() {
    let server = Server::answering(OK).await;
    let transport = transport(settings(&[http(server.address)]));
    fetch(&transport).await.unwrap();
    let fresh = attempt();
    fresh.renew();
    send(&transport, get(), AttemptBody::empty(), &fresh).await.unwrap();
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_refused_connection_is_a_connect_failure() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let transport = transport(settings(&[http(address)]));
    let error = fetch(&transport).await.unwrap_err();
    assert!(matches!(error, Error::Connect { failure: ConnectFailure::Refused, .. }), "{error:?}");
    assert_eq!(error.sent(), Sent::No);
    assert_eq!(transport.counts(), Counts::default());
}

#[tokio::test]
async fn an_http10_answer_to_the_end_of_the_connection_becomes_http11() {
    let server = Server::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nall of it").await.unwrap();
    })
    .await;
    let transport = transport(settings(&[http(server.address)]));
    let response = send(&transport, get(), AttemptBody::empty(), &attempt()).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_11);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "all of it");
}

#[tokio::test]
async fn host_stays_with_an_address_and_changes_with_a_name() {
    let (tell, mut heads) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                tell.send(head).unwrap();
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    fetch(&transport(settings(&[http(server.address)]))).await.unwrap();
    assert_eq!(heads.recv().await.unwrap(), "GET /x?y=1 HTTP/1.1\r\nhost: app.test\r\n\r\n");
    let named = Origin { host: Host::parse("localhost").unwrap(), ..http(server.address) };
    let port = named.port;
    fetch(&transport(settings(&[named]))).await.unwrap();
    assert_eq!(heads.recv().await.unwrap(), format!("GET /x?y=1 HTTP/1.1\r\nhost: localhost:{port}\r\n\r\n"));
}

#[tokio::test]
async fn a_request_body_goes_out_whole_and_an_answer_before_its_end_costs_the_connection() {
    let server = Server::start(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.contains("content-length: 5"), "{head}");
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"hello");
        stream.write_all(OK).await.unwrap();
        let _ = read_head(&mut stream).await;
    })
    .await;
    let transport = transport(settings(&[http(server.address)]));
    let request = Request::post("/").header("host", "app.test").header("content-length", "5");
    let body = AttemptBody::from_bytes(Bytes::from_static(b"hello"));
    let response = send(&transport, request, body, &attempt()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    until(|| transport.counts().idle == 1).await;
}

#[tokio::test]
async fn an_upgrade_keeps_its_place_until_it_is_dropped() {
    let server = Server::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhi")
            .await
            .unwrap();
        let mut byte = [0; 1];
        while stream.read_exact(&mut byte).await.is_ok() {
            stream.write_all(&byte).await.unwrap();
        }
    })
    .await;
    let transport = transport(settings(&[http(server.address)]));
    let request = get().header("connection", "upgrade").header("upgrade", "echo");
    let mut response = send(&transport, request, AttemptBody::empty(), &attempt()).await.unwrap();
    assert_eq!(response.status(), 101);
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    let mut io = hyper_util::rt::TokioIo::new(upgraded);
    io.write_all(b"!").await.unwrap();
    let mut bytes = [0; 3];
    io.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hi!");
    assert_eq!(transport.counts().active, 1);
    drop(response);
    assert_eq!(transport.counts().active, 0);
}

#[tokio::test]
async fn a_retired_pool_closes_idle_connections_now() {
    let server = Server::answering(OK).await;
    let transport = transport(settings(&[http(server.address)]));
    fetch(&transport).await.unwrap();
    transport.retire();
    assert_eq!(transport.counts(), Counts::default());
    assert_eq!(fetch(&transport).await.unwrap(), "ok");
    until(|| transport.counts() == Counts::default()).await;
}

#[tokio::test]
async fn a_retry_goes_to_another_endpoint_and_a_failed_one_is_avoided() {
    let server = Server::answering(OK).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let transport = transport(settings(&[http(closed), http(server.address)]));
    let failed = loop {
        let attempt = attempt();
        if send(&transport, get(), AttemptBody::empty(), &attempt).await.is_err() {
            break attempt.endpoint();
        }
    };
    assert_eq!(failed, Some(0));
    for _ in 0..20 {
        fetch(&transport).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_place_is_lost_when_requests_are_given_up_at_any_moment() {
    let server = Server::answering(OK).await;
    let mut settings = settings(&[http(server.address)]);
    settings.connections.max = NonZeroU32::new(4).unwrap();
    let transport = transport(settings);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..600_u64 {
        let transport = transport.clone();
        tasks.spawn(async move {
            if number.is_multiple_of(3) {
                let _ = tokio::time::timeout(Duration::from_micros(number * 7 % 3000), fetch(&transport)).await;
            } else {
                assert_eq!(fetch(&transport).await.unwrap(), "ok");
            }
        });
    }
    tasks.join_all().await;
    until(|| transport.counts().active == 0 && transport.counts().connecting == 0).await;
    assert!(transport.counts().idle <= 4);
    for _ in 0..10 {
        fetch(&transport).await.unwrap();
    }
}
