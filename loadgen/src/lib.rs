//! Device fleet and, measured beside it, what the same job costs over real TLS.

pub mod fleet;
