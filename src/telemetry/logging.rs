//! tracing, stdout, and what happens when nobody reads it.
