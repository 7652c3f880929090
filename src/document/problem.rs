//! What is wrong with a document, and where.

use std::path::PathBuf;
use std::sync::Arc;

/// A place in a file. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, or the name of what stands in for one ("built-in").
    pub file: Arc<PathBuf>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// One thing that is wrong, or valid but dangerous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the value or key stands; `None` for what concerns the whole file.
    pub place: Option<Place>,
    /// The setting, as `upstreams.stripe.retry.max_attempts`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Mistakes: the document can't be used.
    pub errors: Vec<Problem>,
    /// Dangers: it can.
    pub warnings: Vec<Problem>,
}
