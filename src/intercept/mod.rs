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

/// What mends a CA that is too narrow.
const RESTART: &str = "restart the pod, so that a new one is made; with `constrain: off` that one signs for any host";

/// A CA in use. It lives as long as the configuration that names it, over reloads.
pub(crate) struct Interception {
    settings: Intercept,
    /// Which `env.sh` names.
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
        let (hosts, proxy) = (intercepted(config), config.listeners.proxy);
        let Some(old) = old.filter(|old| old.serves(settings)) else {
            let new = Interception::new(settings.clone(), &hosts, proxy)?;
            if let Some(host) = new.outside(&hosts) {
                // The app loaded this CA when it started; a new one would break the hosts that work.
                tracing::error!(%host, "the CA that is kept from before may not sign for this host, so apps refuse it: {RESTART}");
            }
            return Ok(Some(Arc::new(new)));
        };
        if let Some(host) = old.outside(&hosts) {
            return Err(format!("{host} is outside what the CA that apps trust may sign for: {RESTART}"));
        }
        if *settings == old.settings && proxy == old.proxy {
            return Ok(Some(old.clone()));
        }
        let (leaves, scope) = (old.leaves.clone(), old.scope.clone());
        let new = Interception { settings: settings.clone(), proxy, leaves, scope };
        new.publish()?;
        Ok(Some(Arc::new(new)))
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

    /// Whether the CA is that of these settings. One that was made here stays as it is: apps have loaded it.
    fn serves(&self, settings: &Intercept) -> bool {
        use config::Authority::{Generated, Given};
        match (&self.settings.authority, &settings.authority) {
            (Generated { key_dir: old, .. }, Generated { key_dir: new, .. }) => old == new,
            (Given(old), Given(new)) => old == new,
            (Generated { .. }, Given(_)) | (Given(_), Generated { .. }) => false,
        }
    }

    fn publish(&self) -> Result<(), String> {
        match &self.settings.dir {
            Some(dir) => store::publish(dir, &Trust { chain: self.chain() }, self.proxy),
            None => Ok(()),
        }
    }

    /// TLS settings that present a certificate for this host.
    ///
    /// # Errors
    /// What kept one from being made.
    pub(crate) fn tls(&self, host: &Host, now: SystemTime, forgot: &dyn Fn()) -> Result<Arc<ServerConfig>, String> {
        self.leaves.tls(host, now, forgot)
    }

    /// The CA's certificate, then what is above it.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        self.leaves.authority().chain()
    }

    /// A host that apps which trust the CA would not accept from it.
    fn outside(&self, hosts: &[HostPattern]) -> Option<Host> {
        let scope = self.scope.as_ref()?;
        let outside = hosts.iter().find(|pattern| !scope.iter().any(|within| is_within(&pattern.host, within)));
        outside.map(|pattern| pattern.host.clone())
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
