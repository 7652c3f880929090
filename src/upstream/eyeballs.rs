//! Happy eyeballs (RFC 8305): the addresses of both families one after another, each given a head start, the next one at
//! once when one fails, and the first connection wins.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::tcp::Tcp;

/// A TCP connection being made.
pub(crate) type DialFuture = Pin<Box<dyn Future<Output = io::Result<Tcp>> + Send>>;

/// Opens TCP connections; tests put others in its place.
pub(crate) trait Dial: Send + Sync + 'static {
    /// Connects to the address, which has been judged.
    fn dial(&self, address: SocketAddr) -> DialFuture;
}

/// How long one address has before the next is tried beside it (RFC 8305 section 5).
pub(super) const HEAD_START: Duration = Duration::from_millis(250);

/// The order in which addresses are tried: families alternate, IPv6 first where the resolver has it first or at all
/// (RFC 8305 section 4), the resolver's order within a family.
pub(super) fn order(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut six = addresses.iter().filter(|ip| ip.is_ipv6()).peekable();
    let mut four = addresses.iter().filter(|ip| ip.is_ipv4()).peekable();
    let mut ordered = Vec::with_capacity(addresses.len());
    while six.peek().is_some() || four.peek().is_some() {
        ordered.extend(six.next());
        ordered.extend(four.next());
    }
    ordered
}

/// What became of each address that failed, in the order of failing.
pub(super) type Failures = Vec<(SocketAddr, io::Error)>;

/// The first connection that is made.
///
/// # Errors
/// All failures, once every address has failed.
pub(super) async fn race(dialer: &Arc<dyn Dial>, addresses: &[SocketAddr]) -> Result<(Tcp, SocketAddr), Failures> {
    if let [only] = addresses {
        return dialer.dial(*only).await.map(|stream| (stream, *only)).map_err(|error| vec![(*only, error)]);
    }
    let mut failures = Failures::new();
    let mut racing = JoinSet::new();
    let mut waiting = addresses.iter().copied();
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            let dialing = dialer.dial(address);
            racing.spawn(async move { (address, dialing.await) });
        }
        let finished = if next.is_some() && waiting.len() > 0 {
            match tokio::time::timeout(HEAD_START, racing.join_next()).await {
                Ok(finished) => finished,
                Err(_) => continue,
            }
        } else {
            racing.join_next().await
        };
        match finished {
            Some(Ok((address, Ok(stream)))) => return Ok((stream, address)),
            Some(Ok((address, Err(error)))) => failures.push((address, error)),
            // The task was cancelled with the runtime.
            Some(Err(_)) => {}
            None => return Err(failures),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;

    /// Refuses, never answers, or connects to a real listener, by the last byte of the address.
    struct Scripted {
        listener: SocketAddr,
        dialled: Mutex<Vec<IpAddr>>,
    }

    impl Dial for Scripted {
        fn dial(&self, address: SocketAddr) -> DialFuture {
            self.dialled.lock().unwrap().push(address.ip());
            let last = match address.ip() {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(ip) => ip.octets()[15],
            };
            let listener = self.listener;
            Box::pin(async move {
                match last {
                    1 => Err(io::ErrorKind::ConnectionRefused.into()),
                    2 => std::future::pending().await,
                    _ => Tcp::connect(listener).await,
                }
            })
        }
    }

    async fn run(addresses: &[&str]) -> (Result<SocketAddr, Failures>, Vec<IpAddr>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scripted = Arc::new(Scripted { listener: listener.local_addr().unwrap(), dialled: Mutex::default() });
        let addresses: Vec<SocketAddr> = addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 80)).collect();
        let dialer: Arc<dyn Dial> = scripted.clone();
        let result = race(&dialer, &addresses).await.map(|(_, address)| address);
        let dialled = scripted.dialled.lock().unwrap().clone();
        (result, dialled)
    }

    #[test]
    fn families_alternate() {
        let ips = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(
            order(&ips(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"])),
            ips(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.3"])
        );
    }

    #[tokio::test]
    async fn a_failed_address_is_followed_by_the_next_at_once() {
        let (result, dialled) = run(&["2001:db8::1", "192.0.2.1", "192.0.2.3", "192.0.2.4"]).await;
        assert_eq!(result.unwrap().ip().to_string(), "192.0.2.3");
        assert_eq!(dialled.len(), 3);
    }

    #[tokio::test]
    async fn a_silent_address_has_a_head_start_only() {
        let start = std::time::Instant::now();
        let (result, _) = run(&["2001:db8::2", "192.0.2.3"]).await;
        assert!(result.is_ok());
        assert!(start.elapsed() >= HEAD_START);
    }

    #[tokio::test]
    async fn every_address_is_tried_before_it_fails() {
        let (result, dialled) = run(&["192.0.2.1", "2001:db8::1", "198.51.100.1"]).await;
        assert_eq!(result.unwrap_err().len(), 3);
        assert_eq!(dialled.len(), 3);
    }
}
