//! CONNECT: a connection of the app's own through us, byte for byte.

use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::message::Attempt;
use crate::origin::Origin;
use crate::policy::Dial;
use crate::proxy::io::{AppIo, Replayed};
use crate::proxy::record::Record;
use crate::proxy::relay::{self, Ended, Side};
use crate::proxy::socket::Socket;
use crate::tcp::Tcp;
use crate::upstream::Upstream;

/// Connects to the host and port asked for, under the upstream's policies.
///
/// # Errors
/// What kept the connection from being made.
pub(crate) async fn connect(upstream: &Upstream, origin: Origin, record: &Record) -> Result<Tcp> {
    upstream.lane.policies.tunnel(&record.exchange, &Way { upstream, origin }).await
}

/// To where the app asked.
struct Way<'a> {
    upstream: &'a Upstream,
    origin: Origin,
}

impl Dial for Way<'_> {
    type Connection = Tcp;

    async fn dial(&self, attempt: &Attempt) -> Result<Tcp> {
        let (stream, _) = self.upstream.transport.tunnel(&self.origin, attempt).await?;
        Ok(stream)
    }
}

/// Relays once the app's side has its 200. Lives until either side ends it, it falls silent, or the drain ends.
pub(crate) fn start(
    app: OnUpgrade,
    mut upstream: Tcp,
    mut record: Box<Record>,
    idle: Option<Duration>,
    ended: CancellationToken,
) {
    tokio::spawn(async move {
        let Ok(upgraded) = app.await else { return };
        run(&mut app_side(upgraded), &mut upstream, &mut record, idle, &ended).await;
    });
}

/// The app's socket with what it sent early, or its HTTP/2 stream.
pub(crate) fn app_side(upgraded: Upgraded) -> Replayed {
    let parts = match upgraded.downcast::<TokioIo<AppIo>>() {
        Ok(parts) => parts,
        Err(upgraded) => return Replayed::new(Socket::Stream(Box::new(TokioIo::new(upgraded))), Bytes::new()),
    };
    match parts.io.into_inner().into_parts() {
        Some((stream, held)) => {
            // hyper's own buffer came first off the socket.
            let first = if held.is_empty() { parts.read_buf } else { [parts.read_buf, held].concat().into() };
            Replayed::new(stream, first)
        }
        None => unreachable!("the socket is taken here and nowhere else"),
    }
}

/// Relays, and says in the record how it went.
pub(crate) async fn run(
    app: &mut impl Side,
    upstream: &mut impl Side,
    record: &mut Record,
    idle: Option<Duration>,
    ended: &CancellationToken,
) {
    let exchange = std::sync::Arc::clone(&record.exchange);
    tokio::select! {
        biased;
        end = relay::relay(app, upstream, idle, &exchange.bytes_in, &exchange.bytes_out) => {
            match end {
                Ended::Closed => {}
                Ended::Idle => tracing::debug!("a tunnel or upgraded stream fell silent and was closed"),
                Ended::Broken(error) => tracing::debug!(%error, "a tunnel or upgraded stream broke"),
            }
        }
        () = ended.cancelled() => {}
    }
    // However it ended, the answer was the opening of the stream, and the app had that.
    record.answered();
}
