//! An upstream that speaks HTTP/2, and ends streams and connections in all its ways.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use h2::{Reason, RecvStream, server};
use http::{Request, Response};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::simulation::ledger::Event;
use crate::simulation::network::Network;
use crate::simulation::stream::Simulated;
use crate::simulation::upstream::{ANSWER, LENGTH, Plan};
use crate::simulation::wire;

/// How it answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Well,
    /// It refuses the stream: nothing was done.
    Refuses,
    /// It resets the stream before the head, although it may have done something.
    Resets(Reason),
    /// It resets the stream in the middle of the body.
    Cuts(Reason),
    Silent,
    /// It answers before it has the body, and wants no more of it.
    Early,
    /// It takes no new streams, and answers.
    GoesAway,
    /// It closes the connection with GOAWAY, which says that it has seen this stream.
    Breaks(Reason),
}

impl Way {
    fn draw(rng: &mut Rng, faults: u32) -> Way {
        if rng.u32(0..1000) >= faults * 2 {
            return if rng.u32(0..12) == 0 { Way::GoesAway } else { Way::Well };
        }
        let reasons = [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR, Reason::ENHANCE_YOUR_CALM];
        let reason = reasons[rng.usize(0..reasons.len())];
        match rng.u32(0..8) {
            0 | 1 => Way::Refuses,
            2 => Way::Resets(reason),
            3 => Way::Cuts(reason),
            4 => Way::Silent,
            5 => Way::Early,
            6 => Way::GoesAway,
            _ => Way::Breaks(reason),
        }
    }
}

/// What a request asks of its connection.
enum Order {
    GoAway,
    Break(Reason),
}

/// Serves one connection.
pub(crate) async fn serve(stream: Simulated, world: Network, mut rng: Rng, connection: u32) {
    let mut builder = server::Builder::new();
    if rng.u32(0..4) == 0 {
        builder.max_concurrent_streams(rng.u32(1..3));
    }
    let Ok(mut served) = builder.handshake::<_, Bytes>(stream).await else { return };
    let (order, mut orders) = mpsc::unbounded_channel();
    let mut count = 0;
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::GoAway) => served.graceful_shutdown(),
                Some(Order::Break(reason)) => served.abrupt_shutdown(reason),
                None => return,
            },
            accepted = served.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let Some(id) = wire::id_in(format!("{} ", request.uri().path()).as_bytes()) else {
                    world.ledger.violation(format!("the proxy sent {request:?}"));
                    continue;
                };
                let way = Way::draw(&mut rng, world.mood.faults);
                world.ledger.sent(id, connection, count > 0, false, way == Way::Refuses);
                count += 1;
                let plan = Plan::draw(&mut rng, &world.mood);
                let what = format!("{way:?} {} {}", plan.status, plan.length);
                world.ledger.note(Event::Delivered(id, connection, what));
                let answering = answer(world.clone(), request, respond, id, way, plan, order.clone());
                world.spawn(answering);
            }
        }
    }
}

async fn answer(
    world: Network,
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    id: u32,
    way: Way,
    plan: Plan,
    orders: mpsc::UnboundedSender<Order>,
) {
    match way {
        Way::Refuses => return respond.send_reset(Reason::REFUSED_STREAM),
        Way::Breaks(reason) => {
            let _ = orders.send(Order::Break(reason));
            // It lives until the connection does not.
            sleep(Duration::from_secs(600)).await;
            return;
        }
        Way::GoesAway => drop(orders.send(Order::GoAway)),
        Way::Well | Way::Resets(_) | Way::Cuts(_) | Way::Silent | Way::Early => {}
    }
    let head = request.method() == http::Method::HEAD;
    let promised = request.headers().get(LENGTH).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    if way != Way::Early && !body(&world, request, id, promised).await {
        return;
    }
    sleep(plan.think).await;
    match way {
        Way::Resets(reason) => return respond.send_reset(reason),
        Way::Silent => return sleep(Duration::from_secs(600)).await,
        Way::Well | Way::Cuts(_) | Way::Early | Way::GoesAway | Way::Refuses | Way::Breaks(_) => {}
    }
    let mut response = Response::builder().status(plan.status).header(ANSWER, plan.label(id));
    if let Some(seconds) = plan.retry_after {
        response = response.header("retry-after", seconds);
    }
    if plan.seed % 2 == 0 && plan.status != 204 {
        response = response.header("content-length", plan.length);
    }
    let bare = head || plan.length == 0;
    let Ok(response) = response.body(()) else { return };
    let Ok(mut send) = respond.send_response(response, bare) else { return };
    if bare {
        return;
    }
    let step = plan.length.div_ceil(plan.pieces);
    let mut at = 0;
    while at < plan.length {
        let n = step.min(plan.length - at);
        if let Way::Cuts(reason) = way
            && at + n == plan.length
        {
            return send.send_reset(reason);
        }
        let data = wire::body(plan.seed, at as u64, n);
        at += n;
        if send.send_data(data.into(), at == plan.length).is_err() {
            return;
        }
        if at < plan.length {
            sleep(plan.pause).await;
        }
    }
    if way == Way::Early {
        // A stream that is answered early is reset without an error (RFC 9113 section 8.1).
        send.send_reset(Reason::NO_ERROR);
    }
}

/// Reads the body and judges it. False where it did not come to its end.
async fn body(world: &Network, request: Request<RecvStream>, id: u32, promised: u64) -> bool {
    let mut body = request.into_body();
    let mut got = 0;
    loop {
        let Ok(frame) = timeout(Duration::from_secs(60), body.data()).await else { return false };
        match frame {
            Some(Ok(data)) => {
                if !wire::is_body(id, got, &data) {
                    world.ledger.violation(format!("the body of request {id} is wrong from byte {got} on"));
                }
                got += data.len() as u64;
                let _ = body.flow_control().release_capacity(data.len());
            }
            Some(Err(_)) => return false,
            None => {
                if got != promised {
                    world.ledger.violation(format!("request {id} ended after {got} of {promised} bytes of its body"));
                }
                return true;
            }
        }
    }
}
