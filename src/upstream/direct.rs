//! A connection of Outrigger's own, outside of any pool and policy: to the collector that takes its spans.

use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::address::AddressSet;
use crate::config::{self, HttpVersion};
use crate::error::{Error, Result};
use crate::origin::{Origin, Scheme};
use crate::upstream::connect::{Connector, Place, Secure};
use crate::upstream::tls::{Tls, server_name};

/// Where it leads, and how TLS is spoken there.
pub(crate) struct Direct {
    origin: Origin,
    secure: Option<(Tls, ServerName<'static>)>,
}

impl Direct {
    /// Prepares it. `tls` plays no part where the origin is plain http.
    ///
    /// # Errors
    /// A sentence: no root certificates, an identity that can't be used, a host that is no server name.
    pub(crate) fn new(origin: Origin, tls: config::Tls, connector: &Connector) -> Result<Direct, String> {
        let secure = match origin.scheme {
            Scheme::Http => None,
            Scheme::Https => {
                let server = server_name(&origin.host).map_err(|error| error.to_string())?;
                let tls = Tls::new(tls, HttpVersion::Http1, connector.roots().clone());
                tls.config(true)?;
                Some((tls, server))
            }
        };
        Ok(Direct { origin, secure })
    }

    /// Connects. The operator wrote the address, so `egress.deny` does not hold, but our own listeners are a loop.
    ///
    /// # Errors
    /// As for any upstream.
    pub(crate) async fn dial(
        &self,
        connector: &Connector,
        limit: Duration,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static + use<>> {
        let allow = AddressSet::default();
        let place = Place { host: &self.origin.host, port: self.origin.port, exempt: true, allow: &allow };
        let secure = match &self.secure {
            None => None,
            Some((tls, server)) => {
                let config = tls.config(true).map_err(|_| Error::Panic)?;
                Some(Secure { config, server: server.clone() })
            }
        };
        connector.connect(&place, secure, Some(limit)).await
    }
}
