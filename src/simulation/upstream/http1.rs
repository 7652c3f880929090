//! An upstream that speaks HTTP/1.1, mostly well.

use std::io;
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::simulation::ledger::Event;
use crate::simulation::network::Network;
use crate::simulation::stream::Simulated;
use crate::simulation::upstream::{ANSWER, LENGTH, Plan};
use crate::simulation::wire::{self, Head, Item, Reader};

/// How an upstream misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It doesn't.
    Well,
    /// It answers before it has read the body, and reads it then.
    Early,
    /// As before, and closes instead of reading.
    EarlyAndGone,
    /// It reads and says nothing.
    Silent,
    /// It does not even read the body.
    Deaf,
    /// It closes without an answer, after the head or the body.
    Hangs,
    /// It is gone after so many bytes of its answer; with a reset or in good order.
    Cut(usize, bool),
    /// What it says is no HTTP.
    Babbles,
    /// The head says more than comes.
    Overstates,
    /// More comes than the head says: another answer that nobody asked for.
    Surplus,
    /// It says 100 or 103 first.
    Informs,
    /// It closes after the answer without having said so.
    ClosesQuietly,
    /// It says that it will close.
    Closes,
}

impl Way {
    fn draw(rng: &mut Rng, faults: u32) -> Way {
        if rng.u32(0..1000) >= faults * 2 {
            return match rng.u32(0..16) {
                0 => Way::Informs,
                1 => Way::ClosesQuietly,
                2 => Way::Closes,
                3 => Way::Early,
                _ => Way::Well,
            };
        }
        match rng.u32(0..12) {
            0 => Way::Early,
            1 => Way::EarlyAndGone,
            2 => Way::Silent,
            3 => Way::Deaf,
            4 => Way::Hangs,
            5 => Way::Cut(rng.usize(0..200), true),
            6 => Way::Cut(rng.usize(0..200), false),
            7 => Way::Cut(rng.usize(0..2000), rng.bool()),
            8 => Way::Babbles,
            9 => Way::Overstates,
            10 => Way::Surplus,
            _ => Way::Closes,
        }
    }
}

/// Serves one connection.
/// `whole`: what is written at once arrives at once.
pub(crate) async fn serve(stream: Simulated, world: Network, rng: Rng, connection: u32, whole: bool) {
    let mut server = Server { stream, world, rng, connection, whole, reader: Reader::requests() };
    // However it ends, the other side learns of it.
    let _ = server.run().await;
}

struct Server {
    stream: Simulated,
    world: Network,
    rng: Rng,
    connection: u32,
    whole: bool,
    reader: Reader,
}

impl Server {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            // Servers that close what idles are what makes pooled connections stale.
            let patience = if self.rng.u32(0..6) == 0 { self.rng.u64(0..500) } else { 4000 };
            let Ok(item) = timeout(Duration::from_millis(patience), self.next()).await else { return Ok(()) };
            let Some(Item::Head(head)) = item? else { return Ok(()) };
            if !self.answer(&head).await? {
                return Ok(());
            }
        }
    }

    /// The next item; `None` at the end of the connection.
    async fn next(&mut self) -> io::Result<Option<Item>> {
        loop {
            match self.reader.next() {
                Ok(Some(item)) => return Ok(Some(item)),
                Ok(None) => {}
                Err(what) => {
                    self.world.ledger.violation(format!("an upstream was sent what is no request: {what}"));
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            let mut piece = [0; 4096];
            let n = self.stream.read(&mut piece).await?;
            if n == 0 {
                return Ok(None);
            }
            self.reader.push(&piece[..n]);
        }
    }

    /// Reads the body and judges it. False where it did not come to its end.
    async fn body(&mut self, id: u32, head: &Head) -> io::Result<bool> {
        let promised: u64 = head.field(LENGTH).and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut got = 0;
        loop {
            match self.next().await? {
                Some(Item::Data(data)) => {
                    if !wire::is_body(id, got, &data) {
                        self.world.ledger.violation(format!("the body of request {id} is wrong from byte {got} on"));
                    }
                    got += data.len() as u64;
                    if got > promised {
                        self.world.ledger.violation(format!("the body of request {id} is longer than the app's"));
                    }
                }
                Some(Item::End) => {
                    if got != promised {
                        let what = format!("request {id} ended after {got} of {promised} bytes of its body");
                        self.world.ledger.violation(what);
                    }
                    return Ok(true);
                }
                Some(Item::Head(_)) | None => return Ok(false),
            }
        }
    }

    /// True: the connection goes on.
    async fn answer(&mut self, head: &Head) -> io::Result<bool> {
        let Some(id) = head.id() else { return Ok(false) };
        let mut way = Way::draw(&mut self.rng, self.world.mood.faults);
        let plan = Plan::draw(&mut self.rng, &self.world.mood);
        if way == Way::Surplus && (!self.whole || plan.length > 2000) {
            // What comes later than the answer can't be told from an answer to the next request.
            way = Way::Well;
        }
        let what = format!("{way:?} {} {}", plan.status, plan.length);
        self.world.ledger.note(Event::Delivered(id, self.connection, what));
        match way {
            Way::Deaf => {
                sleep(Duration::from_secs(600)).await;
                return Ok(false);
            }
            Way::Hangs if self.rng.bool() => return Ok(false),
            Way::Early | Way::EarlyAndGone => {
                let whole = self.write(id, head, &plan, way).await?;
                if way == Way::EarlyAndGone {
                    return Ok(false);
                }
                return Ok(self.body(id, head).await? && whole);
            }
            Way::Informs => {
                let status = if self.rng.bool() { "100 Continue" } else { "103 Early Hints\r\nlink: </x>" };
                self.stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await?;
            }
            Way::Well
            | Way::Silent
            | Way::Hangs
            | Way::Cut(..)
            | Way::Babbles
            | Way::Overstates
            | Way::Surplus
            | Way::ClosesQuietly
            | Way::Closes => {}
        }
        if !self.body(id, head).await? {
            return Ok(false);
        }
        sleep(plan.think).await;
        match way {
            Way::Silent => {
                sleep(Duration::from_secs(600)).await;
                Ok(false)
            }
            Way::Hangs => Ok(false),
            Way::Babbles => {
                let texts: [&[u8]; 4] =
                    [b"HTTP/1.1 200\r\n", b"\x00\x01\x02", b"220 mail.sim ESMTP\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n"];
                self.stream.write_all(texts[self.rng.usize(0..texts.len())]).await?;
                Ok(false)
            }
            Way::Well
            | Way::Cut(..)
            | Way::Overstates
            | Way::Surplus
            | Way::Informs
            | Way::ClosesQuietly
            | Way::Closes => self.write(id, head, &plan, way).await,
            Way::Early | Way::EarlyAndGone | Way::Deaf => Ok(false),
        }
    }

    /// Writes the answer. True: it is complete and the connection goes on.
    async fn write(&mut self, id: u32, request: &Head, plan: &Plan, way: Way) -> io::Result<bool> {
        let bare = request.first.starts_with("HEAD ") || matches!(plan.status, 204 | 304);
        let chunked = !bare && way != Way::Overstates && way != Way::Surplus && self.rng.u32(0..3) == 0;
        let mut head = format!("HTTP/1.1 {} Word\r\n{ANSWER}: {}\r\n", plan.status, plan.label(id));
        if chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        } else if plan.status != 204 && !(way == Way::Closes && self.world.mood.faults == 0) {
            // A body that ends with its connection can't be told from one that was cut off: only where nothing is.
            head.push_str(&format!("Content-Length: {}\r\n", plan.length));
        }
        if way == Way::Closes {
            head.push_str("Connection: close\r\n");
        }
        if let Some(seconds) = plan.retry_after {
            head.push_str(&format!("Retry-After: {seconds}\r\n"));
        }
        head.push_str("\r\n");
        let mut pieces = vec![head.into_bytes()];
        if !bare {
            let length = if way == Way::Overstates { plan.length / 2 } else { plan.length };
            let step = length.div_ceil(plan.pieces).max(1);
            let mut at = 0;
            while at < length {
                let n = step.min(length - at);
                let mut piece = Vec::new();
                if chunked {
                    piece.extend_from_slice(format!("{n:x}\r\n").as_bytes());
                }
                piece.extend(wire::body(plan.seed, at as u64, n));
                if chunked {
                    piece.extend_from_slice(b"\r\n");
                }
                pieces.push(piece);
                at += n;
            }
            if chunked {
                pieces.push(b"0\r\n\r\n".to_vec());
            }
        }
        if way == Way::Surplus
            && let Some(last) = pieces.last_mut()
        {
            last.extend_from_slice(b"HTTP/1.1 200 OK\r\nx-sim-answer: 0.0.0\r\nContent-Length: 0\r\n\r\n");
            pieces = vec![pieces.concat()];
        } else if self.rng.bool() {
            // Head and body in one segment, as most servers send them.
            let rest = pieces.split_off(1);
            if let Some(second) = rest.first() {
                pieces[0].extend_from_slice(second);
            }
            pieces.extend(rest.into_iter().skip(1));
        }
        let mut left = match way {
            Way::Cut(at, _) => at,
            _ => usize::MAX,
        };
        let count = pieces.len();
        for (number, piece) in pieces.into_iter().enumerate() {
            let n = piece.len().min(left);
            self.stream.write_all(&piece[..n]).await?;
            left -= n;
            if left == 0 {
                if matches!(way, Way::Cut(_, true)) {
                    let _ = self.stream.set_zero_linger();
                }
                return Ok(false);
            }
            if number + 1 < count && !plan.pause.is_zero() {
                sleep(plan.pause).await;
            }
        }
        Ok(!matches!(way, Way::Closes | Way::ClosesQuietly | Way::Overstates | Way::Cut(..)))
    }
}
