//! The whole proxy, in-process, through real sockets on loopback.

mod bodies;
mod hangups;
mod limits;
mod smuggling;
mod support;
mod tunnels;
mod upgrades;
mod walks;
