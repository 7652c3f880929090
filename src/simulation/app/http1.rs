//! An app that speaks HTTP/1.1, byte by byte.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep, timeout_at};

use crate::simulation::app::{Asked, Judge, SLOW_READS, Surroundings};
use crate::simulation::stream::Simulated;
use crate::simulation::upstream::{ANSWER, LENGTH};
use crate::simulation::wire::{self, Head, Item, Reader};

/// Sends its requests one after another over a connection that it keeps while it can.
pub(crate) async fn run(requests: Vec<Asked>, number: u16, around: Surroundings) {
    let mut kept: Option<(Simulated, bool)> = None;
    for asked in requests {
        sleep(asked.wait).await;
        let (stream, fair) = kept.take().unwrap_or_else(|| around.network.to_proxy(&around.proxy, number));
        around.begins(&asked);
        let began = Instant::now();
        let limit = asked.hang_up.map(|after| began + after);
        let exchange = Exchange { asked: &asked, around: &around, fair, began };
        let ended = match limit {
            Some(limit) => timeout_at(limit, exchange.run(stream)).await.unwrap_or_else(|_| {
                around.ends(asked.id, "the app hung up");
                None
            }),
            None => exchange.run(stream).await,
        };
        kept = ended.map(|stream| (stream, fair));
    }
}

struct Exchange<'a> {
    asked: &'a Asked,
    around: &'a Surroundings,
    /// Nothing befalls the connection on its way.
    fair: bool,
    began: Instant,
}

/// How the reading of an answer ended.
enum End {
    /// In good order; whether the connection is kept.
    Whole(bool),
    /// The connection ended before.
    Broken,
    /// The app had enough.
    Enough,
}

impl Exchange<'_> {
    /// The connection, where it can be used again.
    async fn run(&self, stream: Simulated) -> Option<Simulated> {
        let (mut reading, mut writing) = tokio::io::split(stream);
        let mut sent = false;
        let end = {
            let mut send = std::pin::pin!(self.send(&mut writing));
            let mut receive = std::pin::pin!(self.receive(&mut reading));
            loop {
                tokio::select! {
                    biased;
                    end = &mut receive => break end,
                    // A failure to send shows in what is received.
                    result = &mut send, if !sent => {
                        sent = true;
                        drop(result);
                    }
                }
            }
        };
        let id = self.asked.id;
        match end {
            End::Whole(true) if sent => {
                self.around.ends(id, "whole");
                return Some(reading.unsplit(writing));
            }
            End::Whole(_) => self.around.ends(id, "whole, and closed"),
            End::Broken => self.around.ends(id, "broken"),
            End::Enough => self.around.ends(id, "the app had enough"),
        }
        None
    }

    async fn send(&self, to: &mut WriteHalf<Simulated>) -> io::Result<()> {
        let Asked { id, method, body, chunked, .. } = *self.asked;
        let host = self.asked.host();
        let target = if self.asked.absolute { format!("http://{host}/r/{id}") } else { format!("/r/{id}") };
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{LENGTH}: {body}\r\n");
        if self.asked.keyed {
            head.push_str(&format!("Idempotency-Key: key-{id}\r\n"));
        }
        let has_body = method != "GET" && method != "HEAD";
        match (has_body, chunked) {
            (true, true) => head.push_str("Transfer-Encoding: chunked\r\n"),
            (true, false) => head.push_str(&format!("Content-Length: {body}\r\n")),
            (false, _) => {}
        }
        head.push_str("\r\n");
        to.write_all(head.as_bytes()).await?;
        let step = body.div_ceil(self.asked.pieces).max(1);
        let mut at = 0;
        while at < body {
            let n = step.min(body - at);
            let data = wire::body(id, at as u64, n);
            let piece = match chunked {
                true => [format!("{n:x}\r\n").as_bytes(), &data, b"\r\n"].concat(),
                false => data,
            };
            to.write_all(&piece).await?;
            at += n;
            if at < body {
                sleep(self.asked.pause).await;
            }
        }
        if has_body && chunked {
            to.write_all(b"0\r\n\r\n").await?;
        }
        Ok(())
    }

    async fn receive(&self, from: &mut ReadHalf<Simulated>) -> End {
        let id = self.asked.id;
        let ledger = &self.around.ledger;
        let mut reader = Reader::answers();
        reader.expect(self.asked.method);
        let mut judge: Option<Judge> = None;
        let mut closes = false;
        let mut until = self.began + self.around.until_head(self.asked);
        let mut piece = [0; 8192];
        let mut reads = 0;
        loop {
            loop {
                match reader.next() {
                    Ok(Some(Item::Head(head))) if head.status() < 200 => {}
                    Ok(Some(Item::Head(head))) => {
                        closes = head.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
                        judge = Some(judge_of(&head, self));
                    }
                    Ok(Some(Item::Data(data))) => {
                        if let Some(judge) = &mut judge {
                            judge.data(&data);
                            if self.asked.enough.is_some_and(|enough| judge.got() > enough) {
                                return End::Enough;
                            }
                        }
                    }
                    Ok(Some(Item::End)) => {
                        judge.iter().for_each(Judge::complete);
                        return End::Whole(!closes && reader.is_at_rest());
                    }
                    Ok(None) => break,
                    Err(what) => {
                        ledger.violation(format!("the answer to {id} is no HTTP: {what}"));
                        return End::Broken;
                    }
                }
            }
            let read = match timeout_at(until, from.read(&mut piece)).await {
                Ok(read) => read,
                Err(_) => {
                    if self.fair {
                        let what = if judge.is_some() { "came to no end" } else { "did not come" };
                        ledger.violation(format!("the answer to {id} {what} in time"));
                    }
                    return End::Broken;
                }
            };
            match read {
                Ok(0) if reader.ends_here() => {
                    judge.iter().for_each(Judge::complete);
                    return End::Whole(false);
                }
                Ok(n) if n > 0 => {
                    reader.push(&piece[..n]);
                    until = until.max(Instant::now() + self.around.patience.idle + self.around.patience.slack);
                }
                Ok(_) | Err(_) => {
                    if judge.is_none() && self.fair && !ledger.book().drain_over {
                        ledger.violation(format!("request {id} got no answer, its connection was just closed"));
                    }
                    if matches!(read, Ok(0)) && judge.is_some() && reader.counts_bytes() && self.fair {
                        ledger.violation(format!("the answer to {id} was cut off without a reset"));
                    }
                    return End::Broken;
                }
            }
            reads += 1;
            if reads <= SLOW_READS && self.asked.slow > Duration::ZERO {
                sleep(self.asked.slow).await;
            }
        }
    }
}

fn judge_of(head: &Head, exchange: &Exchange<'_>) -> Judge {
    let own = head.field("proxy-status").is_some_and(|value| value.starts_with("outrigger; error="));
    Judge::new(exchange.asked, &exchange.around.ledger, head.status(), head.field(ANSWER), own)
}
