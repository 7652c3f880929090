//! Look-ups with clamped TTLs, stale answers, one at a time for a name.
