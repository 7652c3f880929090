//! Serving an app's HTTP/2 connection, and what hyper and h2 leave to us there: answers that the app doesn't take, requests
//! that it takes back faster than they can be served, heads that never end, and floods.

mod conduct;
mod io;
mod untaken;

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use crate::config::Limits;
use crate::proxy::body::ResponseBody;
use crate::proxy::http2::conduct::{Conduct, Tasks};
use crate::proxy::http2::io::FramedIo;
use crate::proxy::http2::untaken::Paced;
use crate::proxy::io::Replayed;
use crate::proxy::listener::Answering;
use crate::telemetry::metrics::Metrics;

/// Streams of one connection at once.
const MAX_STREAMS: u32 = 256;

/// Whether h2 itself ended the connection for a flood: of resets, of refused streams, of empty frames, of a head.
fn is_calmed(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|h2| h2.is_library() && h2.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// Serves HTTP/2 with prior knowledge until the connection is closed, or drained.
pub(crate) async fn serve<H>(io: Replayed, limits: &Limits, metrics: Arc<Metrics>, begun: CancellationToken, handler: H)
where
    H: Fn(Request<Incoming>) -> Answering + Send + 'static,
{
    let conduct = Arc::new(Conduct::new(metrics));
    let io = FramedIo::new(io, Arc::clone(&conduct), limits.header_timeout);
    let mut builder = http2::Builder::new(Tasks::of(&conduct));
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(256 * 1024)
        // Uploads that an upstream doesn't take must not stop the others: room for a whole window of many streams.
        .initial_connection_window_size(16 * 1024 * 1024)
        .max_send_buf_size(64 * 1024)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(128)
        // h2 refuses a larger head by itself, which nobody can count or explain. So it lets some more through, to be refused here.
        .max_header_list_size(u32::try_from(limits.max_header_bytes.saturating_mul(2)).unwrap_or(u32::MAX));
    let watched = Arc::clone(&conduct);
    let service = service_fn(move |request| {
        let stream = conduct.opens();
        let answer = handler(request);
        async move { answer.await.map(|answer: Response<ResponseBody>| Paced::answer(answer, &stream)) }
    });
    let mut served = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut watch = pin!(watched.watch(&begun));
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            ended = served.as_mut() => {
                if let Err(error) = ended {
                    if is_calmed(&error) {
                        watched.count_flood();
                    }
                    tracing::debug!(%error, "a connection of an app's ended early");
                }
                return;
            }
            // What is still on it is dropped with it.
            () = watch.as_mut() => return,
            () = begun.cancelled(), if !told => {
                told = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
}
