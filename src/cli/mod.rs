//! The command line: one file a command.

mod ca;
mod check;
mod completions;
mod demo;
mod explain;
mod inject;
mod man;
pub mod run;
mod schema;
mod spans;

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

const START: &str = "\
Start here:
  outrigger demo                            see what it does: no network and no file needed
  outrigger check --config outrigger.yaml   what is wrong with a file, if anything
  outrigger run --config outrigger.yaml     then let the app use http://127.0.0.1:7171 as HTTP_PROXY

`outrigger COMMAND --help` has examples and exit statuses.";

/// A sidecar proxy that gives every outgoing call of an app its upstream's policy.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version = spans::VERSION, about, disable_help_subcommand = true, after_help = START)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy.
    #[command(after_help = run::HELP)]
    Run(ConfigFile),
    /// Validates a configuration: prints every problem, then what is valid but dangerous.
    #[command(after_help = check::HELP)]
    Check(check::Options),
    /// Shows what Outrigger does: an app, an API that misbehaves, and the figures of both, live.
    ///
    /// Needs no network and no file: all of it runs on free ports of 127.0.0.1, and ends within a minute with a summary.
    #[command(after_help = demo::HELP)]
    Demo(demo::Options),
    /// Says what would happen to a request, and why, without sending it.
    #[command(after_help = explain::HELP)]
    Explain(explain::Options),
    /// Adds the sidecar to Kubernetes manifests, and changes nothing else in them.
    #[command(after_help = inject::HELP)]
    Inject(inject::Options),
    /// What an app needs to trust the CA of `intercept`.
    #[command(after_help = ca::HELP)]
    Ca(ca::Options),
    /// Prints the JSON Schema of the configuration, by which editors propose and check settings.
    #[command(after_help = schema::HELP)]
    Schema,
    /// Prints the completion script of a shell.
    #[command(after_help = completions::HELP)]
    Completions(completions::Options),
    /// Prints a manual page.
    #[command(after_help = man::HELP)]
    Man(man::Options),
}

/// Which configuration.
#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file (YAML).
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
        Command::Demo(options) => demo::demo(&options),
        Command::Explain(options) => explain::explain(&options),
        Command::Inject(options) => inject::inject(&options),
        Command::Ca(options) => ca::ca(&options),
        Command::Schema => schema::schema(),
        Command::Completions(options) => completions::completions(&options, Cli::command()),
        Command::Man(options) => man::man(&options, Cli::command()),
    }
}

/// Prints to standard output. A reader that went away, as `| head` does, is no failure of the command.
pub(crate) fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(&format!("standard output can't be written: {error}"));
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

/// Says on standard error why a command failed.
pub(crate) fn complain(reason: &str) {
    // Nowhere is left to complain to where that is closed.
    let _ = writeln!(std::io::stderr(), "outrigger: {reason}");
}

/// Whether colours are wanted there: on a terminal, unless `NO_COLOR` is set.
pub(crate) fn colour(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !set("NO_COLOR") && !dumb
}
