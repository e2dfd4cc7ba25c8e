//! AES-128-GCM (NIST SP 800-38D) over RustCrypto's AES and GHASH, block by block: messages are short, and the general
//! code for streams of any cipher is several times as large.

use aes::{
    Aes128,
    cipher::{BlockCipherEncrypt as _, KeyInit as _},
};
use ghash::{GHash, universal_hash::UniversalHash as _};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

pub(super) struct Gcm(Aes128);

impl Gcm {
    pub(super) fn new(key: &[u8; 16]) -> Self {
        Self(Aes128::new(key.into()))
    }

    fn block(&self, nonce: &[u8; 12], number: u32) -> Zeroizing<[u8; 16]> {
        let mut block = [0; 16];
        block[..12].copy_from_slice(nonce);
        block[12..].copy_from_slice(&number.to_be_bytes());
        self.encrypt(block)
    }

    fn encrypt(&self, block: [u8; 16]) -> Zeroizing<[u8; 16]> {
        let mut block = aes::Block::from(block);
        self.0.encrypt_block(&mut block);
        Zeroizing::new(block.into())
    }

    /// Encrypts or decrypts: the same.
    pub(super) fn apply(&self, nonce: &[u8; 12], text: &mut [u8]) {
        for (number, chunk) in (2..).zip(text.chunks_mut(16)) {
            let key = self.block(nonce, number);
            chunk.iter_mut().zip(key.iter()).for_each(|(byte, key)| *byte ^= key);
        }
    }

    pub(super) fn tag(&self, nonce: &[u8; 12], aad: &[u8], sealed: &[u8]) -> [u8; 16] {
        let mut key = ghash::Key::from(*self.encrypt([0; 16]));
        let mut hash = GHash::new(&key);
        key.zeroize();
        hash.update_padded(aad);
        hash.update_padded(sealed);
        let mut lengths = [0; 16];
        for (to, part) in lengths.chunks_exact_mut(8).zip([aad, sealed]) {
            // No message is longer than 64 KiB.
            let bits = u32::try_from(8 * part.len()).unwrap_or(0);
            to[4..].copy_from_slice(&bits.to_be_bytes());
        }
        hash.update_padded(&lengths);
        let mut tag: [u8; 16] = hash.finalize().into();
        tag.iter_mut().zip(self.block(nonce, 1).iter()).for_each(|(byte, key)| *byte ^= key);
        tag
    }

    /// Whether this is the tag, found out in the same time for every tag.
    pub(super) fn is_tag(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        sealed: &[u8],
        tag: &[u8; 16],
    ) -> bool {
        self.tag(nonce, aad, sealed).ct_eq(tag).into()
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::aead;

    use super::*;

    #[test]
    fn it_agrees_with_the_general_code() {
        for len in (0..70).chain([255, 256, 1_200]) {
            let key = core::array::from_fn(|at| u8::try_from((at * 7 + len) % 251).unwrap());
            let nonce = core::array::from_fn(|at| u8::try_from((at * 13 + len) % 251).unwrap());
            let text: std::vec::Vec<_> =
                (0..len).map(|at| u8::try_from(at * 31 % 256).unwrap()).collect();
            let aad = &text[..len.min(33)];
            let (mut ours, mut theirs) = (text.clone(), text.clone());
            let gcm = Gcm::new(&key);
            gcm.apply(&nonce, &mut ours);
            let tag = aead::seal(&key, &nonce, aad, &mut theirs);
            assert_eq!((gcm.tag(&nonce, aad, &ours), &ours), (tag, &theirs));
            assert!(gcm.is_tag(&nonce, aad, &ours, &tag));
            let mut wrong = tag;
            wrong[len % 16] ^= 1;
            assert!(!gcm.is_tag(&nonce, aad, &ours, &wrong));
        }
    }
}
