//! One connection set-up: names, addresses, happy eyeballs (RFC 8305), TLS.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::TcpKeepalive;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use crate::address::AddressSet;
use crate::config;
use crate::descriptors::{self, Room};
use crate::error::{ConnectFailure, Error, Overload, Result};
use crate::origin::Host;
use crate::tcp::Tcp;
use crate::upstream::connection::Stream;
use crate::upstream::dns::{Dns, Lookup, LookupError};
use crate::upstream::egress::Egress;
use crate::upstream::eyeballs::{self, Dial, DialFuture, Failures};
use crate::upstream::resolver::SystemResolver;
use crate::upstream::tls::{self, SystemRoots};

/// A connection whose peer is gone is noticed after this long without traffic, plus three probes ten seconds apart.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);

/// Too many open files, on Linux and the BSDs.
const EMFILE: i32 = 24;

/// What is sent and not acknowledged for this long breaks the connection. Not for tunnels: whoever reads there may pause.
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// Makes connections for all upstreams: the resolver with its cache, the egress rules, our own listeners' addresses.
pub struct Connector {
    dns: Arc<Dns>,
    egress: Egress,
    dialer: Arc<dyn Dial>,
    roots: Arc<SystemRoots>,
}

/// Where a connection leads.
pub(super) struct Place<'a> {
    /// A name is resolved.
    pub(super) host: &'a Host,
    /// The port.
    pub(super) port: u16,
    /// The operator wrote the address itself in `to`.
    pub(super) exempt: bool,
    /// The upstream's `allow_addresses`.
    pub(super) allow: &'a AddressSet,
}

/// How TLS is to be spoken.
pub(super) struct Secure {
    /// Roots, identity, versions, ALPN.
    pub(super) config: Arc<ClientConfig>,
    /// SNI and verification.
    pub(super) server: ServerName<'static>,
}

/// What a set-up is at when its time is up.
const RESOLVING: u8 = 0;
const DIALLING: u8 = 1;
const SHAKING_HANDS: u8 = 2;

impl Connector {
    /// From the `dns` and `egress` blocks. `own` are the addresses that Outrigger itself listens on: dialling one is a loop.
    ///
    /// # Errors
    /// A sentence when the system's resolver configuration can't be used.
    pub fn new(dns: &config::Dns, egress: &config::Egress, own: Vec<SocketAddr>) -> Result<Arc<Connector>, String> {
        Ok(Connector::with(Arc::new(SystemResolver::new()), Arc::new(System), dns, egress, own))
    }

    /// The connector for a new configuration: this one where nothing changed, so that pools live on; else one that keeps
    /// the resolver and its cache where `dns` did not change.
    ///
    /// # Errors
    /// As [`Connector::new`].
    pub fn evolve(
        self: &Arc<Self>,
        dns: &config::Dns,
        egress: &config::Egress,
        own: Vec<SocketAddr>,
    ) -> Result<Arc<Connector>, String> {
        let same_dns = self.dns.settings() == dns;
        if same_dns && self.egress.deny == egress.deny && self.egress.own == own {
            return Ok(self.clone());
        }
        let dns = if same_dns { self.dns.clone() } else { Arc::new(self.dns.evolve(dns)) };
        Ok(Arc::new(Connector {
            dns,
            egress: Egress { deny: egress.deny.clone(), own },
            dialer: self.dialer.clone(),
            roots: self.roots.clone(),
        }))
    }

    /// With another resolver and dialler than the system's.
    pub(crate) fn with(
        lookup: Arc<dyn Lookup>,
        dialer: Arc<dyn Dial>,
        dns: &config::Dns,
        egress: &config::Egress,
        own: Vec<SocketAddr>,
    ) -> Arc<Connector> {
        Arc::new(Connector {
            dns: Arc::new(Dns::new(lookup, dns.clone())),
            egress: Egress { deny: egress.deny.clone(), own },
            dialer,
            roots: Arc::default(),
        })
    }

    /// Names whose addresses were forgotten for others while they were still good, over the process's life.
    pub(crate) fn names_forgotten(&self) -> u64 {
        self.dns.forgotten()
    }

    /// The system's root certificates, loaded when first needed.
    pub(super) fn roots(&self) -> &Arc<SystemRoots> {
        &self.roots
    }

    /// Makes a connection, TLS included where `secure` is given, within `limit`.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Denied`], [`Error::Loop`], [`Error::Overloaded`]: nothing was sent.
    pub(super) async fn connect(
        &self,
        place: &Place<'_>,
        secure: Option<Secure>,
        limit: Option<Duration>,
    ) -> Result<Stream> {
        let stage = AtomicU8::new(RESOLVING);
        let set_up = async {
            let (tcp, _) = self.tcp(place, &stage).await?;
            // Failing to set an option costs a connection nothing but the option.
            let _ = tcp.set_user_timeout(USER_TIMEOUT);
            let Some(secure) = secure else { return Ok(Stream::Plain(tcp)) };
            stage.store(SHAKING_HANDS, Ordering::Relaxed);
            match TlsConnector::from(secure.config).connect(secure.server, tcp).await {
                Ok(tls) => Ok(Stream::Tls(Box::new(tls))),
                Err(error) => Err(tls::describe(&error)),
            }
        };
        self.bounded(set_up, place, &stage, limit).await
    }

    /// Makes a bare TCP connection for a tunnel, within `limit`.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub(super) async fn tunnel(&self, place: &Place<'_>, limit: Option<Duration>) -> Result<(Tcp, SocketAddr)> {
        let stage = AtomicU8::new(RESOLVING);
        self.bounded(self.tcp(place, &stage), place, &stage, limit).await
    }

    async fn bounded<T>(
        &self,
        set_up: impl Future<Output = Result<T>>,
        place: &Place<'_>,
        stage: &AtomicU8,
        limit: Option<Duration>,
    ) -> Result<T> {
        let Some(limit) = limit else { return set_up.await };
        match tokio::time::timeout(limit, set_up).await {
            Ok(result) => result,
            Err(_) => {
                let (failure, what) = match stage.load(Ordering::Relaxed) {
                    RESOLVING => (ConnectFailure::DnsTimeout, "the look-up of"),
                    DIALLING => (ConnectFailure::Timeout, "no TCP connection to"),
                    _ => (ConnectFailure::Timeout, "the TLS handshake with"),
                };
                let detail = match stage.load(Ordering::Relaxed) {
                    DIALLING => format!("{what} {}:{} within {limit:?}", place.host, place.port),
                    _ => format!("{what} {}:{} took longer than {limit:?}", place.host, place.port),
                };
                Err(Error::Connect { failure, detail })
            }
        }
    }

    async fn tcp(&self, place: &Place<'_>, stage: &AtomicU8) -> Result<(Tcp, SocketAddr)> {
        let addresses = self.addresses(place).await?;
        stage.store(DIALLING, Ordering::Relaxed);
        let (stream, address) =
            eyeballs::race(&self.dialer, &addresses).await.map_err(|failures| describe(&failures))?;
        if let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr())
            && self.egress.loops(local, peer)
        {
            return Err(Error::Loop);
        }
        let _ = stream.set_nodelay();
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(Duration::from_secs(10)).with_retries(3);
        let _ = stream.set_keepalive(&keepalive);
        Ok((stream, address))
    }

    /// The addresses that may be dialled. What is dialled comes from this list and no other look-up.
    async fn addresses(&self, place: &Place<'_>) -> Result<Vec<SocketAddr>> {
        let resolved;
        let ips = match place.host {
            Host::Ip(ip) => std::slice::from_ref(ip),
            Host::Name(name) => {
                resolved = self.dns.resolve(name).await.map_err(|error| {
                    let failure = match error {
                        LookupError::NoAddress(_) | LookupError::Failed(_) => ConnectFailure::Dns,
                        LookupError::TimedOut(_) => ConnectFailure::DnsTimeout,
                        LookupError::NoRoom(overload) => return Error::Overloaded(overload),
                    };
                    Error::Connect { failure, detail: error.to_string() }
                })?;
                &resolved[..]
            }
        };
        self.egress.allowed(eyeballs::order(ips), place.port, place.exempt, place.allow)
    }
}

/// The system's sockets.
pub(super) struct System;

impl Dial for System {
    fn dial(&self, address: SocketAddr) -> DialFuture {
        Box::pin(async move {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            match descriptors::room(&socket) {
                Room::Enough => socket.connect(address).await.map(Tcp::from),
                Room::Scarce | Room::Last => Err(io::Error::from_raw_os_error(EMFILE)),
            }
        })
    }
}

/// One error for all addresses that failed: the failure that says most, and each address with its own.
fn describe(failures: &Failures) -> Error {
    let mut worst = ConnectFailure::Unreachable;
    let mut detail = String::new();
    for (address, error) in failures {
        let Some(failure) = classify(error) else { return Error::Overloaded(Overload::Descriptors) };
        if weight(failure) > weight(worst) {
            worst = failure;
        }
        let separator = if detail.is_empty() { "" } else { "; " };
        let _ = write!(detail, "{separator}{address}: {error}");
    }
    if detail.is_empty() {
        detail.push_str("no address could be tried");
    }
    Error::Connect { failure: worst, detail }
}

fn weight(failure: ConnectFailure) -> u8 {
    match failure {
        ConnectFailure::Timeout => 3,
        ConnectFailure::Refused | ConnectFailure::Closed => 2,
        ConnectFailure::Unreachable => 1,
        ConnectFailure::Dns
        | ConnectFailure::DnsTimeout
        | ConnectFailure::Tls
        | ConnectFailure::Certificate
        | ConnectFailure::Refusal => 0,
    }
}

/// Whether this machine has no descriptors or memory left: EMFILE, ENFILE, ENOMEM, ENOBUFS, EAGAIN as Linux numbers them; std
/// has no kinds for most of them.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | 23 | 12 | 105 | 11))
}

/// `None`: this machine has no descriptors or memory left.
fn classify(error: &io::Error) -> Option<ConnectFailure> {
    if is_exhaustion(error) {
        return None;
    }
    Some(match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectFailure::Refused,
        io::ErrorKind::TimedOut => ConnectFailure::Timeout,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof => {
            ConnectFailure::Closed
        }
        // Foreign and non-exhaustive: no route, network down, no local port left, forbidden by a firewall.
        _ => ConnectFailure::Unreachable,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::address::AddressRule;
    use crate::error::Denial;
    use crate::upstream::dns::Answer;
    use crate::upstream::dns::tests::{Scripted, settings};

    pub(in crate::upstream) fn egress(deny: Vec<AddressRule>) -> config::Egress {
        config::Egress { forward_unmatched: true, deny: AddressSet(deny), connect_ports: None }
    }

    pub(in crate::upstream) fn connector(
        answers: Vec<Option<Result<Answer, LookupError>>>,
        deny: Vec<AddressRule>,
        own: Vec<SocketAddr>,
    ) -> Arc<Connector> {
        Connector::with(Scripted::new(answers), Arc::new(System), &settings(), &egress(deny), own)
    }

    async fn dial(connector: &Connector, host: &str, port: u16, limit: Duration) -> Result<Stream> {
        let (host, allow) = (Host::parse(host).unwrap(), AddressSet::default());
        let place = Place { host: &host, port, exempt: false, allow: &allow };
        connector.connect(&place, None, Some(limit)).await
    }

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_name_that_turns_to_a_denied_address_is_never_dialled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let denied = Some(Ok(Answer { addresses: vec!["127.0.0.1".parse().unwrap()], ttl: Duration::ZERO }));
        let connector = connector(vec![denied], vec![AddressRule::Loopback], vec![]);
        let error = dial(&connector, "rebind.test", port, LONG).await.err().unwrap();
        assert!(matches!(error, Error::Denied(Denial::Address(..))), "{error:?}");
        let error = dial(&connector, "localhost", port, LONG).await.err().unwrap();
        assert!(matches!(error, Error::Denied(Denial::Address(..))), "{error:?}");
    }

    /// Refuses every connection, and remembers what was to be dialled.
    #[derive(Default)]
    struct Noting(std::sync::Mutex<Vec<SocketAddr>>);

    impl Dial for Noting {
        fn dial(&self, address: SocketAddr) -> DialFuture {
            self.0.lock().unwrap().push(address);
            Box::pin(std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())))
        }
    }

    fn built_in() -> Vec<AddressRule> {
        vec![AddressRule::Loopback, AddressRule::LinkLocal, AddressRule::Metadata]
    }

    #[tokio::test]
    async fn a_forbidden_one_of_several_addresses_is_never_dialled_whichever_form_it_has() {
        let noting = Arc::new(Noting::default());
        let answer = Scripted::addresses(&[
            "169.254.169.254",
            "192.0.2.1",
            "::1",
            "::ffff:169.254.169.254",
            "2001:db8::1",
            "64:ff9b::7f00:1",
            "::ffff:192.0.2.2",
            "fd00:ec2::254",
        ]);
        let connector =
            Connector::with(Scripted::new(vec![answer]), noting.clone(), &settings(), &egress(built_in()), vec![]);
        assert!(dial(&connector, "several.test", 80, LONG).await.is_err());
        let mut dialled: Vec<String> = noting.0.lock().unwrap().iter().map(ToString::to_string).collect();
        dialled.sort();
        assert_eq!(dialled, ["192.0.2.1:80", "192.0.2.2:80", "[2001:db8::1]:80"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_changes_between_two_attempts_is_judged_each_time() {
        let noting = Arc::new(Noting::default());
        let answers = vec![Scripted::addresses(&["192.0.2.1"]), Scripted::addresses(&["169.254.169.254"])];
        let connector =
            Connector::with(Scripted::new(answers), noting.clone(), &settings(), &egress(built_in()), vec![]);
        assert!(matches!(dial(&connector, "rebind.test", 80, LONG).await, Err(Error::Connect { .. })));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(matches!(dial(&connector, "rebind.test", 80, LONG).await, Err(Error::Denied(_))));
        assert_eq!(noting.0.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_name_of_the_hosts_file_that_leads_to_a_forbidden_address_is_never_dialled() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines =
            "169.254.169.254 metadata.google.internal\n::1 ip6-localhost\n::ffff:127.0.0.1 mapped\n192.0.2.1 fine\n";
        std::fs::write(file.path(), lines).unwrap();
        let noting = Arc::new(Noting::default());
        let dns = Dns::new(Scripted::new(vec![None]), settings())
            .with_hosts(crate::upstream::hosts::HostsFile::at(file.path().to_owned()));
        let rules = Egress { deny: AddressSet(built_in()), own: Vec::new() };
        let connector = Connector { dns: Arc::new(dns), egress: rules, dialer: noting.clone(), roots: Arc::default() };
        for name in ["metadata.google.internal.", "METADATA.google.internal", "ip6-localhost", "mapped"] {
            assert!(matches!(dial(&connector, name, 80, LONG).await, Err(Error::Denied(_))), "{name}");
        }
        assert!(matches!(dial(&connector, "fine", 80, LONG).await, Err(Error::Connect { .. })));
        assert_eq!(noting.0.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn rules_or_listeners_that_change_make_another_connector_so_that_no_pool_is_kept() {
        let old = connector(vec![None], built_in(), vec![]);
        let same = old.evolve(&settings(), &egress(built_in()), vec![]).unwrap();
        assert!(Arc::ptr_eq(&old, &same));
        let narrower = [built_in(), vec![AddressRule::Private]].concat();
        let listener = vec!["127.0.0.1:7172".parse().unwrap()];
        for (deny, own) in [(narrower, vec![]), (built_in(), listener)] {
            assert!(!Arc::ptr_eq(&old, &old.evolve(&settings(), &egress(deny), own).unwrap()));
        }
    }

    #[tokio::test]
    async fn only_the_allowed_ones_of_several_addresses_are_dialled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let deny = vec![AddressRule::Cidr("192.0.2.0/24".parse().unwrap())];
        let connector = connector(vec![Scripted::addresses(&["192.0.2.1", "127.0.0.1"])], deny, vec![]);
        assert!(dial(&connector, "a.test", port, LONG).await.is_ok());
    }

    #[tokio::test]
    async fn a_listener_of_ours_is_a_loop() {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let own = listener.local_addr().unwrap();
        let connector = connector(vec![Scripted::addresses(&["127.0.0.1"])], vec![], vec![own]);
        assert!(matches!(dial(&connector, "a.test", own.port(), LONG).await, Err(Error::Loop)));
    }

    #[tokio::test]
    async fn a_refusal_names_the_addresses() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let connector = connector(vec![Scripted::addresses(&["127.0.0.1"])], vec![], vec![]);
        match dial(&connector, "a.test", port, LONG).await {
            Err(Error::Connect { failure: ConnectFailure::Refused, detail }) => assert!(detail.contains("127.0.0.1")),
            Err(error) => panic!("{error:?}"),
            Ok(_) => panic!("it is closed"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_connect_clock_covers_the_look_up() {
        let connector = connector(vec![None], vec![], vec![]);
        match dial(&connector, "a.test", 80, Duration::from_secs(2)).await {
            Err(Error::Connect { failure: ConnectFailure::DnsTimeout, .. }) => {}
            Err(error) => panic!("{error:?}"),
            Ok(_) => panic!("nothing was looked up"),
        }
    }

    #[tokio::test]
    async fn a_connection_is_the_tcp_connection_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connector = connector(vec![Scripted::addresses(&["127.0.0.1"])], vec![], vec![]);
        let mut stream = dial(&connector, "a.test", listener.local_addr().unwrap().port(), LONG).await.unwrap();
        let _server = listener.accept().await.unwrap();
        stream.write_all(b"x").await.unwrap();
    }
}
