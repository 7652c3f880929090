//! WebSocket and other upgrades: once the upstream said 101, both connections are relayed byte for byte.

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use crate::policy::carry::Carry;
use crate::proxy::record::Record;
use crate::proxy::tunnel;
use crate::upstream::transport::UpstreamBody;

/// Relays once both sides have switched. `carry` is the answer's body: it holds the upstream's slot and place in the pool,
/// so it lives as long as the stream.
pub(crate) fn start(
    app: OnUpgrade,
    upstream: OnUpgrade,
    carry: Box<Carry<UpstreamBody>>,
    mut record: Box<Record>,
    idle: Option<Duration>,
    ended: CancellationToken,
) {
    tokio::spawn(async move {
        let _carry = carry;
        let (Ok(app), Ok(upstream)) = tokio::join!(app, upstream) else { return };
        let mut upstream = TokioIo::new(upstream);
        tunnel::run(&mut tunnel::app_side(app), &mut upstream, &mut record, idle, &ended).await;
    });
}
