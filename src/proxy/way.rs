//! Which upstream a request is for, and where that leads, by the configuration alone. Pure.

use std::net::SocketAddr;

use crate::config::{self, Config, HostPattern};
use crate::error::{Denial, Error, Result};
use crate::origin::{Origin, Scheme};
use crate::proxy::target::{Target, own_addresses};
use crate::upstream::route;

/// Whether a request on the proxy port may go where it asks to: to `found`, the upstream that names its host, or to hosts
/// that none names (`None`). `local` is the address that the app's connection was accepted at.
///
/// # Errors
/// [`Error::Loop`] for one of Outrigger's own listeners, [`Error::Denied`] by `egress.unmatched`.
pub(crate) fn admit<U>(config: &Config, local: SocketAddr, target: &Target, found: Option<U>) -> Result<Option<U>> {
    if target.is_own(local, own_addresses(&config.listeners)) {
        return Err(Error::Loop);
    }
    if found.is_none() && !config.egress.forward_unmatched {
        return Err(Error::Denied(Denial::Unmatched));
    }
    Ok(found)
}

/// Where an upstream's own port leads: to its first `to`, or to its one exact host.
///
/// # Errors
/// [`Error::Misdirected`] where it has neither.
pub(crate) fn own_port(upstream: &config::Upstream) -> Result<Origin> {
    if let Some(origin) = upstream.to.first() {
        return Ok(origin.clone());
    }
    let exact = |pattern: &&HostPattern| !pattern.wildcard;
    let pattern = upstream.hosts.iter().find(exact).ok_or(Error::Misdirected)?;
    let port = pattern.port.unwrap_or(Scheme::Http.default_port());
    Ok(route::origin(Some(upstream), Scheme::Http, pattern.host.clone(), port))
}

/// Whether the app may tunnel there, before anything is dialled. No `upstream`: none names the host.
///
/// # Errors
/// [`Error::Denied`].
pub(crate) fn may_tunnel(config: &Config, upstream: Option<&config::Upstream>, target: &Target) -> Result<()> {
    if let Some(ports) = &config.egress.connect_ports
        && !ports.contains(&target.port)
    {
        return Err(Error::Denied(Denial::ConnectPort(target.port)));
    }
    match upstream.map(|upstream| upstream.connect) {
        Some(config::Connect::Deny) => Err(Error::Denied(Denial::Connect)),
        Some(config::Connect::Tunnel | config::Connect::Intercept) | None => Ok(()),
    }
}

/// Where a tunnel leads. Whether TLS is spoken inside is the app's matter; it plays no part in dialling.
pub(crate) fn of_tunnel(target: &Target) -> Origin {
    Origin { scheme: Scheme::Https, host: target.host.clone(), port: target.port }
}
