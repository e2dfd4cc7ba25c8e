//! What goes into a batch and what comes out.

use crate::{Key, MAX_PAYLOAD, Nonce, Tag};

/// One record of a batch, sealed or opened in place.
pub struct Record<'a> {
    /// The session's key for this direction; not vacant.
    pub key: &'a Key,
    /// The nonce: unique under `key` when sealing.
    pub nonce: Nonce,
    /// Associated data: authenticated, not encrypted.
    pub aad: &'a [u8],
    /// Plaintext before sealing or after opening, ciphertext otherwise.
    pub payload: &'a mut [u8],
    /// Written by sealing, compared by opening. Commonly the 16 bytes behind `payload`.
    pub tag: &'a mut Tag,
}

impl Record<'_> {
    /// Whether GCM can carry a payload this long.
    pub(crate) fn fits(&self) -> bool {
        self.payload.len() as u64 <= MAX_PAYLOAD
    }
}

/// What opening found out about a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[must_use = "a rejected record still holds ciphertext"]
pub enum Verdict {
    /// The tag does not belong to this key, nonce, associated data and ciphertext. The payload
    /// was not touched.
    #[default]
    Rejected,
    /// The tag is right and the payload now holds the plaintext.
    Authentic,
}

impl Verdict {
    /// True for [`Verdict::Authentic`].
    #[must_use]
    pub fn is_authentic(self) -> bool {
        self == Self::Authentic
    }
}

impl From<bool> for Verdict {
    fn from(authentic: bool) -> Self {
        if authentic { Self::Authentic } else { Self::Rejected }
    }
}
