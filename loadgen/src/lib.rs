//! Device fleet and, measured beside it, what the same job costs over real TLS.

pub mod compare;
pub mod contact;
pub mod control;
pub mod crowd;
pub mod diff;
pub mod exchange;
pub mod fleet;
pub mod hosts;
pub mod interruption;
pub mod link;
pub mod load;
pub mod local;
pub mod process_clock;
pub mod relay;
pub mod running;
#[cfg(test)]
mod schema;
pub mod summary;
pub mod table;
mod tcp_info;
pub mod tls;
