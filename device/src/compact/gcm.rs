//! AES-128-GCM (NIST SP 800-38D) over RustCrypto's AES, block by block: messages are short, and the general code for streams of
//! any cipher, and for a fast GHASH, is several times as large.

use aes::{
    Aes128,
    cipher::{BlockCipherEncrypt as _, KeyInit as _},
};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A polynomial over the field of two elements: the highest bit of the first word is the constant.
type Polynomial = [u32; 4];

/// GHASH. Each bit of a block costs the same, whatever it is.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Hash {
    key: Polynomial,
    sum: Polynomial,
}

impl Hash {
    fn new(key: &[u8; 16]) -> Self {
        let mut this = Self { key: [0; 4], sum: [0; 4] };
        this.key.iter_mut().zip(key.chunks_exact(4)).for_each(|(to, bytes)| *to = word(bytes));
        this
    }

    /// Takes in bytes, padded with zeros to whole blocks.
    fn update(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(16) {
            self.sum.iter_mut().zip(chunk.chunks(4)).for_each(|(to, bytes)| *to ^= word(bytes));
            self.multiply();
        }
    }

    /// The sum becomes its product with the key, modulo x¹²⁸ + x⁷ + x² + x + 1.
    #[inline(never)]
    fn multiply(&mut self) {
        let (mut product, mut key) = ([0; 4], self.key);
        for word in self.sum {
            for bit in (0..32).rev() {
                let wanted = core::hint::black_box(0u32.wrapping_sub(word >> bit & 1));
                let mut carry = 0;
                for (to, key) in product.iter_mut().zip(&mut key) {
                    *to ^= *key & wanted;
                    (*key, carry) = (*key >> 1 | carry << 31, *key & 1);
                }
                key[0] ^= 0xe100_0000 & 0u32.wrapping_sub(carry);
            }
        }
        self.sum = product;
        key.zeroize();
    }

    fn value(&self) -> [u8; 16] {
        let mut out = [0; 16];
        for (to, word) in out.chunks_exact_mut(4).zip(self.sum) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        out
    }
}

/// Up to four bytes, the first of which is the highest.
fn word(bytes: &[u8]) -> u32 {
    let mut whole = [0; 4];
    whole.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
    u32::from_be_bytes(whole)
}

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
        let mut hash = Hash::new(&self.encrypt([0; 16]));
        hash.update(aad);
        hash.update(sealed);
        let mut lengths = [0; 16];
        for (to, part) in lengths.chunks_exact_mut(8).zip([aad, sealed]) {
            // No message is longer than 64 KiB.
            let bits = u32::try_from(8 * part.len()).unwrap_or(0);
            to[4..].copy_from_slice(&bits.to_be_bytes());
        }
        hash.update(&lengths);
        let mut tag = hash.value();
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
