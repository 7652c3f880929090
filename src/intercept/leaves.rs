//! Leaf certificates, made when an app first asks for a host, and kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{CipherSuite, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::intercept::authority::Authority;
use crate::origin::Host;

/// Leaves that are kept; the one used longest ago makes room.
const MOST: usize = 1000;
/// TLS 1.2 sessions that are kept for resumption by identifier; tickets need no room here.
const SESSIONS: usize = 256;
/// A leaf with less than this to live is replaced by a new one, so that no app meets one that has just ended.
const RENEW: Duration = Duration::from_secs(6 * 3600);

/// Cipher suites that are preferred, whatever order the app names them in: both ends are on one machine, so that what is to be
/// saved is its time.
const QUICK: [CipherSuite; 2] =
    [CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];

/// Certificates for the hosts of one CA, each with the TLS settings that present it.
pub(crate) struct Leaves {
    authority: Authority,
    /// One key for all of them: it never leaves the process, and making one costs more than a signature.
    key: KeyPair,
    signing: Arc<dyn SigningKey>,
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    leaves: HashMap<Host, Leaf>,
    /// Counts uses, to tell which was used longest ago.
    uses: u64,
    /// How many were ever made.
    made: u64,
}

struct Leaf {
    tls: Arc<ServerConfig>,
    not_before: SystemTime,
    not_after: SystemTime,
    used: u64,
}

impl Leaves {
    /// None yet.
    ///
    /// # Errors
    /// What kept a key from being made.
    pub(crate) fn new(authority: Authority) -> Result<Leaves, String> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = aws_lc_rs::sign::any_supported_type(&der).map_err(|error| error.to_string())?;
        let tickets = aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
        let sessions = ServerSessionMemoryCache::new(SESSIONS);
        let mut provider = aws_lc_rs::default_provider();
        // A handshake computes much with the suite's hash, and processors do SHA-256 several times faster than SHA-384.
        provider.cipher_suites.sort_by_key(|suite| !QUICK.contains(&suite.suite()));
        let provider = Arc::new(provider);
        Ok(Leaves { authority, key, signing, provider, tickets, sessions, kept: Mutex::default() })
    }

    /// Their CA.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// TLS settings that present a certificate for this host. It is made at its first use, once, whoever else asks at
    /// the same time.
    ///
    /// # Errors
    /// What kept it from being made.
    ///
    /// `forgot` is told where another had to make room.
    pub(crate) fn tls(&self, host: &Host, now: SystemTime, forgot: &dyn Fn()) -> Result<Arc<ServerConfig>, String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.uses += 1;
        let uses = kept.uses;
        // One that ends with the CA is never replaced: a new one would end then too. One that has not begun was made before
        // the clock was set back.
        let good = |leaf: &Leaf| {
            let lasts = leaf.not_after > now + RENEW || leaf.not_after == self.authority.not_after();
            lasts && leaf.not_before <= now
        };
        if let Some(leaf) = kept.leaves.get_mut(host).filter(|leaf| good(leaf)) {
            leaf.used = uses;
            return Ok(leaf.tls.clone());
        }
        let leaf = self.make(host, uses, now)?;
        kept.made += 1;
        if kept.leaves.len() >= MOST && !kept.leaves.contains_key(host) {
            let oldest = kept.leaves.iter().min_by_key(|(_, leaf)| leaf.used).map(|(host, _)| host.clone());
            oldest.and_then(|host| kept.leaves.remove(&host));
            forgot();
        }
        let tls = leaf.tls.clone();
        kept.leaves.insert(host.clone(), leaf);
        Ok(tls)
    }

    fn make(&self, host: &Host, used: u64, now: SystemTime) -> Result<Leaf, String> {
        let signed = self.authority.sign(host, &self.key, now)?;
        let certified = CertifiedKey::new(signed.chain, self.signing.clone());
        let mut tls = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        tls.ignore_client_order = true;
        tls.ticketer = self.tickets.clone();
        tls.session_storage = self.sessions.clone();
        Ok(Leaf { tls: Arc::new(tls), not_before: signed.not_before, not_after: signed.not_after, used })
    }
}

#[cfg(test)]
mod tests {
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection, SupportedProtocolVersion};

    use super::*;

    fn leaves() -> Leaves {
        let (authority, _) = Authority::generate(None, SystemTime::now()).unwrap();
        Leaves::new(authority).unwrap()
    }

    fn made(leaves: &Leaves) -> u64 {
        leaves.kept.lock().unwrap().made
    }

    #[test]
    fn a_leaf_is_made_once_whoever_asks() {
        let leaves = leaves();
        let host = Host::parse("api.x.com").unwrap();
        let now = SystemTime::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| leaves.tls(&host, now, &|| ()).unwrap());
            }
        });
        assert_eq!(made(&leaves), 1);
    }

    #[test]
    fn a_leaf_is_renewed_well_before_it_ends() {
        let leaves = leaves();
        let host = Host::parse("api.x.com").unwrap();
        let now = SystemTime::now();
        let hours = |hours: u64| now + Duration::from_secs(hours * 3600);
        for at in [hours(0), hours(17)] {
            leaves.tls(&host, at, &|| ()).unwrap();
        }
        assert_eq!(made(&leaves), 1);
        leaves.tls(&host, hours(19), &|| ()).unwrap();
        assert_eq!(made(&leaves), 2);
    }

    #[test]
    fn a_leaf_made_before_the_clock_was_set_back_is_made_anew() {
        let leaves = leaves();
        let host = Host::parse("api.x.com").unwrap();
        let now = SystemTime::now();
        let ahead = now + Duration::from_secs(300 * 86400);
        leaves.tls(&host, ahead, &|| ()).unwrap();
        leaves.tls(&host, now, &|| ()).unwrap();
        assert_eq!(made(&leaves), 2);
        // And one that has ended, where it jumps ahead.
        leaves.tls(&host, ahead, &|| ()).unwrap();
        assert_eq!(made(&leaves), 3);
    }

    #[test]
    fn the_one_used_longest_ago_makes_room() {
        let leaves = leaves();
        let now = SystemTime::now();
        let host = |n: usize| Host::parse(&format!("h{n}.x.com")).unwrap();
        for n in 0..MOST {
            leaves.tls(&host(n), now, &|| ()).unwrap();
        }
        leaves.tls(&host(0), now, &|| ()).unwrap();
        leaves.tls(&host(MOST), now, &|| ()).unwrap();
        assert_eq!(made(&leaves), MOST as u64 + 1);
        leaves.tls(&host(0), now, &|| ()).unwrap();
        assert_eq!(made(&leaves), MOST as u64 + 1);
        leaves.tls(&host(1), now, &|| ()).unwrap();
        assert_eq!(made(&leaves), MOST as u64 + 2);
        assert_eq!(leaves.kept.lock().unwrap().leaves.len(), MOST);
    }

    /// What an app that offers everything, the dearest first, ends up with.
    fn agreed(leaves: &Leaves, version: &'static SupportedProtocolVersion) -> CipherSuite {
        let host = Host::parse("api.x.com").unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(leaves.authority().chain()[0].clone()).unwrap();
        let app = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut app = ClientConnection::new(Arc::new(app), "api.x.com".try_into().unwrap()).unwrap();
        let mut proxy = ServerConnection::new(leaves.tls(&host, SystemTime::now(), &|| ()).unwrap()).unwrap();
        while app.is_handshaking() || proxy.is_handshaking() {
            let mut wire = Vec::new();
            while app.wants_write() {
                app.write_tls(&mut wire).unwrap();
            }
            proxy.read_tls(&mut &wire[..]).unwrap();
            proxy.process_new_packets().unwrap();
            let mut wire = Vec::new();
            while proxy.wants_write() {
                proxy.write_tls(&mut wire).unwrap();
            }
            app.read_tls(&mut &wire[..]).unwrap();
            app.process_new_packets().unwrap();
        }
        proxy.negotiated_cipher_suite().unwrap().suite()
    }

    #[test]
    fn the_cheapest_cipher_suite_is_agreed_on() {
        let leaves = leaves();
        assert_eq!([agreed(&leaves, &TLS13), agreed(&leaves, &TLS12)], QUICK);
    }
}
