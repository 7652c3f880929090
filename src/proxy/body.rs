//! The bodies that apps get.
