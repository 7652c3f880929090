//! Requests that two readers could read differently: through each of the proxy's doors, each reaches the upstream as one
//! request with one meaning, or not at all.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::corpus::{self, Case};
use crate::judge::{Host, Outcome, Tail, converse, judge, sent};
use crate::support::{Client, Proxy};
use crate::witness::Witness;

/// Stands behind each case: it is answered as itself, or was part of what came before, or comes too late.
pub(crate) const FOLLOW_UP: &[u8] = b"GET /follow-up HTTP/1.1\r\nHost: up.test\r\nConnection: close\r\n\r\n";

/// How an app gets in.
pub(crate) enum Door {
    /// The proxy port.
    Proxy,
    /// An upstream's own port.
    Listen,
    /// Inside an intercepted tunnel.
    Inside(TlsConnector),
}

/// A proxy, and an upstream that reads strictly.
pub(crate) struct Rig {
    pub(crate) proxy: Proxy,
    pub(crate) witness: Witness,
    dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) async fn start() -> Rig {
        let witness = Witness::start().await;
        let dir = tempfile::tempdir().unwrap();
        let (ca, key) = (dir.path().join("ca"), dir.path().join("key"));
        let text = format!(
            "intercept: {{generate: true, dir: {}, key_dir: {}}}\negress: {{unmatched: deny}}\nlog: {{access: off}}\nupstreams:\n  \
             up:\n    hosts: [up.test]\n    to: [\"http://{}\"]\n    listen: 127.0.0.1:0\n    https: intercept\n    retry: off\n    \
             circuit_breaker: off\n",
            ca.display(),
            key.display(),
            witness.address()
        );
        Rig { proxy: Proxy::start(&text).await, witness, dir }
    }

    pub(crate) fn inside(&self) -> Door {
        Door::Inside(trusting(self.dir.path()))
    }

    /// Sends a stream of bytes by a door, and judges what came of it.
    pub(crate) async fn judge(&self, door: &Door, bytes: &[u8]) -> Result<Outcome, String> {
        let sent = sent(bytes);
        let first = self.witness.count();
        let (got, host) = match door {
            Door::Proxy => (converse(self.proxy.connect().await.stream, bytes, &sent).await, Host::Kept),
            Door::Listen => {
                let client = Client::connect(self.proxy.address("up")).await;
                (converse(client.stream, bytes, &sent).await, Host::Set(self.witness.address().to_string()))
            }
            Door::Inside(connector) => (converse(self.tunnel(connector).await, bytes, &sent).await, Host::Kept),
        };
        judge(&sent, &self.witness.since(first), first, &got, &host).map_err(|what| {
            format!("{what}\nsent {:?}\ngot {:?}", String::from_utf8_lossy(bytes), String::from_utf8_lossy(&got))
        })
    }

    async fn tunnel(&self, connector: &TlsConnector) -> TlsStream<TcpStream> {
        let mut app = self.proxy.connect().await;
        app.send("CONNECT up.test:443 HTTP/1.1\r\nHost: up.test\r\n\r\n").await;
        let head = app.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        connector.connect(ServerName::try_from("up.test").unwrap(), app.stream).await.unwrap()
    }

    /// At the end: nothing but requests ever reached the upstream, and so many beginnings of one at most.
    pub(crate) async fn finish(self, beginnings: usize) {
        let log = self.witness.log();
        assert_eq!(log.wrong, [] as [String; 0]);
        assert!(log.parts.len() <= beginnings, "{} of {beginnings}: {:?}", log.parts.len(), log.parts);
        self.proxy.stop().await;
    }
}

fn trusting(dir: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(dir.join("ca/ca.crt")).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Whether only the beginning of it may reach the upstream.
fn may_begin(bytes: &[u8]) -> bool {
    // Where the strict reader stops in a body, the head before it is good.
    matches!(sent(bytes).tail, Tail::Part(true) | Tail::Bad(_))
}

fn with_follow_up(case: &Case) -> Vec<u8> {
    [&case.bytes, FOLLOW_UP].concat()
}

/// Judges every case through a door; all failures at once.
async fn all(door: impl FnOnce(&Rig) -> Door, check: impl Fn(&Case, &Outcome) -> Result<(), String>) {
    let rig = Rig::start().await;
    let door = door(&rig);
    let (mut failed, mut beginnings, mut forwarded) = (Vec::new(), 0, 0);
    for case in corpus::requests() {
        let bytes = with_follow_up(&case);
        beginnings += usize::from(may_begin(&bytes));
        let judged = rig.judge(&door, &bytes).await.and_then(|outcome| {
            forwarded += outcome.forwarded;
            check(&case, &outcome)
        });
        if let Err(what) = judged {
            failed.push(format!("== {}: {what}", case.name));
        }
    }
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n"));
    assert!(forwarded > 100, "the door is shut: {forwarded}");
    rig.finish(beginnings).await;
}

#[tokio::test]
async fn what_two_readers_could_read_differently_is_refused_or_forwarded_with_one_meaning() {
    all(
        |_| Door::Proxy,
        |case, outcome| {
            let statuses = &outcome.statuses[..];
            let good = match &*case.words[0] {
                "refused" => matches!(statuses, [400..=431]) && outcome.forwarded == 0,
                "broken" => statuses == [400] && outcome.forwarded == 0,
                "forwarded" => outcome.forwarded > 0 && statuses.iter().all(|status| *status == 200),
                "mixed" => statuses.len() > 1,
                status => statuses.first() == status.parse().ok().as_ref() && outcome.forwarded <= 1,
            };
            if good { Ok(()) } else { Err(format!("{:?} expected, but {outcome:?}", case.words)) }
        },
    )
    .await;
}

#[tokio::test]
async fn an_upstreams_own_port_forwards_each_request_with_one_meaning_or_refuses_it() {
    all(|_| Door::Listen, |_, _| Ok(())).await;
}

#[tokio::test]
async fn an_intercepted_tunnel_forwards_each_request_with_one_meaning_or_refuses_it() {
    all(Rig::inside, |_, _| Ok(())).await;
}
