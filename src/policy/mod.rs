//! The policies: what bounds, repeats and refuses requests. Each is one file: validated `Settings`, live state, the
//! decision as plain synchronous code with `now` as an argument, a short async shell where it waits, tests.
//! A policy knows neither the configuration file nor upstream tables nor sockets.

mod attempt;
pub mod backoff;
pub mod body;
pub mod breaker;
pub mod budget;
pub mod carry;
pub mod classify;
pub mod concurrency;
pub mod pipeline;
pub mod policies;
pub mod rate_limit;
pub mod replay;
pub mod retry;
pub mod retry_after;
pub mod timeout;
pub mod window;

#[cfg(test)]
pub(crate) mod crowd;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod together;

use std::future::Future;

use bytes::Bytes;
use http_body::Body;

use crate::error::{Error, Result};
use crate::message::Attempt;
use crate::policy::body::AttemptBody;

/// What carries one attempt to the upstream: the pool in production, a script in tests.
pub trait Transport: Send + Sync {
    /// The answer's body. Dropping it before its end gives the connection up.
    type Body: Body<Data = Bytes, Error = Error> + Send + Unpin + 'static;

    /// Sends one attempt and waits for the response headers.
    ///
    /// It may be dropped at any await; `attempt.sent()` must then be true.
    ///
    /// # Errors
    /// Whatever kept the headers from coming, with evidence of whether the upstream may have seen the request.
    fn send(
        &self,
        head: http::request::Parts,
        body: AttemptBody,
        to: &Destination,
        attempt: &Attempt,
    ) -> impl Future<Output = Result<http::Response<Self::Body>>> + Send;
}

/// Where an attempt goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Where the app's words lead; dialled where the upstream has no `to`.
    pub origin: crate::origin::Origin,
    /// False on an upstream's own `listen` port, where `Host` is always that of `to`.
    pub keep_host: bool,
}

/// Makes the connection of a tunnel.
pub trait Dial: Send + Sync {
    /// What it gives.
    type Connection: Send;

    /// Tries once.
    ///
    /// # Errors
    /// What kept the connection from being made.
    fn dial(&self, attempt: &Attempt) -> impl Future<Output = Result<Self::Connection>> + Send;
}
