//! Accepting connections of apps, finding out what they speak, and serving them.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::Limits;
use crate::frames::PREFACE;
use crate::proxy::admission::{self, Place};
use crate::proxy::body::ResponseBody;
use crate::proxy::head::Bounds;
use crate::proxy::idle::{UnderWay, Watch};
use crate::proxy::io::{AppIo, Replayed};
use crate::proxy::link::Link;
use crate::proxy::socket::Socket;
use crate::proxy::target::LastHost;
use crate::proxy::{Connection, Entry, Proxy, Retired, http2, inside};
use crate::shutdown;
use crate::tcp::Tcp;
use crate::telemetry::metrics::Limit;

/// The first read: enough for most heads.
const FIRST_READ: usize = 1024;
/// hyper's smallest read buffer.
const MIN_BUFFER: usize = 8192;
/// The largest that a connection's buffers get, where heads may not be larger.
const BUFFER: usize = 32 * 1024;
/// How long accepting rests when the process is out of descriptors or memory.
const REST: Duration = Duration::from_millis(50);
/// How long a farewell inside TLS may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a listener's connections begin with.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    /// HTTP.
    Plain(Entry),
    /// TLS for a host that is intercepted, by SNI: `listeners.tls`.
    Tls,
}

/// Serves a listener until `stop` is cancelled (a reload closed it) or the drain ends. Connections that were accepted
/// live on after `stop`.
pub(crate) async fn serve(listener: TcpListener, door: Door, proxy: Arc<Proxy>, stop: CancellationToken) {
    let mut resting = false;
    let open = Arc::new(AtomicUsize::new(0));
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
                admit(stream.into(), &door, &open, &proxy);
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                if is_out_of_descriptors(&error) {
                    proxy.metrics.limit_refused(Limit::Descriptors);
                }
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

/// EMFILE and ENFILE have no kind of their own; these are their numbers on Linux and the BSDs.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// Serves a new connection, where there is room for it. `open` counts those of its listener.
pub(crate) fn admit(stream: Tcp, door: &Door, open: &Arc<AtomicUsize>, proxy: &Arc<Proxy>) {
    let Some((stream, place)) = admission::admit(stream, matches!(door, Door::Tls), open, proxy) else { return };
    // Answers are written whole: nothing is won by waiting for more.
    let _ = stream.set_nodelay();
    let Ok(local) = stream.local_addr() else { return };
    let (proxy, door, place) = (Arc::clone(proxy), door.clone(), Arc::new(place));
    tokio::spawn(async move {
        let ended = proxy.drain.ended.clone();
        match door {
            Door::Plain(entry) => {
                let served = pin!(speak(Socket::Tcp(stream), BytesMut::new(), &proxy, local, entry, place));
                until(ended, served).await;
            }
            Door::Tls => until(ended, Box::pin(inside::accept(stream, &proxy, local, place)).as_mut()).await,
        }
    });
}

/// Serves a connection to its end, or until the drain ends and a moment more. It is pinned elsewhere: what is passed to an async
/// function and pinned there has room twice.
pub(crate) async fn until(ended: CancellationToken, mut served: Pin<&mut impl Future<Output = ()>>) {
    tokio::select! {
        biased;
        () = served.as_mut() => return,
        () = ended.cancelled() => {}
    }
    // What has no answer yet gets one: some apps repeat a request whose connection just closes.
    let _ = timeout(shutdown::FAREWELL, served).await;
}

/// Finds out what the app speaks, and speaks it. `first` was read already.
pub(crate) async fn speak(
    stream: Socket,
    first: BytesMut,
    proxy: &Arc<Proxy>,
    local: SocketAddr,
    entry: Entry,
    place: Arc<Place>,
) {
    let limits = proxy.table.load().config.limits.clone();
    let drain = Arc::clone(&proxy.drain);
    let proxy = Arc::clone(proxy);
    let deadline = Instant::now() + limits.header_timeout;
    let Some((stream, first)) = sniff(stream, first, deadline).await else { return };
    if first.starts_with(PREFACE) {
        let begun = drain.begun.child_token();
        let retired = Retired::new(Some(begun.clone()));
        let metrics = Arc::clone(&proxy.metrics);
        let connection =
            Arc::new(Connection { proxy, entry, local, link: None, place, retired, last_host: LastHost::default() });
        let handler = move |request| answering(&connection, request);
        // Boxed, as most connections are of the other kind.
        Box::pin(http2::serve(Replayed::new(stream, first.freeze()), &limits, metrics, begun, handler)).await;
    } else {
        let link = Arc::new(Link::default());
        let epoch = proxy.started;
        let connection = Arc::new(Connection {
            proxy,
            entry,
            local,
            link: Some(Arc::clone(&link)),
            place,
            retired: Retired::default(),
            last_host: LastHost::default(),
        });
        let handler = move |request| answering(&connection, request);
        http1(stream, first, deadline, epoch, link, &limits, handler).await;
    }
}

/// Reads until it is clear whether the app speaks HTTP/2. `None` where it fell silent or hung up before its first byte.
async fn sniff(mut stream: Socket, mut first: BytesMut, deadline: Instant) -> Option<(Socket, BytesMut)> {
    while first.is_empty() || (first.len() < PREFACE.len() && PREFACE.starts_with(&first)) {
        first.reserve(FIRST_READ);
        match timeout_at(deadline, stream.read_buf(&mut first)).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(Ok(_)) | Err(_) if !first.is_empty() => break,
            Ok(Ok(_) | Err(_)) | Err(_) => {
                // Without a word of farewell TLS would look cut off.
                if matches!(stream, Socket::Tls(_)) {
                    let _ = timeout(FAREWELL, stream.shutdown()).await;
                }
                return None;
            }
        }
    }
    Some((stream, first))
}

/// Serves HTTP/1 until the connection is closed. hyper has it only while it is in use (see `idle`).
async fn http1<H>(
    stream: Socket,
    first: BytesMut,
    deadline: Instant,
    epoch: Instant,
    link: Arc<Link>,
    limits: &Limits,
    handler: H,
) where
    H: Fn(Request<Incoming>) -> Answering + Send + 'static,
{
    let bytes = usize::try_from(limits.max_header_bytes).unwrap_or(usize::MAX);
    let fields = limits.max_headers.get() as usize;
    let bounds = Bounds { bytes, fields };
    let mut io = AppIo::new(stream, first, deadline, Arc::clone(&link), bounds, limits.header_timeout);
    let counted = Arc::clone(&link);
    let mut service = service_fn(move |request| {
        let under_way = UnderWay::begin(&counted);
        let answer = handler(request);
        async move {
            let mut answer = answer.await?;
            answer.body_mut().hold(under_way);
            Ok::<_, Infallible>(answer)
        }
    });
    loop {
        // Boxed, so that its room is free while the connection idles.
        let mut served = Box::new(builder(bounds).serve_connection(TokioIo::new(io), service).with_upgrades());
        let mut watch = Watch::new(epoch);
        let ended = poll_fn(|cx| match Pin::new(&mut *served).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending => watch.poll(cx, &link).map(|()| None),
        });
        match ended.await {
            Some(Ok(())) => return,
            Some(Err(error)) => {
                tracing::debug!(%error, "a connection of an app's ended early");
                return;
            }
            None => {}
        }
        drop(watch);
        (io, service) = {
            let Some(parts) = served.into_parts() else { return };
            let mut io = parts.io.into_inner();
            io.take_back(&parts.read_buf);
            // Nothing of the buffer is to live on here: an empty one too has all of its memory.
            (io, parts.service)
        };
        if let Err(error) = poll_fn(|cx| io.poll_wake(cx)).await {
            tracing::debug!(%error, "an idle connection of an app's broke");
            return;
        }
    }
}

/// How hyper serves HTTP/1.
fn builder(bounds: Bounds) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // Heads are timed by our own IO, which can tell an idle connection from a half-sent head.
        .header_read_timeout(None)
        .preserve_header_case(true)
        .auto_date_header(false)
        .max_buf_size(bounds.bytes.saturating_add(1024).max(BUFFER).max(MIN_BUFFER));
    // hyper's default is 100 as well, but a number that was set makes it clear two tables for each request.
    if bounds.fields != 100 {
        // The stand-in for a refused head has two fields.
        builder.max_headers(bounds.fields.max(2));
    }
    builder
}

/// An answer on its way.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>> + Send>>;

/// Boxed, so that an idle connection holds no room for a request.
fn answering(connection: &Arc<Connection>, request: Request<Incoming>) -> Answering {
    Box::pin(super::serve(Arc::clone(connection), request))
}

#[cfg(test)]
mod tests;
