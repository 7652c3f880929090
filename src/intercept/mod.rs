//! Seeing into HTTPS: the local CA, a certificate for each host that an upstream intercepts, and what the app needs to trust
//! them. Ending TLS with them is `proxy::inside`'s.

mod authority;
mod leaves;
mod pkcs12;
mod store;
pub(crate) mod trust;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;

pub(crate) use authority::Authority;
use leaves::Leaves;
use trust::Trust;

use crate::config::{self, Config, Connect, HostPattern, Intercept};
use crate::origin::Host;

/// A CA in use. It lives as long as the configuration that names it, over reloads.
pub(crate) struct Interception {
    settings: Intercept,
    /// The proxy port, as apps are told.
    proxy: SocketAddr,
    leaves: Arc<Leaves>,
    /// What the CA may sign for; `None`: anything.
    scope: Option<Vec<Host>>,
}

impl Interception {
    /// The CA of a configuration: the old one, as long as that serves.
    ///
    /// # Errors
    /// A sentence that says why there can't be one.
    pub(crate) fn evolve(
        old: Option<&Arc<Interception>>,
        config: &Config,
    ) -> Result<Option<Arc<Interception>>, String> {
        let Some(settings) = &config.intercept else { return Ok(None) };
        let hosts = intercepted(config);
        match old {
            // Apps loaded their trust once, so a CA that was made here stays, whatever else changes.
            Some(old) if is_same(&old.settings.authority, &settings.authority) => {
                old.covers(&hosts)?;
                let proxy = config.listeners.proxy;
                if (&old.settings.dir, old.proxy) == (&settings.dir, proxy) {
                    return Ok(Some(old.clone()));
                }
                let (leaves, scope) = (old.leaves.clone(), old.scope.clone());
                let new = Interception { settings: settings.clone(), proxy, leaves, scope };
                new.publish()?;
                Ok(Some(Arc::new(new)))
            }
            Some(_) | None => {
                let new = Interception::new(settings.clone(), &hosts, config.listeners.proxy)?;
                if let Err(problem) = new.covers(&hosts) {
                    if old.is_some() {
                        return Err(problem);
                    }
                    // Not starting would take everything else away from the app.
                    tracing::warn!("intercept: apps will refuse a certificate: {problem}");
                }
                Ok(Some(Arc::new(new)))
            }
        }
    }

    fn new(settings: Intercept, hosts: &[HostPattern], proxy: SocketAddr) -> Result<Interception, String> {
        let (authority, scope) = match &settings.authority {
            config::Authority::Given(identity) => (Authority::given(identity.chain.clone(), &identity.key)?, None),
            config::Authority::Generated { key_dir, constrain } => {
                store::generated(key_dir.as_deref(), constrain.then_some(hosts), SystemTime::now())?
            }
        };
        let new = Interception { settings, proxy, leaves: Arc::new(Leaves::new(authority)?), scope };
        new.publish()?;
        Ok(new)
    }

    /// Writes what apps have to trust.
    fn publish(&self) -> Result<(), String> {
        let Some(dir) = &self.settings.dir else { return Ok(()) };
        store::publish(dir, &Trust { chain: self.chain() }, self.proxy)
    }

    /// TLS settings that present a certificate for this host.
    ///
    /// # Errors
    /// What kept one from being made.
    pub(crate) fn tls(&self, host: &Host, now: SystemTime) -> Result<Arc<ServerConfig>, String> {
        self.leaves.tls(host, now)
    }

    /// The CA's certificate, then what is above it.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        self.leaves.authority().chain()
    }

    /// Whether apps that trust the CA will accept what it signs for these.
    fn covers(&self, hosts: &[HostPattern]) -> Result<(), String> {
        let Some(scope) = &self.scope else { return Ok(()) };
        let outside = hosts.iter().find(|pattern| !scope.iter().any(|within| is_within(&pattern.host, within)));
        match outside {
            None => Ok(()),
            Some(pattern) => Err(format!(
                "{} is outside what the CA that apps trust may sign for: restart the pod, so that a new one is made (where `key_dir` \
                 outlives that, empty it), or set `constrain: off` before its first start",
                pattern.host
            )),
        }
    }
}

/// Whether two settings mean the same CA. One that was made is not made again for what would make another one different.
fn is_same(old: &config::Authority, new: &config::Authority) -> bool {
    match (old, new) {
        (config::Authority::Given(old), config::Authority::Given(new)) => old == new,
        (
            config::Authority::Generated { key_dir: old, constrain: _ },
            config::Authority::Generated { key_dir: new, constrain: _ },
        ) => old == new,
        (config::Authority::Given(_), config::Authority::Generated { .. })
        | (config::Authority::Generated { .. }, config::Authority::Given(_)) => false,
    }
}

/// A name constraint stands for the name and what is below it (RFC 5280 section 4.2.1.10).
fn is_within(host: &Host, within: &Host) -> bool {
    match (host, within) {
        (Host::Name(host), Host::Name(within)) => {
            host.strip_suffix(&**within).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        }
        (Host::Ip(_) | Host::Name(_), Host::Ip(_) | Host::Name(_)) => host == within,
    }
}

/// What the upstreams of a configuration intercept.
fn intercepted(config: &Config) -> Vec<HostPattern> {
    let upstreams = config.upstreams.iter().filter(|upstream| upstream.connect == Connect::Intercept);
    upstreams.flat_map(|upstream| upstream.hosts.iter().cloned()).collect()
}
