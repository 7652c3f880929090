//! `outrigger schema`: the JSON Schema of the configuration.

use std::process::ExitCode;

use crate::cli::print;
use crate::config::json_schema;

/// Prints the schema to stdout.
pub(crate) fn schema() -> ExitCode {
    print(&format!("{:#}\n", json_schema::document()))
}
