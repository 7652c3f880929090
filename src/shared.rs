//! One value that many read and one replaces: the routing snapshot.

use std::sync::{Arc, PoisonError, RwLock};

/// A swappable `Arc`. A plain read-write lock on purpose: it is held for one reference count, uncontended it costs a few
/// nanoseconds, and it needs no proof.
pub struct Shared<T>(RwLock<Arc<T>>);

impl<T> Shared<T> {
    /// Holds `value`.
    pub fn new(value: Arc<T>) -> Shared<T> {
        Shared(RwLock::new(value))
    }

    /// The value now. Who holds it keeps it, whatever is stored later.
    pub fn load(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it for everybody who loads from now on.
    pub fn store(&self, value: Arc<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}
