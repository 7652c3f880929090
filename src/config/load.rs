//! From a file to a [`Config`](super::Config), or everything that is wrong with it.

use std::path::Path;

use crate::config::Config;
use crate::document::Problems;

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Missing variables and files are warnings: for checking where the secrets are not.
    pub no_env: bool,
}

/// What loading gives.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration, where there are no errors.
    pub config: Option<Config>,
    /// Errors and warnings.
    pub problems: Problems,
    /// The file's text, for showing problems in it; empty where it could not be read.
    pub text: String,
}

/// Reads, merges and validates the file.
///
/// # Errors
/// Only when the file itself can't be read; everything else is in `problems`.
pub fn load(_path: &Path, _options: Options) -> std::io::Result<Loaded> {
    todo!()
}
