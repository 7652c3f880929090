//! Files: the key of a CA that is made here, which must outlive a restart of the sidecar, since apps load their trust once;
//! and what the app has to trust.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;

use crate::config::HostPattern;
use crate::intercept::authority::Authority;
use crate::intercept::trust::{self, Trust};
use crate::origin::Host;

/// In `key_dir`.
const KEY: &str = "ca.key";
/// Files that anybody may read.
const PUBLIC: u32 = 0o644;
/// Files that nobody else may.
const PRIVATE: u32 = 0o600;

/// What a CA may sign for; `None`: anything.
type Scope = Option<Vec<Host>>;

/// The CA that `key_dir` has from before, or a new one for `hosts` (`None`: for any).
///
/// # Errors
/// A sentence with the file that is at fault.
pub(super) fn generated(
    key_dir: Option<&Path>,
    hosts: Option<&[HostPattern]>,
    now: SystemTime,
) -> Result<(Authority, Scope), String> {
    if let Some(dir) = key_dir
        && dir.join(KEY).exists()
    {
        let (authority, scope) = kept(dir)?;
        if authority.not_after() > now {
            return Ok((authority, scope));
        }
        tracing::warn!(dir = %dir.display(), "the CA has expired; apps have to load a new one");
    }
    let (authority, key) = Authority::generate(hosts, now)?;
    if let Some(dir) = key_dir {
        make_dir(dir, 0o700).map_err(|error| format!("{} can't be made: {error}", dir.display()))?;
        // The certificate first: a key without one would be taken for a CA that can't be read.
        write(dir, trust::CERTIFICATE, Trust { chain: authority.chain() }.certificate().as_bytes(), PUBLIC)?;
        write(dir, KEY, key.as_bytes(), PRIVATE)?;
    }
    let scope = hosts.map(|hosts| hosts.iter().map(|pattern| pattern.host.clone()).collect());
    Ok((authority, scope))
}

fn kept(dir: &Path) -> Result<(Authority, Scope), String> {
    let at = |name: &str, why: &str| {
        let path = dir.join(name);
        format!("{}: {why}; remove both files there and restart the pod to get a new CA", path.display())
    };
    let read = |name: &str| fs::read(dir.join(name)).map_err(|error| at(name, &error.to_string()));
    let certificate = CertificateDer::from_pem_slice(&read(trust::CERTIFICATE)?)
        .map_err(|_| at(trust::CERTIFICATE, "is no certificate"))?;
    let bytes = zeroize::Zeroizing::new(read(KEY)?);
    let mode = fs::metadata(dir.join(KEY)).map_or(PRIVATE, |meta| meta.permissions().mode());
    if mode & 0o007 != 0 {
        let (dir, mode) = (dir.display(), format!("{:o}", mode & 0o777));
        tracing::warn!(%dir, mode, "everybody may use the CA's key: take `ca.key` away from others (chmod o= ca.key)");
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| at(KEY, "is no private key"))?;
    let scope = scope_of(&certificate);
    let authority = Authority::given(vec![certificate], &key).map_err(|why| at(trust::CERTIFICATE, &why))?;
    Ok((authority, scope))
}

/// The names that a CA's constraints permit.
fn scope_of(certificate: &CertificateDer<'_>) -> Scope {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let constraints = parsed.name_constraints().ok()??.value.permitted_subtrees.as_ref()?;
    let hosts = constraints.iter().filter_map(|subtree| match &subtree.base {
        GeneralName::DNSName(name) => Host::parse(name).ok(),
        GeneralName::IPAddress(bytes) => {
            let address = &bytes[..bytes.len() / 2];
            let v4 = <[u8; 4]>::try_from(address).map(|octets| Host::of(octets.into()));
            v4.or_else(|_| <[u8; 16]>::try_from(address).map(|octets| Host::of(octets.into()))).ok()
        }
        _ => None,
    });
    Some(hosts.collect())
}

/// Writes what the app has to trust, in every form. `proxy` is the proxy port.
///
/// # Errors
/// A sentence with the file that can't be written, or that the system has no roots.
pub(super) fn publish(dir: &Path, trust: &Trust<'_>, proxy: SocketAddr) -> Result<(), String> {
    let roots = trust::system_roots()?;
    // What says where the others are comes last.
    write(dir, trust::CERTIFICATE, trust.certificate().as_bytes(), PUBLIC)?;
    write(dir, trust::BUNDLE, trust.bundle(&roots).as_bytes(), PUBLIC)?;
    write(dir, trust::TRUST_STORE, &trust.trust_store(&roots), PUBLIC)?;
    let dir_of_app = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    write(dir, trust::ENVIRONMENT, trust::environment(&dir_of_app, proxy).as_bytes(), PUBLIC)
}

/// Makes a directory where there is none, whatever the umask: nobody else may ever write there.
fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    // The app may have to pass through those above.
    DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    match DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made,
    }
}

/// Writes a file whole or not at all: apps may be reading it.
fn write(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), String> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.new"));
    let written = || {
        make_dir(dir, 0o755)?;
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The umask took its part of `mode`.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    written().map_err(|error| format!("{} can't be written: {error}", path.display()))
}
