//! The Duet gateway.
