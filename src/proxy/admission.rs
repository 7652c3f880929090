//! Whether one more connection of an app's may come, and what it is told if not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::descriptors::Room;
use crate::error::{Error, Overload};
use crate::proxy::Proxy;
use crate::proxy::respond::{self, Asked, Progress};
use crate::tcp::Tcp;
use crate::telemetry::metrics::Limit;
use crate::telemetry::report::{Gauge, Rejected};

/// How long a connection that is turned away is given to take its answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// One connection of `limits.max_connections`, until it is dropped.
pub(crate) struct Place {
    proxy: Arc<Proxy>,
    /// Those of the same listener.
    open: Arc<AtomicUsize>,
    _gauge: Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.proxy.connections.fetch_sub(1, Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many connections there are already, and may be.
#[derive(Clone, Copy, Debug)]
struct Crowd {
    /// `limits.max_connections`
    max: usize,
    /// On all listeners.
    all: usize,
    /// On the listener in question.
    here: usize,
    /// Listeners of apps.
    doors: usize,
}

impl Crowd {
    /// Whether one more may come. The last eighth is for listeners that have less than their share, so that a storm on one
    /// doesn't shut the others.
    fn has_room(self) -> bool {
        let kept = if self.doors > 1 { self.max / 8 } else { 0 };
        self.all < self.max - kept || (self.all < self.max && self.here < (self.max / self.doors.max(1)).max(1))
    }
}

/// The place of a new connection. Where there is none it is told so, if it can be told: not where it begins with `tls`. `open`
/// counts the connections of its listener.
pub(crate) fn admit(stream: Tcp, tls: bool, open: &Arc<AtomicUsize>, proxy: &Arc<Proxy>) -> Option<(Tcp, Place)> {
    let table = proxy.table.load();
    let max = table.config.limits.max_connections.get() as usize;
    let all = proxy.connections.fetch_add(1, Ordering::Relaxed);
    let here = open.fetch_add(1, Ordering::Relaxed);
    let place = Place { proxy: Arc::clone(proxy), open: Arc::clone(open), _gauge: proxy.metrics.downstream() };
    let room = stream.room();
    let crowd = Crowd { max, all, here, doors: table.config.listeners.of_apps() };
    let refused = match room {
        Room::Enough if crowd.has_room() => None,
        Room::Enough => Some((Limit::Connections, Overload::Connections)),
        Room::Scarce | Room::Last => Some((Limit::Descriptors, Overload::Descriptors)),
    };
    let Some((limit, overload)) = refused else { return Some((stream, place)) };
    proxy.metrics.limit_refused(limit);
    table.unmatched.report.rejected(Rejected::Overloaded);
    // Saying no takes a descriptor too, for a moment; past these it is said by closing.
    if room != Room::Last && all < max + max / 8 + 16 {
        tokio::spawn(async move {
            let _place = place;
            // There is no answer that could be read before a handshake.
            if !tls {
                let _ = timeout(FAREWELL, turn_away(stream, overload)).await;
            }
        });
    }
    None
}

/// Answers 503 without reading the request, and waits a moment so that the app can read that.
async fn turn_away(mut stream: Tcp, overload: Overload) -> io::Result<()> {
    let asked = Asked { http1: true, ..Asked::default() };
    let answer = respond::answer(&Error::Overloaded(overload), asked, Progress::default());
    stream.write_all(&render(&answer)).await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// An answer as HTTP/1.1, where there is no hyper to write it.
fn render(answer: &Response<Bytes>) -> Vec<u8> {
    let status = answer.status();
    let mut text = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("")).into_bytes();
    for (name, value) in answer.headers() {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(answer.body());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_places_are_for_listeners_that_have_less_than_their_share() {
        for (max, all, here, doors, room) in [
            (1, 0, 0, 2, true),
            (1, 1, 0, 2, false),
            (800, 699, 699, 2, true),
            (800, 700, 700, 2, false),
            (800, 700, 0, 2, true),
            (800, 799, 99, 2, true),
            (800, 800, 0, 2, false),
            (800, 799, 799, 1, true),
        ] {
            let crowd = Crowd { max, all, here, doors };
            assert_eq!(crowd.has_room(), room, "{crowd:?}");
        }
    }
}
