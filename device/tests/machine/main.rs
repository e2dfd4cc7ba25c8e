//! A device before the gateway's half of the protocol, on a clock that only the test moves.
#![cfg(feature = "software")]
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod commands;
mod early;
mod gateway;
mod handshake;
mod silence;
mod sleep;
