//! The real gateway where the kernel gives less than usual, or more than is wanted.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod disk;
mod edges;
mod memory;
mod refused;
mod registry;
mod world;
