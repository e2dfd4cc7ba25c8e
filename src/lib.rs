//! The Duet gateway as a library; `main.rs` is the command line.
//!
//! Layers, dependencies pointing down only:
//!
//! ```text
//! main, cli                  parse, validate, start, drain, exit code
//! server · admin · config    one pinned thread a shard; control plane
//! transport · delivery       UDP and TCP; spool, commands (on tokio-uring)
//! shard                      sans-IO: sessions, hello queue, timers, batches
//! protocol (own crate)       sans-IO: wire, handshake, records, replay
//! driver                     io_uring, or epoll where that is refused
//! ```

pub mod admin;
pub mod config;
pub mod delivery;
pub mod driver;
pub mod hex;
pub mod identity;
pub mod mailbox;
pub mod registry;
pub mod server;
pub mod shard;
pub mod transport;
