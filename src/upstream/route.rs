//! Which lane of an upstream a request takes.
