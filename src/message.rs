//! What travels through the pipeline: the request as it is repeated, and the facts that everybody who touches it notes down.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::error::{Error, Sent};
use crate::origin::Origin;
use crate::telemetry::spans::Draft;
use crate::trailers;

/// A request of an app's, ready to be sent as often as its policy allows.
pub struct Outbound {
    /// Method, headers (hop-by-hop ones removed, `Host` as the app meant it) and the target in origin form:
    /// path and query only. Extensions carry hyper's header case.
    pub head: http::request::Parts,
    /// The body as the app sends it.
    pub body: AppBody,
    /// Where the app's words lead. Dialled where the upstream has no `to`.
    pub origin: Origin,
    /// False on an upstream's own `listen` port, where `Host` is always that of `to`.
    pub keep_host: bool,
    /// The app waits for `100 Continue` before it sends its body.
    pub expect_continue: bool,
}

/// The body of an app's request, before any policy.
pub enum AppBody {
    /// No body at all.
    Empty,
    /// Streamed by hyper's server over HTTP/1.
    Incoming(Incoming),
    /// Streamed by hyper's server over HTTP/2, where the end of a stream says whether it is complete.
    Stream(Incoming),
    /// Anything else, in tests.
    Boxed(UnsyncBoxBody<Bytes, Error>),
}

impl Body for AppBody {
    type Data = Bytes;
    type Error = Error;

    /// An error of the app's connection is [`Error::AppGone`].
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut polled = match self.get_mut() {
            AppBody::Empty => Poll::Ready(None),
            AppBody::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(|_| Error::AppGone),
            AppBody::Stream(body) => match Pin::new(&mut *body).poll_frame(cx) {
                // hyper takes a reset without an error for the end. It is one only behind END_STREAM.
                Poll::Ready(None) if !body.is_end_stream() => Poll::Ready(Some(Err(Error::AppGone))),
                polled => polled.map_err(|_| Error::AppGone),
            },
            AppBody::Boxed(body) => Pin::new(body).poll_frame(cx),
        };
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            trailers::clean(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AppBody::Empty => true,
            AppBody::Incoming(body) | AppBody::Stream(body) => body.is_end_stream(),
            AppBody::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AppBody::Empty => SizeHint::with_exact(0),
            AppBody::Incoming(body) | AppBody::Stream(body) => body.size_hint(),
            AppBody::Boxed(body) => body.size_hint(),
        }
    }
}

/// Whether a field's name has a quote. No name has one (RFC 9110 section 5.1), HTTP/1 is never read with one, but `h2` and
/// [`http::HeaderName::from_lowercase`] let it through, and hyper would write it into HTTP/1.
pub(crate) fn has_odd_name(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().as_bytes().contains(&b'"'))
}

/// What is known of one request from its first byte to its last, shared by all who carry a part of it: the pipeline,
/// the bodies, and the record that becomes its access line. Everything is a relaxed counter; nothing waits on it.
#[derive(Debug)]
pub struct Exchange {
    /// When the app's head was complete.
    pub start: Instant,
    /// Attempts started.
    pub attempts: AtomicU32,
    /// Time spent waiting: back-off, tokens, slots, connections in line. Nanoseconds.
    pub waited: AtomicU64,
    /// Time spent connecting. Nanoseconds.
    pub connecting: AtomicU64,
    /// From `start` to the upstream's response headers that were passed on, in nanoseconds; 0 until then.
    pub first_byte: AtomicU64,
    /// Why a wanted retry was not made: a `telemetry::report::Skipped` as a number, 0 for none.
    pub no_retry: AtomicU8,
    /// Request body bytes taken from the app.
    pub bytes_in: AtomicU64,
    /// Response body bytes handed to the app.
    pub bytes_out: AtomicU64,
    /// How the request body stands.
    pub upload: Upload,
    /// What is noted for its spans, where it is traced.
    pub draft: Option<Box<Draft>>,
    /// Body silence: nanoseconds after `start` at which a body byte last moved, in either direction.
    last_activity: AtomicU64,
}

impl Exchange {
    /// For a request whose head was complete at `start`.
    pub fn new(start: Instant) -> Arc<Exchange> {
        Exchange::traced(start, None)
    }

    /// As [`Exchange::new`], with what is noted for its spans.
    pub fn traced(start: Instant, draft: Option<Box<Draft>>) -> Arc<Exchange> {
        Arc::new(Exchange {
            start,
            attempts: AtomicU32::new(0),
            waited: AtomicU64::new(0),
            connecting: AtomicU64::new(0),
            first_byte: AtomicU64::new(0),
            no_retry: AtomicU8::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            upload: Upload::default(),
            draft,
            last_activity: AtomicU64::new(0),
        })
    }

    /// Nanoseconds from the start to `now`.
    pub fn nanos(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_nanos() as u64
    }

    /// A body byte moved.
    pub fn touch(&self, now: Instant) {
        self.last_activity.store(self.nanos(now), Ordering::Relaxed);
    }

    /// When a body byte last moved, or the start.
    pub fn last_activity(&self) -> Instant {
        self.start + Duration::from_nanos(self.last_activity.load(Ordering::Relaxed))
    }

    /// Adds to a counter of nanoseconds.
    pub fn add(counter: &AtomicU64, time: Duration) {
        counter.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// The request body on its way. `attempt` and `request` stand still while its bytes are being sent, so this keeps how
/// long that was.
#[derive(Debug, Default)]
pub struct Upload {
    /// Nanoseconds after the exchange's start at which the bytes began to flow, plus one; 0 while they don't.
    since: AtomicU64,
    /// Nanoseconds of earlier flowing.
    total: AtomicU64,
    /// The app broke its body off or hung up.
    pub app_gone: AtomicBool,
    /// It was read to its end.
    pub whole: AtomicBool,
    /// It is the app's turn: the upstream would take more than the app has sent so far.
    pub awaits_app: AtomicBool,
}

impl Upload {
    /// Body bytes begin to flow, `nanos` after the start. Idempotent.
    pub fn begin(&self, nanos: u64) {
        let _ = self.since.compare_exchange(0, nanos + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The body is at its end, or this attempt is over.
    pub fn end(&self, nanos: u64) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since > 0 {
            self.total.fetch_add(nanos.saturating_sub(since - 1), Ordering::Relaxed);
        }
    }

    /// Whether bytes are flowing now, so that the clocks stand still.
    pub fn flowing(&self) -> bool {
        self.since.load(Ordering::Relaxed) > 0
    }

    /// How long the clocks stood still until now, which is so many nanoseconds after the start. Most requests have no body, and
    /// then that is not asked for.
    pub fn paused(&self, nanos: impl FnOnce() -> u64) -> Duration {
        let since = self.since.load(Ordering::Relaxed);
        let running = if since > 0 { nanos().saturating_sub(since - 1) } else { 0 };
        Duration::from_nanos(self.total.load(Ordering::Relaxed) + running)
    }
}

/// How far an attempt has got. Only ever moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// In line for a connection at `connections.max`.
    Waiting = 0,
    /// A connection is being made for it.
    Connecting = 1,
    /// It was handed to a connection, which may write it at any moment.
    Sending = 2,
}

impl Phase {
    /// Whether the upstream may have seen an attempt that has got so far.
    pub fn sent(self) -> Sent {
        match self {
            Phase::Waiting | Phase::Connecting => Sent::No,
            Phase::Sending => Sent::Maybe,
        }
    }
}

/// One attempt, as the transport sees it: what to honour, and what to note down so that a timer that cuts it off knows
/// how far it had got.
#[derive(Debug)]
pub struct Attempt {
    /// The request it belongs to.
    pub exchange: Arc<Exchange>,
    /// `timeouts.connect` of its route.
    pub connect_timeout: Option<Duration>,
    /// The endpoint (index into `to`) that the attempt before used, to be avoided where there is another.
    pub avoid: Option<usize>,
    phase: AtomicU8,
    /// It is on the free replacement of a stale connection.
    renewed: AtomicBool,
    endpoint: AtomicU32,
    /// What the answer was in; 0 until there is one.
    http: AtomicU8,
    /// One of our clocks ended it.
    timed_out: AtomicBool,
}

impl Attempt {
    /// A new attempt, waiting.
    pub fn new(exchange: Arc<Exchange>, connect_timeout: Option<Duration>) -> Attempt {
        Attempt {
            exchange,
            connect_timeout,
            avoid: None,
            phase: AtomicU8::new(Phase::Waiting as u8),
            renewed: AtomicBool::new(false),
            endpoint: AtomicU32::new(u32::MAX),
            http: AtomicU8::new(0),
            timed_out: AtomicBool::new(false),
        }
    }

    /// To another endpoint than this one, where there is another.
    pub fn avoiding(self, endpoint: Option<usize>) -> Attempt {
        Attempt { avoid: endpoint, ..self }
    }

    /// One of our clocks ended it, and not the app.
    pub fn time_out(&self) {
        self.timed_out.store(true, Ordering::Relaxed);
    }

    /// Whether one of our clocks ended it.
    pub fn timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed)
    }

    /// Notes how far it has got.
    pub fn reached(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// Starts over with another connection, when it is proven that nothing of it was sent on the last one.
    pub fn start_over(&self) {
        self.phase.store(Phase::Waiting as u8, Ordering::Relaxed);
    }

    /// Starts over, once and for free, with a new connection in the place of a stale one from the pool.
    pub fn renew(&self) {
        self.renewed.store(true, Ordering::Relaxed);
        self.start_over();
    }

    /// Whether it wants a new connection, not one from the pool.
    pub fn is_renewed(&self) -> bool {
        self.renewed.load(Ordering::Relaxed)
    }

    /// How far it has got.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Waiting,
            1 => Phase::Connecting,
            _ => Phase::Sending,
        }
    }

    /// Whether the upstream may have seen it, by how far it has got.
    pub fn sent(&self) -> Sent {
        self.phase().sent()
    }

    /// Notes which of several `to` it uses.
    pub fn uses(&self, endpoint: usize) {
        self.endpoint.store(endpoint as u32, Ordering::Relaxed);
    }

    /// Notes what the upstream answered in.
    pub fn answered(&self, version: Version) {
        let number = match version {
            Version::HTTP_10 => 10,
            Version::HTTP_2 => 20,
            // Foreign and non-exhaustive; hyper's client reads no other.
            _ => 11,
        };
        self.http.store(number, Ordering::Relaxed);
    }

    /// What the upstream answered in.
    pub fn version(&self) -> Option<Version> {
        match self.http.load(Ordering::Relaxed) {
            10 => Some(Version::HTTP_10),
            11 => Some(Version::HTTP_11),
            20 => Some(Version::HTTP_2),
            _ => None,
        }
    }

    /// Which of several `to` it used.
    pub fn endpoint(&self) -> Option<usize> {
        match self.endpoint.load(Ordering::Relaxed) {
            u32::MAX => None,
            index => Some(index as usize),
        }
    }
}
