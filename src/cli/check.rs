//! `outrigger check`: everything that is wrong with a configuration.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use crate::cli::{ConfigFile, Format, colour, print};
use crate::config::load::{self, Loaded};
use crate::config::{Connect, Upstream};
use crate::document::Problem;

/// What `check` is told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Makes warnings fail too.
    #[arg(long)]
    strict: bool,
    /// Makes missing variables and secret files warnings, for a place that has no secrets.
    #[arg(long)]
    no_env: bool,
    /// How the report is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Below the options.
pub(crate) const HELP: &str = "\
Examples:
  outrigger check --config outrigger.yaml
  outrigger check --config outrigger.yaml --strict --no-env   in CI, where no secrets are

Exit status:
  0  valid
  1  invalid; with --strict, valid with warnings
  2  the file can't be read, or the command line is wrong";

/// Checks the file and prints the report to stdout.
pub(crate) fn check(options: &Options) -> ExitCode {
    let path = &options.file.config;
    match load(path, load::Options { no_env: options.no_env }, options.format) {
        Ok(loaded) => report(path, &loaded, options.format, options.strict),
        Err(code) => code,
    }
}

/// Loads the file, for whichever command needs one.
///
/// # Errors
/// The exit status, once it has said that the file can't be read.
pub(crate) fn load(path: &Path, options: load::Options, format: Format) -> Result<Loaded, ExitCode> {
    load::load(path, options).map_err(|error| {
        let message = format!("{} can't be read: {error}", path.display());
        match format {
            Format::Text => {
                // Nowhere is left to complain to where stderr is closed.
                let _ = writeln!(std::io::stderr(), "error: {message}");
            }
            Format::Json => drop(print(&format!("{:#}\n", json!({"valid": false, "unreadable": message})))),
        }
        ExitCode::from(2)
    })
}

/// Prints what is wrong with the file. 0 where it is valid, else 1.
pub(crate) fn report(path: &Path, loaded: &Loaded, format: Format, strict: bool) -> ExitCode {
    let refused = strict && !loaded.problems.warnings.is_empty();
    let valid = loaded.config.is_some() && !refused;
    let printed = match format {
        Format::Text => print(&text(path, loaded, strict)),
        Format::Json => print(&json_report(loaded, valid)),
    };
    if valid { printed } else { ExitCode::from(1) }
}

fn text(path: &Path, loaded: &Loaded, strict: bool) -> String {
    let problems = &loaded.problems;
    let mut report = if colour(&std::io::stdout()) {
        problems.render_in_colour(&loaded.text, path)
    } else {
        problems.render(&loaded.text, path)
    };
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let (errors, warnings) = (problems.errors.len(), problems.warnings.len());
    let verdict = match (errors, warnings) {
        (0, 0) => "is valid".to_owned(),
        (0, warnings) if strict => format!("is refused because of --strict: {}", plural(warnings, "warning")),
        (0, warnings) => format!("is valid, with {}", plural(warnings, "warning")),
        (errors, 0) => format!("is invalid: {}", plural(errors, "error")),
        (errors, warnings) => format!("is invalid: {}, {}", plural(errors, "error"), plural(warnings, "warning")),
    };
    report.push_str(&format!("{} {verdict}\n", path.display()));
    for note in notes(loaded) {
        report.push_str(&format!("note: {note}\n"));
    }
    report
}

/// What is right, and yet worth knowing.
fn notes(loaded: &Loaded) -> Vec<String> {
    let upstreams = loaded.config.iter().flat_map(|config| &config.upstreams);
    let intercepted = upstreams.filter(|upstream| upstream.connect == Connect::Intercept);
    let note = |upstream: &Arc<Upstream>| {
        let hosts: Vec<String> = upstream.hosts.iter().map(ToString::to_string).collect();
        format!(
            "upstreams.{}: TLS that apps make to {} ends in Outrigger, which sees what is inside; the apps have to trust its CA \
             (`outrigger ca env`)",
            upstream.name,
            hosts.join(", ")
        )
    };
    intercepted.map(note).collect()
}

fn json_report(loaded: &Loaded, valid: bool) -> String {
    let list = |problems: &[Problem]| problems.iter().map(Problem::json).collect::<Vec<_>>();
    let problems = &loaded.problems;
    let (errors, warnings) = (list(&problems.errors), list(&problems.warnings));
    let report = json!({"valid": valid, "errors": errors, "warnings": warnings, "notes": notes(loaded)});
    format!("{report:#}\n")
}
