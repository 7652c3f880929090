//! The command line: one file a command.

mod check;
mod inject;
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
    /// Adds the sidecar to Kubernetes manifests, and changes nothing else in them.
    ///
    /// Knows Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job, CronJob, Pod and lists of them; other
    /// kinds pass through. A pod template with the annotation `outrigger.dev/inject: "false"` is left alone.
    /// What was done is said on standard error. Doing it again changes nothing, other options change what was put in.
    ///
    /// Exit status: 0 done, 1 a document can't be injected (nothing is written then), 2 unreadable.
    Inject(inject::Options),
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
        Command::Inject(options) => inject::inject(&options),
    }
}

/// Whether colours are wanted there: on a terminal, unless `NO_COLOR` is set.
pub(crate) fn colour(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !set("NO_COLOR") && !dumb
}
