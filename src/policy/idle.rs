//! The idle clock of bodies.
