//! Noticing that a file changed, by content.
//!
//! Symlinks are followed on every look, so that the swap of a ConfigMap's `..data` is seen. What a look costs when nothing
//! changed is one `stat` a file; contents are read only where that differs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;

use crate::document::file;

/// A file that was written so shortly before the last look is read again although its `stat` is the same: clocks of file
/// systems are coarse.
const COARSE: Duration = Duration::from_secs(2);

/// The files of one configuration as they were when it was looked at last.
#[derive(Clone, Debug)]
pub struct Watch {
    files: Vec<Watched>,
}

#[derive(Clone, Debug)]
struct Watched {
    path: PathBuf,
    stamp: Option<Stamp>,
    /// Of the content that counts; `None`: it was not there.
    content: Option<Vec<u8>>,
}

/// What tells cheaply that a file may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    /// Where the symlinks lead.
    target: PathBuf,
    modified: SystemTime,
    length: u64,
    looked: SystemTime,
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let target = path.canonicalize().ok()?;
        let meta = target.metadata().ok()?;
        let modified = meta.modified().ok()?;
        Some(Stamp { target, modified, length: meta.len(), looked: SystemTime::now() })
    }

    fn surely_unchanged(&self, before: &Stamp) -> bool {
        let settled = before.looked.duration_since(before.modified).is_ok_and(|age| age > COARSE);
        settled && self.target == before.target && self.modified == before.modified && self.length == before.length
    }
}

impl Watch {
    /// Remembers the files as they are now. Make it before the configuration is loaded, or call [`Watch::follow`] after: a
    /// change between the two is then seen at the next look.
    pub fn new(files: Vec<PathBuf>) -> Watch {
        let files = files
            .into_iter()
            .map(|path| Watched { stamp: Stamp::of(&path), content: fingerprint(&path), path })
            .collect();
        Watch { files }
    }

    /// Watches these files from now on; what is known of those that were watched before is kept.
    pub fn follow(&mut self, files: Vec<PathBuf>) {
        let mut before = std::mem::take(&mut self.files);
        for path in files {
            let known = before.iter().position(|watched| watched.path == path);
            match known {
                Some(at) => self.files.push(before.swap_remove(at)),
                None => self.files.extend(Watch::new(vec![path]).files),
            }
        }
    }

    /// Whether any content differs from the last time it was asked. A file that is missing for a moment, as while it is
    /// replaced, is no change; one that comes (back) with other content is.
    pub fn changed(&mut self) -> bool {
        let mut changed = false;
        for watched in &mut self.files {
            let stamp = Stamp::of(&watched.path);
            if let (Some(now), Some(before)) = (&stamp, &watched.stamp)
                && now.surely_unchanged(before)
            {
                continue;
            }
            let Some(content) = fingerprint(&watched.path) else { continue };
            watched.stamp = stamp;
            if watched.content.as_ref() != Some(&content) {
                watched.content = Some(content);
                changed = true;
            }
        }
        changed
    }
}

/// Of as much as any of the files may have. One that is larger is judged by its reader.
fn fingerprint(path: &Path) -> Option<Vec<u8>> {
    file::regular(path).ok()?;
    let bytes = file::beginning(path, file::MAX_PEM).ok()?;
    Some(digest::digest(&digest::SHA256, &bytes).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn other_content_is_a_change_and_the_same_content_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "one").unwrap();
        let mut watch = Watch::new(vec![file.clone()]);
        assert!(!watch.changed());
        fs::write(&file, "two").unwrap();
        assert!(watch.changed());
        assert!(!watch.changed());
        fs::write(&file, "two").unwrap();
        assert!(!watch.changed());
    }

    #[test]
    fn the_swap_of_a_symlinked_directory_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        for (version, text) in [("..v1", "one"), ("..v2", "two")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("f"), text).unwrap();
        }
        symlink("..v1", dir.path().join("..data")).unwrap();
        symlink("..data/f", dir.path().join("f")).unwrap();
        let mut watch = Watch::new(vec![dir.path().join("f")]);
        assert!(!watch.changed());
        symlink("..v2", dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        assert!(watch.changed());
        assert!(!watch.changed());
    }

    #[test]
    fn a_file_that_is_missing_for_a_moment_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "one").unwrap();
        let mut watch = Watch::new(vec![file.clone()]);
        fs::remove_file(&file).unwrap();
        assert!(!watch.changed());
        fs::write(&file, "one").unwrap();
        assert!(!watch.changed());
        fs::remove_file(&file).unwrap();
        fs::write(&file, "two").unwrap();
        assert!(watch.changed());
    }

    #[test]
    fn a_pipe_in_its_place_is_no_change_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "one").unwrap();
        let mut watch = Watch::new(vec![file.clone()]);
        fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        assert!(!watch.changed());
        fs::remove_file(&file).unwrap();
        fs::write(&file, "two").unwrap();
        assert!(watch.changed());
    }

    #[test]
    fn a_file_that_was_not_there_is_seen_when_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let mut watch = Watch::new(vec![file.clone()]);
        assert!(!watch.changed());
        fs::write(&file, "").unwrap();
        assert!(watch.changed());
    }

    #[test]
    fn files_that_are_followed_anew_keep_what_was_known() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "one").unwrap();
        fs::write(&b, "one").unwrap();
        let mut watch = Watch::new(vec![a.clone()]);
        fs::write(&a, "two").unwrap();
        watch.follow(vec![a, b]);
        assert!(watch.changed());
        assert!(!watch.changed());
    }
}
