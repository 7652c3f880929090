//! The sockets that Outrigger listens on, and how one set becomes the next without closing what both have.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Connections that wait to be accepted: a burst of a whole pod's apps.
const BACKLOG: i32 = 4096;

/// What a listener is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// `listeners.proxy`
    Proxy,
    /// `listeners.admin`
    Admin,
    /// `listeners.probes`
    Probes,
    /// `listeners.tls`
    Tls,
    /// An upstream's own `listen`.
    Upstream(Arc<str>),
}

impl Place {
    /// The setting that names its address.
    pub fn setting(&self) -> String {
        match self {
            Place::Proxy => "listeners.proxy".to_owned(),
            Place::Admin => "listeners.admin".to_owned(),
            Place::Probes => "listeners.probes".to_owned(),
            Place::Tls => "listeners.tls".to_owned(),
            Place::Upstream(name) => format!("upstreams.{name}.listen"),
        }
    }
}

/// One open listener.
pub(super) struct Bound {
    place: Place,
    /// As the configuration has it.
    asked: SocketAddr,
    /// As it was bound: port 0 resolved, the family that there is.
    address: SocketAddr,
    /// Kept besides the one that is served, so that the socket can be handed to another place without closing.
    socket: std::net::TcpListener,
    /// Cancelled when it is closed.
    stop: CancellationToken,
    /// Not served yet.
    fresh: bool,
}

impl Bound {
    fn open(place: Place, asked: SocketAddr) -> Result<Bound, String> {
        let socket =
            bind(asked).map_err(|error| format!("{}: {asked} can't be listened on: {error}", place.setting()))?;
        Bound::over(place, asked, socket)
    }

    fn over(place: Place, asked: SocketAddr, socket: std::net::TcpListener) -> Result<Bound, String> {
        let address = socket.local_addr().map_err(|error| format!("{}: {error}", place.setting()))?;
        Ok(Bound { place, asked, address, socket, stop: CancellationToken::new(), fresh: true })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// A handle to serve, and what stops it. `None` (logged) where the process has no descriptor left for it.
    pub(super) fn socket(&self) -> Option<(TcpListener, CancellationToken)> {
        match self.socket.try_clone().and_then(TcpListener::from_std) {
            Ok(listener) => Some((listener, self.stop.clone())),
            Err(error) => {
                tracing::error!(setting = self.place.setting(), %error, "a listener can't be served");
                None
            }
        }
    }
}

/// All open listeners.
#[derive(Default)]
pub(super) struct Listeners(Vec<Bound>);

impl Listeners {
    /// Opens what `config` asks for and is not open yet.
    ///
    /// # Errors
    /// A sentence for each that can't be opened; then nothing has changed.
    pub(super) fn plan(&self, config: &Config) -> Result<Plan, Vec<String>> {
        self.plan_for(wanted(config))
    }

    fn plan_for(&self, wanted: Vec<(Place, SocketAddr)>) -> Result<Plan, Vec<String>> {
        let mut problems = Vec::new();
        let mut bound = Vec::new();
        for (place, asked) in wanted {
            // Port 0 means any port, so two that ask for it don't ask for the same.
            let same = |one: &&Bound| one.asked == asked && (asked.port() != 0 || one.place == place);
            let made = match self.0.iter().find(same) {
                Some(old) => {
                    old.socket.try_clone().map_err(|error| format!("{}: {error}", place.setting())).map(|socket| {
                        Bound {
                            fresh: old.place != place,
                            stop: if old.place == place { old.stop.clone() } else { CancellationToken::new() },
                            address: old.address,
                            place,
                            asked,
                            socket,
                        }
                    })
                }
                None => Bound::open(place, asked),
            };
            match made {
                Ok(made) => bound.push(made),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let going =
            self.0.iter().filter(|old| !bound.iter().any(|new| new.place == old.place && new.asked == old.asked));
        let closing = going.map(|old| old.stop.clone()).collect();
        Ok(Plan { bound, closing })
    }

    /// Those that are not served yet.
    pub(super) fn fresh(&self) -> impl Iterator<Item = &Bound> {
        self.0.iter().filter(|bound| bound.fresh)
    }

    /// Every address in use.
    pub(super) fn all(&self) -> Vec<(Place, SocketAddr)> {
        self.0.iter().map(|bound| (bound.place.clone(), bound.address)).collect()
    }
}

/// The next set of listeners, all open. Dropping it leaves the old set as it is.
pub(super) struct Plan {
    bound: Vec<Bound>,
    closing: Vec<CancellationToken>,
}

/// Stops the tasks of listeners that are not wanted any more when it is dropped.
pub(super) struct Closed(Vec<CancellationToken>);

impl Plan {
    /// The addresses that Outrigger will listen on.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().map(|bound| bound.address).collect()
    }

    /// The new set, and what closes the rest of the old one.
    pub(super) fn settle(self) -> (Listeners, Closed) {
        (Listeners(self.bound), Closed(self.closing))
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        for stop in &self.0 {
            stop.cancel();
        }
    }
}

fn wanted(config: &Config) -> Vec<(Place, SocketAddr)> {
    let listeners = &config.listeners;
    let mut wanted = vec![(Place::Proxy, listeners.proxy)];
    wanted.extend(listeners.admin.map(|address| (Place::Admin, address)));
    wanted.extend(listeners.probes.map(|address| (Place::Probes, address)));
    wanted.extend(listeners.tls.map(|address| (Place::Tls, address)));
    let own = config.upstreams.iter().filter_map(|one| Some((Place::Upstream(one.name.clone()), one.listen?)));
    wanted.extend(own);
    wanted
}

/// `[::]` listens on both families, or on IPv4 alone where there is no IPv6.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let bound = bind_exactly(address);
    let no_family = |error: &io::Error| {
        error.kind() == io::ErrorKind::AddrNotAvailable || error.kind() == io::ErrorKind::Unsupported
            // EAFNOSUPPORT, which has no kind of its own.
            || error.raw_os_error() == Some(97)
    };
    match (address.ip(), bound) {
        (IpAddr::V6(ip), Err(error)) if ip.is_unspecified() && no_family(&error) => {
            bind_exactly(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        (IpAddr::V4(_) | IpAddr::V6(_), bound) => bound,
    }
}

fn bind_exactly(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.ip() == IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn settle(listeners: Listeners, wanted: Vec<(Place, SocketAddr)>) -> Listeners {
        let (next, closed) = listeners.plan_for(wanted).ok().unwrap().settle();
        drop((listeners, closed));
        next
    }

    #[test]
    fn a_listener_that_stays_keeps_its_socket_and_its_task() {
        let first = settle(Listeners::default(), vec![(Place::Proxy, any()), (Place::Admin, any())]);
        let (address, stop) = (first.0[0].address, first.0[0].stop.clone());
        let waiting = TcpStream::connect(address).unwrap();
        let second = settle(first, vec![(Place::Proxy, any())]);
        assert_eq!(second.0[0].address, address);
        assert!(!stop.is_cancelled());
        second.0[0].socket.set_nonblocking(false).unwrap();
        assert_eq!(second.0[0].socket.accept().unwrap().1, waiting.local_addr().unwrap());
    }

    #[test]
    fn a_listener_that_goes_is_stopped() {
        let first = settle(Listeners::default(), vec![(Place::Proxy, any()), (Place::Admin, any())]);
        let (address, stop) = (first.0[1].address, first.0[1].stop.clone());
        settle(first, vec![(Place::Proxy, any())]);
        assert!(stop.is_cancelled());
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn an_address_moves_to_another_upstream_without_closing() {
        let port = settle(Listeners::default(), vec![(Place::Proxy, any())]).0[0].address;
        let (a, b) = (Place::Upstream("a".into()), Place::Upstream("b".into()));
        let first = settle(Listeners::default(), vec![(a, port)]);
        let stop = first.0[0].stop.clone();
        let waiting = TcpStream::connect(port).unwrap();
        let second = settle(first, vec![(b, port)]);
        assert!(stop.is_cancelled() && second.0[0].fresh);
        second.0[0].socket.set_nonblocking(false).unwrap();
        assert_eq!(second.0[0].socket.accept().unwrap().1, waiting.local_addr().unwrap());
    }

    #[test]
    fn one_that_cannot_be_opened_changes_nothing() {
        let other = settle(Listeners::default(), vec![(Place::Proxy, any())]);
        let taken = other.0[0].address;
        let first = settle(Listeners::default(), vec![(Place::Admin, any())]);
        let problems = first.plan_for(vec![(Place::Probes, taken)]).err().unwrap();
        assert!(problems[0].starts_with(&format!("listeners.probes: {taken} can't be listened on")), "{problems:?}");
        assert!(!first.0[0].stop.is_cancelled() && TcpStream::connect(first.0[0].address).is_ok());
    }

    #[test]
    fn the_unspecified_address_hears_ipv4_too() {
        let bound = settle(Listeners::default(), vec![(Place::Probes, "[::]:0".parse().unwrap())]);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, bound.0[0].address.port())).is_ok());
    }
}
