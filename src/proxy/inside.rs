//! Inside a CONNECT tunnel whose upstream is intercepted, or behind `listeners.tls`: TLS is ended here, and the requests get
//! every policy.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use hyper::upgrade::OnUpgrade;
use rustls::AlertDescription;
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::config::Unknown;
use crate::error::{Error, Result};
use crate::origin::{Host, Scheme};
use crate::proxy::admission::Place;
use crate::proxy::io::Replayed;
use crate::proxy::listener;
use crate::proxy::record::Record;
use crate::proxy::socket::Socket;
use crate::proxy::target::{Form, Target};
use crate::proxy::{Connection, Entry, Proxy, tunnel, way};
use crate::tcp::Tcp;
use crate::telemetry::report::{Handshake, UpstreamReport};
use crate::upstream::Upstream;
use crate::upstream::table::Table;

/// The first byte of a TLS record that begins a handshake (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
/// A fatal alert (RFC 8446 section 6, RFC 6066 section 3).
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];
/// The first read inside a tunnel: enough for most client hellos.
const FIRST_READ: usize = 1024;

/// How long an app may be silent before it is taken for one that waits for the server's first word, where such are passed on.
const SILENCE: Duration = Duration::from_secs(1);

/// What the requests of a connection inside a tunnel may ask for.
#[derive(Debug, PartialEq, Eq)]
pub struct Inside {
    /// The host that CONNECT named, or SNI on `listeners.tls`.
    pub(crate) host: Host,
    /// Its port.
    pub(crate) port: u16,
    /// Whether there is TLS.
    pub(crate) scheme: Scheme,
    /// SNI named another host: every request is refused.
    pub(crate) strayed: bool,
}

impl Inside {
    /// Whether a request may be served here.
    ///
    /// # Errors
    /// [`Error::Misdirected`] where its host is not that of the tunnel, so that nothing is smuggled to another upstream.
    pub(crate) fn serves(&self, target: &Target) -> Result<()> {
        if target.form == Form::Authority {
            return Err(Error::BadRequest("a tunnel inside a tunnel that is intercepted is not supported"));
        }
        let same = (target.scheme, &target.host, target.port) == (self.scheme, &self.host, self.port);
        if same && !self.strayed { Ok(()) } else { Err(Error::Misdirected) }
    }
}

/// What an app began to say inside its tunnel.
enum Speech {
    Tls,
    Http,
    /// Neither, or nothing: some protocols wait for the server's first word.
    Unknown,
}

impl Speech {
    /// By the first bytes. Every HTTP method in use is written in capitals, and so is the HTTP/2 preface; a space follows it.
    /// Others begin with capitals too (`SSH-2.0-x` and a line's end, `AMQP` and a zero).
    fn of(first: &[u8]) -> Speech {
        let word = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        match first.first() {
            Some(&HANDSHAKE) => Speech::Tls,
            Some(byte) if byte.is_ascii_uppercase() => match first.iter().find(|byte| !word(byte)) {
                Some(b' ') | None => Speech::Http,
                Some(_) => Speech::Unknown,
            },
            Some(_) | None => Speech::Unknown,
        }
    }
}

/// What is needed to serve what is inside.
struct Tunnel {
    proxy: Arc<Proxy>,
    place: Arc<Place>,
    local: SocketAddr,
    upstream: Arc<Upstream>,
    target: Target,
}

/// Serves what is inside once the app has its 200. The CONNECT itself ends when it is clear what the app speaks.
pub(crate) fn start(
    app: OnUpgrade,
    upstream: Arc<Upstream>,
    target: Target,
    record: Box<Record>,
    connection: &Connection,
) {
    let (proxy, place, local) = (connection.proxy.clone(), connection.place.clone(), connection.local);
    let tunnel = Tunnel { proxy, place, local, upstream, target };
    tokio::spawn(async move {
        let Ok(upgraded) = app.await else { return };
        let ended = tunnel.proxy.drain.ended.clone();
        listener::until(ended, pin!(tunnel.serve(tunnel::app_side(upgraded), record))).await;
    });
}

impl Tunnel {
    async fn serve(self, app: Replayed, mut record: Box<Record>) {
        let table = self.proxy.table.load();
        let now = Instant::now();
        let deadline = now + table.config.limits.header_timeout;
        let pass = table.config.intercept.as_ref().is_some_and(|intercept| intercept.unknown == Unknown::Tunnel);
        let silence = if pass { deadline.min(now + SILENCE) } else { deadline };
        let Some((socket, first)) = listen(app, silence).await else { return record.answered() };
        match Speech::of(&first) {
            Speech::Tls => {
                let Some((stream, strayed)) = self.handshake(&table, socket, first.freeze(), deadline).await else {
                    return record.answered();
                };
                drop(table);
                self.http(Socket::Tls(Box::new(stream)), BytesMut::new(), Scheme::Https, strayed, record).await;
            }
            Speech::Http => {
                drop(table);
                self.http(socket, first, Scheme::Http, false, record).await;
            }
            Speech::Unknown => {
                // A tunnel may live for long, and is not to keep what a reload replaces.
                drop(table);
                self.unknown(pass, socket, first.freeze(), record).await;
            }
        }
    }

    /// Serves the requests inside. From here on they count, and the CONNECT no longer does.
    async fn http(self, socket: Socket, first: BytesMut, scheme: Scheme, strayed: bool, mut record: Box<Record>) {
        record.answered();
        drop(record);
        let Target { host, port, .. } = self.target;
        let entry = Entry::Inside(Arc::new(Inside { host, port, scheme, strayed }));
        listener::speak(socket, first, &self.proxy, self.local, entry, self.place).await;
    }

    /// Ends the app's TLS. Also says whether SNI named another host than CONNECT did.
    async fn handshake(
        &self,
        table: &Table,
        socket: Socket,
        first: Bytes,
        deadline: Instant,
    ) -> Option<(TlsStream<Replayed>, bool)> {
        let (host, port) = (&self.target.host, self.target.port);
        let report = &self.upstream.report;
        let hello = hello(Replayed::new(socket, first), report, deadline).await?;
        let asked = named(&hello);
        let strayed = asked.as_ref().is_some_and(|asked| asked != host);
        // An app that strayed is told so in HTTP, where the CA may sign for that name at all.
        let signed = |asked: &&Host| table.find(asked, port).is_some_and(|upstream| upstream.intercepts());
        let shown = asked.as_ref().filter(signed).unwrap_or(host);
        let stream = end_tls(table, hello, shown, report, deadline).await?;
        report.handshake(if strayed { Handshake::Strayed } else { Handshake::Success }, "");
        Some((stream, strayed))
    }

    /// What is neither TLS nor HTTP can't get the policies.
    async fn unknown(self, pass: bool, socket: Socket, first: Bytes, mut record: Box<Record>) {
        if !pass {
            let upstream = &*self.upstream.name;
            let (host, port) = (&self.target.host, self.target.port);
            tracing::warn!(
                upstream,
                %host,
                port,
                "what an app sends inside its tunnel is neither TLS nor HTTP, and was refused: `https: tunnel` for its \
                 upstream or `intercept: {{unknown: tunnel}}` passes it on"
            );
            Replayed::new(socket, first).abort();
            return record.broke(Error::BadRequest("what is inside the tunnel is neither TLS nor HTTP"));
        }
        let mut app = Replayed::new(socket, first);
        match tunnel::connect(&self.upstream, way::of_tunnel(&self.target), &record).await {
            Ok(mut far) => {
                let idle = record.opened(Instant::now());
                tunnel::run(&mut app, &mut far, &mut record, idle, &self.proxy.drain.ended).await;
            }
            Err(error) => {
                app.abort();
                record.broke(error);
            }
        }
    }
}

/// Serves a connection of `listeners.tls`: an app that takes us for the host itself.
pub(crate) async fn accept(stream: Tcp, proxy: &Arc<Proxy>, local: SocketAddr, place: Arc<Place>) {
    let table = proxy.table.load();
    let deadline = Instant::now() + table.config.limits.header_timeout;
    let io = Replayed::new(Socket::Tcp(stream), Bytes::new());
    let Some(mut hello) = hello(io, &table.unmatched.report, deadline).await else { return };
    let port = local.port();
    let asked = named(&hello);
    let found = asked.as_ref().and_then(|host| table.find(host, port)).filter(|found| found.intercepts());
    let (Some(host), Some(upstream)) = (asked.clone(), found) else {
        let host = asked.map_or_else(|| "no name".to_owned(), |host| host.to_string());
        let detail = format!("{host}: no upstream with `https: intercept` lists it");
        table.unmatched.report.handshake(Handshake::Strayed, &detail);
        // It may not be read any more.
        let _ = hello.io.write_all(UNRECOGNIZED_NAME).await;
        return;
    };
    let report = &upstream.report;
    let Some(stream) = end_tls(&table, hello, &host, report, deadline).await else { return };
    report.handshake(Handshake::Success, "");
    drop(table);
    let entry = Entry::Inside(Arc::new(Inside { host, port, scheme: Scheme::Https, strayed: false }));
    listener::speak(Socket::Tls(Box::new(stream)), BytesMut::new(), proxy, local, entry, place).await;
}

/// Waits for the app's client hello. `None`: there is none, which is counted.
async fn hello(io: Replayed, report: &UpstreamReport, deadline: Instant) -> Option<StartHandshake<Replayed>> {
    match timeout_at(deadline, LazyConfigAcceptor::new(Acceptor::default(), io)).await {
        Ok(Ok(hello)) => return Some(hello),
        Ok(Err(error)) => report.handshake(Handshake::Failed, &error.to_string()),
        Err(_) => report.handshake(Handshake::Timeout, "the app's client hello did not come in time"),
    }
    None
}

/// The host that the app names by SNI.
fn named(hello: &StartHandshake<Replayed>) -> Option<Host> {
    hello.client_hello().server_name().and_then(|name| Host::parse(name).ok())
}

/// Ends the app's TLS as `host`. `None`: it failed, which is counted.
async fn end_tls(
    table: &Table,
    hello: StartHandshake<Replayed>,
    host: &Host,
    report: &UpstreamReport,
    deadline: Instant,
) -> Option<TlsStream<Replayed>> {
    let tls = match table.interception.as_ref()?.tls(host, SystemTime::now(), &|| report.leaf_forgotten()) {
        Ok(tls) => tls,
        Err(error) => {
            report.handshake(Handshake::Failed, &format!("no certificate can be made: {error}"));
            return None;
        }
    };
    match timeout_at(deadline, hello.into_stream(tls)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) if is_rejection(&error) => report.handshake(Handshake::Rejected, &error.to_string()),
        Ok(Err(error)) => report.handshake(Handshake::Failed, &error.to_string()),
        Err(_) => report.handshake(Handshake::Timeout, "the app's handshake did not end in time"),
    }
    None
}

/// Waits for the app's first bytes, or as long as it may be silent. `None`: it hung up.
async fn listen(app: Replayed, deadline: Instant) -> Option<(Socket, BytesMut)> {
    let (mut socket, early) = app.into_parts();
    let mut first = BytesMut::from(early);
    if first.is_empty() {
        first.reserve(FIRST_READ);
        if let Ok(Ok(0) | Err(_)) = timeout_at(deadline, socket.read_buf(&mut first)).await {
            return None;
        }
    }
    Some((socket, first))
}

/// Whether the app refused the certificate, or just left as soon as it had seen it, as some do.
fn is_rejection(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) => matches!(
            alert,
            AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied
        ),
        Some(_) => false,
        None => matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_what_is_spoken() {
        let spoken = |first: &[u8]| match Speech::of(first) {
            Speech::Tls => "tls",
            Speech::Http => "http",
            Speech::Unknown => "unknown",
        };
        for (first, what) in [
            (&b"\x16\x03\x01"[..], "tls"),
            (b"GET / HTTP/1.1\r\n", "http"),
            (b"VERSION-CONTROL /", "http"),
            (b"G", "http"),
            (b"PRI * HTTP/2.0\r\n", "http"),
            (b"", "unknown"),
            (b"\x00\x00\x00\x08", "unknown"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "unknown"),
            (b"AMQP\x00\x00\x09\x01", "unknown"),
            (b"*1\r\n$4\r\nPING\r\n", "unknown"),
        ] {
            assert_eq!(spoken(first), what, "{first:?}");
        }
    }
}
