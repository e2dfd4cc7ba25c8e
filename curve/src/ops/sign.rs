//! Batched ECDSA signing with hedged nonces, in constant time.
//!
//! k = SHA-256("duet nonce" ‖ i ‖ d ‖ randomness ‖ digest) for the first i that gives 1 ≤ k < n. The
//! private key alone makes nonces unpredictable and distinct for distinct digests, as in RFC 6979; the
//! randomness alone does too, and protects against faults that repeat a computation.

use crate::context::{CHUNK, Context, load4, store4};
use crate::fixed;
use crate::invert::{Secrecy, scalar_batch};
use crate::keys::SecretScalar;
use crate::lanes::{Lanes, Words};
use crate::ops::agree::Secrets;
use crate::order;
use crate::point::Point;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// One digest to sign.
#[derive(Clone, Copy)]
pub struct SignItem<'a> {
    /// The message's digest.
    pub digest: &'a [u8; 32],
    /// Fresh randomness. If it should fail to be random, signatures stay safe.
    pub randomness: &'a [u8; 32],
}

impl<L: Lanes> Context<L> {
    /// Appends r ‖ s for each item.
    pub(crate) fn sign(&self, key: &SecretScalar, items: &[SignItem<'_>], out: &mut Vec<[u8; 64]>) {
        let d = load4(self.lanes, |_| key.0);
        let key_bytes = Zeroizing::new(order::bytes(&key.0));
        for chunk in items.chunks(CHUNK) {
            let groups = chunk.len().div_ceil(L::WIDTH);
            let mut points: Secrets<Point<L>> = Vec::with_capacity(groups).into();
            let mut inverses: Secrets<L::Scalar> = Vec::with_capacity(groups).into();
            for group in chunk.chunks(L::WIDTH) {
                let mut nonces = [[0u64; 4]; crate::lanes::MAX_WIDTH];
                for (nonce, item) in nonces.iter_mut().zip(group) {
                    *nonce = hedged_nonce(&key_bytes, item);
                }
                let k = load4(self.lanes, |lane| nonces[lane.min(group.len() - 1)]);
                nonces.zeroize();
                points.push(fixed::mul(self.lanes, &self.g_shared, &k));
                self.lanes.call(
                    #[inline(always)]
                    || inverses.push(L::scalar_mul(&L::scalar(&k), &L::scalar_r2())),
                );
            }
            scalar_batch(self.lanes, &mut inverses, Secrecy::Secret);
            let z_inverses = self.inverses(&points);
            for (g, group) in chunk.chunks(L::WIDTH).enumerate() {
                let digest =
                    load4(self.lanes, |lane| order::limbs(group[lane.min(group.len() - 1)].digest));
                let (r, s) = self.lanes.call(
                    #[inline(always)]
                    || {
                        let i2 = L::tight(L::sqr(&z_inverses[g]));
                        let x = L::from_montgomery(&L::tight(L::mul(&points[g].x, &i2)));
                        let r: Words<L> = L::scalar_words(&L::scalar(&x));
                        // s = k⁻¹(z + r·d)
                        let d = L::scalar_mul(&L::scalar(&d), &L::scalar_r2());
                        let rd = L::scalar_mul(&L::scalar(&r), &d);
                        let sum = L::scalar_add(&rd, &L::scalar(&digest));
                        let s = L::scalar_words(&L::scalar_mul(&sum, &inverses[g]));
                        (r, s)
                    },
                );
                let (r, s) = (store4(self.lanes, &r), store4(self.lanes, &s));
                for lane in 0..group.len() {
                    // r = 0 or s = 0 has a chance of 2⁻²⁵⁶.
                    let mut signature = [0; 64];
                    signature[..32].copy_from_slice(&order::bytes(&r[lane]));
                    signature[32..].copy_from_slice(&order::bytes(&s[lane]));
                    out.push(signature);
                }
            }
        }
    }
}

fn hedged_nonce(key: &[u8; 32], item: &SignItem<'_>) -> [u64; 4] {
    let mut attempt = 0u8;
    loop {
        let mut hash = Sha256::new();
        hash.update(b"duet nonce");
        hash.update([attempt]);
        hash.update(key);
        hash.update(item.randomness);
        hash.update(item.digest);
        let mut bytes: [u8; 32] = hash.finalize().into();
        let k = order::limbs(&bytes);
        bytes.zeroize();
        if order::is_scalar(&k) {
            return k;
        }
        attempt = attempt.wrapping_add(1);
    }
}
