//! `outrigger man`: manual pages.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_mangen::Man;

use crate::cli::{complain, print};

/// What `man` is told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The page of this command, such as `check`; left out: that of `outrigger` itself.
    command: Vec<String>,
}

/// Below the options.
pub(crate) const HELP: &str = "\
Examples:
  outrigger man | man -l -
  outrigger man check > /usr/local/share/man/man1/outrigger-check.1";

/// Prints the page to stdout.
pub(crate) fn man(options: &Options, mut cli: Command) -> ExitCode {
    // Gives every command its full name.
    cli.build();
    let mut page = &cli;
    for name in &options.command {
        page = match page.find_subcommand(name) {
            Some(command) => command,
            None => {
                let known: Vec<&str> = page.get_subcommands().map(Command::get_name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                complain(&format!("`{}` has no command `{name}`; it has {known}", page.get_name()));
                return ExitCode::from(2);
            }
        };
    }
    let source = concat!("Outrigger ", env!("CARGO_PKG_VERSION"));
    let mut text = Vec::new();
    match Man::new(page.clone()).source(source).manual("Outrigger").render(&mut text) {
        Ok(()) => print(&notes(&String::from_utf8_lossy(&text))),
        Err(error) => {
            complain(&format!("the page can't be written: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Gives what stands below the options its usual name, and keeps its lines as they are: a command that is broken in two can't
/// be copied.
fn notes(page: &str) -> String {
    let Some((before, notes)) = page.split_once(".SH EXTRA\n") else { return page.to_owned() };
    let end = notes.find(".SH ").unwrap_or(notes.len());
    format!("{before}.SH NOTES\n.nf\n{}.fi\n{}", &notes[..end], &notes[end..])
}
