//! The answers that Outrigger gives itself.
