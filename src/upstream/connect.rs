//! One connection set-up: names, addresses, happy eyeballs (RFC 8305), TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config;

/// Makes connections for all upstreams: the resolver with its cache, the egress rules, our own listeners' addresses.
pub struct Connector {}

impl Connector {
    /// From the `dns` and `egress` blocks. `own` are the addresses that Outrigger itself listens on: dialling one is a loop.
    ///
    /// # Errors
    /// A sentence when the system's resolver configuration can't be used.
    pub fn new(_dns: &config::Dns, _egress: &config::Egress, _own: Vec<SocketAddr>) -> Result<Arc<Connector>, String> {
        todo!()
    }

    /// The connector for a new configuration: keeps the resolver and its cache where `dns` did not change.
    ///
    /// # Errors
    /// As [`Connector::new`].
    pub fn evolve(
        &self,
        _dns: &config::Dns,
        _egress: &config::Egress,
        _own: Vec<SocketAddr>,
    ) -> Result<Arc<Connector>, String> {
        todo!()
    }
}
