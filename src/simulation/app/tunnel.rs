//! An app that opens a tunnel by CONNECT, to what gives back what it gets.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout_at};

use crate::simulation::app::Surroundings;
use crate::simulation::network::ECHO;
use crate::simulation::wire::{self, Item, Reader};

/// One tunnel.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    pub(crate) id: u32,
    pub(crate) wait: Duration,
    pub(crate) length: usize,
    /// The first bytes go out before the answer is there.
    pub(crate) early: bool,
    pub(crate) pause: Duration,
    pub(crate) hang_up: Option<Duration>,
}

/// Opens it, sends, and compares.
pub(crate) async fn run(tunnel: Tunnel, number: u16, around: Surroundings) {
    sleep(tunnel.wait).await;
    let talk = talk(&tunnel, number, &around);
    match tunnel.hang_up {
        Some(after) => drop(timeout_at(Instant::now() + after, talk).await),
        None => talk.await,
    }
}

async fn talk(tunnel: &Tunnel, number: u16, around: &Surroundings) {
    let (id, ledger) = (tunnel.id, &around.ledger);
    let (mut stream, fair) = around.network.to_proxy(&around.proxy, number);
    let mut first = format!("CONNECT one.sim:{ECHO} HTTP/1.1\r\nHost: one.sim:{ECHO}\r\n\r\n").into_bytes();
    let half = tunnel.length / 2;
    if tunnel.early {
        first.extend(wire::body(id, 0, half));
    }
    if stream.write_all(&first).await.is_err() {
        return;
    }
    let mut reader = Reader::answers();
    reader.expect("CONNECT");
    let mut piece = [0; 2048];
    let until = Instant::now() + around.patience.request + around.patience.slack;
    let head = loop {
        match reader.next() {
            Ok(Some(Item::Head(head))) => break head,
            Ok(_) => {}
            Err(what) => return ledger.violation(format!("the answer to CONNECT {id} is no HTTP: {what}")),
        }
        match timeout_at(until, stream.read(&mut piece)).await {
            Ok(Ok(n)) if n > 0 => reader.push(&piece[..n]),
            Ok(_) => {
                if fair && !ledger.book().drain_over {
                    ledger.violation(format!("CONNECT {id} got no answer, its connection was just closed"));
                }
                return;
            }
            Err(_) => {
                if fair {
                    ledger.violation(format!("the answer to CONNECT {id} did not come in time"));
                }
                return;
            }
        }
    };
    if head.status() != 200 {
        return;
    }
    let mut got = 0;
    let mut judge = |data: &[u8]| {
        if !wire::is_body(id, got, data) {
            ledger.violation(format!("tunnel {id} carried something else from byte {got} on"));
        }
        got += data.len() as u64;
        got
    };
    judge(&reader.take_raw());
    let (mut reading, mut writing) = tokio::io::split(stream);
    let from = if tunnel.early { half } else { 0 };
    let sending = async {
        sleep(tunnel.pause).await;
        let _ = writing.write_all(&wire::body(id, from as u64, tunnel.length - from)).await;
        let _ = writing.shutdown().await;
    };
    let receiving = async {
        let mut total = 0;
        loop {
            match reading.read(&mut piece).await {
                Ok(n) if n > 0 => total = judge(&piece[..n]),
                Ok(_) | Err(_) => break,
            }
        }
        if total > tunnel.length as u64 {
            ledger.violation(format!("tunnel {id} gave back more than it got"));
        }
    };
    tokio::join!(sending, receiving);
}
