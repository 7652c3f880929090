//! Control and probes. On `probes` only the first three, read only:
//!
//! | | |
//! | --- | --- |
//! | `GET /livez` | 200 as long as the process can answer, also while it drains |
//! | `GET /readyz` | 200 once listeners accept, 503 while it drains; upstreams don't matter |
//! | `GET /metrics` | Prometheus |
//! | `GET /` | the dashboard, a page without data |
//! | `GET /api` | a list of these |
//! | `GET /api/upstreams` | the state of every upstream |
//! | `GET /api/history` | samples of the last 15 minutes |
//! | `GET /api/failures` | the last requests that failed |
//! | `GET /api/events` | all of it as server-sent events: `state` once, then `tick` each second |
//! | `POST /api/upstreams/NAME/circuit` | `{"state": "open"\|"closed"\|"auto"}` |
//! | `GET /config` | the effective configuration, secrets hidden |
//! | `POST /reload` | what changed, or every problem |
//! | `GET /api/reload` | how the last reload went |
//! | `GET /api/reloads` | how the last ones went |

mod api;
mod certificate;
mod guard;
pub(crate) mod live;
mod page;
mod scrape;
mod seats;
mod stream;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use live::Live;
use seats::Seats;
use stream::{Events, Link};

use crate::background::aside;
use crate::policy::breaker::Override;
use crate::policy::replay::ReplayMemory;
use crate::reload::{Cause, Reloader};
use crate::shared::Shared;
use crate::shutdown::Drain;
use crate::telemetry::history::SAMPLES;
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;
use crate::upstream::table::Table;

/// For a request head, and between two requests of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a request body. Bytes.
const BODY_LIMIT: usize = 4096;
/// Of a request head. Bytes.
const HEAD_LIMIT: usize = 16 << 10;

/// Which of the two listeners it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// `listeners.admin`
    Admin,
    /// `listeners.probes`
    Probes,
}

/// What the endpoints show and order.
pub struct Admin {
    /// The routing snapshot.
    pub table: Arc<Shared<Table>>,
    /// All counters.
    pub metrics: Arc<Metrics>,
    /// For `outrigger_replay_bytes`.
    pub replay: Arc<ReplayMemory>,
    /// Whether it is on its way out.
    pub drain: Arc<Drain>,
    /// Changes the table.
    pub reloader: Arc<Reloader>,
    /// What the dashboard shows besides.
    pub live: Arc<Live>,
}

/// Serves a listener until `stop` is cancelled or the drain ends.
pub async fn serve(listener: TcpListener, surface: Surface, admin: Arc<Admin>, stop: CancellationToken) {
    let mut seats = Seats::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            () = admin.drain.ended.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: accepting at once again would only spin.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(seat) = seats.take() else { continue };
        let (admin, stop) = (admin.clone(), stop.clone());
        tokio::spawn(async move {
            let (ended, cut) = (admin.drain.ended.clone(), seat.cut.clone());
            let _leaves = seat.cut.clone().drop_guard();
            let Ok(local) = stream.local_addr() else { return };
            tokio::select! {
                () = ended.cancelled() => {}
                () = cut.cancelled() => {}
                () = connection(stream, surface, admin, Link { local, stop, seat }) => {}
            }
        });
    }
}

async fn connection(stream: TcpStream, surface: Surface, admin: Arc<Admin>, link: Link) {
    // Answers are one write each; where it fails they are late, not wrong.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let (admin, link) = (admin.clone(), link.clone());
        async move { Ok::<_, Infallible>(admin.answer(surface, &link, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of an operator's ended early");
    }
}

type Answer = Response<Either<Full<Bytes>, Events>>;

/// What a path is for, and the one method besides HEAD that it takes.
enum Endpoint<'a> {
    Live,
    Ready,
    Metrics,
    Page,
    Index,
    Upstreams,
    History,
    Failures,
    Events,
    Circuit(&'a str),
    Config,
    Reload,
    LastReload,
    Reloads,
}

impl Endpoint<'_> {
    fn find(surface: Surface, path: &str) -> Option<Endpoint<'_>> {
        let endpoint = match path {
            "/livez" => return Some(Endpoint::Live),
            "/readyz" => return Some(Endpoint::Ready),
            "/metrics" => return Some(Endpoint::Metrics),
            "/" => Endpoint::Page,
            "/api" => Endpoint::Index,
            "/api/upstreams" => Endpoint::Upstreams,
            "/api/history" => Endpoint::History,
            "/api/failures" => Endpoint::Failures,
            "/api/events" => Endpoint::Events,
            "/config" => Endpoint::Config,
            "/reload" => Endpoint::Reload,
            "/api/reload" => Endpoint::LastReload,
            "/api/reloads" => Endpoint::Reloads,
            _ => Endpoint::Circuit(api::circuit_of(path)?),
        };
        (surface == Surface::Admin).then_some(endpoint)
    }

    /// Whether it changes something, so that it takes POST.
    fn changes(&self) -> bool {
        match self {
            Endpoint::Circuit(_) | Endpoint::Reload => true,
            Endpoint::Live
            | Endpoint::Ready
            | Endpoint::Metrics
            | Endpoint::Page
            | Endpoint::Index
            | Endpoint::Upstreams
            | Endpoint::History
            | Endpoint::Failures
            | Endpoint::Events
            | Endpoint::Config
            | Endpoint::LastReload
            | Endpoint::Reloads => false,
        }
    }

    /// Whether it is answered without the token: kubelets have none, and the page asks for it.
    fn open(&self) -> bool {
        matches!(self, Endpoint::Live | Endpoint::Ready | Endpoint::Page)
    }
}

impl Admin {
    async fn answer(self: &Arc<Self>, surface: Surface, link: &Link, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let endpoint = Endpoint::find(surface, head.uri.path());
        if surface == Surface::Admin {
            let table = self.table.load();
            let token = table.config.listeners.admin_token.as_ref().map(|token| token.reveal());
            let token = token.filter(|_| !endpoint.as_ref().is_some_and(Endpoint::open));
            let allowed =
                guard::host(&head.headers, &head.uri, link.local).and_then(|()| guard::token(&head.headers, token));
            if let Err(refusal) = allowed {
                return refused(refusal);
            }
        }
        let Some(endpoint) = endpoint else {
            return problem(StatusCode::NOT_FOUND, "there is nothing at this path");
        };
        let fits = match head.method {
            Method::POST => endpoint.changes(),
            Method::GET | Method::HEAD => !endpoint.changes(),
            _ => false,
        };
        if !fits {
            let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method");
            let allow = if endpoint.changes() { "POST" } else { "GET, HEAD" };
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            return answer;
        }
        // Nobody else's page may take the few places of those who look, either.
        if (endpoint.changes() || matches!(endpoint, Endpoint::Events))
            && let Err(refusal) = guard::same_origin(&head.headers)
        {
            return refused(refusal);
        }
        match endpoint {
            Endpoint::Live => text(StatusCode::OK, "ok\n"),
            Endpoint::Ready if self.drain.begun.is_cancelled() => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            Endpoint::Ready => text(StatusCode::OK, "ok\n"),
            Endpoint::Metrics => {
                self.aside(|admin| {
                    let shown = scrape::scrape(&admin.metrics, &admin.table.load(), &admin.replay, Instant::now());
                    reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", shown)
                })
                .await
            }
            Endpoint::Page => page(),
            Endpoint::Index => text(StatusCode::OK, INDEX),
            Endpoint::Upstreams => {
                self.aside(|admin| {
                    let draining = admin.drain.begun.is_cancelled();
                    let now = Instant::now();
                    show(StatusCode::OK, &api::upstreams(&admin.table.load(), &admin.live, draining, now))
                })
                .await
            }
            Endpoint::History => {
                self.aside(|admin| {
                    let table = admin.table.load();
                    let names = table.all().map(|upstream| &upstream.name);
                    show(StatusCode::OK, &api::history(&admin.live.history(), names, SAMPLES))
                })
                .await
            }
            Endpoint::Failures => {
                let failures = self.reloader.proxy().failures.after(0);
                show(StatusCode::OK, &json!({"failures": api::failures(&failures)}))
            }
            Endpoint::Events => self.events(link, &head.method),
            Endpoint::Config => self.aside(|admin| show(StatusCode::OK, &admin.table.load().config.effective())).await,
            Endpoint::LastReload => self.aside(|admin| show(StatusCode::OK, &admin.reloader.last().json())).await,
            Endpoint::Reloads => {
                self.aside(|admin| show(StatusCode::OK, &json!({"reloads": admin.reloader.past().json()}))).await
            }
            Endpoint::Reload => self.reload().await,
            Endpoint::Circuit(name) => self.circuit(name, body).await,
        }
    }

    /// An answer that grows with the number of upstreams: to write down a thousand takes longer than a request should wait. Those that
    /// nobody waits for any more are not begun, and others wait, so that a flood of them is no flood of threads.
    async fn aside(self: &Arc<Self>, make: impl FnOnce(&Admin) -> Answer + Send + 'static) -> Answer {
        // It is never closed.
        let turn = self.live.writers.clone().acquire_owned().await;
        let admin = self.clone();
        let written = aside(move || {
            let _turn = turn;
            make(&admin)
        });
        let internal = || problem(StatusCode::INTERNAL_SERVER_ERROR, "an internal error, see the log");
        written.await.unwrap_or_else(internal)
    }

    fn events(self: &Arc<Self>, link: &Link, method: &Method) -> Answer {
        let begin = |body| {
            let mut answer = Response::new(body);
            dress(&mut answer, "text/event-stream; charset=utf-8");
            answer
        };
        if *method == Method::HEAD {
            return begin(Either::Left(Full::default()));
        }
        match self.watch(link) {
            Some(events) => begin(Either::Right(events)),
            None => {
                let sentence = format!("{} look already, which is as many as may", stream::STREAMS);
                let mut answer = problem(StatusCode::SERVICE_UNAVAILABLE, &sentence);
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
                answer
            }
        }
    }

    async fn reload(self: &Arc<Self>) -> Answer {
        // In a task of its own, since whoever asked may hang up in the middle.
        let reloader = self.reloader.clone();
        match tokio::spawn(async move { reloader.reload(Cause::Asked).await }).await {
            Ok(status) => {
                let code = if status.took_effect() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
                // A line for each change, and for each danger.
                self.aside(move |_| show(code, &status.json())).await
            }
            Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "the reload ended in an internal error, see the log"),
        }
    }

    async fn circuit(&self, name: &str, body: Incoming) -> Answer {
        let body = match timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => return problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 4 KiB or broke off"),
            Err(_) => return problem(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
        };
        let order = match api::order(&body) {
            Ok(order) => order,
            Err(sentence) => return problem(StatusCode::BAD_REQUEST, &sentence),
        };
        // Not while a reload carries state over, or the order would be lost with the old table.
        let (reloader, name) = (self.reloader.clone(), name.to_owned());
        let ordered = tokio::spawn(async move { reloader.alone(|table| apply(table, &name, order)).await }).await;
        match ordered {
            Ok(Some((upstream, true))) => show(StatusCode::OK, &api::upstream(&upstream, &self.live, Instant::now())),
            Ok(Some((_, false))) => {
                problem(StatusCode::CONFLICT, "this upstream has no circuit breaker (circuit_breaker: off)")
            }
            Ok(None) => problem(StatusCode::NOT_FOUND, "no upstream has this name"),
            Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "the order ended in an internal error, see the log"),
        }
    }
}

/// Orders every circuit of an upstream, and tells whether it has one. `None`: there is no such upstream.
fn apply(table: &Table, name: &str, order: Override) -> Option<(Arc<Upstream>, bool)> {
    let upstream = table.named(name)?;
    let mut any = false;
    for (lane, _) in scrape::lanes(upstream) {
        any |= lane.policies.order(order);
    }
    if any {
        tracing::warn!(upstream = name, order = api::word(order), "an operator ordered the circuit");
    }
    Some((upstream.clone(), any))
}

const INDEX: &str = "\
Outrigger

GET  /livez
GET  /readyz
GET  /metrics
GET  /                               the dashboard
GET  /api                            this list
GET  /api/upstreams                  state of every upstream
GET  /api/history                    samples of the last 15 minutes
GET  /api/failures                   the last requests that failed
GET  /api/events                     all of it, live, as server-sent events
POST /api/upstreams/NAME/circuit     {\"state\": \"open\" | \"closed\" | \"auto\"}
GET  /config                         effective configuration, secrets hidden
POST /reload                         answers what changed, or every problem
GET  /api/reload                     how the last reload went
GET  /api/reloads                    how the last ones went
";

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    dress(&mut answer, kind);
    answer
}

/// The headers of every answer.
fn dress(answer: &mut Answer, kind: &'static str) {
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // No page of anybody's may frame it, run it or embed it, whatever it is.
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
}

fn page() -> Answer {
    let mut answer = reply(StatusCode::OK, "text/html; charset=utf-8", page::PAGE);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, page::policy());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    answer
}

fn text(status: StatusCode, body: &'static str) -> Answer {
    reply(status, "text/plain; charset=utf-8", body)
}

fn show(status: StatusCode, value: &Value) -> Answer {
    reply(status, "application/json", format!("{value:#}\n"))
}

fn problem(status: StatusCode, sentence: &str) -> Answer {
    let title = status.canonical_reason().unwrap_or_default();
    let body = json!({"title": title, "status": status.as_u16(), "detail": sentence});
    reply(status, "application/problem+json", format!("{body:#}\n"))
}

fn refused(refusal: guard::Refusal) -> Answer {
    let mut answer = problem(refusal.status, refusal.text);
    if refusal.status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}
