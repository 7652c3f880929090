//! `outrigger run`.

use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the proxy until it is told to end.
pub fn run(_config: PathBuf) -> ExitCode {
    todo!()
}
