//! File descriptors that are kept back: apps' connections and upstreams' may take all but these, so that probes are
//! answered, files are read again and names looked up however many connections there are.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::LazyLock;

use rustix::process::{Resource, getrlimit};

/// How many are kept back, where the limit is not small.
const RESERVE: u64 = 64;
/// Of a small limit at most this share is kept back.
const SHARE: u64 = 8;

/// Whether a connection may be kept, by its own descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It may.
    Enough,
    /// It is one of those that are kept back: there is time for a word of refusal.
    Scarce,
    /// Half of those kept back are taken already.
    Last,
}

/// The limit as the first connection finds it: it is raised at start, and asking costs a system call.
static LIMIT: LazyLock<u64> = LazyLock::new(|| getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));

/// How many there may be.
pub(crate) fn limit() -> u64 {
    *LIMIT
}

/// What is left for this one. The system gives out the lowest number that is free, so a high one says that all below it
/// are taken: nothing needs counting.
pub(crate) fn room(of: &impl AsRawFd) -> Room {
    room_of(of.as_raw_fd(), *LIMIT)
}

fn room_of(descriptor: RawFd, limit: u64) -> Room {
    let reserve = RESERVE.min(limit / SHARE);
    let number = u64::try_from(descriptor).unwrap_or(0);
    if number >= limit - reserve / 2 {
        Room::Last
    } else if number >= limit - reserve {
        Room::Scarce
    } else {
        Room::Enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_back() {
        for (descriptor, limit, expected) in [
            (900, 1024, Room::Enough),
            (959, 1024, Room::Enough),
            (960, 1024, Room::Scarce),
            (992, 1024, Room::Last),
            (55, 64, Room::Enough),
            (56, 64, Room::Scarce),
            (60, 64, Room::Last),
            (1_000_000, u64::MAX, Room::Enough),
            (0, 0, Room::Last),
        ] {
            assert_eq!(room_of(descriptor, limit), expected, "{descriptor} of {limit}");
        }
    }
}
