//! TLS files: read, parsed and checked when the configuration is loaded, so that what is checked can run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Identity, Tls, host};
use crate::document::{Reader, file};
use crate::intercept::Authority;

type Certificates = Arc<Vec<CertificateDer<'static>>>;
/// A failure comes with the key whose file is at fault.
type IdentityResult = Result<Arc<Identity>, (&'static str, Failure)>;

/// Reads TLS blocks, each file once.
pub(crate) struct Files<'f> {
    /// What relative paths are relative to.
    pub(crate) directory: &'f Path,
    /// A file that is not there is a warning.
    pub(crate) forgiving: bool,
    /// Every file that was named.
    pub(crate) named: Vec<PathBuf>,
    certificates: HashMap<PathBuf, Result<Certificates, Failure>>,
    identities: HashMap<(PathBuf, PathBuf), IdentityResult>,
}

#[derive(Clone)]
enum Failure {
    /// It could not be read.
    Absent(String),
    /// It holds something else.
    Content(String),
}

impl<'f> Files<'f> {
    pub(crate) fn new(directory: &'f Path, forgiving: bool) -> Files<'f> {
        let (certificates, identities) = (HashMap::new(), HashMap::new());
        Files { directory, forgiving, named: Vec::new(), certificates, identities }
    }

    /// Reads a `tls` block.
    pub(crate) fn read(&mut self, reader: &mut Reader<'_>) -> Tls {
        let ca_file = self.path(reader, "ca_file");
        let client_cert = self.path(reader, "client_cert");
        let client_key = self.path(reader, "client_key");
        let server_name = reader.parsed("server_name", host::server_name);
        let tls13_only = reader.choice("min_version", &[("1.2", false), ("1.3", true)]);
        let roots = ca_file.as_ref().and_then(|path| match self.certificates(path) {
            Ok(roots) => Some(roots),
            Err(failure) => {
                self.report(reader, "ca_file", failure);
                None
            }
        });
        let identity = match (&client_cert, &client_key) {
            (Some(cert), Some(key)) => match self.identity(cert, key) {
                Ok(identity) => Some(identity),
                Err((which, failure)) => {
                    self.report(reader, which, failure);
                    None
                }
            },
            (Some(_), None) if !reader.has("client_key") => {
                let help = Some("write `client_key` beside it".to_owned());
                reader.problem("client_cert", "needs its private key".to_owned(), help);
                None
            }
            (None, Some(_)) if !reader.has("client_cert") => {
                let help = Some("write `client_cert` beside it".to_owned());
                reader.problem("client_key", "needs its certificate".to_owned(), help);
                None
            }
            (Some(_) | None, Some(_) | None) => None,
        };
        Tls { roots, identity, server_name, tls13_only, ca_file, client_cert }
    }

    /// Reads `ca_cert` and `ca_key` of `intercept`.
    pub(crate) fn authority(&mut self, reader: &mut Reader<'_>) -> Option<Arc<Identity>> {
        let both = (self.path(reader, "ca_cert"), self.path(reader, "ca_key"));
        for (here, other) in [("ca_cert", "ca_key"), ("ca_key", "ca_cert")] {
            if reader.has(here) && !reader.has(other) {
                let help = Some(format!("write `{other}` beside it"));
                reader.problem(here, format!("needs `{other}`"), help);
            }
        }
        let (Some(cert), Some(key)) = both else { return None };
        let read = self.identity(&cert, &key).and_then(|identity| {
            let usable = Authority::given(identity.chain.clone(), &identity.key);
            usable.map(|_| identity).map_err(|message| ("client_cert", Failure::Content(message)))
        });
        match read {
            Ok(identity) => {
                // No error: it ends while nobody looks, and a proxy that doesn't start takes away more than this.
                if identity.chain.first().is_some_and(|first| has_ended(first)) {
                    let help =
                        Some("replace it: until then apps refuse every connection that is intercepted".to_owned());
                    reader.warning("ca_cert", "has expired".to_owned(), help);
                }
                Some(identity)
            }
            Err((which, failure)) => {
                self.report(reader, if which == "client_key" { "ca_key" } else { "ca_cert" }, failure);
                None
            }
        }
    }

    fn path(&mut self, reader: &mut Reader<'_>, key: &'static str) -> Option<PathBuf> {
        let path = reader.parsed(key, |text| {
            if text.contains("-----BEGIN") {
                return Err("must be the path of a PEM file, not its content".to_owned());
            }
            if text.is_empty() {
                Err("must be the path of a PEM file".to_owned())
            } else {
                Ok(self.directory.join(text))
            }
        })?;
        if !self.named.contains(&path) {
            self.named.push(path.clone());
        }
        Some(path)
    }

    fn certificates(&mut self, path: &Path) -> Result<Certificates, Failure> {
        if let Some(known) = self.certificates.get(path) {
            return known.clone();
        }
        let result = read_certificates(path);
        self.certificates.insert(path.to_owned(), result.clone());
        result
    }

    fn identity(&mut self, cert: &Path, key: &Path) -> IdentityResult {
        let both = (cert.to_owned(), key.to_owned());
        if let Some(known) = self.identities.get(&both) {
            return known.clone();
        }
        let result = self.read_identity(cert, key);
        self.identities.insert(both, result.clone());
        result
    }

    fn read_identity(&mut self, cert: &Path, key: &Path) -> IdentityResult {
        let chain = self.certificates(cert).map_err(|failure| ("client_cert", failure))?;
        let bytes =
            file::whole(key, file::MAX_PEM).map_err(|error| ("client_key", Failure::Absent(error.to_string())))?;
        let bad_key = |message: &str| ("client_key", Failure::Content(message.to_owned()));
        let key = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| bad_key("holds no private key in PEM form (an encrypted one can't be used)"))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let signing = provider.key_provider.load_private_key(key.clone_key()).map_err(|_| {
            bad_key("holds a private key of a kind that can't be used: RSA, ECDSA or Ed25519 is needed")
        })?;
        match CertifiedKey::new(chain.to_vec(), signing).keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(bad_key("doesn't belong to the first certificate beside it"));
            }
            Err(_) => {
                let message = "holds a first certificate that can't be parsed".to_owned();
                return Err(("client_cert", Failure::Content(message)));
            }
        }
        Ok(Arc::new(Identity { chain: chain.to_vec(), key }))
    }

    fn report(&self, reader: &mut Reader<'_>, key: &'static str, failure: Failure) {
        match failure {
            Failure::Absent(reason) => {
                let message = format!("the file can't be read: {reason}");
                let help = Some("mount it, or correct the path".to_owned());
                if self.forgiving {
                    reader.warning(key, message, help);
                } else {
                    reader.problem(key, message, help);
                }
            }
            Failure::Content(message) => reader.problem(key, message, None),
        }
    }
}

/// A file, with the name that it is set by.
#[cfg(feature = "otlp")]
pub(crate) type Named<'a> = (&'a str, &'a Path);

/// TLS settings from PEM files that no configuration names. Each comes with the name that it is set by.
///
/// # Errors
/// A sentence that begins with such a name.
#[cfg(feature = "otlp")]
pub(crate) fn from_files(ca: Option<Named<'_>>, identity: Option<(Named<'_>, Named<'_>)>) -> Result<Tls, String> {
    let told = |name: &str, failure| match failure {
        Failure::Absent(reason) => format!("{name}: the file can't be read: {reason}"),
        Failure::Content(message) => format!("{name}: the file {}", message.replace("`client_cert`", "the other file")),
    };
    let roots = ca.map(|(name, path)| read_certificates(path).map_err(|failure| told(name, failure))).transpose()?;
    let identity = identity.map(|(cert, key)| {
        let read = Files::new(Path::new("."), false).read_identity(cert.1, key.1);
        read.map_err(|(which, failure)| told(if which == "client_key" { key.0 } else { cert.0 }, failure))
    });
    Ok(Tls {
        roots,
        identity: identity.transpose()?,
        server_name: None,
        tls13_only: false,
        ca_file: ca.map(|(_, path)| path.to_owned()),
        client_cert: None,
    })
}

fn has_ended(certificate: &CertificateDer<'_>) -> bool {
    let now = x509_parser::time::ASN1Time::now();
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| parsed.validity().not_after < now)
}

fn read_certificates(path: &Path) -> Result<Certificates, Failure> {
    let bytes = file::whole(path, file::MAX_PEM).map_err(|error| Failure::Absent(error.to_string()))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::Content("holds PEM text that is broken".to_owned()))?;
    if certificates.is_empty() {
        return Err(Failure::Content("holds no certificate in PEM form (`-----BEGIN CERTIFICATE-----`)".to_owned()));
    }
    let mut store = rustls::RootCertStore::empty();
    for certificate in &certificates {
        if store.add(certificate.clone()).is_err() {
            return Err(Failure::Content("holds a certificate that can't be parsed".to_owned()));
        }
    }
    Ok(Arc::new(certificates))
}
