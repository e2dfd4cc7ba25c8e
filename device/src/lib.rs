//! What a device links: Duet's complete state machine.
//!
//! It is sans-IO and never allocates: bytes and time are arguments, messages are results. Drive it
//! like this: hand in every message with [`Device::handle_message`]; then call
//! [`Device::poll_transmit`] until it returns nothing, and again whenever [`Device::poll_timeout`] is
//! reached. Times are microseconds on any monotonic clock.
//!
//! * [`Device`]: handshake with retransmission, RETRY and CHALLENGE, a reading inside HELLO, readings
//!   until they are confirmed, commands and their results, RESET and doubt, sleep, close.
//! * [`Crypto`]: the one door to cryptography; [`software`] is what has none of its own links.
//! * [`Store`]: what must survive a power cut.
//! * [`certificate`]: the key inside a gateway's certificate.
//!
//! `docs/protocol.md` specifies every byte; comments cite its requirements as R1, R2, ….
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod certificate;
#[cfg(feature = "std")]
pub mod client;
#[cfg(feature = "compact")]
pub mod compact;
#[cfg(feature = "std")]
pub mod credentials;
pub mod crypto;
#[cfg(feature = "software")]
mod element;
mod error;
#[cfg(feature = "fast")]
pub mod fast;
#[cfg(feature = "std")]
pub mod file_store;
mod hello;
mod identity;
mod machine;
#[cfg(feature = "software")]
mod random;
mod schedule;
mod session;
#[cfg(feature = "software")]
pub mod software;
pub mod store;

pub use duet_protocol as protocol;

#[cfg(feature = "software")]
pub use crate::software::Software;
pub use crate::{
    crypto::{Crypto, CryptoError, Element, PrivateKey},
    error::{Error, Failure, SendError, SetupError},
    identity::{DeviceKey, Hedge, HedgeKey, Identity},
    machine::{Config, Confirmed, Device, Early, Event, RETRANSMIT_MAX_US, RETRANSMIT_US, Reading},
    store::{Kept, Store, StoreError, Volatile},
};
