//! The Duet gateway as a library; `main.rs` is the command line.
//!
//! `ARCHITECTURE.md` has the layers; dependencies between these modules point down only, which a test checks.

pub mod admin;
pub mod commands;
pub mod config;
mod database;
pub mod delivery;
pub mod driver;
pub mod hex;
pub mod identity;
pub mod log;
pub mod mailbox;
pub mod manager;
pub mod presence;
pub mod printable;
pub mod registry;
pub mod server;
pub mod transport;
pub mod wipe;
