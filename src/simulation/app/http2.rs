//! An app that speaks HTTP/2 with prior knowledge, and has many requests under way at once.

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, client};
use http::Request;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::simulation::app::{Asked, Judge, SLOW_READS, Surroundings};
use crate::simulation::upstream::{ANSWER, LENGTH};
use crate::simulation::wire;

/// Sends its requests over one connection, and over another once that is gone.
pub(crate) async fn run(requests: Vec<Asked>, number: u16, around: Surroundings) {
    let mut kept: Option<(SendRequest<Bytes>, bool)> = None;
    let mut under_way = JoinSet::new();
    let mut connections = JoinSet::new();
    for asked in requests {
        sleep(asked.wait).await;
        let ready = match kept.take() {
            Some((send, fair)) => send.ready().await.ok().map(|send| (send, fair)),
            None => None,
        };
        let (send, fair) = match ready {
            Some(ready) => ready,
            None => {
                let (stream, fair) = around.network.to_proxy(&around.proxy, number);
                let Ok((send, connection)) = client::handshake(stream).await else { continue };
                connections.spawn(async move { drop(connection.await) });
                let Ok(send) = send.ready().await else { continue };
                (send, fair)
            }
        };
        kept = Some((send.clone(), fair));
        let around = around.clone();
        under_way.spawn(async move {
            around.begins(&asked);
            let began = Instant::now();
            let exchange = exchange(&asked, &around, send, fair, began);
            match asked.hang_up {
                Some(after) => {
                    if timeout_at(began + after, exchange).await.is_err() {
                        around.ends(asked.id, "the app hung up");
                    }
                }
                None => exchange.await,
            }
        });
    }
    while let Some(ended) = under_way.join_next().await {
        if let Err(error) = ended {
            around.ledger.violation(format!("an app panicked: {error}"));
        }
    }
    drop(kept);
    connections.abort_all();
    while connections.join_next().await.is_some() {}
}

async fn exchange(asked: &Asked, around: &Surroundings, mut send: SendRequest<Bytes>, fair: bool, began: Instant) {
    let id = asked.id;
    let ledger = &around.ledger;
    let mut request = Request::builder()
        .method(asked.method)
        .uri(format!("http://{}/r/{id}", asked.host()))
        .header(LENGTH, asked.body);
    if asked.keyed {
        request = request.header("idempotency-key", format!("key-{id}"));
    }
    let has_body = asked.method != "GET" && asked.method != "HEAD";
    if has_body && !asked.chunked {
        request = request.header("content-length", asked.body);
    }
    let Ok(request) = request.body(()) else { return };
    let ends = !has_body || asked.body == 0;
    let Ok((response, mut body)) = send.send_request(request, ends) else {
        return around.ends(id, "not sent");
    };
    drop(send);
    let sending = async {
        let step = asked.body.div_ceil(asked.pieces).max(1);
        let mut at = 0;
        while !ends && at < asked.body {
            let n = step.min(asked.body - at);
            let data = wire::body(id, at as u64, n);
            at += n;
            if body.send_data(data.into(), at == asked.body).is_err() {
                break;
            }
            if at < asked.body {
                sleep(asked.pause).await;
            }
        }
        // Kept open: dropped before its end it would be a reset.
        std::future::pending::<()>().await;
    };
    let receiving = async {
        let until = began + around.until_head(asked);
        let answer = match timeout_at(until, response).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                // Where the connection is stuck, the reset of an answer that breaks at once overtakes its head.
                let overtaken = error.reason() == Some(Reason::INTERNAL_ERROR) && ledger.book().was_sent(id);
                let excused = overtaken || error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM);
                if fair && !excused && !ledger.book().drain_over {
                    ledger.violation(format!("request {id} got no answer, but {error}"));
                }
                return "broken";
            }
            Err(_) => {
                if fair {
                    ledger.violation(format!("the answer to {id} did not come in time"));
                }
                return "broken";
            }
        };
        let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let own = text("proxy-status").is_some_and(|value| value.starts_with("outrigger; error="));
        let mut judge = Judge::new(asked, ledger, answer.status().as_u16(), text(ANSWER).as_deref(), own);
        let mut body = answer.into_body();
        let mut reads = 0;
        loop {
            let until = Instant::now() + around.patience.idle + around.patience.slack;
            match timeout_at(until, body.data()).await {
                Ok(Some(Ok(data))) => {
                    judge.data(&data);
                    let _ = body.flow_control().release_capacity(data.len());
                    if asked.enough.is_some_and(|enough| judge.got() > enough) {
                        return "the app had enough";
                    }
                    reads += 1;
                    if reads <= SLOW_READS && !asked.slow.is_zero() {
                        sleep(asked.slow).await;
                    }
                }
                Ok(Some(Err(_))) => return "broken",
                Ok(None) => {
                    judge.complete();
                    return "whole";
                }
                Err(_) => {
                    if fair {
                        ledger.violation(format!("the answer to {id} came to no end in time"));
                    }
                    return "broken";
                }
            }
        }
    };
    let how = tokio::select! {
        biased;
        how = receiving => how,
        () = sending => "never",
    };
    around.ends(id, how);
}
