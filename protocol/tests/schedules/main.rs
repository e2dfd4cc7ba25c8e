//! Every schedule of bounded size: what a network, an attacker, crashes and power cuts can make of the rules
//! on early readings, doubt, paths and "nothing waits". Each explorer runs the rules, which must hold in every
//! state, and mutants of them, in each of which it must find what is wrong.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod doubt;
mod early;
mod idle;
mod paths;
mod search;
