//! Control and probe endpoints.
