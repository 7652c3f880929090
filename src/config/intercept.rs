//! Reading `intercept`: where the CA comes from that apps trust.

use std::path::{Component, Path, PathBuf};

use crate::config::tls::Files;
use crate::config::{Authority, Intercept, Unknown};
use crate::document::Reader;
use crate::document::read::written;

/// Reads the block. `None` where it names no CA, or a wrong one.
pub(crate) fn intercept(reader: &mut Reader<'_>, files: &mut Files<'_>) -> Option<Intercept> {
    let unknown = reader.choice("unknown", &[("refuse", Unknown::Refuse), ("tunnel", Unknown::Tunnel)]);
    let generate = reader.boolean("generate");
    let constrain = switch(reader, "constrain");
    let directory = files.directory;
    let path = |reader: &mut Reader<'_>, key| {
        reader.parsed(key, |text| match text {
            "" => Err("must be the path of a directory".to_owned()),
            text => Ok(directory.join(text)),
        })
    };
    let (dir, key_dir) = (path(reader, "dir"), path(reader, "key_dir"));
    let given = reader.has("ca_cert") || reader.has("ca_key");
    let authority = files.authority(reader);
    let problem = |reader: &mut Reader<'_>, key: &str, message: &str, help: &str| {
        reader.problem(key, message.to_owned(), Some(help.to_owned()));
        None
    };
    match (generate, given) {
        (true, true) => problem(reader, "generate", "makes a CA, and `ca_cert` names another", "keep one of the two"),
        (false, true) => {
            for key in ["key_dir", "constrain"] {
                if reader.node().get(key).is_some_and(|node| written(node).is_some()) {
                    let help = Some("leave it out".to_owned());
                    reader.warning(key, "has no effect on a CA that is brought from outside".to_owned(), help);
                }
            }
            Some(Intercept { authority: Authority::Given(authority?), dir, unknown })
        }
        (true, false) => {
            let Some(dir) = dir else {
                return match reader.has("dir") {
                    true => None,
                    false => problem(
                        reader,
                        "generate",
                        "needs `dir`, where the app finds the CA's certificate",
                        "write `dir: /var/run/outrigger/ca`, a volume that the app mounts too",
                    ),
                };
            };
            if key_dir.as_ref().is_some_and(|key_dir| resolved(key_dir).starts_with(resolved(&dir))) {
                return problem(
                    reader,
                    "key_dir",
                    "lies in `dir`, which the app reads: it must never see the key",
                    "give it a volume that the sidecar alone mounts",
                );
            }
            Some(Intercept { authority: Authority::Generated { key_dir, constrain }, dir: Some(dir), unknown })
        }
        (false, false) => None,
    }
}

/// Where a path leads: through symbolic links, as far as it exists, and without `..`.
fn resolved(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut plain = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(part),
        }
    }
    let existing = plain.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match existing {
        Some((above, real)) => real.join(plain.strip_prefix(above).unwrap_or(Path::new(""))),
        None => plain,
    }
}

/// `true`, `false` or `off`.
fn switch(reader: &mut Reader<'_>, key: &'static str) -> bool {
    if reader.node().get(key).is_some_and(|node| node.is_off()) {
        reader.raw(key);
        return false;
    }
    reader.boolean(key)
}

/// For messages: what makes the block complete.
pub(crate) const HELP: &str = "write `intercept: {ca_cert: FILE, ca_key: FILE}`, or `intercept: {generate: true, dir: \
                               /var/run/outrigger/ca}`, at the top of the file";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_found_in_another_however_it_is_written() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("ca");
        std::fs::create_dir(&dir).unwrap();
        std::os::unix::fs::symlink(&dir, top.path().join("link")).unwrap();
        for inside in ["ca/key", "x/../ca/key", "./ca/./key", "link/key/deeper"] {
            assert!(resolved(&top.path().join(inside)).starts_with(resolved(&dir)), "{inside}");
        }
        for outside in ["key", "ca/../key", "cakey", "link/../key"] {
            assert!(!resolved(&top.path().join(outside)).starts_with(resolved(&dir)), "{outside}");
        }
    }
}
