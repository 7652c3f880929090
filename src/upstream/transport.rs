//! The way out: one attempt over the pool.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{HOST, HeaderValue};
use http::{Request, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::address::AddressSet;
use crate::config;
use crate::error::{ConnectFailure, Error, Result, Sent};
use crate::fields::Fields;
use crate::message::{Attempt, Phase};
use crate::origin::{Host, Origin, parse_authority};
use crate::policy::body::AttemptBody;
use crate::policy::{self, Destination};
use crate::tcp::Tcp;
use crate::telemetry::report::UpstreamReport;
use crate::upstream::answer;
pub use crate::upstream::answer::UpstreamBody;
use crate::upstream::balance::{Balance, Load};
use crate::upstream::connect::{Connector, Place};
use crate::upstream::connection::{Http1, Http2, chain, h2_error};
use crate::upstream::places::Key;
use crate::upstream::pool::{Lease, Pool, Use};
use crate::upstream::request;
use crate::upstream::route::{self, Names};
use crate::upstream::upload::{SendBody, Watch};

/// Connections that turn out to be dead before anything was written are replaced so often, then a new one is made.
const STALE_TRIES: usize = 3;

/// What a pool is made from. Equal settings keep the pool over a reload.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where it leads; empty: to the host asked for.
    pub to: Vec<Origin>,
    /// TLS.
    pub tls: config::Tls,
    /// Bounds.
    pub connections: config::Connections,
    /// What `egress.deny` forbids and this upstream may use.
    pub allow_addresses: AddressSet,
    /// `limits.max_header_bytes` and `max_headers` hold for answers too.
    pub max_header_bytes: u64,
    /// See above.
    pub max_headers: u32,
}

/// The way to one upstream: its pool, its endpoints.
pub struct Transport {
    pool: Arc<Pool>,
    endpoints: Vec<Endpoint>,
    balance: Arc<Balance>,
}

/// One of `to`, prepared.
struct Endpoint {
    /// Its connections; for an address the server name depends on the request.
    key: Arc<Key>,
    /// Its authority as a Host field.
    host: HeaderValue,
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Carrying a request or an upgraded stream.
    pub active: usize,
    /// Waiting for one.
    pub idle: usize,
    /// Being made.
    pub connecting: usize,
}

impl Transport {
    /// An empty pool.
    ///
    /// # Errors
    /// A sentence when TLS can't be set up (no root certificates and an https upstream).
    pub fn new(
        settings: Settings,
        connector: Arc<Connector>,
        report: Arc<UpstreamReport>,
    ) -> Result<Arc<Transport>, String> {
        let endpoints = settings
            .to
            .iter()
            .map(|origin| {
                let host =
                    HeaderValue::try_from(origin.authority()).map_err(|_| format!("{origin} is no authority"))?;
                let server = settings.tls.server_name.clone().unwrap_or_else(|| origin.host.clone());
                Ok(Endpoint { key: Arc::new(Key::new(origin.clone(), server, false)), host })
            })
            .collect::<Result<Vec<Endpoint>, String>>()?;
        let balance = Balance::new(endpoints.len().max(1));
        let pool = Pool::new(settings, connector, report)?;
        Ok(Arc::new(Transport { pool, endpoints, balance }))
    }

    /// What it was made from.
    pub fn settings(&self) -> &Settings {
        self.pool.settings()
    }

    /// Connections now, for metrics.
    pub fn counts(&self) -> Counts {
        let census = self.pool.census();
        Counts { active: census.active, idle: census.idle, connecting: census.connecting }
    }

    /// A newer pool has taken over: idle connections are closed now, others after their request.
    pub fn retire(&self) {
        self.pool.retire();
    }

    /// Dials the host and port a CONNECT asks for: resolves, checks the egress rules, honours `attempt.connect_timeout`.
    ///
    /// # Errors
    /// As [`policy::Transport::send`].
    pub async fn tunnel(&self, origin: &Origin, attempt: &Attempt) -> Result<(Tcp, SocketAddr)> {
        attempt.reached(Phase::Connecting);
        let clock = Connecting { attempt, start: Instant::now() };
        let allow = &self.pool.settings().allow_addresses;
        let place = Place { host: &origin.host, port: origin.port, exempt: false, allow };
        let result = self.pool.connector().tunnel(&place, attempt.connect_timeout).await;
        match &result {
            Ok(_) => self.pool.report().connected(clock.start.elapsed()),
            Err(Error::Connect { failure, detail }) => self.pool.report().connect_failed(*failure, detail),
            Err(_) => {}
        }
        result
    }

    /// Which connections serve the request, and its Host.
    fn route(
        &self,
        head: &mut http::request::Parts,
        fields: Fields,
        to: &Destination,
        attempt: &Attempt,
    ) -> (Arc<Key>, Option<Load>) {
        let settings = self.pool.settings();
        let http1 = route::http1_only(fields.has(Fields::UPGRADE), settings.connections.http);
        let Some(load) = self.pick(attempt) else {
            if to.keep_host {
                host_if_missing(head, &to.origin);
            } else if let Ok(host) = HeaderValue::try_from(to.origin.authority()) {
                request::set_host(head, host);
            }
            let server = settings.tls.server_name.clone().unwrap_or_else(|| to.origin.host.clone());
            return (Arc::new(Key::new(to.origin.clone(), server, http1)), None);
        };
        let endpoint = &self.endpoints[load.index];
        attempt.uses(load.index);
        let names = Names::towards(&endpoint.key.origin, to.keep_host, &settings.tls);
        if names.host_of_to {
            request::set_host(head, endpoint.host.clone());
        } else {
            host_if_missing(head, &to.origin);
        }
        let key = match (names.server_asked_for, http1) {
            (false, false) => endpoint.key.clone(),
            (false, true) => Arc::new(Key::new(endpoint.key.origin.clone(), endpoint.key.server.clone(), http1)),
            (true, _) => {
                let server = host_of(head).unwrap_or_else(|| to.origin.host.clone());
                Arc::new(Key::new(endpoint.key.origin.clone(), server, http1))
            }
        };
        (key, Some(load))
    }

    fn pick(&self, attempt: &Attempt) -> Option<Load> {
        match self.endpoints.len() {
            0 => None,
            1 => Some(self.balance.only()),
            _ => Some(self.balance.pick(attempt.avoid, fastrand::u64(..), Instant::now())),
        }
    }
}

fn host_if_missing(head: &mut http::request::Parts, origin: &Origin) {
    if !head.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::try_from(origin.authority())
    {
        request::set_host(head, host);
    }
}

/// The name in the Host field.
fn host_of(head: &http::request::Parts) -> Option<Host> {
    let text = head.headers.get(HOST)?.to_str().ok()?;
    parse_authority(text).ok().map(|(host, _)| host)
}

/// Notes the time of connecting, also when it is cut off.
struct Connecting<'a> {
    attempt: &'a Attempt,
    start: Instant,
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        crate::message::Exchange::add(&self.attempt.exchange.connecting, self.start.elapsed());
    }
}

impl policy::Transport for Transport {
    type Body = UpstreamBody;

    fn send(
        &self,
        mut head: http::request::Parts,
        body: AttemptBody,
        to: &Destination,
        attempt: &Attempt,
    ) -> impl Future<Output = Result<http::Response<UpstreamBody>>> + Send {
        let fields = Fields::of(&head.headers);
        let (key, load) = self.route(&mut head, fields, to, attempt);
        let (body, upload) = SendBody::new(body);
        // Passed on by reference, since each layer that takes it by value would hold room for it in its future.
        let mut request = Some(Request::from_parts(head, body));
        async move { self.deliver(&mut request, fields, &key, load, upload, attempt).await }
    }
}

impl Transport {
    /// Sends the request over one connection after another, until one takes it.
    async fn deliver(
        &self,
        request: &mut Option<Request<SendBody>>,
        fields: Fields,
        key: &Arc<Key>,
        load: Option<Load>,
        upload: Option<Arc<Watch>>,
        attempt: &Attempt,
    ) -> Result<http::Response<UpstreamBody>> {
        let mut tries = 0;
        loop {
            let fresh = attempt.is_renewed() || tries >= STALE_TRIES;
            let mut lease = match self.pool.checkout(key, fresh, attempt).await {
                Ok(lease) => lease,
                Err(error) => {
                    if let (Some(load), Error::Connect { .. }) = (&load, &error) {
                        load.failed(Instant::now());
                    }
                    return Err(error);
                }
            };
            let reused = lease.reused;
            match exchange(&mut lease, request, fields, key, upload.as_ref(), attempt).await {
                Ok(response) => {
                    if let Some(load) = &load {
                        load.succeeded();
                    }
                    let (mut head, incoming) = response.into_parts();
                    let most = self.pool.settings().max_headers as usize;
                    let http2 = head.version == Version::HTTP_2;
                    attempt.answered(head.version);
                    if let Err(wrong) = answer::check(&mut head, fields.has(Fields::UPGRADE), most) {
                        if let Some(upload) = &upload {
                            upload.cancel();
                        }
                        return Err(Error::BadAnswer(wrong));
                    }
                    let upgraded = head.status == http::StatusCode::SWITCHING_PROTOCOLS;
                    let body = UpstreamBody::new(incoming, lease, upload, load, upgraded, http2);
                    return Ok(http::Response::from_parts(head, body));
                }
                Err(Unanswered::Unsent(unsent, detail)) => {
                    if tries > STALE_TRIES || attempt.is_renewed() && tries > 0 {
                        return Err(Error::Reset { sent: Sent::No, reused, answer_began: false, detail });
                    }
                    attempt.start_over();
                    tries += 1;
                    *request = Some(*unsent);
                }
                Err(Unanswered::Failed(error)) => return Err(error),
            }
        }
    }
}

/// Why there is no answer.
enum Unanswered {
    /// The connection was dead before the request was begun; here it is again.
    Unsent(Box<Request<SendBody>>, String),
    /// It may have been begun.
    Failed(Error),
}

/// Hands the request to the connection and waits for the head of the answer.
async fn exchange(
    lease: &mut Lease,
    request: &mut Option<Request<SendBody>>,
    fields: Fields,
    key: &Key,
    upload: Option<&Arc<Watch>>,
    attempt: &Attempt,
) -> Result<http::Response<Incoming>, Unanswered> {
    let reused = lease.reused;
    match (lease.connection(), request) {
        (Some(Use::Solo(link)), request) => over_http1(link, request, fields, reused, upload, attempt).await,
        (Some(Use::Stream(link)), request) => over_http2(link, request, reused, key, upload, attempt).await,
        (None, request) => {
            let unsent = request.take().ok_or(Unanswered::Failed(Error::Panic))?;
            Err(Unanswered::Unsent(Box::new(unsent), "its connection was given back".to_owned()))
        }
    }
}

async fn over_http1(
    link: &mut Http1,
    request: &mut Option<Request<SendBody>>,
    fields: Fields,
    reused: bool,
    upload: Option<&Arc<Watch>>,
    attempt: &Attempt,
) -> Result<http::Response<Incoming>, Unanswered> {
    let (written, read) = (link.wire.written(), link.wire.read());
    let sending = {
        let mut request = request.take().ok_or(Unanswered::Failed(Error::Panic))?;
        request::for_http1(&mut request, fields);
        attempt.reached(Phase::Sending);
        link.sender.try_send_request(request)
    };
    let mut error = match sending.await {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    if let Some(unsent) = error.take_message() {
        return Err(Unanswered::Unsent(Box::new(unsent), chain(error.error())));
    }
    let error = error.into_error();
    // Once its task has ended the connection writes no more, and the count is final.
    link.driver.abort();
    let _ = (&mut link.driver).await;
    if let Some(error) = upload.and_then(|upload| upload.error()) {
        return Err(Unanswered::Failed(error));
    }
    if error.is_parse() {
        return Err(Unanswered::Failed(Error::BadAnswer(chain(&error))));
    }
    Err(Unanswered::Failed(Error::Reset {
        sent: if link.wire.written() == written { Sent::No } else { Sent::Maybe },
        reused,
        answer_began: link.wire.read() != read,
        detail: chain(&error),
    }))
}

async fn over_http2(
    link: &mut Http2,
    request: &mut Option<Request<SendBody>>,
    reused: bool,
    key: &Key,
    upload: Option<&Arc<Watch>>,
    attempt: &Attempt,
) -> Result<http::Response<Incoming>, Unanswered> {
    let _vigil = link.watch(attempt);
    let (host, sending) = {
        let mut request = request.take().ok_or(Unanswered::Failed(Error::Panic))?;
        let authority = key.origin.authority();
        let host = request::for_http2(&mut request, key.origin.scheme, &authority).map_err(Unanswered::Failed)?;
        attempt.reached(Phase::Sending);
        (host, link.sender.try_send_request(request))
    };
    let mut error = match sending.await {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    if let Some(mut unsent) = error.take_message() {
        request::back_to_http1(&mut unsent, host);
        return Err(Unanswered::Unsent(Box::new(unsent), chain(error.error())));
    }
    if let Some(error) = upload.and_then(|upload| upload.error()) {
        return Err(Unanswered::Failed(error));
    }
    Err(Unanswered::Failed(judge_http2(&error.into_error(), reused)))
}

/// What an HTTP/2 error says about the request.
fn judge_http2(error: &hyper::Error, reused: bool) -> Error {
    let detail = chain(error);
    let reset = |reused, detail| Error::Reset { sent: Sent::Maybe, reused, answer_began: false, detail };
    let Some(h2) = h2_error(error) else { return reset(reused, detail) };
    let refused = h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
    // Only streams above the last one that the peer will process are ended by its GOAWAY (RFC 9113 section 6.8).
    if h2.is_remote() && (refused || h2.is_go_away()) {
        return Error::Connect { failure: ConnectFailure::Refusal, detail };
    }
    if h2.is_io() || h2.is_remote() {
        // A stream that is reset says nothing about its connection, which was not stale.
        return reset(reused && !h2.is_reset(), detail);
    }
    Error::BadAnswer(detail)
}
