//! The replay buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `limits.replay_memory`: bytes held by all replay buffers of the process.
#[derive(Debug)]
pub struct ReplayMemory {
    cap: AtomicU64,
    held: AtomicU64,
}

impl ReplayMemory {
    /// With a cap in bytes.
    pub fn new(cap: u64) -> Arc<ReplayMemory> {
        Arc::new(ReplayMemory { cap: AtomicU64::new(cap), held: AtomicU64::new(0) })
    }

    /// A reload changed the cap.
    pub fn set_cap(&self, cap: u64) {
        self.cap.store(cap, Ordering::Relaxed);
    }

    /// Bytes held now (`outrigger_replay_bytes`).
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}
