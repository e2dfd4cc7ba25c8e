//! The spool through its public face: what was answered durable is there, whatever happened.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod damage;
mod kills;
mod program;
mod readers;
mod retention;
mod storing;
mod world;
