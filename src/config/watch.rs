//! Noticing that a file changed, by content.

use std::path::PathBuf;

/// What the watched files held when they were last looked at.
pub struct Watch {}

impl Watch {
    /// Begins with what the files hold now.
    pub fn new(_files: Vec<PathBuf>) -> Watch {
        todo!()
    }

    /// Whether any file's content (or being there) changed since the last look. Reads the files.
    pub fn changed(&mut self) -> bool {
        todo!()
    }
}
