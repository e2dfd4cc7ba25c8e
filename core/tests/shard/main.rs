//! Devices and a shard on one virtual clock: no socket, no thread, the production code of both.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod behaviour;
mod commands;
mod early;
mod faults;
mod handover;
mod hostile;
mod limits;
mod presence;
mod simulation;
mod streams;
mod world;
