//! Accepting connections of apps, finding out what they speak, and serving them.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::proxy::{Entry, Proxy};

/// Serves a listener until `stop` is cancelled (a reload closed it) or the drain ends. Connections that were accepted
/// live on after `stop`.
pub async fn serve(_listener: TcpListener, _entry: Entry, _proxy: Arc<Proxy>, _stop: CancellationToken) {
    todo!()
}
