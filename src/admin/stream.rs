//! Those who listen to events: a bounded number, none of whom can make the others wait. Who reads too slowly is cut off, not
//! buffered for.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::seats::Seat;
use crate::config::Secret;

/// Streams at once: far fewer than connections, so that probes and scrapes always get through.
pub(super) const STREAMS: usize = 16;
/// Events that wait for a reader. One more, and it is too slow.
const WAITING: usize = 4;

/// A connection of an operator's.
#[derive(Clone)]
pub(super) struct Link {
    /// The address it came in on.
    pub(super) local: SocketAddr,
    /// Cancelled when the listener is closed.
    pub(super) stop: CancellationToken,
    /// Its place among the others of its listener.
    pub(super) seat: Seat,
}

/// All who listen.
#[derive(Default)]
pub(super) struct Audience {
    all: Mutex<Vec<Listener>>,
    joined: Notify,
}

/// One of them.
pub(super) struct Listener {
    events: mpsc::Sender<Bytes>,
    link: Link,
    /// The `admin_token` when it came: who has an old one must show the new one.
    token: Option<Secret>,
}

/// The body of an answer that goes on for as long as somebody listens.
pub(super) struct Events {
    /// The event that comes before all others; `None` once it was read.
    first: Option<oneshot::Receiver<Bytes>>,
    rest: mpsc::Receiver<Bytes>,
}

/// Tells the first event to one who just came. What is told to all in the meantime waits behind it.
pub(super) struct Welcome(oneshot::Sender<Bytes>);

impl Audience {
    /// One more; `None` where there are too many.
    pub(super) fn join(&self, link: &Link, token: Option<Secret>) -> Option<(Events, Welcome)> {
        let (sender, rest) = mpsc::channel(WAITING);
        let (welcome, first) = oneshot::channel();
        let mut all = self.lock();
        all.retain(|one| !one.events.is_closed());
        if all.len() >= STREAMS {
            return None;
        }
        link.seat.keep();
        all.push(Listener { events: sender, link: link.clone(), token });
        self.joined.notify_one();
        Some((Events { first: Some(first), rest }, Welcome(welcome)))
    }

    /// Waits until one more listens.
    pub(super) async fn joined(&self) {
        self.joined.notified().await;
    }

    /// Whether nobody listens.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Lets go those who left, whose listener was closed, or whose token is not `token` any more.
    pub(super) fn sort_out(&self, token: Option<&Secret>) {
        self.lock().retain(|one| {
            let stays = !one.link.stop.is_cancelled() && one.token.as_ref() == token;
            if !stays {
                one.link.seat.cut.cancel();
            }
            stays && !one.events.is_closed()
        });
    }

    /// Tells all of them. Who still has so many to read is cut off.
    pub(super) fn tell(&self, event: &Bytes) {
        self.lock().retain(|one| match one.events.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::debug!("a dashboard that reads too slowly was cut off");
                one.link.seat.cut.cancel();
                false
            }
        });
    }

    /// Ends all streams.
    pub(super) fn dismiss(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Listener>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Welcome {
    /// Tells the first event.
    pub(super) fn begin(self, event: Bytes) {
        // Who is gone already needs it no more.
        let _ = self.0.send(event);
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let events = &mut *self;
        if let Some(first) = &mut events.first {
            let Poll::Ready(event) = Pin::new(first).poll(context) else { return Poll::Pending };
            events.first = None;
            // Without a beginning there is nothing to go on with.
            return Poll::Ready(event.ok().map(|event| Ok(Frame::data(event))));
        }
        events.rest.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn link() -> Link {
        Link { local: "127.0.0.1:1".parse().unwrap(), stop: CancellationToken::new(), seat: Seat::default() }
    }

    #[test]
    fn there_is_room_for_so_many_and_again_for_one_when_one_left() {
        let audience = Audience::default();
        let mut seats: Vec<_> = (0..STREAMS).map(|_| audience.join(&link(), None).unwrap()).collect();
        assert!(audience.join(&link(), None).is_none());
        seats.pop();
        assert!(audience.join(&link(), None).is_some());
    }

    #[test]
    fn who_reads_too_slowly_is_cut_off_and_the_others_are_not() {
        let audience = Audience::default();
        let (slow, quick) = (link(), link());
        let (_unread, _welcome) = audience.join(&slow, None).unwrap();
        let (mut events, _) = audience.join(&quick, None).unwrap();
        for _ in 0..=WAITING {
            audience.tell(&Bytes::from_static(b"x"));
            assert!(events.rest.try_recv().is_ok());
        }
        assert!(slow.seat.cut.is_cancelled() && !quick.seat.cut.is_cancelled());
        assert_eq!(audience.lock().len(), 1);
    }

    #[test]
    fn another_token_or_a_closed_listener_ends_a_stream() {
        let audience = Audience::default();
        let (old, closed, stays) = (link(), link(), link());
        let (before, after) = (Some(Secret::new("a")), Some(Secret::new("b")));
        let _one = audience.join(&old, before).unwrap();
        let _two = audience.join(&closed, after.clone()).unwrap();
        let _three = audience.join(&stays, after.clone()).unwrap();
        closed.stop.cancel();
        audience.sort_out(after.as_ref());
        assert!(old.seat.cut.is_cancelled() && closed.seat.cut.is_cancelled() && !stays.seat.cut.is_cancelled());
        assert_eq!(audience.lock().len(), 1);
    }

    #[tokio::test]
    async fn the_first_event_comes_first_and_the_end_last() {
        let audience = Audience::default();
        let (mut events, welcome) = audience.join(&link(), None).unwrap();
        audience.tell(&Bytes::from_static(b"tick"));
        welcome.begin(Bytes::from_static(b"state"));
        audience.dismiss();
        for expected in ["state", "tick"] {
            assert_eq!(events.frame().await.unwrap().unwrap().into_data().unwrap(), expected);
        }
        assert!(events.frame().await.is_none());
    }
}
