//! What an app has to trust, in the forms that runtimes take: certificates, a bundle, a Java trust store, variables.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use rustls_pki_types::CertificateDer;

use crate::inject::env::NO_PROXY;
use crate::intercept::pkcs12;

/// The CA's certificates alone, PEM. For runtimes that add to their own roots.
pub(crate) const CERTIFICATE: &str = "ca.crt";
/// The system's roots and the CA, PEM. For runtimes whose roots it replaces.
pub(crate) const BUNDLE: &str = "ca-bundle.crt";
/// The same for Java.
pub(crate) const TRUST_STORE: &str = "truststore.p12";
/// What to set.
pub(crate) const ENVIRONMENT: &str = "env.sh";

/// A CA, as apps are to trust it.
pub(crate) struct Trust<'c> {
    /// Its own certificate, then what is above it.
    pub(crate) chain: &'c [CertificateDer<'static>],
}

impl Trust<'_> {
    /// [`CERTIFICATE`]
    pub(crate) fn certificate(&self) -> String {
        self.chain.iter().map(|certificate| pem(certificate)).collect()
    }

    /// [`BUNDLE`]
    pub(crate) fn bundle(&self, roots: &[CertificateDer<'static>]) -> String {
        roots.iter().chain(self.chain).map(|certificate| pem(certificate)).collect()
    }

    /// [`TRUST_STORE`]
    pub(crate) fn trust_store(&self, roots: &[CertificateDer<'static>]) -> Vec<u8> {
        let system = roots.iter().enumerate().map(|(at, certificate)| (format!("system-{at}"), certificate));
        let own = self.chain.iter().enumerate().map(|(at, certificate)| (format!("outrigger-{at}"), certificate));
        pkcs12::trust_store(own.chain(system))
    }
}

/// The roots that the system trusts.
///
/// # Errors
/// A sentence: there are none, and a bundle without them would take an app's trust in everybody else away.
pub(crate) fn system_roots() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!("the system has no root certificates{why}, which a bundle needs: install ca-certificates"));
    }
    Ok(found.certs)
}

/// [`ENVIRONMENT`]: a variable a line, for a shell. `dir` is where the app finds the files, `proxy` the proxy port.
pub(crate) fn environment(dir: &Path, proxy: SocketAddr) -> String {
    let mut text = String::from("# What an app sets so that its HTTPS calls get Outrigger's policies: . env.sh\n");
    let direct = NO_PROXY.join(",");
    for name in ["NO_PROXY", "no_proxy"] {
        // What is there already stays, below as well. Writing to a string can't fail.
        let _ = writeln!(text, "export {name}=\"${{{name}:+${name},}}\"{}", quoted(&direct));
    }
    for (name, value) in variables(dir, proxy) {
        let _ = match name {
            "JAVA_TOOL_OPTIONS" => {
                writeln!(text, "export {name}=\"${{{name}:+${name} }}\"{}", quoted(&value))
            }
            name => writeln!(text, "export {name}={}", quoted(&value)),
        };
    }
    text
}

/// The variables, each with its value. Which runtime reads which is in `docs/interception.md`.
pub(crate) fn variables(dir: &Path, proxy: SocketAddr) -> Vec<(&'static str, String)> {
    let file = |name: &str| dir.join(name).display().to_string();
    let url = format!("http://{proxy}");
    let mut all = Vec::new();
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
        all.push((name, url.clone()));
    }
    for name in [
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "AWS_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "CARGO_HTTP_CAINFO",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    ] {
        all.push((name, file(BUNDLE)));
    }
    for name in ["NODE_EXTRA_CA_CERTS", "DENO_CERT"] {
        all.push((name, file(CERTIFICATE)));
    }
    all.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
    let (host, port) = (proxy.ip(), proxy.port());
    let java = format!(
        "-Djavax.net.ssl.trustStore={} -Djavax.net.ssl.trustStoreType=PKCS12 -Dhttp.proxyHost={host} -Dhttp.proxyPort={port} \
         -Dhttps.proxyHost={host} -Dhttps.proxyPort={port}",
        file(TRUST_STORE)
    );
    all.push(("JAVA_TOOL_OPTIONS", java));
    all
}

/// For a POSIX shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// One certificate, PEM.
fn pem(certificate: &CertificateDer<'_>) -> String {
    let block = ::pem::Pem::new("CERTIFICATE", certificate.to_vec());
    ::pem::encode_config(&block, ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_shell() {
        let text = environment(Path::new("/var/it's here"), "127.0.0.1:7171".parse().unwrap());
        assert!(text.contains("export SSL_CERT_FILE='/var/it'\\''s here/ca-bundle.crt'\n"), "{text}");
        assert!(text.contains("export https_proxy='http://127.0.0.1:7171'\n"), "{text}");
        assert!(text.contains("export no_proxy=\"${no_proxy:+$no_proxy,}\"'localhost,127.0.0.1,"), "{text}");
        assert!(text.contains("export JAVA_TOOL_OPTIONS=\"${JAVA_TOOL_OPTIONS:+$JAVA_TOOL_OPTIONS }\"'-D"), "{text}");
    }
}
