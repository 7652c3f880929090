//! The pool: capped, aged, least recently used first out.
