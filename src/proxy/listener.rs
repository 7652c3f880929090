//! Accepting connections of apps, finding out what they speak, and serving them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::Limits;
use crate::error::Error;
use crate::proxy::body::ResponseBody;
use crate::proxy::head::Bounds;
use crate::proxy::io::{AppIo, Link, Replayed};
use crate::proxy::respond::{self, Asked, Progress};
use crate::proxy::{Connection, Entry, Proxy};
use crate::telemetry::report::Rejected;

/// What an HTTP/2 connection begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first read: enough for most heads.
const FIRST_READ: usize = 1024;
/// hyper's smallest read buffer.
const MIN_BUFFER: usize = 8192;
/// The largest that a connection's buffers get, where heads may not be larger.
const BUFFER: usize = 32 * 1024;
/// How long accepting rests when the process is out of descriptors or memory.
const REST: Duration = Duration::from_millis(50);
/// How long a connection over the limit is given to take its answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves a listener until `stop` is cancelled (a reload closed it) or the drain ends. Connections that were accepted
/// live on after `stop`.
pub async fn serve(listener: TcpListener, entry: Entry, proxy: Arc<Proxy>, stop: CancellationToken) {
    let mut resting = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = proxy.drain.ended.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                resting = false;
                admit(stream, &entry, &proxy);
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                if !resting {
                    tracing::error!(%error, "accepting connections fails; trying again until it does not");
                    resting = true;
                }
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Errors of accept(2) that the next connection does not share.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

/// One connection of `limits.max_connections`, until it is dropped.
struct Place(Arc<Proxy>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a new connection, or tells it that there are too many.
fn admit(stream: TcpStream, entry: &Entry, proxy: &Arc<Proxy>) {
    let table = proxy.table.load();
    let max = table.config.limits.max_connections.get() as usize;
    let before = proxy.connections.fetch_add(1, Ordering::Relaxed);
    let place = Place(Arc::clone(proxy));
    if before >= max {
        table.unmatched.report.rejected(Rejected::Overloaded);
        // Saying no takes a descriptor too, for a moment; past these it is said by closing.
        if before < max + max / 8 + 16 {
            tokio::spawn(async move {
                let _place = place;
                let _ = timeout(FAREWELL, turn_away(stream)).await;
            });
        }
        return;
    }
    // Answers are written whole: nothing is won by waiting for more.
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    let (proxy, entry) = (Arc::clone(proxy), entry.clone());
    tokio::spawn(async move {
        let _place = place;
        let ended = proxy.drain.ended.clone();
        let served = speak(stream, &proxy, local, entry);
        tokio::select! {
            () = served => {}
            () = ended.cancelled() => {}
        }
    });
}

/// Answers 503 without reading the request, and waits a moment so that the app can read that.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    let asked = Asked { http1: true, ..Asked::default() };
    let answer = respond::answer(&Error::Overloaded, asked, Progress::default());
    stream.write_all(&render(&answer)).await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// An answer as HTTP/1.1, where there is no hyper to write it.
fn render(answer: &Response<Bytes>) -> Vec<u8> {
    let status = answer.status();
    let mut text = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("")).into_bytes();
    for (name, value) in answer.headers() {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(answer.body());
    text
}

/// Finds out what the app speaks, and speaks it.
async fn speak(stream: TcpStream, proxy: &Arc<Proxy>, local: SocketAddr, entry: Entry) {
    let limits = proxy.table.load().config.limits.clone();
    let drain = Arc::clone(&proxy.drain);
    let proxy = Arc::clone(proxy);
    let deadline = Instant::now() + limits.header_timeout;
    let Some((stream, first)) = sniff(stream, deadline).await else { return };
    if first.starts_with(PREFACE) {
        let connection = Arc::new(Connection { proxy, entry, local, link: None });
        let handler = move |request| super::serve(Arc::clone(&connection), request);
        let begun = drain.begun.clone();
        http2(Replayed::new(stream, first.freeze()), &limits, begun, handler).await;
    } else {
        let link = Arc::new(Link::default());
        let connection = Arc::new(Connection { proxy, entry, local, link: Some(Arc::clone(&link)) });
        let handler = move |request| super::serve(Arc::clone(&connection), request);
        http1(stream, first, deadline, link, &limits, handler).await;
    }
}

/// Reads until it is clear whether the app speaks HTTP/2. `None` where it fell silent or hung up before its first byte.
async fn sniff(mut stream: TcpStream, deadline: Instant) -> Option<(TcpStream, BytesMut)> {
    let mut first = BytesMut::with_capacity(FIRST_READ);
    loop {
        match timeout_at(deadline, stream.read_buf(&mut first)).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(Ok(_)) | Err(_) if !first.is_empty() => return Some((stream, first)),
            Ok(Ok(_) | Err(_)) | Err(_) => return None,
        }
        if first.len() >= PREFACE.len() || !PREFACE.starts_with(&first) {
            return Some((stream, first));
        }
    }
}

/// Serves HTTP/1 until the connection is closed.
async fn http1<H, F>(
    stream: TcpStream,
    first: BytesMut,
    deadline: Instant,
    link: Arc<Link>,
    limits: &Limits,
    handler: H,
) where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    let bytes = usize::try_from(limits.max_header_bytes).unwrap_or(usize::MAX);
    let fields = limits.max_headers.get() as usize;
    let io = AppIo::new(stream, first, deadline, link, Bounds { bytes, fields }, limits.header_timeout);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Heads are timed by our own IO, which can tell an idle connection from a half-sent head.
        .header_read_timeout(None)
        .preserve_header_case(true)
        .auto_date_header(false)
        // The stand-in for a refused head has two fields.
        .max_headers(fields.max(2))
        .max_buf_size(bytes.saturating_add(1024).max(BUFFER).max(MIN_BUFFER));
    let served = builder.serve_connection(TokioIo::new(io), service_fn(boxed(handler))).with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection of an app's ended early");
    }
}

/// Serves HTTP/2 with prior knowledge until the connection is closed, or drained.
async fn http2<H, F>(io: Replayed, limits: &Limits, begun: CancellationToken, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(256)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(64 * 1024)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(128)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
    let mut served = pin!(builder.serve_connection(TokioIo::new(io), service_fn(boxed(handler))));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = begun.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of an app's ended early");
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>> + Send>>;

/// Boxed, so that an idle connection holds no room for a request.
fn boxed<H, F>(handler: H) -> impl Fn(Request<Incoming>) -> Answering
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    move |request| {
        let answer = handler(request);
        Box::pin(async move { Ok(answer.await) })
    }
}
