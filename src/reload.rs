//! Reload: the only writer of the live table.
