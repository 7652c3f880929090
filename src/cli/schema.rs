//! `outrigger schema`: the JSON Schema of the configuration.

use std::process::ExitCode;

use crate::cli::print;
use crate::config::json_schema;

/// Below the options.
pub(crate) const HELP: &str = "\
Examples:
  outrigger schema > outrigger.schema.json

  An editor with a YAML language server reads it if the configuration's first line is
  # yaml-language-server: $schema=outrigger.schema.json";

/// Prints the schema to stdout.
pub(crate) fn schema() -> ExitCode {
    print(&format!("{:#}\n", json_schema::document()))
}
