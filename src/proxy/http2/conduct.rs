//! How an app behaves on one HTTP/2 connection, over all of its streams.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::frames::{ENHANCE_YOUR_CALM, NO_ERROR};
use crate::policy::timeout::Moving;
use crate::proxy::http2::MAX_STREAMS;
use crate::proxy::http2::untaken::Stream;
use crate::telemetry::metrics::{Limit, Metrics};

/// A request that is taken back so soon was made for nothing.
const HASTY: Duration = Duration::from_secs(1);
/// An app may do so this often. After that, if it did so with half of its requests or more, it is asked to make a new
/// connection, which costs it nothing…
const ASKED: u32 = 500;
/// …and if it goes on here all the same, the connection ends. All that were under way when it was asked, and as many that
/// crossed that on their way, may still be taken back.
const ENDED: u32 = ASKED + 2 * MAX_STREAMS;

/// See the module. Shared by the connection, its bytes and its streams.
pub(super) struct Conduct {
    metrics: Arc<Metrics>,
    /// hyper hands a request's task to its executor right after it called the service: so the one tells the other.
    next: Mutex<Option<Arc<Stream>>>,
    opened: AtomicU32,
    hasty: AtomicU32,
    /// Tasks of streams, tunnels among them.
    live: AtomicUsize,
    /// How long the app may leave what it is sent untaken, in milliseconds, by the last answer; 0: for ever.
    patience: AtomicU64,
    /// Answers that are out of our hands, but not all taken.
    untaken: Mutex<Vec<Arc<Stream>>>,
    /// It is to end, and this is the error code of the last GOAWAY. Offset by one; 0: not yet.
    farewell: AtomicU32,
    stirred: Notify,
}

impl Conduct {
    pub(super) fn new(metrics: Arc<Metrics>) -> Conduct {
        Conduct {
            metrics,
            next: Mutex::default(),
            opened: AtomicU32::new(0),
            hasty: AtomicU32::new(0),
            live: AtomicUsize::new(0),
            patience: AtomicU64::new(0),
            untaken: Mutex::default(),
            farewell: AtomicU32::new(0),
            stirred: Notify::new(),
        }
    }

    /// A request begins. The next task is its.
    pub(super) fn opens(self: &Arc<Conduct>) -> Arc<Stream> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(Stream::new(Arc::clone(self)));
        *lock(&self.next) = Some(Arc::clone(&stream));
        stream
    }

    /// An answer has begun that the app may leave untaken for so long.
    pub(super) fn answers(&self, patience: Option<Duration>) {
        let millis = patience.map_or(0, |patience| u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1));
        self.patience.store(millis, Ordering::Relaxed);
    }

    /// How long the app may take nothing at all.
    pub(super) fn patience(&self) -> Option<Duration> {
        Some(self.patience.load(Ordering::Relaxed)).filter(|millis| *millis > 0).map(Duration::from_millis)
    }

    /// Ends the connection for a flood.
    pub(super) fn end_for_flood(&self) {
        if self.end(ENHANCE_YOUR_CALM) {
            self.count_flood();
            tracing::debug!("a connection of an app's is ended: it floods");
            self.stirred.notify_one();
        }
    }

    /// It ends for a flood.
    pub(super) fn count_flood(&self) {
        self.metrics.limit_refused(Limit::Flood);
    }

    /// True the first time.
    fn end(&self, code: u32) -> bool {
        self.farewell.compare_exchange(0, code + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The connection ends for a head that came too slowly.
    pub(super) fn count_slow_head(&self) {
        self.metrics.limit_refused(Limit::HeaderTime);
    }

    /// The error code that a connection which is to end says last.
    pub(super) fn farewell(&self) -> Option<u32> {
        self.farewell.load(Ordering::Relaxed).checked_sub(1)
    }

    /// A task of the connection's ended.
    fn ended(&self, stream: Option<Arc<Stream>>) {
        let last = self.live.fetch_sub(1, Ordering::Relaxed) == 1;
        let Some(stream) = stream else {
            self.stirred.notify_one();
            return;
        };
        let mut stirs = false;
        if stream.is_answered() {
            let mut untaken = lock(&self.untaken);
            if stream.has_untaken() {
                // As a rule those before it were taken meanwhile.
                untaken.retain(|stream| stream.has_untaken());
                stirs = untaken.is_empty();
                untaken.push(stream);
            }
        } else if stream.age() < HASTY {
            stirs = self.hasty.fetch_add(1, Ordering::Relaxed) + 1 >= ASKED;
        }
        if stirs || last && !lock(&self.untaken).is_empty() {
            self.stirred.notify_one();
        }
    }

    /// Whether the app takes back half of its requests or more, and did so this often.
    fn is_hasty(&self, often: u32) -> bool {
        let hasty = self.hasty.load(Ordering::Relaxed);
        hasty >= often && hasty.saturating_mul(2) >= self.opened.load(Ordering::Relaxed)
    }

    /// When the first of the untaken answers has been so for too long.
    fn untaken_until(&self) -> Option<Instant> {
        let mut untaken = lock(&self.untaken);
        untaken.retain(|stream| stream.has_untaken());
        if untaken.is_empty() {
            // At rest a connection holds no room for them.
            *untaken = Vec::new();
        }
        untaken.iter().filter_map(|stream| stream.until()).min()
    }

    /// Waits until the connection is to be dropped. Cancels `begun` where the app is to be told before.
    pub(super) async fn watch(&self, begun: &CancellationToken) {
        loop {
            if self.is_hasty(ENDED) {
                self.end_for_flood();
            }
            if self.farewell().is_some() {
                return;
            }
            if self.is_hasty(ASKED) {
                begun.cancel();
            }
            match self.untaken_until() {
                Some(until) if until <= Instant::now() => {
                    // Its memory is only got back with the connection, which the other streams may use to their end.
                    begun.cancel();
                    if self.live.load(Ordering::Relaxed) == 0 {
                        tracing::debug!("a connection of an app's is ended: it leaves answers untaken");
                        self.end(NO_ERROR);
                        return;
                    }
                    self.stirred.notified().await;
                }
                Some(until) => {
                    let _ = tokio::time::timeout_at(until, self.stirred.notified()).await;
                }
                None => self.stirred.notified().await,
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the tasks of a connection.
#[derive(Clone)]
pub(super) struct Tasks(Arc<Conduct>);

impl Tasks {
    pub(super) fn of(conduct: &Arc<Conduct>) -> Tasks {
        Tasks(Arc::clone(conduct))
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.live.fetch_add(1, Ordering::Relaxed);
        let stream = lock(&self.0.next).take();
        let guard = Guard { conduct: Arc::clone(&self.0), stream };
        tokio::spawn(Watched { task, clock: None, guard });
    }
}

/// Tells the connection when a task is over, whatever ended it.
struct Guard {
    conduct: Arc<Conduct>,
    /// The request that it serves; none for a tunnel.
    stream: Option<Arc<Stream>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.conduct.ended(self.stream.take());
    }
}

pin_project! {
    /// A task, cut off when the app takes nothing of its answer for too long. h2 then resets the stream.
    struct Watched<F> {
        #[pin]
        task: F,
        clock: Option<Moving>,
        // Behind the task: what it held is gone when the guard looks.
        guard: Guard,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let me = self.project();
        if me.task.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(stream) = &me.guard.stream else { return Poll::Pending };
        let Some(until) = stream.until() else {
            // It is the upstream's turn, which has a clock of its own.
            *me.clock = None;
            return Poll::Pending;
        };
        me.clock.get_or_insert_with(|| Moving::new(until)).poll(cx, until)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_app_is_cut_off_when_it_takes_nothing_but_not_for_the_time_that_the_process_stood_still() {
        for stood_still in [false, true] {
            let patience = Duration::from_secs(60);
            let conduct = Arc::new(Conduct::new(Metrics::new()));
            conduct.live.store(1, Ordering::Relaxed);
            let stream = Some(Stream::stuck(&conduct, patience));
            let (tell, told) = oneshot::channel();
            let mut done = false;
            let task = async {
                let _ = told.await;
                done = true;
            };
            let watched = Watched { task, clock: None, guard: Guard { conduct, stream } };
            let app = async {
                if stood_still {
                    // One step of the clock, before anything else runs.
                    tokio::time::advance(5 * patience).await;
                    tokio::task::yield_now().await;
                } else {
                    tokio::time::sleep(2 * patience).await;
                }
                let _ = tell.send(());
            };
            tokio::join!(watched, app);
            assert_eq!(done, stood_still);
        }
    }
}
