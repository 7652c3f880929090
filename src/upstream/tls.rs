//! TLS to the upstream: whom to trust, who we are, and what was wrong when it fails.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::{ServerName, UnixTime};

use crate::config::{self, HttpVersion};
use crate::error::{ConnectFailure, Error};
use crate::origin::Host;

/// Names of a certificate that a message shows, and characters of each.
const SHOWN_NAMES: usize = 4;
const MAX_NAME: usize = 100;

/// TLS sessions that an upstream keeps for resumption.
const SESSIONS: usize = 64;

/// The system's root certificates, loaded when an upstream first needs them.
#[derive(Default)]
pub(super) struct SystemRoots(OnceLock<Result<Arc<RootCertStore>, String>>);

impl SystemRoots {
    fn load(&self) -> Result<Arc<RootCertStore>, String> {
        self.0.get_or_init(load_system_roots).clone()
    }
}

fn load_system_roots() -> Result<Arc<RootCertStore>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!(
            "the system has no root certificates{why}: install them (ca-certificates) or set tls.ca_file"
        ));
    }
    Ok(Arc::new(roots))
}

/// The TLS settings of one upstream, ready to connect.
pub(super) struct Tls {
    settings: config::Tls,
    http: HttpVersion,
    system: Arc<SystemRoots>,
    resumption: Resumption,
    /// As `connections.http` says.
    usual: OnceLock<Result<Arc<ClientConfig>, String>>,
    /// HTTP/1.1 only, for an Upgrade.
    http1: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Tls {
    /// Nothing is loaded before [`Tls::config`] is called.
    pub(super) fn new(settings: config::Tls, http: HttpVersion, system: Arc<SystemRoots>) -> Tls {
        Tls {
            settings,
            http,
            system,
            resumption: Resumption::in_memory_sessions(SESSIONS),
            usual: OnceLock::new(),
            http1: OnceLock::new(),
        }
    }

    /// The client configuration; `http1` offers nothing but HTTP/1.1.
    ///
    /// # Errors
    /// A sentence: no root certificates, or an identity that can't be used.
    pub(super) fn config(&self, http1: bool) -> Result<Arc<ClientConfig>, String> {
        let cell = if http1 { &self.http1 } else { &self.usual };
        cell.get_or_init(|| self.build(if http1 { HttpVersion::Http1 } else { self.http })).clone()
    }

    fn build(&self, http: HttpVersion) -> Result<Arc<ClientConfig>, String> {
        let versions: &[&rustls::SupportedProtocolVersion] =
            if self.settings.tls13_only { &[&rustls::version::TLS13] } else { rustls::ALL_VERSIONS };
        let roots = match &self.settings.roots {
            None => self.system.load()?,
            Some(certificates) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates.iter() {
                    roots.add(certificate.clone()).map_err(|error| format!("tls.ca_file: {error}"))?;
                }
                Arc::new(roots)
            }
        };
        // The provider is named: with a second one anywhere in the tree the default one is ambiguous.
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match &self.settings.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(|error| format!("tls.client_cert and tls.client_key: {error}"))?,
        };
        config.alpn_protocols = match http {
            HttpVersion::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            HttpVersion::Http1 => vec![b"http/1.1".to_vec()],
            HttpVersion::Http2 => vec![b"h2".to_vec()],
        };
        config.resumption = self.resumption.clone();
        Ok(Arc::new(config))
    }
}

/// What SNI and verification go by. An address has no SNI and is verified as an address (RFC 6066 section 3).
pub(super) fn server_name(host: &Host) -> Result<ServerName<'static>, Error> {
    match host {
        Host::Ip(ip) => Ok(ServerName::from(*ip)),
        Host::Name(name) => ServerName::try_from(name.to_string()).map_err(|_| Error::Connect {
            failure: ConnectFailure::Tls,
            detail: format!("{name} can't be a TLS server name"),
        }),
    }
}

/// What was wrong with a handshake, so that an operator knows what to mend.
pub(super) fn describe(error: &io::Error) -> Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (failure, detail) = match tls {
        Some(rustls::Error::InvalidCertificate(wrong)) => (ConnectFailure::Certificate, certificate(wrong)),
        Some(rustls::Error::NoCertificatesPresented) => {
            (ConnectFailure::Certificate, "it presented no certificate".to_owned())
        }
        Some(rustls::Error::AlertReceived(alert)) => (ConnectFailure::Tls, alert_text(*alert)),
        Some(rustls::Error::InvalidMessage(_)) => {
            (ConnectFailure::Tls, "what it answered is not TLS; is the port a plain HTTP one?".to_owned())
        }
        Some(rustls::Error::NoApplicationProtocol) => {
            (ConnectFailure::Tls, "it does not speak the HTTP version that connections.http asks for".to_owned())
        }
        Some(rustls::Error::PeerIncompatible(why)) => (
            ConnectFailure::Tls,
            format!("no TLS version or cipher in common ({why:?}); tls.min_version may be too high for it"),
        ),
        Some(other) => (ConnectFailure::Tls, other.to_string()),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => {
                (ConnectFailure::Closed, format!("it hung up during the TLS handshake ({error})"))
            }
            // Foreign and non-exhaustive.
            _ => (ConnectFailure::Tls, error.to_string()),
        },
    };
    Error::Connect { failure, detail }
}

fn alert_text(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it wants a client certificate: set tls.client_cert and tls.client_key".to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied => {
            format!("it did not accept our certificate, or wants one (alert {alert:?}): see tls.client_cert")
        }
        AlertDescription::ProtocolVersion => {
            "it does not speak TLS 1.2 or what tls.min_version asks for (alert ProtocolVersion)".to_owned()
        }
        AlertDescription::UnrecognisedName => {
            "it does not serve that name (alert UnrecognisedName): see tls.server_name".to_owned()
        }
        AlertDescription::NoApplicationProtocol => {
            "it does not speak the HTTP version that connections.http asks for".to_owned()
        }
        // Foreign and non-exhaustive.
        other => format!("it ended the handshake with alert {other:?}"),
    }
}

fn certificate(wrong: &CertificateError) -> String {
    match wrong {
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => format!("it expired on {}", date(*not_after)),
        CertificateError::NotValidYet => "it is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("it is not valid before {}", date(*not_before))
        }
        CertificateError::Revoked => "it was revoked".to_owned(),
        CertificateError::UnknownIssuer => {
            "its issuer is unknown: if it comes from a private CA, set tls.ca_file".to_owned()
        }
        CertificateError::NotValidForName => "it is for another name: see tls.server_name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!("it is not for {} but for {}: see tls.server_name", expected.to_str(), names(presented))
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not a server certificate (extended key usage)".to_owned()
        }
        CertificateError::BadSignature => "its signature is wrong".to_owned(),
        CertificateError::BadEncoding => "it is malformed".to_owned(),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it is signed in a way that is not accepted, such as SHA-1".to_owned()
        }
        // Foreign and non-exhaustive.
        other => other.to_string(),
    }
}

/// The first of a certificate's names, which its owner chose and may have thousands of.
fn names(presented: &[String]) -> String {
    let plain = |name: &String| -> String {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
        inner.trim_matches('"').chars().take(MAX_NAME).collect()
    };
    if presented.is_empty() {
        return "no name".to_owned();
    }
    let shown: Vec<_> = presented.iter().take(SHOWN_NAMES).map(plain).collect();
    match presented.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn date(time: UnixTime) -> String {
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_of_many_names_is_told_in_a_few_words() {
        assert_eq!(names(&[]), "no name");
        assert_eq!(names(&["DnsName(\"a.test\")".to_owned(), "IpAddress(10.0.0.1)".to_owned()]), "a.test, 10.0.0.1");
        let many: Vec<_> = (0..1500).map(|i| format!("DnsName(\"h{i}.test\")")).collect();
        assert_eq!(names(&many), "h0.test, h1.test, h2.test, h3.test and 1496 more");
        assert_eq!(names(&["x".repeat(9000)]).len(), MAX_NAME);
    }
}
