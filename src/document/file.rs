//! Reading the files that an operator names. One that turned into a pipe would hang whoever reads it, one without end would
//! fill our memory: neither may happen to a process that carries traffic.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Of a file with certificates or a key. Bytes. All public roots together have a quarter of a MiB.
pub(crate) const MAX_PEM: u64 = 16 << 20;

/// All of a regular file.
///
/// # Errors
/// Where it can't be read, is not a regular file, or has more than `most` bytes.
pub(crate) fn whole(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    regular(path)?;
    let bytes = beginning(path, most + 1)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {}", crate::units::show_size(most))));
    }
    Ok(bytes)
}

/// The first `most` bytes of whatever it is. A pipe is waited for.
///
/// # Errors
/// Where it can't be read.
pub(crate) fn beginning(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// # Errors
/// Where it is not a regular file. Asked before it is opened, since opening a pipe waits for its other end.
pub(crate) fn regular(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_file() { Ok(()) } else { Err(io::Error::other("it is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_asked_for_is_read_of_a_file_without_end() {
        assert_eq!(beginning(Path::new("/dev/zero"), 10).unwrap(), [0; 10]);
    }

    #[test]
    fn what_is_not_a_regular_file_or_too_large_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(whole(&file, 5).unwrap(), b"12345");
        assert_eq!(whole(&file, 4).unwrap_err().to_string(), "it is larger than 4B");
        for other in [Path::new("/dev/zero"), dir.path()] {
            assert_eq!(whole(other, 5).unwrap_err().to_string(), "it is not a regular file");
        }
    }
}
