//! The tree: YAML values with the place each was written at, and the layered merge.

/// A value and where it came from.
#[derive(Clone, Debug)]
pub struct Node {}
