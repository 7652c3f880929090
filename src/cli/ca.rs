//! `outrigger ca`: what an app needs to trust the CA of `intercept`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::cli::{ConfigFile, Format, check, complain, print};
use crate::config::load;
use crate::config::{Authority, Config, Intercept};
use crate::intercept::trust::{self, Trust};

/// Below the options.
pub(crate) const HELP: &str = "\
Examples:
  outrigger ca env --config outrigger.yaml > env.sh
  NODE_EXTRA_CA_CERTS=<(outrigger ca print --config outrigger.yaml) node app.js

Exit status:
  0  printed
  1  there is no CA, or none yet: `outrigger run` makes it
  2  the file can't be read, or the command line is wrong";

/// What `ca` is told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The CA's certificate, PEM: for what adds to its own roots, such as NODE_EXTRA_CA_CERTS.
    Print(ConfigFile),
    /// The system's roots and the CA's certificate, PEM: for what replaces its roots, such as SSL_CERT_FILE.
    Bundle(ConfigFile),
    /// The variables that an app sets, as `export` lines for a shell.
    Env {
        #[command(flatten)]
        file: ConfigFile,
        /// Where the app finds the files; left out: `intercept.dir`.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Prints it. Exit status 1, with the reason on standard error, where there is no CA (yet).
pub(crate) fn ca(options: &Options) -> ExitCode {
    let (What::Print(file) | What::Bundle(file) | What::Env { file, .. }) = &options.what;
    let path = &file.config;
    let loaded = match check::load(path, load::Options { no_env: true }, Format::Text) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let Some(config) = &loaded.config else { return check::report(path, &loaded, Format::Text, false) };
    match text(&options.what, path, config) {
        Ok(text) => print(&text),
        Err(reason) => {
            complain(&reason);
            ExitCode::FAILURE
        }
    }
}

fn text(what: &What, path: &Path, config: &Config) -> Result<String, String> {
    let none = || {
        let path = path.display();
        format!("{path} names no CA in `intercept`: nothing is intercepted, and an app needs to trust nothing")
    };
    let intercept = config.intercept.as_ref().ok_or_else(none)?;
    match what {
        What::Print(_) => Ok(Trust { chain: &chain(intercept)? }.certificate()),
        What::Bundle(_) => Ok(Trust { chain: &chain(intercept)? }.bundle(&trust::system_roots()?)),
        What::Env { dir, .. } => {
            let dir = dir.as_ref().or(intercept.dir.as_ref()).ok_or(
                "say where the app finds the files: `--dir DIR`, or `intercept: {dir: …}` in the configuration, which also \
                 writes them",
            )?;
            Ok(trust::environment(dir, config.listeners.proxy))
        }
    }
}

/// The CA's certificates: those of the file, or those that a running Outrigger made.
fn chain(intercept: &Intercept) -> Result<Vec<CertificateDer<'static>>, String> {
    let dir = match (&intercept.authority, &intercept.dir) {
        (Authority::Given(identity), _) => return Ok(identity.chain.clone()),
        (Authority::Generated { .. }, Some(dir)) => dir,
        (Authority::Generated { .. }, None) => unreachable!("a CA that is made here needs `dir`"),
    };
    let path = dir.join(trust::CERTIFICATE);
    let failed = |why: String| {
        format!("{}: {why}: the CA is made when `outrigger run` starts with this configuration", path.display())
    };
    let bytes = std::fs::read(&path).map_err(|error| failed(error.to_string()))?;
    CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|_| failed("is no certificate".to_owned()))
}
