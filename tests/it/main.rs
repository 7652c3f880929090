//! Outrigger through real sockets.

mod admin;
mod operator;
mod reload;
mod shutdown;
