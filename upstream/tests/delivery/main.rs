//! Upstreams over real files, sockets and servers, and everything that goes wrong with them. Nothing that the source
//! showed may be missing in the end, every repetition must be known by its name or its index, and the first
//! time that readings come they come in order.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod campaign;
mod file;
mod hook;
#[cfg(feature = "kafka")]
mod kafka;
mod mqtt;
mod nats;
mod orders;
#[cfg(feature = "postgres")]
mod postgres;
mod servers;
mod webhook;
mod world;
