//! When an app's HTTP/1 connection is idle: for how long hyper stays with it.
//!
//! hyper keeps two buffers of 8 KiB for as long as it has a connection, and most connections of apps idle. So it is taken off a
//! connection on which nothing has been under way for a moment, and put on again with the app's next byte.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::proxy::link::Link;

/// A connection without a new request for so long, or up to twice that, is idle: busy ones pay one timer for each of these, and
/// nothing for a request.
pub(crate) const MOMENT: Duration = Duration::from_millis(500);

/// A request from its head to the end of its answer, until it is dropped.
pub(crate) struct UnderWay(Arc<Link>);

impl UnderWay {
    /// From now on.
    pub(crate) fn begin(link: &Arc<Link>) -> UnderWay {
        link.begin();
        UnderWay(Arc::clone(link))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Waits until a connection is idle.
pub(crate) struct Watch {
    /// The clocks of all connections ring whole moments after this, so that they wake the process together.
    epoch: Instant,
    /// Made when nothing was under way for the first time.
    clock: Option<Pin<Box<Sleep>>>,
    /// How many requests had begun when the clock was set.
    begun: u32,
}

impl Watch {
    /// Of a connection. `epoch` is the same for all.
    pub(crate) fn new(epoch: Instant) -> Watch {
        Watch { epoch, clock: None, begun: 0 }
    }

    /// When to look next, about a moment after now.
    fn next(&self) -> Instant {
        let passed = (Instant::now() + MOMENT / 2).saturating_duration_since(self.epoch);
        let moments = passed.as_millis() / MOMENT.as_millis() + 1;
        // A process does not live for so many.
        self.epoch + MOMENT * u32::try_from(moments).unwrap_or(u32::MAX)
    }

    /// Whether the connection is idle. To be asked each time that hyper waits.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, link: &Link) -> Poll<()> {
        if !link.is_at_rest() {
            return Poll::Pending;
        }
        let begun = link.begun();
        if let Some(clock) = &mut self.clock {
            ready!(clock.as_mut().poll(cx));
            if begun == self.begun {
                return Poll::Ready(());
            }
        }
        self.begun = begun;
        let next = self.next();
        let clock = self.clock.get_or_insert_with(|| Box::pin(sleep_until(next)));
        clock.as_mut().reset(next);
        clock.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;

    fn is_idle(watch: &mut Watch, link: &Link) -> bool {
        poll_fn(|cx| watch.poll(cx, link)).now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_once_a_moment_went_by_without_a_request() {
        let (mut watch, link) = (Watch::new(Instant::now()), Arc::new(Link::default()));
        assert!(!is_idle(&mut watch, &link), "nothing was read yet");
        let request = UnderWay::begin(&link);
        link.reads_nothing(true);
        advance(MOMENT * 3).await;
        assert!(!is_idle(&mut watch, &link), "an answer is under way");
        drop(request);
        assert!(!is_idle(&mut watch, &link), "it has just ended");
        advance(MOMENT * 9 / 10).await;
        drop(UnderWay::begin(&link));
        assert!(!is_idle(&mut watch, &link));
        advance(MOMENT / 5).await;
        assert!(!is_idle(&mut watch, &link), "there was a request since the clock was set");
        advance(MOMENT * 8 / 10).await;
        assert!(!is_idle(&mut watch, &link));
        link.reads_nothing(false);
        advance(MOMENT / 5).await;
        assert!(!is_idle(&mut watch, &link), "the app is sending");
        link.reads_nothing(true);
        link.holds(true);
        assert!(!is_idle(&mut watch, &link), "the app has not taken all of its answer");
        link.holds(false);
        assert!(is_idle(&mut watch, &link));
    }

    #[tokio::test(start_paused = true)]
    async fn the_clocks_of_connections_that_came_one_after_the_other_ring_together() {
        let epoch = Instant::now();
        let mut rings = Vec::new();
        for _ in 0..4 {
            advance(MOMENT / 10).await;
            rings.push(Watch::new(epoch).next());
        }
        assert_eq!(rings, [epoch + MOMENT; 4]);
        advance(MOMENT / 5).await;
        assert_eq!(Watch::new(epoch).next(), epoch + MOMENT * 2, "it has half a moment at least");
    }
}
