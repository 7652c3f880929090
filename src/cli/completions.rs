//! `outrigger completions`: the completion script of a shell.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::{Shell, generate};

use crate::cli::print;

/// What `completions` is told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// For which shell.
    shell: Shell,
}

/// Prints the script to stdout.
pub(crate) fn completions(options: &Options, mut command: Command) -> ExitCode {
    let mut script = Vec::new();
    generate(options.shell, &mut command, "outrigger", &mut script);
    print(&String::from_utf8_lossy(&script))
}
