//! When a direction of a relay is worth a pipe. Pure.

use super::PIECE;

/// Bytes that a direction copies before it is worth a pipe. Most tunnels carry less.
const SMALL: u64 = 256 * 1024;
/// Bytes that it copies before it asks again, where no pipe was to be had.
const AGAIN: u64 = 4 * 1024 * 1024;
/// So much at once, and more is to be expected behind it.
const BULK: usize = PIECE / 2;
/// So much since the source had nothing, and it begins by pipe when it has something again.
const BURST: u64 = 64 * 1024;

/// Whether what a way carries comes in bulk.
pub(super) struct Pace {
    /// Bytes that came.
    pub(super) carried: u64,
    /// Those since the source had nothing.
    burst: u64,
    /// Bytes that have to come before it goes by pipe.
    copied_until: u64,
    /// What comes next goes by pipe.
    pub(super) by_pipe: bool,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace { carried: 0, burst: 0, copied_until: SMALL, by_pipe: false }
    }

    /// So many came at once.
    pub(super) fn came(&mut self, n: usize) {
        self.carried += n as u64;
        self.burst += n as u64;
        self.by_pipe = n >= BULK && self.carried >= self.copied_until;
    }

    /// The source has nothing. Where nothing came either, somebody else had woken us.
    pub(super) fn dry(&mut self) {
        if self.burst > 0 {
            self.by_pipe = self.burst >= BURST && self.carried >= self.copied_until;
            self.burst = 0;
        }
    }

    /// What comes next is to be read.
    pub(super) fn read_first(&mut self) {
        self.by_pipe = false;
    }

    /// There was no pipe.
    pub(super) fn refused(&mut self) {
        self.by_pipe = false;
        self.copied_until = self.carried + AGAIN;
    }
}
