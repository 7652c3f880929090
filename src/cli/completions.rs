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

/// Below the options.
pub(crate) const HELP: &str = "\
Examples:
  outrigger completions bash > ~/.local/share/bash-completion/completions/outrigger
  outrigger completions zsh > ~/.zfunc/_outrigger   with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
  outrigger completions fish > ~/.config/fish/completions/outrigger.fish
  outrigger completions elvish >> ~/.config/elvish/rc.elv
  outrigger completions powershell >> $PROFILE";

/// Prints the script to stdout.
pub(crate) fn completions(options: &Options, mut command: Command) -> ExitCode {
    let mut script = Vec::new();
    generate(options.shell, &mut command, "outrigger", &mut script);
    print(&String::from_utf8_lossy(&script))
}
