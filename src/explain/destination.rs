//! Where a request leads: origin, names, protocol, and whether the address may be dialled, as far as that can be said
//! without a look-up.

use serde::Serialize;

use crate::address::{AddressSet, LOCALHOST};
use crate::config::{self, Config, HttpVersion};
use crate::error::Error;
use crate::origin::{Host, Origin, Scheme};
use crate::proxy::target::{Target, own_addresses};
use crate::upstream::egress::{Egress, is_exempt};
use crate::upstream::route::{Names, http1_only};

/// One place that the request may go to.
#[derive(Debug, Serialize)]
pub struct Destination {
    /// Scheme, host and port: `https://api.stripe.com`. For a tunnel `host:port`.
    pub origin: String,
    /// The port, also where it is the scheme's own.
    pub port: u16,
    /// The Host header, or `:authority`, that is sent; `None` in a tunnel.
    pub host: Option<String>,
    /// `None` where no TLS is spoken by Outrigger.
    pub tls: Option<Tls>,
    /// `HTTP/1.1`, `HTTP/2`, or either.
    pub http: Option<&'static str>,
    /// Whether the address may be dialled.
    pub egress: Verdict,
}

/// How TLS is spoken.
#[derive(Debug, Serialize)]
pub struct Tls {
    /// What the certificate has to be for.
    pub server_name: String,
    /// The name sent in the handshake; an address is not sent.
    pub sni: bool,
    /// The lowest version.
    pub min_version: &'static str,
    /// `system`, or the file of `tls.ca_file`.
    pub roots: String,
    /// Whether a client certificate is presented when asked for.
    pub client_certificate: bool,
}

/// What `egress.deny` says.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// `allowed`, `denied`, or `when_resolved`: a name's addresses are judged when they are known.
    pub verdict: &'static str,
    /// One sentence.
    pub why: String,
    /// Why it is refused.
    #[serde(skip)]
    pub(super) refusal: Option<Error>,
}

/// What the names and the protocol depend on, besides the origin.
pub(super) struct Way<'a> {
    /// The whole configuration.
    pub(super) config: &'a Config,
    /// `to` of the upstream; empty: to the host asked for.
    pub(super) to: &'a [Origin],
    /// Of the upstream, or of hosts without one.
    pub(super) tls: &'a config::Tls,
    /// Likewise.
    pub(super) http: HttpVersion,
    /// Likewise.
    pub(super) allow: &'a AddressSet,
    /// What the app asked for.
    pub(super) target: &'a Target,
    /// False on an upstream's own port.
    pub(super) keep_host: bool,
    /// The app asks to switch protocols.
    pub(super) upgrade: bool,
}

impl Way<'_> {
    /// For a request: `asked` is where it leads without `to`.
    pub(super) fn request(&self, asked: &Origin) -> Vec<Destination> {
        if self.to.is_empty() {
            let host = if self.keep_host { self.target.authority() } else { asked.authority() };
            let server = self.tls.server_name.clone().unwrap_or_else(|| asked.host.clone());
            return vec![self.destination(asked, host, server)];
        }
        let one = |origin: &Origin| {
            let names = Names::towards(origin, self.keep_host, self.tls);
            let host = if names.host_of_to { origin.authority() } else { self.target.authority() };
            let server = match &self.tls.server_name {
                Some(name) => name.clone(),
                None if names.server_asked_for => self.target.host.clone(),
                None => origin.host.clone(),
            };
            self.destination(origin, host, server)
        };
        self.to.iter().map(one).collect()
    }

    fn destination(&self, origin: &Origin, host: String, server: Host) -> Destination {
        let tls = (origin.scheme == Scheme::Https).then(|| Tls {
            sni: server.ip().is_none(),
            server_name: server.to_string(),
            min_version: if self.tls.tls13_only { "1.3" } else { "1.2" },
            roots: self.tls.ca_file.as_ref().map_or_else(|| "system".to_owned(), |file| file.display().to_string()),
            client_certificate: self.tls.identity.is_some(),
        });
        let http = if http1_only(self.upgrade, self.http) {
            "HTTP/1.1"
        } else {
            match (self.http, origin.scheme) {
                (HttpVersion::Auto, Scheme::Https) => "HTTP/2 or HTTP/1.1",
                (HttpVersion::Auto, Scheme::Http) | (HttpVersion::Http1, _) => "HTTP/1.1",
                (HttpVersion::Http2, _) => "HTTP/2",
            }
        };
        let egress = self.judge(origin, is_exempt(self.to, origin));
        Destination { origin: origin.to_string(), port: origin.port, host: Some(host), tls, http: Some(http), egress }
    }

    /// For a tunnel.
    pub(super) fn tunnel(&self, origin: &Origin) -> Vec<Destination> {
        let egress = self.judge(origin, false);
        let shown = format!("{}:{}", origin.host, origin.port);
        vec![Destination { origin: shown, port: origin.port, host: None, tls: None, http: None, egress }]
    }

    fn judge(&self, origin: &Origin, exempt: bool) -> Verdict {
        let own = own_addresses(&self.config.listeners).collect();
        let rules = Egress { deny: self.config.egress.deny.clone(), own };
        let judged = match &origin.host {
            Host::Ip(ip) => rules.allowed([*ip], origin.port, exempt, self.allow),
            Host::Name(_) if origin.host.is_localhost() => rules.allowed(LOCALHOST, origin.port, exempt, self.allow),
            Host::Name(_) => return self.when_resolved(),
        };
        match judged {
            Ok(_) if exempt => {
                let why = "an address written in `to` is your own word: `egress.deny` does not apply".to_owned();
                Verdict { verdict: "allowed", why, refusal: None }
            }
            Ok(_) => {
                let ip = origin.host.ip().unwrap_or(LOCALHOST[0]);
                let lifted = self.config.egress.deny.judge(ip);
                let why = match lifted {
                    Some(rule) => format!("`egress.deny` has {rule}, and `allow_addresses` lifts it here"),
                    None => "no rule of `egress.deny` covers the address".to_owned(),
                };
                Verdict { verdict: "allowed", why, refusal: None }
            }
            Err(error) => Verdict { verdict: "denied", why: error.to_string(), refusal: Some(error) },
        }
    }

    fn when_resolved(&self) -> Verdict {
        let list = |set: &AddressSet| set.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut why = format!("judged once the name is resolved: never {}", list(&self.config.egress.deny));
        if !self.allow.0.is_empty() {
            why.push_str(&format!(", except {} (`allow_addresses`)", list(self.allow)));
        }
        Verdict { verdict: "when_resolved", why, refusal: None }
    }
}
