//! The command line: one file a command.

mod check;
mod explain;
pub mod run;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A sidecar proxy that gives every outgoing call of an app its upstream's policy.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy.
    Run(ConfigFile),
    /// Validates a configuration: prints every problem, then what is valid but dangerous.
    ///
    /// Exit status: 0 valid, 1 invalid, 2 unreadable.
    Check(check::Options),
    /// Says what would happen to a request: upstream, route, effective policy with the origin of each value, retries, worst case.
    ///
    /// Nothing is sent. Exit status: 0 explained, also where the request would be refused; 1 the configuration is invalid; 2 it
    /// is unreadable, or the request is none.
    Explain(explain::Options),
}

/// Which configuration.
#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE", env = "OUTRIGGER_CONFIG", default_value = "/etc/outrigger/outrigger.yaml")]
    config: PathBuf,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(file) => run::run(file.config),
        Command::Check(options) => check::check(&options),
        Command::Explain(options) => explain::run(&options),
    }
}

/// Whether colours are wanted there: on a terminal, unless `NO_COLOR` is set.
pub(crate) fn colour(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !set("NO_COLOR") && !dumb
}
