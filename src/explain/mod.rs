//! What the proxy would do with a request: which upstream and route, by which policies, from where in the file.
//!
//! Nothing is sent, dialled or looked up. Every choice is made by the functions that the proxy itself calls (`proxy::target`,
//! `proxy::way`, `upstream::index`, `upstream::route`, `upstream::egress`, `policy::retry`); here they are asked in its
//! order, and the reasons written down.

mod cases;
mod clocks;
mod destination;
mod question;
mod retries;
mod route;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod upstream;

use std::fmt;
use std::iter;
use std::net::SocketAddr;

use http::{HeaderMap, Method, Version};
use serde::Serialize;

pub use crate::explain::cases::Case;
pub use crate::explain::clocks::Clocks;
pub use crate::explain::destination::{Destination, Tls, Verdict};
pub use crate::explain::question::Question;
pub use crate::explain::retries::Retries;
pub use crate::explain::route::{Choice as RouteChoice, Other};
pub use crate::explain::settings::Setting;
pub use crate::explain::state::State;
pub use crate::explain::upstream::{Choice as UpstreamChoice, Pattern};

use crate::address::AddressSet;
use crate::config::{self, Config, effective};
use crate::document::Place;
use crate::error::{Denial, Error};
use crate::explain::destination::Way;
use crate::explain::retries::Request;
use crate::explain::settings::Lane;
use crate::fields::Fields;
use crate::origin::{Origin, Scheme};
use crate::policy::pipeline::is_grpc;
use crate::policy::policies;
use crate::policy::timeout::Deadline;
use crate::proxy::target::Form;
use crate::proxy::{headers, way};
use crate::upstream::route as lead;

/// A place in the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Spot {
    /// As the command line named it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
}

impl Spot {
    fn of(place: &Place) -> Spot {
        Spot { file: place.file.display().to_string(), line: place.line, column: place.column }
    }
}

/// `name:line`, without the directory.
impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.file.rsplit('/').next().unwrap_or(&self.file);
        write!(f, "{name}:{}", self.line)
    }
}

/// What the proxy would do with a request.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The request: `POST http://api.stripe.com/v1/charges`. Values of the query are left out.
    pub request: String,
    /// `request`, `tunnel`, `intercepted` (a CONNECT whose TLS ends here), or `refused`.
    pub verdict: &'static str,
    /// Whether the app's TLS ends here, by `https: intercept`, and the request is one inside it.
    pub inside: bool,
    /// Why it is refused, and what the app gets.
    pub refusal: Option<Refusal>,
    /// Whose policies; `None` where it is refused before that is asked.
    pub upstream: Option<UpstreamChoice>,
    /// Which of its routes; `None` for tunnels and hosts that no upstream names.
    pub route: Option<RouteChoice>,
    /// Where it goes: one of these, the least loaded of two at random. On an upstream's own port too.
    pub leads_to: Vec<Destination>,
    /// Every setting that it meets; none where it is refused or intercepted.
    pub policy: Vec<Setting>,
    /// Whose state it shares; none where it is refused or intercepted.
    pub state: Vec<State>,
    /// What is sent again; `None` where it is refused or intercepted.
    pub retries: Option<Retries>,
    /// The worst case; `None` where it is refused or intercepted.
    pub clocks: Option<Clocks>,
    /// For a URL with `https://`, which becomes a tunnel: what the same request gets as `http://`.
    pub as_http: Option<AsHttp>,
    /// What may surprise.
    pub notes: Vec<String>,
}

/// What the app gets instead.
#[derive(Debug, Serialize)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// As in the answer's `type`.
    pub code: &'static str,
    /// One sentence.
    pub why: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The setting that refuses it, where the file writes it.
    pub place: Option<Spot>,
}

/// The same request as `http://`.
#[derive(Debug, Serialize)]
pub struct AsHttp {
    /// What to ask for.
    pub url: String,
    /// As above; `None` where it would be refused.
    pub upstream: Option<String>,
    /// As above.
    pub route: Option<String>,
    /// Origins.
    pub leads_to: Vec<String>,
    /// Whether the whole way is without TLS: as the app asked, since nothing says otherwise.
    pub plain: bool,
    /// The code of its refusal.
    pub refused: Option<&'static str>,
}

/// Explains what happens to the request under this configuration.
pub fn explain(config: &Config, question: &Question) -> Explanation {
    let intercepted = question.is_tunnel() && upstream::intercepts(config, &question.target);
    let inside = question.inside().filter(|_| intercepted);
    let question = inside.as_ref().unwrap_or(question);
    let verdict = match (question.is_tunnel(), intercepted) {
        (true, true) => "intercepted",
        (true, false) => "tunnel",
        (false, _) => "request",
    };
    let mut explanation = Explanation {
        request: question.shown(),
        verdict,
        inside: inside.is_some(),
        refusal: None,
        upstream: None,
        route: None,
        leads_to: Vec::new(),
        policy: Vec::new(),
        state: Vec::new(),
        retries: None,
        clocks: None,
        as_http: question.as_http().filter(|_| !intercepted).map(|question| as_http(config, &question)),
        notes: Vec::new(),
    };
    if let Err((error, place)) = fill(config, question, &mut explanation) {
        explanation.verdict = "refused";
        explanation.refusal = Some(refusal(&error, place));
        (explanation.policy, explanation.state) = (Vec::new(), Vec::new());
    }
    explanation
}

/// A refusal, and the setting behind it.
type Refused = (Error, Option<Spot>);

fn fill(config: &Config, question: &Question, explanation: &mut Explanation) -> Result<(), Refused> {
    let target = &question.target;
    let (found, choice) = upstream::choose(config, target);
    let at = match own_port(config, question) {
        Some(at) => {
            explanation.upstream = Some(upstream::by_port(config, at));
            explanation.notes.push(format!(
                "This is a call to the port itself. Through HTTP_PROXY the same URL leads back to Outrigger and is refused \
                 (508 loop): NO_PROXY has to keep {} out of the proxy.",
                target.host
            ));
            Some(at)
        }
        None => {
            let admitted = way::admit(config, config.listeners.proxy, target, found);
            if !matches!(admitted, Err(Error::Loop)) {
                explanation.upstream = Some(choice);
            }
            admitted.map_err(|error| {
                let place = spot(config, "egress.unmatched").filter(|_| !matches!(error, Error::Loop));
                (error, place)
            })?
        }
    };
    let by_port = own_port(config, question).is_some();
    let upstream = at.map(|at| &*config.upstreams[at]);

    let tunnel = question.is_tunnel();
    if tunnel || explanation.inside {
        let refused = |error: Error| {
            let place = match (&error, upstream) {
                (Error::Denied(Denial::ConnectPort(_)), _) => spot(config, "egress.connect_ports"),
                (_, Some(upstream)) => spot(config, &format!("upstreams.{}.https", upstream.name)),
                (_, None) => None,
            };
            (error, place)
        };
        way::may_tunnel(config, upstream, target).map_err(refused)?;
    }
    if tunnel && upstream.is_some_and(|upstream| upstream.connect == config::Connect::Intercept) {
        explanation.notes.push(format!(
            "Nothing is dialled for the CONNECT itself. To see what a request inside gets, ask for its URL, as in \
             `GET https://{}/`.",
            target.authority()
        ));
        return Ok(());
    }
    let mut headers = question.headers.clone();
    let upgrade = headers::asks_upgrade(&headers, Version::HTTP_11);
    let route = match upstream {
        Some(upstream) if !tunnel => {
            let (chosen, choice) = route::choose(config, upstream, &question.method, question.uri.path());
            explanation.route = Some(choice);
            chosen.map(|at| &upstream.routes[at])
        }
        Some(_) | None => None,
    };
    let policies = match (upstream, route) {
        (_, Some(route)) => &route.policies,
        (Some(upstream), None) => &upstream.policies,
        (None, None) => &config.unmatched.policies,
    };
    explanation.policy = Lane { config, upstream, route, tunnel, inside: explanation.inside, upgrade }.settings();
    explanation.state = {
        let show_key = !is_hidden(&explanation.policy, "rate_limit.key");
        state::states(upstream, route, policies, tunnel, show_key)
    };

    let keys = policies.retry.as_ref().map_or(&[][..], |retry| &retry.idempotency_headers);
    let fields = Fields::of(&headers);
    headers::remove_hop_by_hop(&mut headers, fields, upgrade, keys);
    if tunnel {
        headers = HeaderMap::new();
    } else {
        headers::expects_continue(&headers, Version::HTTP_11).map_err(|error| (error, None))?;
    }

    let nowhere = AddressSet::default();
    let way = Way {
        config,
        to: upstream.map_or(&[], |upstream| &upstream.to),
        tls: upstream.map_or(&config.unmatched.tls, |upstream| &upstream.tls),
        http: upstream.map_or(config.unmatched.connections.http, |upstream| upstream.connections.http),
        allow: upstream.map_or(&nowhere, |upstream| &upstream.allow_addresses),
        target,
        keep_host: !by_port,
        upgrade,
    };
    explanation.leads_to = if tunnel {
        way.tunnel(&way::of_tunnel(target))
    } else {
        way.request(&asked(upstream, question, by_port).map_err(|error| (error, None))?)
    };
    explanation.notes.extend(notes(question, upstream, explanation));
    if explanation.leads_to.iter().all(|to| to.egress.refusal.is_some())
        && let Some(error) = explanation.leads_to.iter().find_map(|to| to.egress.refusal.clone())
    {
        return Err((error, spot(config, "egress.deny")));
    }
    answer(config, question, policies, &headers, tunnel, explanation);
    Ok(())
}

/// Retries and clocks.
fn answer(
    config: &Config,
    question: &Question,
    policies: &policies::Settings,
    headers: &HeaderMap,
    tunnel: bool,
    explanation: &mut Explanation,
) {
    let request = Request {
        settings: policies.retry.as_ref(),
        method: if tunnel { &Method::CONNECT } else { &question.method },
        headers,
        body: question.body,
        memory: config.limits.replay_memory,
        show_names: !is_hidden(&explanation.policy, "retry.idempotency_headers"),
        tunnel,
        attempt_clock: policies.timeouts.attempt.is_some(),
    };
    let grpc = is_grpc(headers);
    let limit = Deadline::new(&policies.timeouts, headers, grpc).limit();
    if limit != policies.timeouts.request {
        explanation
            .notes
            .push("The request's own `grpc-timeout` is shorter than `timeouts.request`, and counts.".to_owned());
    }
    if grpc {
        explanation.notes.push(
            "A gRPC answer of trailers only counts by its grpc-status: 14 as 503, 4 as 504, 8 as 429.".to_owned(),
        );
    }
    explanation.retries = Some(request.explain());
    explanation.clocks = Some(clocks::add_up(&request, policies, limit));
}

/// Whether a setting has what must not be shown.
fn is_hidden(policy: &[Setting], path: &str) -> bool {
    let hidden = |value: &serde_json::Value| value == effective::HIDDEN;
    let setting = policy.iter().find(|setting| setting.setting == path);
    setting.is_some_and(|setting| {
        hidden(&setting.value) || setting.value.as_array().is_some_and(|items| items.iter().any(hidden))
    })
}

/// The upstream whose own port the URL names: that is what a base URL looks like.
fn own_port(config: &Config, question: &Question) -> Option<usize> {
    let target = &question.target;
    if question.is_tunnel() || target.scheme != Scheme::Http {
        return None;
    }
    let is = |address: SocketAddr| target.is_own(address, iter::empty());
    let others = [Some(config.listeners.proxy), config.listeners.admin, config.listeners.probes];
    if others.into_iter().flatten().any(is) {
        return None;
    }
    config.upstreams.iter().position(|upstream| upstream.listen.is_some_and(is))
}

/// Where it leads without `to`.
fn asked(upstream: Option<&config::Upstream>, question: &Question, by_port: bool) -> Result<Origin, Error> {
    match upstream {
        Some(upstream) if by_port => way::own_port(upstream),
        Some(_) | None => {
            let target = &question.target;
            Ok(lead::origin(upstream, target.scheme, target.host.clone(), target.port))
        }
    }
}

/// Where the file writes a setting.
fn spot(config: &Config, path: &str) -> Option<Spot> {
    config.origin_of(path)?.place.as_ref().map(Spot::of)
}

fn refusal(error: &Error, place: Option<Spot>) -> Refusal {
    let help = match error {
        Error::Loop => {
            Some("name the upstream's own address, or give the app an upstream's `listen` port as its base URL")
        }
        Error::Denied(Denial::Unmatched) => {
            Some("name the host in an upstream, or let all of them through by `egress: {unmatched: forward}`")
        }
        // What it says already has what to do.
        Error::Denied(Denial::Address(..) | Denial::ConnectPort(_) | Denial::Connect) => None,
        Error::Expectation => Some("send `Expect: 100-continue` or none"),
        Error::BadRequest(_)
        | Error::UriTooLong
        | Error::Misdirected
        | Error::HeadersTooLarge(_)
        | Error::AppSilent
        | Error::AppGone
        | Error::CircuitOpen(_)
        | Error::RateLimited(_)
        | Error::ConcurrencyLimited
        | Error::NoConnection
        | Error::Overloaded(_)
        | Error::Connect { .. }
        | Error::Reset { .. }
        | Error::BadAnswer(_)
        | Error::AttemptTimeout { .. }
        | Error::Deadline { .. }
        | Error::UpstreamSilent
        | Error::ShuttingDown
        | Error::Panic => None,
    };
    Refusal { status: error.status(), code: error.code(), why: error.to_string(), help: help.map(str::to_owned), place }
}

fn as_http(config: &Config, question: &Question) -> AsHttp {
    let explained = explain(config, question);
    let leads_to = &explained.leads_to;
    AsHttp {
        url: question.shown_url(),
        upstream: explained.upstream.map(|upstream| upstream.name),
        route: explained.route.and_then(|route| route.name),
        plain: !leads_to.is_empty() && leads_to.iter().all(|to| to.tls.is_none()),
        leads_to: leads_to.iter().map(|to| to.origin.clone()).collect(),
        refused: explained.refusal.map(|refusal| refusal.code),
    }
}

/// What may surprise, besides what has a place of its own.
fn notes(question: &Question, upstream: Option<&config::Upstream>, explanation: &Explanation) -> Vec<String> {
    let mut notes = Vec::new();
    let target = &question.target;
    let changed = |to: &Destination| target.form == Form::Absolute && target.scheme == Scheme::Http && to.tls.is_some();
    if question.is_tunnel() {
        let ignored: Vec<&str> = upstream
            .map(|upstream| {
                let written = [("to", !upstream.to.is_empty()), ("routes", !upstream.routes.is_empty())];
                written.into_iter().filter(|(_, written)| *written).map(|(key, _)| key).collect()
            })
            .unwrap_or_default();
        if !ignored.is_empty() {
            notes.push(format!(
                "A tunnel goes to the host it names: `{}` has no effect on it.",
                ignored.join("` and `")
            ));
        }
    } else if explanation.leads_to.iter().any(changed) {
        notes.push("The app asks for http://, and it leaves over TLS.".to_owned());
    } else if upstream.is_none() {
        notes.push(
            "No upstream names the host, so it leaves as the app asked: plain HTTP, which nobody encrypts.".to_owned(),
        );
    }
    notes
}
