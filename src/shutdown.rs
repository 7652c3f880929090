//! Drain.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::config;

/// What is in flight, and whether the process is on its way out.
pub struct Drain {
    /// Cancelled when draining begins: HTTP/2 connections send GOAWAY, HTTP/1 answers carry `Connection: close`. New
    /// requests and connections are still served.
    pub begun: CancellationToken,
    /// Cancelled when it ends: listeners stop and whatever is left is closed.
    pub ended: CancellationToken,
}

/// Something in flight (a request until its body's end, a tunnel, an upgraded stream) until it is dropped.
pub struct InFlight {}

impl Drain {
    /// Nothing in flight.
    pub fn new() -> Arc<Drain> {
        todo!()
    }

    /// Something new came, and is in flight until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        todo!()
    }

    /// Begins to drain and waits: until nothing was in flight and nothing new came for `quiet`, or for `grace`. Then ends.
    pub async fn run(&self, _settings: &config::Shutdown) {
        todo!()
    }
}
