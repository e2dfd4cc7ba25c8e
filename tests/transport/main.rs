//! The transport over loopback: two shards with a handler that echoes, against plain sockets.
//!
//! A message is a kind, a slot and a body. The echo is the message with the number of the shard that handled it.
//! `DUET_IO=epoll` runs the same tests on the driver for where io_uring is refused.
#![allow(clippy::unwrap_used, reason = "a failing step fails the test")]

mod addresses;
mod datagrams;
mod lifetime;
mod soak;
mod streams;
mod surroundings;
mod world;
