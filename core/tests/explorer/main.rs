//! The production shard and the production device under every schedule that fits into the time: what `protocol/tests/schedules`
//! explores on paper is explored here in the code that runs. A state is reached by doing its steps anew, so that nothing of a
//! shard has to be copied.
//!
//! Each explorer is run again with rules switched off, one at a time: each must be found out. `DUET_EXPLORER_EFFORT` says how many
//! times as far to go as in every run of all tests.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod curve;
mod doubt;
mod early;
mod gateway;
mod machine;
mod paths;
mod search;
mod waits;
