//! What can go wrong, in small enums.

use duet_protocol::reason::DropReason;

use crate::{crypto::CryptoError, store::StoreError};

/// Why a message had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It was discarded, for this one reason.
    #[error("discarded: {0}")]
    Discarded(#[from] DropReason),
    /// Cryptography gave no answer; the message may be handed in again.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The store did not keep what had to be kept first.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// A short name, for counters and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Discarded(reason) => reason.label(),
            Self::Crypto(_) => "crypto",
            Self::Store(_) => "store",
        }
    }
}

/// Why nothing was sent although something was due; it is tried again after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Cryptography gave no answer.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The counter, or the reading in doubt, could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The buffer is shorter than [`Device::TRANSMIT_MAX`](crate::Device::TRANSMIT_MAX).
    #[error("the buffer for messages is too short")]
    Buffer,
}

/// Why a reading was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Every place of the window is taken by a reading that is not confirmed yet.
    #[error("every place of the window waits for a confirmation")]
    Full,
    /// The payload is longer than this device keeps.
    #[error("the payload is too long")]
    TooLong,
}

/// Why there is no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The profile's mode and the device's key do not belong together.
    #[error("the profile and the device's key do not belong together")]
    KeyKind,
    /// What was kept could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}
