//! The way out: one attempt over the pool.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};

use crate::address::AddressSet;
use crate::config;
use crate::error::{Error, Result};
use crate::message::Attempt;
use crate::origin::Origin;
use crate::policy::body::AttemptBody;
use crate::policy::{self, Destination};
use crate::telemetry::report::UpstreamReport;
use crate::upstream::connect::Connector;

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
pub struct Transport {}

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
        _settings: Settings,
        _connector: Arc<Connector>,
        _report: Arc<UpstreamReport>,
    ) -> Result<Arc<Transport>, String> {
        todo!()
    }

    /// What it was made from.
    pub fn settings(&self) -> &Settings {
        todo!()
    }

    /// Connections now, for metrics.
    pub fn counts(&self) -> Counts {
        todo!()
    }

    /// A newer pool has taken over: idle connections are closed now, others after their request.
    pub fn retire(&self) {
        todo!()
    }

    /// Dials the host and port a CONNECT asks for: resolves, checks the egress rules, honours `attempt.connect_timeout`.
    ///
    /// # Errors
    /// As [`policy::Transport::send`].
    pub async fn tunnel(&self, _origin: &Origin, _attempt: &Attempt) -> Result<(tokio::net::TcpStream, SocketAddr)> {
        todo!()
    }
}

/// An answer's body, holding its connection. Dropped before its end it gives the connection up.
pub struct UpstreamBody {}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        todo!()
    }
}

impl policy::Transport for Transport {
    type Body = UpstreamBody;

    async fn send(
        &self,
        _head: http::request::Parts,
        _body: AttemptBody,
        _to: &Destination,
        _attempt: &Attempt,
    ) -> Result<http::Response<UpstreamBody>> {
        todo!()
    }
}
