//! Where a request wants to go.
