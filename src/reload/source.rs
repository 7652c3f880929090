//! Where a configuration is read from, at the start and at each reload.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::load::{self, Loaded, Options};
use crate::document::file;

/// What a configuration is read from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, which is watched.
    File(PathBuf),
    /// A text that the program brings along. It never changes; the files that it names are watched.
    Text(Arc<str>),
}

/// What problems in a [`Source::Text`] name as their file.
const BUILT_IN: &str = "<built-in>";

impl Source {
    /// Reads, merges and validates it.
    ///
    /// # Errors
    /// A sentence, only when the file itself can't be read.
    pub fn load(&self) -> Result<Loaded, String> {
        match self {
            // A pipe is fine where a process begins, but must not hold up one that has traffic.
            Source::File(path) => file::regular(path)
                .and_then(|()| load::load(path, Options::default()))
                .map_err(|error| format!("{} can't be read: {error}", path.display())),
            Source::Text(text) => {
                let path = Path::new(BUILT_IN);
                let mut loaded = load::load_text(text, path, Options::default(), &|name| std::env::var(name).ok());
                if let Some(config) = &mut loaded.config {
                    config.files.retain(|file| file != path);
                }
                Ok(loaded)
            }
        }
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Source {
        Source::File(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_the_programs_own_is_valid_without_a_file_and_nothing_is_watched() {
        let loaded = Source::Text("version: 1\n".into()).load().unwrap();
        assert!(loaded.config.unwrap().files.is_empty());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let problem = Source::from(PathBuf::from("/nowhere/x.yaml")).load().unwrap_err();
        assert!(problem.starts_with("/nowhere/x.yaml can't be read: "), "{problem}");
    }
}
