//! TLS and HTTP/2 to the upstream.

use std::sync::Mutex;

use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A CA and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rustls_pki_types::CertificateDer<'static>,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("CA {}", fastrand::u64(..)));
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    fn acceptor(&self, names: &[&str], last_year: Option<i32>, alpn: &[&str]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if let Some(year) = last_year {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(year, 3, 4);
        }
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    fn settings(&self, server: &Server) -> Settings {
        let host = Host::parse("localhost").unwrap();
        let mut settings = settings(&[Origin { scheme: Scheme::Https, host, port: server.address.port() }]);
        settings.tls.roots = Some(Arc::new(vec![self.certificate.clone()]));
        settings
    }
}

async fn answering(acceptor: TlsAcceptor, answer: &'static [u8], say_goodbye: bool) -> Server {
    Server::start(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            stream.write_all(answer).await.unwrap();
            stream.flush().await.unwrap();
            if say_goodbye {
                stream.shutdown().await.unwrap();
            }
        }
    })
    .await
}

/// An HTTP/2 server with this many streams at once; `answer` gets the number of its connection.
async fn http2<F>(
    acceptor: TlsAcceptor,
    streams: u32,
    answer: impl Fn(usize, Request<hyper::body::Incoming>) -> F + Clone + Send + 'static,
) -> Server
where
    F: Future<Output = http::Response<Full<Bytes>>> + Send + 'static,
{
    Server::start(move |stream, number| {
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let answering = answer(number, request);
                async move { Ok::<_, std::convert::Infallible>(answering.await) }
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(streams)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await
}

#[tokio::test]
async fn certificate_errors_name_what_was_wrong() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for (acceptor, word) in [
        (ours.acceptor(&["localhost"], Some(2010), &[]), "expired on Thu, 04 Mar 2010"),
        (theirs.acceptor(&["localhost"], None, &[]), "issuer is unknown"),
        (ours.acceptor(&["other.test"], None, &[]), "other.test"),
    ] {
        let server = answering(acceptor, OK, true).await;
        match fetch(&transport(ours.settings(&server))).await {
            Err(Error::Connect { failure: ConnectFailure::Certificate, detail }) => {
                assert!(detail.contains(word), "{detail}");
            }
            other => panic!("{word}: {other:?}"),
        }
    }
    let server = answering(ours.acceptor(&["localhost"], None, &[]), OK, true).await;
    assert_eq!(fetch(&transport(ours.settings(&server))).await.unwrap(), "ok");
}

#[tokio::test]
async fn a_plain_server_is_a_tls_failure() {
    let ours = Authority::new();
    let server = Server::start(|mut stream, _| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = stream.read_u8().await;
    })
    .await;
    let error = fetch(&transport(ours.settings(&server))).await.unwrap_err();
    assert!(matches!(error, Error::Connect { failure: ConnectFailure::Tls, .. }), "{error:?}");
}

#[tokio::test]
async fn a_body_without_length_that_ends_without_goodbye_is_an_error() {
    let ours = Authority::new();
    for (say_goodbye, whole) in [(true, true), (false, false)] {
        let acceptor = ours.acceptor(&["localhost"], None, &[]);
        let server = answering(acceptor, b"HTTP/1.1 200 OK\r\n\r\nall", say_goodbye).await;
        let result = fetch(&transport(ours.settings(&server))).await;
        assert_eq!(result.is_ok(), whole, "{result:?}");
    }
}

#[tokio::test]
async fn requests_share_one_http2_connection_and_those_that_come_at_once_wait_for_it() {
    let ours = Authority::new();
    let acceptor = ours.acceptor(&["localhost"], None, &["h2"]);
    let server = http2(acceptor, 100, |_, request| async move {
        assert_eq!(request.uri().authority().unwrap().host(), "localhost");
        assert!(!request.headers().contains_key("host"));
        http::Response::new(Full::from("two"))
    })
    .await;
    let transport = transport(ours.settings(&server));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let transport = transport.clone();
        tasks.spawn(async move { fetch(&transport).await.unwrap() });
    }
    assert!(tasks.join_all().await.iter().all(|body| body == "two"));
    assert_eq!(server.count(), 1);
    assert_eq!(transport.counts(), Counts { active: 0, idle: 1, connecting: 0 });
}

#[tokio::test]
async fn another_http2_connection_is_opened_when_the_streams_are_used_up() {
    let ours = Authority::new();
    let acceptor = ours.acceptor(&["localhost"], None, &["h2"]);
    let arrived = Arc::new(tokio::sync::Barrier::new(6));
    let barrier = arrived.clone();
    let server = http2(acceptor, 2, move |_, _| {
        let barrier = barrier.clone();
        async move {
            barrier.wait().await;
            http::Response::new(Full::from("two"))
        }
    })
    .await;
    let transport = transport(ours.settings(&server));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let transport = transport.clone();
        tasks.spawn(async move { fetch(&transport).await.unwrap() });
    }
    assert_eq!(tasks.join_all().await.len(), 6);
    assert_eq!(server.count(), 3);
}

/// An HTTP/2 server at the level of frames, for what no server library does on demand.
async fn frames<F>(
    acceptor: TlsAcceptor,
    script: impl Fn(h2::server::Connection<Tls, Bytes>, usize) -> F + Send + Clone + 'static,
) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    Server::start(move |stream, number| {
        let (acceptor, script) = (acceptor.clone(), script.clone());
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if let Ok(connection) = h2::server::handshake(stream).await {
                script(connection, number).await;
            }
        }
    })
    .await
}

type Tls = tokio_rustls::server::TlsStream<TcpStream>;

#[tokio::test]
async fn a_refused_stream_was_not_processed() {
    let ours = Authority::new();
    let server = frames(ours.acceptor(&["localhost"], None, &["h2"]), |mut connection, _| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    })
    .await;
    let error = fetch(&transport(ours.settings(&server))).await.unwrap_err();
    assert!(matches!(error, Error::Connect { failure: ConnectFailure::Refusal, .. }), "{error:?}");
    assert_eq!(error.sent(), Sent::No);
}

#[tokio::test]
async fn a_reset_stream_may_have_been_processed() {
    let ours = Authority::new();
    let server = frames(ours.acceptor(&["localhost"], None, &["h2"]), |mut connection, _| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    })
    .await;
    let transport = transport(ours.settings(&server));
    for _ in 0..2 {
        let error = fetch(&transport).await.unwrap_err();
        // Also on a connection that was used before: it lives, so it was not stale, and nothing is repeated for free.
        assert!(matches!(error, Error::Reset { sent: Sent::Maybe, reused: false, .. }), "{error:?}");
    }
    assert_eq!(server.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn after_a_goaway_streams_finish_and_new_requests_take_another_connection() {
    let ours = Authority::new();
    let server = frames(ours.acceptor(&["localhost"], None, &["h2"]), |mut connection, number| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if number == 0 {
                connection.graceful_shutdown();
            }
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"two"), true).unwrap();
        }
    })
    .await;
    let transport = transport(ours.settings(&server));
    for _ in 0..10 {
        assert_eq!(fetch(&transport).await.unwrap(), "two");
    }
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn an_answer_dropped_early_resets_its_stream_alone() {
    let ours = Authority::new();
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Arc::new(Mutex::new(Some(tell)));
    let server = frames(ours.acceptor(&["localhost"], None, &["h2"]), move |mut connection, _| {
        let tell = tell.clone();
        async move {
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                let Some(tell) = tell.lock().unwrap().take() else {
                    body.send_data(Bytes::from_static(b"two"), true).unwrap();
                    continue;
                };
                tokio::spawn(async move {
                    let reason = std::future::poll_fn(|cx| body.poll_reset(cx)).await;
                    let _ = tell.send(reason);
                });
            }
        }
    })
    .await;
    let transport = transport(ours.settings(&server));
    drop(send(&transport, get(), AttemptBody::empty(), &attempt()).await.unwrap());
    assert_eq!(told.await.unwrap().unwrap(), h2::Reason::CANCEL);
    assert_eq!(fetch(&transport).await.unwrap(), "two");
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn an_answer_is_complete_only_behind_the_end_of_its_stream() {
    let ours = Authority::new();
    let server = frames(ours.acceptor(&["localhost"], None, &["h2"]), |mut connection, number| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"half"), number == 0).unwrap();
            if number == 0 {
                connection.graceful_shutdown();
            } else {
                // Its bytes go first: a reset takes back what was not sent yet.
                let _ = tokio::time::timeout(Duration::from_millis(50), connection.accept()).await;
                body.send_reset(h2::Reason::NO_ERROR);
            }
        }
    })
    .await;
    let transport = transport(ours.settings(&server));
    assert_eq!(fetch(&transport).await.unwrap(), "half");
    let error = fetch(&transport).await.unwrap_err();
    assert!(matches!(error, Error::Reset { answer_began: true, .. }), "{error:?}");
}

#[tokio::test]
async fn answers_that_nobody_reads_do_not_stop_the_others_on_their_connection() {
    let ours = Authority::new();
    let server = http2(ours.acceptor(&["localhost"], None, &["h2"]), 100, |_, _| async move {
        http::Response::new(Full::from(vec![b'x'; 1024 * 1024]))
    })
    .await;
    let transport = transport(ours.settings(&server));
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(send(&transport, get(), AttemptBody::empty(), &attempt()).await.unwrap());
    }
    let body = tokio::time::timeout(Duration::from_secs(20), fetch(&transport)).await.unwrap().unwrap();
    assert_eq!(body.len(), 1024 * 1024);
    assert_eq!(server.count(), 1);
}
