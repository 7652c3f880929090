//! What is told of one request when it ends, wherever and however that is: a guard that travels with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, Request, Uri};
use tokio::time::Instant;

use crate::error::{self, Denial, Error, Overload};
use crate::message::Exchange;
use crate::origin::Origin;
use crate::proxy::Proxy;
use crate::proxy::head::REFUSED_METHOD;
use crate::proxy::headers;
use crate::proxy::respond::Progress;
use crate::proxy::target::Target;
use crate::shutdown::InFlight;
use crate::telemetry::access::{AccessLog, Line};
use crate::telemetry::failures::Failure;
use crate::telemetry::metrics::Limit;
use crate::telemetry::report::{self, Gauge, Rejected, Skipped};
use crate::telemetry::spans::{self, Draft, Fault, Kind, Parent, Trace};
use crate::upstream::table::Table;
use crate::upstream::{Lane, Upstream};

/// Counts the request, writes its access line and ends what it held when it is dropped.
pub(crate) struct Record {
    proxy: Arc<Proxy>,
    /// The facts.
    pub(crate) exchange: Arc<Exchange>,
    upstream: Arc<Upstream>,
    lane: Arc<Lane>,
    method: Method,
    uri: Uri,
    target: Option<Target>,
    trace: u128,
    end: End,
    /// How long it took, where that is not until the guard is dropped: tunnels.
    took: Option<Duration>,
    gauge: Option<Gauge>,
    _in_flight: InFlight,
}

/// How a request ended.
#[derive(Debug)]
enum End {
    /// No answer yet. Dropped like this, the app hung up.
    Waiting,
    /// Outrigger answered.
    Failed(Error),
    /// The upstream's answer is on its way. Dropped like this, the app hung up.
    Answering(u16),
    /// The answer was passed on whole.
    Answered(u16),
    /// The upstream's answer broke after its headers.
    Broken(u16, Error),
}

impl Record {
    /// A request whose head is complete. Until it is routed it counts for hosts that no upstream names.
    pub(crate) fn new<B>(proxy: &Arc<Proxy>, table: &Table, request: &Request<B>, parent: Option<Parent>) -> Record {
        let trace = parent.map_or_else(|| fastrand::u128(1..), |parent| parent.trace);
        let draft = proxy.tracer.get().and_then(|tracer| tracer.begin(trace, parent, request.version()));
        Record {
            _in_flight: proxy.drain.enter(),
            proxy: Arc::clone(proxy),
            exchange: Exchange::traced(Instant::now(), draft),
            upstream: Arc::clone(&table.unmatched),
            lane: Arc::clone(&table.unmatched.lane),
            method: request.method().clone(),
            uri: request.uri().clone(),
            target: None,
            trace,
            end: End::Waiting,
            took: None,
            gauge: None,
        }
    }

    /// The app's target was understood.
    pub(crate) fn asked(&mut self, target: Target) {
        self.target = Some(target);
    }

    /// Where its words lead.
    pub(crate) fn leads(&self, origin: &Origin) {
        if let Some(draft) = &self.exchange.draft {
            // It is routed once.
            let _ = draft.origin.set(origin.clone());
        }
    }

    /// Tells the upstream of the trace, where the app told nothing. Each attempt of a traced request puts its own span there.
    pub(crate) fn announce(&self, headers: &mut HeaderMap) {
        let draft = self.exchange.draft.as_ref();
        // Where no spans are exported, the upstream's own may be all there is.
        let sampled = draft.is_some() || self.proxy.tracer.get().is_none();
        let sent = headers::send_trace(headers, self.trace, sampled);
        if let Some(draft) = draft {
            draft.announces.store(sent, Ordering::Relaxed);
        }
    }

    /// It takes this lane.
    pub(crate) fn routed(&mut self, upstream: &Arc<Upstream>, lane: &Arc<Lane>) {
        self.upstream = Arc::clone(upstream);
        self.lane = Arc::clone(lane);
        self.gauge = Some(upstream.report.in_flight());
    }

    /// A tunnel or an upgraded stream is open: that is counted instead, and the request took until now. Says how long
    /// the stream may be silent.
    pub(crate) fn opened(&mut self, now: Instant) -> Option<Duration> {
        self.gauge = Some(self.upstream.report.tunnel());
        self.took = Some(now.saturating_duration_since(self.exchange.start));
        self.lane.policies.tunnel_idle()
    }

    /// How long either side of the body may be silent.
    pub(crate) fn idle(&self) -> Option<Duration> {
        self.lane.policies.idle()
    }

    /// The method that hyper read.
    pub(crate) fn requested(&self) -> &Method {
        &self.method
    }

    /// Whether the app asked for a tunnel.
    pub(crate) fn is_connect(&self) -> bool {
        self.method == Method::CONNECT
    }

    /// Outrigger answers with this.
    pub(crate) fn failed(&mut self, error: Error) {
        if let Some(reason) = rejected(&error) {
            self.upstream.report.rejected(reason);
        }
        if let Error::Overloaded(overload) = error {
            self.proxy.metrics.limit_refused(match overload {
                Overload::Connections => Limit::Connections,
                Overload::Descriptors => Limit::Descriptors,
                Overload::Lookups => Limit::Lookups,
            });
        }
        self.end = End::Failed(error);
    }

    /// The upstream's answer begins.
    pub(crate) fn answering(&mut self, status: u16) {
        self.end = End::Answering(status);
    }

    /// All of the answer was passed on.
    pub(crate) fn answered(&mut self) {
        if let End::Answering(status) = self.end {
            self.end = End::Answered(status);
        }
    }

    /// The upstream's answer broke after its headers.
    pub(crate) fn broke(&mut self, error: Error) {
        if let End::Answering(status) = self.end {
            self.end = End::Broken(status, error);
        }
    }

    /// Where the request has got to, for its answer.
    pub(crate) fn progress(&self) -> Progress<'_> {
        Progress {
            upstream: &self.upstream.name,
            route: &self.lane.route,
            attempts: self.exchange.attempts.load(Ordering::Relaxed),
            no_retry: skipped(self.exchange.no_retry.load(Ordering::Relaxed)),
        }
    }

    fn finish(&mut self) {
        if std::thread::panicking() && matches!(self.end, End::Waiting | End::Answering(_)) {
            self.end = End::Failed(Error::Panic);
        }
        let (status, error) = match &self.end {
            End::Waiting | End::Answering(_) => (499, Some(&Error::AppGone)),
            End::Failed(error) => (error.status(), Some(error)),
            End::Answered(status) => (*status, None),
            End::Broken(status, error) => (*status, Some(error)),
        };
        let exchange = &self.exchange;
        let total = Instant::now().saturating_duration_since(exchange.start);
        let bytes_in = exchange.bytes_in.load(Ordering::Relaxed);
        let bytes_out = exchange.bytes_out.load(Ordering::Relaxed);
        self.lane.report.request(&self.method, status, self.took.unwrap_or(total));
        // An answer of our own came from nobody.
        let received = if matches!(self.end, End::Failed(_)) { 0 } else { bytes_out };
        self.upstream.report.bytes(bytes_in, received);
        let failed = error.is_some() || report::failed(status);
        if matches!(self.end, End::Broken(..)) && !report::failed(status) {
            self.lane.report.broke();
        }
        let access = self.proxy.access.load();
        if let (Some(draft), Some(tracer)) = (&exchange.draft, self.proxy.tracer.get()) {
            tracer.end(self.trace(draft, &access, error, total));
        }
        let wanted = access.wants(status, error.is_some());
        if !failed && !wanted {
            return;
        }
        let host = self.target.as_ref().map(Target::authority).unwrap_or_default();
        let detail = error.map(Error::to_string);
        let progress = self.progress();
        if failed {
            self.proxy.failures.note(Failure {
                at: SystemTime::now(),
                upstream: self.upstream.name.clone(),
                route: self.lane.route.clone(),
                method: self.method().to_owned(),
                host: host.clone(),
                path: access.path(self.path()),
                status,
                error: error.map(Error::code),
                detail: detail.clone(),
                attempts: progress.attempts,
                no_retry: progress.no_retry,
                total,
                trace: self.trace,
            });
        }
        if !wanted {
            return;
        }
        let nanos = |counter: &std::sync::atomic::AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed));
        let first_byte = nanos(&exchange.first_byte);
        let trace = format!("{:032x}", self.trace);
        access.write(&Line {
            upstream: progress.upstream,
            route: progress.route,
            method: self.method(),
            host: &host,
            path: self.path(),
            status,
            error: error.map(Error::code),
            detail: detail.as_deref(),
            attempts: progress.attempts,
            no_retry: progress.no_retry.map(Skipped::as_str),
            total,
            waited: nanos(&exchange.waited),
            connecting: nanos(&exchange.connecting),
            first_byte: (!first_byte.is_zero()).then_some(first_byte),
            bytes_in,
            bytes_out,
            trace_id: &trace,
        });
    }

    /// The method as the app said it. What stands in for a head that could not be read is nothing that the app said.
    fn method(&self) -> &str {
        let method = self.method.as_str();
        if method == REFUSED_METHOD { "" } else { method }
    }

    /// Path and query as the app said them.
    fn path(&self) -> &str {
        if self.method().is_empty() || self.is_connect() {
            return "";
        }
        self.uri.path_and_query().map_or("", |path| path.as_str())
    }

    /// All of it, as spans tell it.
    fn trace(&self, draft: &Draft, access: &AccessLog, error: Option<&Error>, took: Duration) -> Trace {
        let exchange = &self.exchange;
        let kind = if self.is_connect() { Kind::Tunnel } else { Kind::Request };
        let shown = Some(self.path()).filter(|path| !path.is_empty()).and_then(|path| access.path(path));
        let (path, query) = match &shown {
            Some(shown) => match shown.split_once('?') {
                Some((path, query)) => (Some(spans::cut(path)), Some(spans::cut(query))),
                None => (Some(spans::cut(shown)), None),
            },
            None => (None, None),
        };
        let attempts = draft.attempts(exchange.attempts.load(Ordering::Relaxed));
        Trace {
            trace: self.trace,
            span: draft.span,
            parent: draft.parent,
            began: draft.began,
            took,
            kind,
            upstream: Arc::clone(&self.upstream.name),
            route: Arc::clone(&self.lane.route),
            method: spans::cut(self.method()),
            version: draft.version,
            scheme: self.target.as_ref().filter(|_| kind == Kind::Request).map(|target| target.scheme.as_str()),
            server: self.target.as_ref().map(|target| (spans::bare(&target.host), target.port)),
            path,
            query,
            status: match &self.end {
                End::Waiting | End::Failed(Error::AppGone) => None,
                End::Failed(error) => Some(error.status()),
                End::Answering(status) | End::Answered(status) | End::Broken(status, _) => Some(*status),
            },
            fault: error.map(|error| Fault {
                code: error.code(),
                detail: spans::cut(&error.to_string()),
                apps: error.origin() == error::Origin::App,
                broken: matches!(self.end, End::Broken(..)),
            }),
            bytes_in: exchange.bytes_in.load(Ordering::Relaxed),
            bytes_out: exchange.bytes_out.load(Ordering::Relaxed),
            attempts: attempts
                .into_iter()
                .map(|attempt| {
                    let origin = self.went_to(attempt.endpoint, kind).or(draft.origin.get()).cloned();
                    (attempt, origin)
                })
                .collect(),
            no_retry: self.progress().no_retry,
        }
    }

    /// Which of `to` an attempt went to.
    fn went_to(&self, endpoint: Option<usize>, kind: Kind) -> Option<&Origin> {
        let to = self.upstream.config.as_ref().map(|config| &*config.to).filter(|_| kind == Kind::Request)?;
        to.get(endpoint.unwrap_or(0))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.finish();
    }
}

fn skipped(number: u8) -> Option<Skipped> {
    Skipped::ALL.into_iter().find(|&reason| reason as u8 == number)
}

/// What a refusal of our own is counted as.
fn rejected(error: &Error) -> Option<Rejected> {
    match error {
        Error::BadRequest(_)
        | Error::UriTooLong
        | Error::Expectation
        | Error::Misdirected
        | Error::HeadersTooLarge(_) => Some(Rejected::BadRequest),
        Error::Loop => Some(Rejected::Loop),
        Error::Denied(Denial::Unmatched | Denial::Address(..) | Denial::ConnectPort(_) | Denial::Connect) => {
            Some(Rejected::Denied)
        }
        Error::CircuitOpen(_) => Some(Rejected::CircuitOpen),
        Error::RateLimited(_) => Some(Rejected::RateLimited),
        Error::ConcurrencyLimited | Error::NoConnection => Some(Rejected::Concurrency),
        Error::Overloaded(_) | Error::ShuttingDown => Some(Rejected::Overloaded),
        Error::AppSilent
        | Error::AppGone
        | Error::Connect { .. }
        | Error::Reset { .. }
        | Error::BadAnswer(_)
        | Error::AttemptTimeout { .. }
        | Error::Deadline { .. }
        | Error::UpstreamSilent
        | Error::Panic => None,
    }
}
