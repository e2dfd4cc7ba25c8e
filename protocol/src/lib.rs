//! Duet's two messages and its record layer.
//!
//! This crate is what both sides share, and the gateway's half of the handshake; a device's half and its
//! state machine are the crate `duet-device`. It is sans-IO: bytes, time and randomness are arguments, messages are results. It
//! never reads a clock, contains no `unsafe`, and allocates for the gateway's half alone (feature `gateway`).
//!
//! `docs/protocol.md` specifies every byte; comments cite its requirements as R1, R2, ….
//!
//! * [`wire`]: what stands where in a message; decoding without secrets.
//! * [`profile`], [`identity`]: what a device is registered with.
//! * `responder`: the gateway's half of the handshake. It performs no elliptic-curve operation
//!   itself: it asks for one and is resumed with the answer, so that a gateway can answer a crowd in
//!   batches. [`ec`] answers one at a time.
//! * [`mark`]: what a gateway concludes from a device's counter.
//! * [`record`]: sealing and opening after the handshake; [`replay`]: the receiver's window.
//! * [`message`]: what a record carries (readings, acknowledgements, commands); [`reading`]: what
//!   names a reading for ever.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "gateway"),
    allow(dead_code, reason = "some of the key schedule is the gateway's half alone")
)]

#[cfg(feature = "gateway")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod aead;
pub mod ec;
#[cfg(feature = "hazmat")]
pub mod hazmat;
pub mod hpke;
pub mod identity;
pub mod mark;
pub mod message;
pub mod profile;
pub mod reading;
pub mod reason;
pub mod record;
pub mod replay;
#[cfg(feature = "gateway")]
pub mod responder;
pub mod schedule;
pub mod wire;
