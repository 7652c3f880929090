//! Noticing that a file changed, by content.
