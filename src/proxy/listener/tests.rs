use std::sync::Mutex;

use bytes::Bytes;
use http::header;
use http_body::SizeHint;
use http_body_util::BodyExt;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;
use crate::error::Error;
use crate::proxy::respond::{self, Asked, Progress};
use crate::telemetry::metrics::Metrics;

fn limits() -> Limits {
    Limits {
        max_connections: std::num::NonZeroU32::MIN,
        max_header_bytes: 2048,
        max_headers: std::num::NonZeroU32::new(20).unwrap(),
        header_timeout: Duration::from_secs(30),
        replay_memory: 0,
    }
}

/// Serves one connection with `handler`, behind all that stands before a handler. What the handler got is in the list.
async fn serving<H, F>(limits: Limits, handler: H) -> (TcpStream, Arc<Mutex<Vec<String>>>)
where
    H: Fn(Request<Incoming>, Arc<Link>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        let deadline = Instant::now() + limits.header_timeout;
        let Some((stream, first)) = sniff(Socket::Tcp(stream.into()), BytesMut::new(), deadline).await else {
            return;
        };
        if first.starts_with(PREFACE) {
            let handler = move |request| -> Answering {
                let answer = handler(request, Arc::default());
                Box::pin(async move { Ok(answer.await) })
            };
            let io = Replayed::new(stream, first.freeze());
            http2::serve(io, &limits, Metrics::new(), CancellationToken::new(), handler).await;
            return;
        }
        let link = Arc::new(Link::default());
        let shared = Arc::clone(&link);
        let handler = Arc::new(handler);
        let handler = move |request: Request<Incoming>| -> Answering {
            let (log, link, handler) = (Arc::clone(&log), Arc::clone(&shared), Arc::clone(&handler));
            Box::pin(async move {
                let asked = Asked { http1: true, ..Asked::default() };
                if let Some(error) = link.refusal(request.method()) {
                    let answer = respond::answer(&error, asked, Progress::default());
                    return Ok(answer.map(|body| ResponseBody::full(body, None)));
                }
                log.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
                Ok(handler(request, link).await)
            })
        };
        http1(stream, first, deadline, Instant::now(), link, &limits, handler).await;
    });
    (app, seen)
}

/// Answers with the length of the body, or how it broke.
async fn length(request: Request<Incoming>, link: Arc<Link>) -> Response<ResponseBody> {
    let text = match request.into_body().collect().await {
        Ok(body) => body.to_bytes().len().to_string(),
        Err(_) => {
            let error = Error::BadRequest(link.broken().unwrap_or("gone"));
            let asked = Asked { http1: true, ..Asked::default() };
            return respond::answer(&error, asked, Progress::default()).map(|body| ResponseBody::full(body, None));
        }
    };
    Response::new(ResponseBody::full(text.into(), None))
}

async fn read_all(app: &mut TcpStream) -> String {
    let mut got = Vec::new();
    app.read_to_end(&mut got).await.unwrap();
    String::from_utf8(got).unwrap()
}

async fn talk(send: &[u8]) -> (String, Vec<String>) {
    let (mut app, seen) = serving(limits(), length).await;
    app.write_all(send).await.unwrap();
    let got = read_all(&mut app).await;
    let seen = seen.lock().unwrap().clone();
    (got, seen)
}

#[tokio::test]
async fn a_body_is_whole_with_its_last_byte() {
    let (mut app, _) = serving(limits(), |_, link| async move {
        // As over HTTP/2: all bytes of a known length came, the end of the stream did not yet.
        let mut whole = Some(Ok(http_body::Frame::data(Bytes::from_static(b"whole"))));
        let frames = move || whole.take().map_or(Poll::Pending, |whole| Poll::Ready(Some(whole)));
        let body = ResponseBody::boxed(Frames(Box::new(frames), SizeHint::with_exact(5))).reset_if_broken(&link);
        Response::builder().header(header::CONTENT_LENGTH, 5).body(body).unwrap()
    })
    .await;
    app.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    // An error if the connection ended with a reset.
    let got = read_all(&mut app).await;
    assert!(got.ends_with("\r\n\r\nwhole"), "{got}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_a_malformed_one_ends_the_connection() {
    let (got, seen) = talk(
        b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\nHost: a\n\nGET /4 HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    .await;
    assert_eq!(seen, ["POST /1", "GET /2"]);
    let statuses: Vec<_> = got.match_indices("HTTP/1.1 ").map(|(at, _)| &got[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "200", "400"], "{got}");
    assert!(got.contains("application/problem+json"), "{got}");
    assert!(got.contains("connection: close"), "{got}");
}

#[tokio::test]
async fn what_hyper_would_repair_never_reaches_a_handler() {
    for head in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        "nonsense\r\n\r\n",
        "PRI * HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        "GET / HTTP/1.1\r\nHost",
    ] {
        let (mut app, seen) = serving(limits(), length).await;
        app.write_all(head.as_bytes()).await.unwrap();
        app.shutdown().await.unwrap();
        let got = read_all(&mut app).await;
        assert!(got.starts_with("HTTP/1.1 400 "), "{head:?}: {got}");
        assert!(got.contains("proxy-status: outrigger"), "{head:?}: {got}");
        assert!(seen.lock().unwrap().is_empty(), "{head:?}");
    }
}

#[tokio::test]
async fn heads_over_the_limits_are_431_or_414_with_a_problem() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9000));
    let wide = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(9000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(20));
    for (head, status) in [(long, "414"), (wide, "431"), (many, "431")] {
        let (got, seen) = talk(head.as_bytes()).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{got}");
        assert!(got.contains("application/problem+json") && seen.is_empty());
    }
}

#[tokio::test]
async fn a_half_sent_head_is_timed_and_an_idle_connection_is_not() {
    let limits = Limits { header_timeout: Duration::from_millis(100), ..limits() };
    let (mut app, _) = serving(limits, length).await;
    app.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut buf = [0; 1024];
    assert!(app.read(&mut buf).await.unwrap() > 0);
    // Idle for longer than the head's clock.
    assert!(timeout(Duration::from_millis(300), app.read(&mut buf)).await.is_err());
    app.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(app.read(&mut buf).await.unwrap() > 0);
    app.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    let got = read_all(&mut app).await;
    assert!(got.starts_with("HTTP/1.1 408 "), "{got}");
}

#[tokio::test]
async fn the_clock_of_a_head_begins_with_its_first_byte() {
    let limits = Limits { header_timeout: Duration::from_millis(400), ..limits() };
    let (mut app, _) = serving(limits, length).await;
    let mut buf = [0; 1024];
    // The first request comes whole.
    app.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(app.read(&mut buf).await.unwrap() > 0);
    assert!(timeout(Duration::from_millis(500), app.read(&mut buf)).await.is_err());
    app.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    // It is not refused at once.
    assert!(timeout(Duration::from_millis(100), app.read(&mut buf)).await.is_err());
    app.write_all(b"st: a\r\n\r\n").await.unwrap();
    let n = app.read(&mut buf).await.unwrap();
    assert!(buf[..n].starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buf[..n]));
}

#[tokio::test]
async fn a_silent_new_connection_is_closed_without_a_word() {
    let limits = Limits { header_timeout: Duration::from_millis(50), ..limits() };
    let (mut app, _) = serving(limits, length).await;
    assert_eq!(read_all(&mut app).await, "");
}

#[tokio::test]
async fn a_body_whose_chunks_break_is_answered_with_400() {
    let (got, _) = talk(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n").await;
    assert!(got.starts_with("HTTP/1.1 400 "), "{got}");
    assert!(got.contains("a chunk is longer than it says"), "{got}");
}

#[tokio::test]
async fn heads_and_bodies_arrive_in_any_pieces() {
    let (mut app, seen) = serving(limits(), length).await;
    let text = b"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nPOST /2 HTTP/1.0\r\nContent-Length: 2\r\n\r\nxy";
    app.set_nodelay(true).unwrap();
    for byte in text {
        app.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let got = read_all(&mut app).await;
    assert!(got.contains("\r\n\r\n3HTTP/1.") && got.ends_with("\r\n\r\n2"), "{got}");
    assert_eq!(*seen.lock().unwrap(), ["POST /1", "POST /2"]);
}

/// A body that ends with an error after `text`.
fn breaking(text: &'static str) -> ResponseBody {
    let mut frames = vec![Err(Error::UpstreamSilent), Ok(http_body::Frame::data(Bytes::from_static(text.as_bytes())))];
    ResponseBody::boxed(Frames(Box::new(move || Poll::Ready(frames.pop())), SizeHint::new()))
}

type Polled = Poll<Option<Result<http_body::Frame<Bytes>, Error>>>;

/// What it is asked for its frames, and what it says of its size at first.
struct Frames(Box<dyn FnMut() -> Polled + Send>, SizeHint);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Polled {
        // Of a length that is known nothing is left behind the one frame that these tests have.
        self.1 = if self.1.exact().is_some() { SizeHint::with_exact(0) } else { SizeHint::new() };
        (self.0)()
    }

    fn size_hint(&self) -> SizeHint {
        self.1
    }
}

#[tokio::test]
async fn a_body_that_breaks_is_never_seen_as_complete_and_its_head_is_never_lost() {
    for (version, reset) in [("1.1", false), ("1.0", true)] {
        let (mut app, _) = serving(limits(), move |_, link| async move {
            let body = breaking("some");
            Response::new(if reset { body.reset_if_broken(&link) } else { body })
        })
        .await;
        app.write_all(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let end = app.read_to_end(&mut got).await;
        let got = String::from_utf8(got).unwrap();
        assert!(got.starts_with(&format!("HTTP/{version} 200 OK\r\n")), "{got}");
        assert!(got.contains("some") && !got.contains("\r\n0\r\n"), "{got}");
        assert_eq!(end.is_err(), reset, "HTTP/{version}: {end:?}");
    }
}

#[tokio::test]
async fn a_304_keeps_the_length_that_it_came_with() {
    let (mut app, _) = serving(limits(), |_, _| async {
        let mut response = Response::new(ResponseBody::empty().without_content(true));
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        response.headers_mut().insert(header::CONTENT_LENGTH, http::HeaderValue::from(1234));
        response
    })
    .await;
    app.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let got = read_all(&mut app).await;
    assert!(got.contains("content-length: 1234") && got.ends_with("\r\n\r\n"), "{got}");
}

#[tokio::test]
async fn a_switched_connection_passes_bytes_unjudged() {
    let (mut app, _) = serving(limits(), |mut request, link| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut side = crate::proxy::tunnel::app_side(upgrade.await.unwrap());
            let mut got = [0; 8];
            side.read_exact(&mut got).await.unwrap();
            side.write_all(&got).await.unwrap();
        });
        if request.method() != http::Method::CONNECT {
            link.open();
            return Response::builder()
                .status(101)
                .header("upgrade", "x")
                .header("connection", "upgrade")
                .body(ResponseBody::empty())
                .unwrap();
        }
        Response::new(ResponseBody::empty())
    })
    .await;
    app.write_all(b"CONNECT a:443 HTTP/1.0\r\n\r\n\x00\nab").await.unwrap();
    let mut head = [0; 19];
    app.read_exact(&mut head).await.unwrap();
    app.write_all(b"\x01\r\n\xff").await.unwrap();
    let mut got = Vec::new();
    app.read_to_end(&mut got).await.unwrap();
    assert!(got.ends_with(b"\x00\nab\x01\r\n\xff"), "{got:?}");
}

#[tokio::test]
async fn a_hang_up_drops_the_request() {
    let (done, dropped) = oneshot::channel::<()>();
    let done = Mutex::new(Some(done));
    let started = Arc::new(tokio::sync::Notify::new());
    let notify = Arc::clone(&started);
    let (app, _) = serving(limits(), move |_, _| {
        let guard = done.lock().unwrap().take();
        let notify = Arc::clone(&notify);
        async move {
            let _guard = guard;
            notify.notify_one();
            std::future::pending().await
        }
    })
    .await;
    let mut app = app;
    app.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    started.notified().await;
    drop(app);
    assert!(dropped.await.is_err());
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served_on_the_same_port() {
    let (app, _) = serving(limits(), length).await;
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(app)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://a/x").body(http_body_util::Full::new(Bytes::from("hello"))).unwrap();
    let response = send.send_request(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "5");
}
