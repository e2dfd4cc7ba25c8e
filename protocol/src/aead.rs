//! AES-128-GCM, one message at a time, in place (NIST SP 800-38D). A gateway's record path uses a
//! batched engine instead; handshakes and devices use this.

use aes_gcm::{Aes128Gcm, KeyInit as _, aead::AeadInOut as _};

/// Seals `buffer` in place and returns the tag.
#[must_use]
pub fn seal(key: &[u8; 16], nonce: &[u8; 12], aad: &[u8], buffer: &mut [u8]) -> [u8; 16] {
    let cipher = Aes128Gcm::new(key.into());
    seal_with(&cipher, nonce, aad, buffer)
}

/// Opens `buffer` in place. `false`, with the buffer unchanged, when it is not authentic.
#[must_use]
pub fn open(
    key: &[u8; 16],
    nonce: &[u8; 12],
    aad: &[u8],
    buffer: &mut [u8],
    tag: &[u8; 16],
) -> bool {
    let cipher = Aes128Gcm::new(key.into());
    open_with(&cipher, nonce, aad, buffer, tag)
}

pub(crate) fn seal_with(
    cipher: &Aes128Gcm,
    nonce: &[u8; 12],
    aad: &[u8],
    buffer: &mut [u8],
) -> [u8; 16] {
    match cipher.encrypt_inout_detached(nonce.into(), aad, buffer.into()) {
        Ok(tag) => tag.into(),
        Err(_) => unreachable!("messages are far below the 64 GiB that GCM allows"),
    }
}

pub(crate) fn open_with(
    cipher: &Aes128Gcm,
    nonce: &[u8; 12],
    aad: &[u8],
    buffer: &mut [u8],
    tag: &[u8; 16],
) -> bool {
    cipher.decrypt_inout_detached(nonce.into(), aad, buffer.into(), tag.into()).is_ok()
}
