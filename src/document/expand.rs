//! `${…}` in string values: environment variables and files, and what of it is secret.
