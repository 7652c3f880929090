//! What is told of one request when it ends, wherever and however that is: a guard that travels with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::{Method, Uri};
use tokio::time::Instant;

use crate::error::{Denial, Error};
use crate::message::Exchange;
use crate::proxy::Proxy;
use crate::proxy::head::REFUSED_METHOD;
use crate::proxy::respond::Progress;
use crate::proxy::target::Target;
use crate::shutdown::InFlight;
use crate::telemetry::access::Line;
use crate::telemetry::failures::Failure;
use crate::telemetry::report::{self, Gauge, Rejected, Skipped};
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
    pub(crate) fn new(proxy: &Arc<Proxy>, table: &Table, method: &Method, uri: &Uri, trace: u128) -> Record {
        Record {
            _in_flight: proxy.drain.enter(),
            proxy: Arc::clone(proxy),
            exchange: Exchange::new(Instant::now()),
            upstream: Arc::clone(&table.unmatched),
            lane: Arc::clone(&table.unmatched.lane),
            method: method.clone(),
            uri: uri.clone(),
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

    /// Whether the app asked for a tunnel.
    pub(crate) fn is_connect(&self) -> bool {
        self.method == Method::CONNECT
    }

    /// Outrigger answers with this.
    pub(crate) fn failed(&mut self, error: Error) {
        if let Some(reason) = rejected(&error) {
            self.upstream.report.rejected(reason);
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
        self.upstream.report.bytes(bytes_in, bytes_out);
        let failed = error.is_some() || report::failed(status);
        if matches!(self.end, End::Broken(..)) && !report::failed(status) {
            self.lane.report.broke();
        }
        let access = self.proxy.access.load();
        let wanted = access.wants(status, error.is_some());
        if !failed && !wanted {
            return;
        }
        let host = self.target.as_ref().map(Target::authority).unwrap_or_default();
        let detail = error.map(Error::to_string);
        // What stands in for a head that could not be read is nothing that the app said.
        let unread = self.method.as_str() == REFUSED_METHOD;
        let method = if unread { "" } else { self.method.as_str() };
        let path = if unread || self.method == Method::CONNECT {
            ""
        } else {
            self.uri.path_and_query().map_or("", |path| path.as_str())
        };
        let progress = self.progress();
        if failed {
            self.proxy.failures.note(Failure {
                at: SystemTime::now(),
                upstream: self.upstream.name.clone(),
                route: self.lane.route.clone(),
                method: method.to_owned(),
                host: host.clone(),
                path: access.path(path),
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
            method,
            host: &host,
            path,
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
        Error::Overloaded | Error::ShuttingDown => Some(Rejected::Overloaded),
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
