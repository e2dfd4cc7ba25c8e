//! Records: sealed messages of a session. Nonce = IV XOR sequence number, the associated data is
//! the whole clear header with the session id (R65).

use aes_gcm::{Aes128Gcm, KeyInit as _};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    aead,
    schedule::KeyIv,
    wire::{DOWN_HEADER, DownHeader, SessionId, TAG, UP_HEADER, UpHeader},
};

/// The nonce of a record: IV XOR (0⁸ ‖ sequence).
#[must_use]
#[inline]
pub fn nonce(iv: &[u8; 12], sequence: u32) -> [u8; 12] {
    let mut nonce = *iv;
    nonce[8..].iter_mut().zip(sequence.to_be_bytes()).for_each(|(a, b)| *a ^= b);
    nonce
}

/// One direction's key, ready for use.
pub struct Cipher {
    aes: Aes128Gcm,
    iv: Iv,
}

#[derive(Zeroize, ZeroizeOnDrop)]
struct Iv([u8; 12]);

impl Cipher {
    /// Expands the key.
    #[must_use]
    pub fn new(keys: &KeyIv) -> Self {
        Self { aes: Aes128Gcm::new(keys.key().into()), iv: Iv(*keys.iv()) }
    }

    /// Writes the record from a device with this text to `out`; its length.
    ///
    /// # Panics
    /// When `out` is shorter than the text and its overhead of 25 bytes.
    #[must_use]
    pub fn seal_up(&self, header: UpHeader, text: &[u8], out: &mut [u8]) -> usize {
        self.seal(&header.encode(), &header.encode(), header.sequence, text, out)
    }

    /// Writes the record to a device with this text to `out`; its length.
    ///
    /// # Panics
    /// When `out` is shorter than the text and its overhead of 21 bytes.
    #[must_use]
    pub fn seal_down(
        &self,
        header: DownHeader,
        session: SessionId,
        text: &[u8],
        out: &mut [u8],
    ) -> usize {
        self.seal(&header.encode(), &header.associated_data(session), header.sequence, text, out)
    }

    fn seal(&self, clear: &[u8], aad: &[u8], sequence: u32, text: &[u8], out: &mut [u8]) -> usize {
        assert_ne!(sequence, u32::MAX, "the last sequence number is never used (R68)");
        let (start, end) = (clear.len(), clear.len() + text.len());
        out[..start].copy_from_slice(clear);
        out[start..end].copy_from_slice(text);
        let nonce = nonce(&self.iv.0, sequence);
        let tag = aead::seal_with(&self.aes, &nonce, aad, &mut out[start..end]);
        out[end..end + TAG].copy_from_slice(&tag);
        end + TAG
    }

    /// Opens a record from a device in place; its text, or `None` when it is not authentic.
    #[must_use]
    pub fn open_up<'m>(&self, header: UpHeader, message: &'m mut [u8]) -> Option<&'m mut [u8]> {
        self.open(&header.encode(), header.sequence, message.get_mut(UP_HEADER..)?)
    }

    /// Opens a record to a device in place; its text, or `None` when it is not authentic.
    #[must_use]
    pub fn open_down<'m>(
        &self,
        header: DownHeader,
        session: SessionId,
        message: &'m mut [u8],
    ) -> Option<&'m mut [u8]> {
        let aad = header.associated_data(session);
        self.open(&aad, header.sequence, message.get_mut(DOWN_HEADER..)?)
    }

    fn open<'m>(&self, aad: &[u8], sequence: u32, sealed: &'m mut [u8]) -> Option<&'m mut [u8]> {
        if sequence == u32::MAX {
            return None;
        }
        let (text, tag) = sealed.split_last_chunk_mut::<TAG>()?;
        let nonce = nonce(&self.iv.0, sequence);
        aead::open_with(&self.aes, &nonce, aad, text, tag).then_some(text)
    }
}

/// Overwrites the stack below the caller, where moved keys may have left copies.
#[inline(never)]
pub fn scrub_stack() {
    // Never read, and yet written: the black box may look at it.
    let mut below = [0u64; 4 * 1024];
    core::hint::black_box(&mut below);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher(byte: u8) -> Cipher {
        Cipher::new(&KeyIv { key: [byte; 16], iv: [byte; 12] })
    }

    #[test]
    fn records_open_once_sealed_and_not_when_touched() {
        let cipher = cipher(4);
        let header = UpHeader { session: SessionId(0xaabb_ccdd), sequence: 9 };
        let mut out = [0; 64];
        let len = cipher.seal_up(header, b"five!", &mut out);
        assert_eq!(len, 5 + 25, "with its type byte a record costs 26 bytes up");
        let sealed = out;
        for i in 0..len {
            let mut message = sealed;
            message[i] ^= 1;
            let header = UpHeader::decode(&message[..len]);
            let opened = header
                .ok()
                .and_then(|header| cipher.open_up(header, &mut message[..len]).map(|_| ()));
            assert_eq!(opened, None, "byte {i}");
        }
        let header = UpHeader::decode(&out[..len]).unwrap();
        assert_eq!(cipher.open_up(header, &mut out[..len]).unwrap(), b"five!");
    }

    #[test]
    fn the_session_id_is_authenticated_downwards_too() {
        let cipher = cipher(5);
        let mut out = [0; 64];
        let header = DownHeader { sequence: 3 };
        let len = cipher.seal_down(header, SessionId(1), b"x", &mut out);
        assert_eq!(len, 22);
        assert!(cipher.open_down(header, SessionId(2), &mut out[..len]).is_none());
        assert_eq!(cipher.open_down(header, SessionId(1), &mut out[..len]).unwrap(), b"x");
    }
}
