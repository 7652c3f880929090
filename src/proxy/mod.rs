//! One request, from the app's socket to its answer.

pub(crate) mod admission;
pub mod body;
pub mod head;
pub mod headers;
mod http2;
mod idle;
pub(crate) mod inside;
pub(crate) mod io;
pub(crate) mod link;
pub mod listener;
pub(crate) mod pipe;
pub(crate) mod record;
pub(crate) mod relay;
pub(crate) mod respond;
pub(crate) mod socket;
pub(crate) mod target;
pub(crate) mod tunnel;
pub(crate) mod unwind;
pub(crate) mod upgrade;
pub(crate) mod way;

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Connect, Limits};
use crate::error::{Denial, Error, HeadBound, Result};
use crate::fields::Fields;
use crate::message::{AppBody, Outbound};
use crate::origin::{Origin, Scheme};
use crate::policy::carry::Carry;
use crate::proxy::admission::Place;
use crate::proxy::body::ResponseBody;
use crate::proxy::inside::Inside;
use crate::proxy::link::Link;
use crate::proxy::record::Record;
use crate::proxy::respond::Asked;
use crate::proxy::target::{Form, LastHost, Target};
use crate::proxy::unwind::CatchUnwind;
use crate::shared::Shared;
use crate::shutdown::Drain;
use crate::tcp::Tcp;
use crate::telemetry::access::AccessLog;
use crate::telemetry::failures::Failures;
use crate::telemetry::metrics::{Limit, Metrics};
use crate::telemetry::spans::Tracer;
use crate::upstream::table::Table;
use crate::upstream::transport::UpstreamBody;
use crate::upstream::{Lane, Upstream};

/// What every listener of apps shares.
pub struct Proxy {
    /// The routing snapshot.
    pub table: Arc<Shared<Table>>,
    /// Where access lines go.
    pub access: Arc<Shared<AccessLog>>,
    /// What is in flight.
    pub drain: Arc<Drain>,
    /// Process-wide counters.
    pub metrics: Arc<Metrics>,
    /// Which requests are traced; empty where nobody takes spans.
    pub tracer: OnceLock<Tracer>,
    /// The last requests that failed.
    pub failures: Failures,
    /// Connections of apps, over all listeners.
    connections: AtomicUsize,
    /// When it began.
    started: Instant,
}

impl Proxy {
    /// For all listeners of a process.
    pub fn new(
        table: Arc<Shared<Table>>,
        access: Arc<Shared<AccessLog>>,
        drain: Arc<Drain>,
        metrics: Arc<Metrics>,
    ) -> Arc<Proxy> {
        Arc::new(Proxy {
            table,
            access,
            drain,
            metrics,
            tracer: OnceLock::new(),
            failures: Failures::default(),
            connections: AtomicUsize::new(0),
            started: Instant::now(),
        })
    }

    /// Connections of apps now, over all listeners.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// What a listener is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `listeners.proxy`: any upstream, by URL, Host or CONNECT.
    Any,
    /// An upstream's own `listen`.
    Upstream(Arc<str>),
    /// A tunnel that is intercepted.
    Inside(Arc<Inside>),
}

/// One connection of an app's, as its requests see it.
pub(crate) struct Connection {
    /// What all connections share.
    pub(crate) proxy: Arc<Proxy>,
    /// Which listener accepted it.
    pub(crate) entry: Entry,
    /// The address it was accepted at.
    pub(crate) local: SocketAddr,
    /// Present on HTTP/1.
    pub(crate) link: Option<Arc<Link>>,
    /// Its place among `limits.max_connections`; what is inside a tunnel has that of the tunnel.
    pub(crate) place: Arc<Place>,
    /// Whether it is to be closed as soon as what is under way has ended.
    pub(crate) retired: Retired,
    /// Whom it asked for last.
    pub(crate) last_host: LastHost,
}

/// The end of a connection that a reload left behind: the app is to make a new one.
#[derive(Default)]
pub(crate) struct Retired {
    told: AtomicBool,
    /// Present on HTTP/2: sends GOAWAY.
    goaway: Option<CancellationToken>,
}

impl Retired {
    /// Not yet.
    pub(crate) fn new(goaway: Option<CancellationToken>) -> Retired {
        Retired { told: AtomicBool::new(false), goaway }
    }

    fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
        if let Some(goaway) = &self.goaway {
            goaway.cancel();
        }
    }
}

/// What a request comes to.
enum Outcome {
    /// The upstream's answer.
    Answer(Response<Box<Carry<UpstreamBody>>>),
    /// The upstream's 101, and how to get at the app's connection.
    Upgrade(Response<Box<Carry<UpstreamBody>>>, OnUpgrade),
    /// The tunnel's connection, and how to get at the app's.
    Tunnel(Tcp, OnUpgrade),
    /// A tunnel that ends here.
    Inside(Arc<Upstream>, Target, OnUpgrade),
}

/// Where a request goes.
struct Way {
    upstream: Arc<Upstream>,
    origin: Origin,
    keep_host: bool,
}

/// One request and its answer. What needs no waiting is done before the future is made, which so holds little.
pub(crate) fn serve(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + Send {
    let table = connection.proxy.table.load();
    let fields = Fields::of(request.headers());
    let parent = fields.has(Fields::TRACEPARENT).then(|| headers::trace_parent(request.headers())).flatten();
    let mut record = Box::new(Record::new(&connection.proxy, &table, &request, parent));
    let bodiless = connection.link.as_ref().is_some_and(|link| link.stands_in_for_head(request.method()));
    let asked = Asked {
        head: *request.method() == Method::HEAD || bodiless,
        grpc: fields.has(Fields::CONTENT_TYPE) && headers::is_grpc(request.headers()),
        http1: request.version() != Version::HTTP_2,
    };
    let old = request.version() == Version::HTTP_10;
    let (has_body, length) = (!request.body().is_end_stream(), request.body().size_hint().exact());
    let undecided = connection.link.is_some() && fields.has(Fields::UPGRADE);
    let step = catch_unwind(AssertUnwindSafe(|| prepare(&connection, &table, request, fields, &mut record)));
    let step = step.unwrap_or(Err(Error::Panic));
    async move {
        let result = match step {
            Ok(step) => {
                let step = pin!(step.run(&record));
                let mut step = CatchUnwind(step);
                let drain = &connection.proxy.drain;
                // The drain's end wakes every HTTP/1 connection, so there a look at each poll is enough. HTTP/2 streams are
                // tasks of their own.
                let mut ended = (!asked.http1).then(|| Box::pin(drain.ended.cancelled()));
                poll_fn(|cx| match Pin::new(&mut step).poll(cx) {
                    Poll::Pending => {
                        let told = ended.as_mut().is_some_and(|ended| ended.as_mut().poll(cx).is_ready());
                        if told || drain.is_over() { Poll::Ready(Err(Error::ShuttingDown)) } else { Poll::Pending }
                    }
                    polled => polled.map(|result| result.unwrap_or(Err(Error::Panic))),
                })
                .await
            }
            Err(error) => Err(error),
        };
        // hyper closes a connection whose request it could not read to the end. An app that isn't told might send its next
        // request there. What has a length and lies in memory already, hyper reads.
        let body_left = has_body && !record.exchange.upload.whole.load(Ordering::Relaxed) && {
            let has_come = connection.link.as_ref().is_some_and(|link| link.has_body());
            !(length.is_some() && has_come)
        };
        let mut response = match result {
            Ok(Outcome::Answer(response)) => answered(&connection, response, asked, old, record),
            Ok(Outcome::Upgrade(response, app)) => return Ok(upgraded(&connection, response, app, record)),
            Ok(Outcome::Tunnel(stream, app)) => return Ok(tunnelled(&connection, stream, app, record)),
            Ok(Outcome::Inside(upstream, target, app)) => {
                return Ok(intercepted(&connection, upstream, target, app, record));
            }
            Err(error) => refused(&connection, error, asked, record),
        };
        if let Some(link) = connection.link.as_ref().filter(|_| undecided) {
            link.decline();
        }
        let closes =
            body_left || connection.retired.told.load(Ordering::Relaxed) || connection.proxy.drain.begun.is_cancelled();
        if asked.http1 && closes {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// What a request asks of its upstream.
enum Step {
    Tunnel { upstream: Arc<Upstream>, origin: Origin, app: OnUpgrade },
    Inside { upstream: Arc<Upstream>, target: Target, app: OnUpgrade },
    Request { upstream: Arc<Upstream>, lane: Arc<Lane>, outbound: Box<Outbound>, app: OnUpgrade, upgrade: bool },
}

impl Step {
    /// Asks it, by the policies.
    async fn run(self, record: &Record) -> Result<Outcome> {
        match self {
            Step::Tunnel { upstream, origin, app } => {
                let stream = Box::pin(tunnel::connect(&upstream, origin, record)).await?;
                Ok(Outcome::Tunnel(stream, app))
            }
            Step::Inside { upstream, target, app } => Ok(Outcome::Inside(upstream, target, app)),
            Step::Request { upstream, lane, outbound, app, upgrade } => {
                let mut response = lane.policies.request(outbound, &*upstream.transport, &record.exchange).await?;
                if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    return Ok(Outcome::Answer(response));
                }
                if !upgrade {
                    return Err(Error::BadAnswer("it switched protocols without being asked".into()));
                }
                headers::remove_hop_by_hop(response.headers_mut(), Fields::HOP_BY_HOP, true, &[]);
                Ok(Outcome::Upgrade(response, app))
            }
        }
    }
}

/// From the app's head to what is asked of the upstream.
fn prepare(
    connection: &Connection,
    table: &Table,
    mut request: Request<Incoming>,
    fields: Fields,
    record: &mut Record,
) -> Result<Step> {
    if let Some(refusal) = connection.link.as_ref().and_then(|link| link.refusal(request.method())) {
        if let Some(limit) = over(&refusal) {
            connection.proxy.metrics.limit_refused(limit);
        }
        return Err(refusal);
    }
    let everything =
        *request.method() == Method::OPTIONS && connection.link.as_ref().is_some_and(|link| link.of_everything());
    // Those of HTTP/1 were counted before hyper saw them.
    if request.version() == Version::HTTP_2 {
        within_limits(&table.config.limits, &request).inspect_err(|refusal| {
            if let Some(limit) = over(refusal) {
                connection.proxy.metrics.limit_refused(limit);
            }
        })?;
    }
    if request.extensions().get::<hyper::ext::Protocol>().is_some() {
        return Err(Error::BadRequest("extended CONNECT is not supported"));
    }
    let version = request.version();
    if version == Version::HTTP_2 {
        headers::check_http2(request.headers())?;
        headers::join_cookies(request.headers_mut());
    }
    let scheme = match &connection.entry {
        Entry::Inside(inside) => inside.scheme,
        Entry::Any | Entry::Upstream(_) => Scheme::Http,
    };
    let target =
        target::read(request.method(), request.uri(), version, request.headers(), scheme, &connection.last_host)?;
    record.asked(target.clone());
    let way = route(connection, table, &target)?;
    record.leads(&way.origin);
    let upstream = &way.upstream;

    if target.form == Form::Authority {
        record.routed(upstream, &upstream.lane);
        way::may_tunnel(&table.config, upstream.config.as_deref(), &target)?;
        let app = hyper::upgrade::on(&mut request);
        if upstream.intercepts() {
            return Ok(Step::Inside { upstream: way.upstream, target, app });
        }
        return Ok(Step::Tunnel { origin: way::of_tunnel(&target), upstream: way.upstream, app });
    }

    if everything {
        *request.uri_mut() = Uri::from_static("*");
    }
    let lane = Arc::clone(upstream.lane(request.method(), request.uri().path()));
    record.routed(upstream, &lane);
    if fields.has(Fields::CLIENT_RETRY)
        && let Some(source) = headers::client_retry(request.headers())
    {
        upstream.report.client_retry(source);
    }
    let expect = fields.has(Fields::EXPECT) && headers::expects_continue(request.headers(), version)?;
    let upgrade = fields.has(Fields::UPGRADE) && headers::asks_upgrade(request.headers(), version);
    let app = hyper::upgrade::on(&mut request);

    let (mut head, body) = request.into_parts();
    let body = match version {
        _ if body.is_end_stream() => AppBody::Empty,
        Version::HTTP_2 => AppBody::Stream(body),
        _ => AppBody::Incoming(body),
    };
    headers::remove_hop_by_hop(&mut head.headers, fields, upgrade, lane.policies.idempotency_headers());
    if target.form == Form::Absolute || version == Version::HTTP_2 {
        head.headers.insert(header::HOST, target::host_value(&target));
    }
    if table.config.trace_send {
        record.announce(&mut head.headers);
    }
    head.uri = target::origin_form(&head.uri);
    head.version = Version::HTTP_11;
    let expect_continue = expect && !matches!(body, AppBody::Empty);
    let outbound = Outbound { head, body, origin: way.origin, keep_host: way.keep_host, expect_continue };
    Ok(Step::Request { upstream: way.upstream, lane, outbound: Box::new(outbound), app, upgrade })
}

/// Which upstream a request is for.
fn route(connection: &Connection, table: &Table, target: &Target) -> Result<Way> {
    let found = table.find(&target.host, target.port);
    if let Entry::Upstream(name) = &connection.entry {
        // A reload may have taken the upstream away while the connection lives on.
        let upstream = table.named(name).ok_or(Error::Misdirected)?;
        if matches!(target.form, Form::Absolute | Form::Authority) {
            // An app that takes this port for a proxy may still ask for this upstream.
            if found.is_none_or(|found| found.name != upstream.name) {
                return Err(Error::Misdirected);
            }
            let origin = upstream.origin(target.scheme, target.host.clone(), target.port);
            return Ok(Way { upstream: Arc::clone(upstream), origin, keep_host: true });
        }
        let config = upstream.config.as_ref().ok_or(Error::Misdirected)?;
        return Ok(Way { upstream: Arc::clone(upstream), origin: way::own_port(config)?, keep_host: false });
    }
    if let Entry::Inside(inside) = &connection.entry {
        inside.serves(target)?;
        // A reload may have ended interception while the connection lives on. Its app is not made to suffer for that, and
        // makes a new one.
        if found.is_none_or(|found| !found.intercepts()) {
            connection.retired.tell();
        }
        let upstream = found.ok_or(Error::Misdirected)?;
        if upstream.config.as_ref().is_some_and(|config| config.connect == Connect::Deny) {
            return Err(Error::Denied(Denial::Connect));
        }
        let origin = upstream.origin(target.scheme, target.host.clone(), target.port);
        return Ok(Way { upstream: Arc::clone(upstream), origin, keep_host: true });
    }
    let upstream = way::admit(&table.config, connection.local, target, found)?.unwrap_or(&table.unmatched);
    let origin = upstream.origin(target.scheme, target.host.clone(), target.port);
    Ok(Way { upstream: Arc::clone(upstream), origin, keep_host: true })
}

/// Whether an HTTP/2 head is within its bounds.
fn within_limits(limits: &Limits, request: &Request<Incoming>) -> Result<()> {
    let (uri, headers) = (request.uri(), request.headers());
    if uri.path_and_query().is_some_and(|path| path.as_str().len() as u64 > limits.max_header_bytes) {
        return Err(Error::UriTooLong);
    }
    if headers::list_size(request.method(), uri, headers) > limits.max_header_bytes {
        return Err(Error::HeadersTooLarge(HeadBound::Bytes));
    }
    if headers.len() > limits.max_headers.get() as usize {
        return Err(Error::HeadersTooLarge(HeadBound::Fields));
    }
    Ok(())
}

/// Which of `limits` a head was refused for; `None`: it is refused for what it says.
fn over(refusal: &Error) -> Option<Limit> {
    if matches!(refusal, Error::HeadersTooLarge(HeadBound::Bytes) | Error::UriTooLong) {
        Some(Limit::HeaderBytes)
    } else if matches!(refusal, Error::HeadersTooLarge(HeadBound::Fields)) {
        Some(Limit::Headers)
    } else {
        matches!(refusal, Error::AppSilent).then_some(Limit::HeaderTime)
    }
}

/// Passes the upstream's answer on.
fn answered(
    connection: &Connection,
    response: Response<Box<Carry<UpstreamBody>>>,
    asked: Asked,
    old: bool,
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    let (mut head, body) = response.into_parts();
    let exchange = &record.exchange;
    if exchange.attempts.load(Ordering::Relaxed) == 1 {
        // The only attempt ended a moment ago.
        exchange.first_byte.store(exchange.nanos(exchange.last_activity()), Ordering::Relaxed);
    } else {
        first_byte(&record);
    }
    record.answering(head.status.as_u16());
    let fields = Fields::of(&head.headers);
    let mut has_length = fields.has(Fields::CONTENT_LENGTH);
    if has_length && (fields.has(Fields::TRANSFER_ENCODING) || head.status == StatusCode::NO_CONTENT) {
        // The length of something else than the body that is passed on (RFC 9112 section 6.3), or of a body where there is none:
        // an app that believed it would take the next answer for that (RFC 9110 section 8.6).
        headers::remove(&mut head.headers, &header::CONTENT_LENGTH);
        has_length = false;
    }
    headers::remove_hop_by_hop(&mut head.headers, fields, false, &[]);
    respond::mark(&mut head.headers, head.status, record.progress());
    head.version = if asked.http1 { Version::HTTP_11 } else { Version::HTTP_2 };
    if let Some(link) = &connection.link {
        link.wait_at_most(record.idle());
    }
    let bare = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let mut body = ResponseBody::upstream(body, record);
    if asked.head || bare {
        body = body.without_content(asked.http1 && bare && !asked.head && has_length);
    } else if let Some(link) = connection.link.as_ref().filter(|_| old || has_length) {
        // Many clients don't count what they got (urllib, HttpURLConnection). Chunks say by themselves where they end.
        body = body.reset_if_broken(link);
    }
    Response::from_parts(head, body)
}

/// Notes when the response headers were passed on, where nobody did yet.
fn first_byte(record: &Record) {
    let nanos = record.exchange.nanos(Instant::now());
    let _ = record.exchange.first_byte.compare_exchange(0, nanos, Ordering::Relaxed, Ordering::Relaxed);
}

/// Passes the upstream's 101 on; what follows is relayed.
fn upgraded(
    connection: &Connection,
    mut response: Response<Box<Carry<UpstreamBody>>>,
    app: OnUpgrade,
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    let upstream = hyper::upgrade::on(&mut response);
    let (mut head, carry) = response.into_parts();
    first_byte(&record);
    record.answering(head.status.as_u16());
    let idle = record.opened(Instant::now());
    if let Some(link) = &connection.link {
        link.open();
    }
    upgrade::start(app, upstream, carry, record, idle, connection.proxy.drain.ended.clone());
    head.version = Version::HTTP_11;
    Response::from_parts(head, ResponseBody::empty())
}

/// Answers a CONNECT whose connection is made; what follows is relayed.
fn tunnelled(connection: &Connection, stream: Tcp, app: OnUpgrade, mut record: Box<Record>) -> Response<ResponseBody> {
    first_byte(&record);
    record.answering(200);
    let idle = record.opened(Instant::now());
    tunnel::start(app, stream, record, idle, connection.proxy.drain.ended.clone());
    Response::new(ResponseBody::empty())
}

/// Answers a CONNECT that ends here; what follows is served.
fn intercepted(
    connection: &Connection,
    upstream: Arc<Upstream>,
    target: Target,
    app: OnUpgrade,
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    first_byte(&record);
    record.answering(200);
    inside::start(app, upstream, target, record, connection);
    Response::new(ResponseBody::empty())
}

/// Answers with an error.
fn refused(connection: &Connection, mut error: Error, asked: Asked, mut record: Box<Record>) -> Response<ResponseBody> {
    if let (Error::AppGone, Some(what)) = (&error, connection.link.as_ref().and_then(|link| link.broken())) {
        // It is still there, but its body was no HTTP.
        error = Error::BadRequest(what);
    }
    record.failed(error.clone());
    let (mut head, body) = respond::answer(&error, asked, record.progress()).into_parts();
    if connection.link.as_ref().is_some_and(|link| link.stands_in_for_head(record.requested())) {
        // To hyper it is no HEAD, so that it would not let the length of a body pass that is not sent.
        head.headers.remove(header::CONTENT_LENGTH);
    }
    if asked.http1 && record.is_connect() {
        // What the app sent behind its CONNECT is no HTTP.
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Response::from_parts(head, ResponseBody::full(body, Some(record)))
}
