//! Spans on their way to an OpenTelemetry collector: OTLP as protobuf over HTTP (OTLP specification, "OTLP/HTTP").
//!
//! A request that ends hands its trace over and goes on; it never waits here. One task makes spans of it and posts them.
//! What waits is bounded; what is above that, or isn't taken, is dropped and counted.

mod collector;
mod encode;
mod settings;
mod worker;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::proxy::Proxy;
use crate::telemetry::export::SpanReport;
use crate::telemetry::spans::{Sink, Trace, Tracer};

pub use settings::Settings;

/// Exports what `proxy` traces from now on. Must be called within a tokio runtime.
///
/// # Errors
/// A sentence when TLS can't be set up.
pub fn start(settings: Settings, proxy: &Proxy) -> Result<Tracer, String> {
    let report = Arc::new(proxy.metrics.spans());
    let collector = collector::Collector::new(&settings, proxy.table.clone())?;
    let (sender, inbox) = mpsc::unbounded_channel();
    let queue = Arc::new(Queue {
        sender,
        waiting: Arc::default(),
        most: settings.queue,
        report: report.clone(),
        hurry: CancellationToken::new(),
    });
    let (waiting, hurry, sampler) = (queue.waiting.clone(), queue.hurry.clone(), settings.sampler);
    tokio::spawn(worker::Worker::new(&settings, collector, inbox, waiting, report, hurry).run());
    Ok(Tracer::new(sampler, queue))
}

/// What the worker is sent.
enum Message {
    /// A request that ended.
    Trace(Box<Trace>),
    /// Post what is there and say so.
    Flush(oneshot::Sender<()>),
}

/// The way to the worker.
struct Queue {
    /// Bounded by `waiting`, since a trace has any number of spans.
    sender: mpsc::UnboundedSender<Message>,
    /// Spans that were handed over and are not settled yet.
    waiting: Arc<AtomicUsize>,
    most: usize,
    report: Arc<SpanReport>,
    /// The process ends: nothing is tried twice any more.
    hurry: CancellationToken,
}

impl Sink for Queue {
    fn take(&self, trace: Trace) {
        let spans = encode::count(&trace);
        let before = self.waiting.fetch_add(spans, Ordering::Relaxed);
        if before + spans <= self.most && self.sender.send(Message::Trace(Box::new(trace))).is_ok() {
            return;
        }
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        self.report.queue_full(spans as u64);
    }

    fn flush(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.hurry.cancel();
            let (done, is_done) = oneshot::channel();
            if self.sender.send(Message::Flush(done)).is_ok() {
                // An error says that the worker is gone, and so there is nothing to wait for.
                let _ = is_done.await;
            }
        })
    }
}
