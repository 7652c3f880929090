//! The task that makes spans of traces, and posts of spans.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::otlp::collector::{Collector, Refusal};
use crate::otlp::settings::Settings;
use crate::otlp::{Message, encode};
use crate::telemetry::export::SpanReport;

/// How often a post is tried that the collector might take later.
const TRIES: u32 = 5;
/// The wait before the second try; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest that a collector may ask to be left alone.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Worker {
    collector: Collector,
    inbox: mpsc::UnboundedReceiver<Message>,
    waiting: Arc<AtomicUsize>,
    report: Arc<SpanReport>,
    hurry: CancellationToken,
    resource: Vec<(String, String)>,
    batch: usize,
    delay: Duration,
}

impl Worker {
    pub(super) fn new(
        settings: &Settings,
        collector: Collector,
        inbox: mpsc::UnboundedReceiver<Message>,
        waiting: Arc<AtomicUsize>,
        report: Arc<SpanReport>,
        hurry: CancellationToken,
    ) -> Worker {
        let resource = settings.resource.clone();
        Worker { collector, inbox, waiting, report, hurry, resource, batch: settings.batch, delay: settings.delay }
    }

    /// Runs until nobody is left who could send it anything.
    pub(super) async fn run(mut self) {
        let mut spans = Vec::new();
        let mut due = Instant::now();
        loop {
            let message = tokio::select! {
                message = self.inbox.recv() => message,
                () = sleep_until(due), if !spans.is_empty() => {
                    self.deliver(std::mem::take(&mut spans)).await;
                    continue;
                }
            };
            match message {
                Some(Message::Trace(trace)) => {
                    if spans.is_empty() {
                        due = Instant::now() + self.delay;
                    }
                    encode::spans(&trace, &mut spans);
                    while spans.len() >= self.batch {
                        let rest = spans.split_off(self.batch);
                        self.deliver(std::mem::replace(&mut spans, rest)).await;
                    }
                }
                Some(Message::Flush(done)) => {
                    self.deliver(std::mem::take(&mut spans)).await;
                    self.report.ended();
                    // Who asked may have stopped waiting.
                    let _ = done.send(());
                }
                None => {
                    self.deliver(spans).await;
                    return;
                }
            }
        }
    }

    /// Posts them, again and again for a while where that may help, or drops them.
    async fn deliver(&mut self, spans: Vec<Span>) {
        if spans.is_empty() {
            return;
        }
        let count = spans.len();
        let body = Bytes::from(encode::request(&self.resource, spans).encode_to_vec());
        let mut tries = 0;
        let lost = loop {
            tries += 1;
            let (reason, again) = match self.collector.post(body.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count as u64);
                    self.report.exported(count as u64 - rejected);
                    break rejected;
                }
                Err(Refusal::Later(reason, asked)) => (reason, Some(asked)),
                Err(Refusal::Never(reason)) => (reason, None),
            };
            self.report.refused(&reason);
            let Some(asked) = again.filter(|_| tries < TRIES && !self.hurry.is_cancelled()) else {
                break count as u64;
            };
            let wait = asked.map_or(FIRST_WAIT * (1 << (tries - 1)), |asked| asked.min(LONGEST_WAIT));
            tokio::select! {
                () = sleep(wait.mul_f64(1.0 + fastrand::f64() / 4.0)) => {}
                () = self.hurry.cancelled() => {}
            }
        };
        if lost > 0 {
            self.report.failed(lost);
        }
        self.waiting.fetch_sub(count, Ordering::Relaxed);
    }
}
