//! `outrigger explain`: what the proxy would do with a request.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory};

use crate::cli::{Cli, ConfigFile, Format, check, colour, print};
use crate::config::load;
use crate::explain::{self, Question};

/// What `explain` is told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// The request's method, such as GET or POST; CONNECT takes HOST:PORT in place of a URL.
    #[arg(value_name = "METHOD")]
    method: String,
    /// What the app asks for: http://HOST/PATH, https:// for a tunnel, or a path beside -H 'Host: HOST'.
    #[arg(value_name = "URL")]
    url: String,
    /// A header of the request, as 'Name: value'. Values are never shown.
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// How large the request's body is, such as 64KiB; left out: its Content-Length.
    #[arg(long, value_name = "SIZE")]
    body_size: Option<String>,
    /// Makes missing variables and secret files no errors, for a place that has no secrets.
    #[arg(long)]
    no_env: bool,
    /// How the report is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Below the options.
pub(crate) const HELP: &str = "\
Examples:
  outrigger explain -c outrigger.yaml POST http://api.x.com/v1 -H 'Idempotency-Key: 7'
  outrigger explain -c outrigger.yaml PUT http://api.x.com/v1/a --body-size 2MiB
  outrigger explain -c outrigger.yaml GET https://api.x.com/     what a tunnel gets
  outrigger explain -c outrigger.yaml GET http://127.0.0.1:7201/ an upstream's own port

Nothing is sent, dialled or looked up.

Exit status:
  0  explained, also where the request would be refused
  1  the configuration is invalid; the report is that of check
  2  the file can't be read, or the command line is wrong";

/// Prints the explanation to stdout.
pub(crate) fn explain(options: &Options) -> ExitCode {
    let question = match Question::new(&options.method, &options.url, &options.headers, options.body_size.as_deref()) {
        Ok(question) => question,
        // As clap does for what it refuses itself.
        Err(message) => {
            let mut command = Cli::command();
            let command = command.find_subcommand_mut("explain").map_or_else(Cli::command, |found| found.clone());
            command.bin_name("outrigger explain").error(ErrorKind::ValueValidation, message).exit()
        }
    };
    let path = &options.file.config;
    let loaded = match check::load(path, load::Options { no_env: options.no_env }, options.format) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let Some(config) = &loaded.config else { return check::report(path, &loaded, options.format, false) };
    let mut explanation = explain::explain(config, &question);
    let warnings = loaded.problems.warnings.len();
    if warnings > 0 {
        let plural = if warnings == 1 { "warning" } else { "warnings" };
        explanation.notes.push(format!("`outrigger check` has {warnings} {plural} for this file."));
    }
    match options.format {
        Format::Text => print(&explanation.text(colour(&std::io::stdout()))),
        Format::Json => print(&explanation.json()),
    }
}
