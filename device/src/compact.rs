//! Cryptography for small flash and memory: a curve of its own in some three kilobytes, beside RustCrypto's SHA-256, AES
//! and GHASH. It computes the same as [`Software`](crate::Software); on one of 64 bits `Software` is faster.
//!
//! Secrets never steer a branch or an address. What must be fast or small nowhere else is not here: a gateway has
//! `curve/`.

mod comb;
mod field;
mod gcm;
mod number;
mod order;
mod point;

use duet_protocol::{
    ec::{Agreed, Encapsulated, SecretScalar, SharedX, Signature},
    identity::PublicKey,
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    crypto::{Crypto, CryptoError},
    software::{Primitives, Seeded, Suite},
};

pub use self::comb::Comb;
use self::{
    gcm::Gcm,
    number::{Number, is_zero, read, write},
    point::Affine,
};

/// How much of the stack below a caller may hold what operations have left there, in words: a HELLO goes as deep.
const STACK_WORDS: usize = 576;

/// Small code for everything.
pub type Compact<R = Seeded> = Suite<Small, R>;

/// The small curve and cipher.
#[derive(Clone, Copy, Debug, Default)]
pub struct Small {
    /// The comb of the gateway's key, made by [`comb`] and put where it stays: with it the agreement with that key takes half
    /// the time. It is as much to be trusted as the key; one of another key and a damaged one are passed over.
    pub comb: Option<&'static Comb>,
}

/// The comb of a key; `None` where that is no point of the curve.
#[must_use]
pub fn comb(key: &PublicKey) -> Option<Comb> {
    Some(point::comb(&point::find(key)?))
}

/// Whether a key is a point of the curve (R7).
pub(crate) fn is_point(key: &PublicKey) -> bool {
    point::find(key).is_some()
}

/// x of a secret product.
fn shared(mut product: Affine) -> SharedX {
    let out = SharedX(write(&product[0]));
    product.zeroize();
    out
}

/// The point that belongs to a private key.
fn public(scalar: &SecretScalar) -> PublicKey {
    point::key(&point::multiply_generator(scalar.expose()))
}

/// The nonces for a signature, one after the other (RFC 6979 §3.2 with additional input, §3.6).
struct Nonces {
    key: Zeroizing<[u8; 32]>,
    value: Zeroizing<[u8; 32]>,
}

impl Nonces {
    fn new(
        c: &mut impl Crypto,
        key: &SecretScalar,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Self, CryptoError> {
        let mut this = Self { key: Zeroizing::new([0; 32]), value: Zeroizing::new([1; 32]) };
        for number in 0..2 {
            this.mix(c, &[&[number], key.expose(), digest, extra])?;
        }
        Ok(this)
    }

    fn mix(&mut self, c: &mut impl Crypto, parts: &[&[u8]]) -> Result<(), CryptoError> {
        let mut all: [&[u8]; 5] = [&[]; 5];
        all[0] = self.value.as_slice();
        all.get_mut(1..=parts.len()).ok_or(CryptoError::Unsupported)?.copy_from_slice(parts);
        *self.key = c.hmac(self.key.as_slice(), &all[..=parts.len()])?;
        self.step(c)
    }

    fn step(&mut self, c: &mut impl Crypto) -> Result<(), CryptoError> {
        *self.value = c.hmac(self.key.as_slice(), &[self.value.as_slice()])?;
        Ok(())
    }

    /// The next one, if it is in range.
    fn next(&mut self, c: &mut impl Crypto) -> Result<Option<SecretScalar>, CryptoError> {
        self.step(c)?;
        let nonce = SecretScalar::from_bytes(&self.value);
        if nonce.is_none() {
            self.mix(c, &[&[0]])?;
        }
        Ok(nonce)
    }
}

/// The second half of a signature from the first, which is r = x(k · G), modulo n; k is the nonce.
#[inline(never)]
fn proof(key: &SecretScalar, nonce: &SecretScalar, digest: &[u8; 32], r: &Number) -> Number {
    let z = order::reduce(&read(digest));
    let mut d = order::enter(&read(key.expose()));
    let mut inverse = order::invert(&order::enter(&read(nonce.expose())));
    // d and the inverse have a factor of 2²⁵⁶ each, which the products take off again.
    let s = order::mul(&order::add(&z, &order::mul(r, &d)), &inverse);
    d.zeroize();
    inverse.zeroize();
    s
}

impl Primitives for Small {
    #[inline(never)]
    fn encapsulate(&self, scalar: &SecretScalar, peer: &PublicKey) -> Option<Encapsulated> {
        let peer = point::find(peer)?;
        let product = match self.comb.filter(|comb| point::belongs(comb, &peer)) {
            Some(comb) => point::multiply_known(scalar.expose(), comb),
            None => point::multiply(scalar.expose(), &peer),
        };
        Some(Encapsulated { point: public(scalar).with_even_y(), shared: shared(product) })
    }

    fn public_key(scalar: &SecretScalar) -> Option<PublicKey> {
        Some(public(scalar))
    }

    fn lift(x: &[u8; 32]) -> Option<PublicKey> {
        Some(point::key(&point::lift(x)?.map(|it| field::leave(&it))))
    }

    #[inline(never)]
    fn agree(key: &SecretScalar, x: &[u8; 32]) -> Option<Agreed> {
        let lifted = point::lift(x)?;
        let point = point::key(&lifted.map(|it| field::leave(&it)));
        Some(Agreed { point, shared: shared(point::multiply(key.expose(), &lifted)) })
    }

    #[inline(never)]
    fn sign(
        c: &mut impl Crypto,
        key: &SecretScalar,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError> {
        let mut nonces = Nonces::new(c, key, &write(&order::reduce(&read(digest))), extra)?;
        // A nonce is out of range once in 2³² times.
        for _ in 0..4 {
            let Some(nonce) = nonces.next(c)? else { continue };
            let [x, y] = point::multiply_generator(nonce.expose());
            let r = order::reduce(&x);
            let s = proof(key, &nonce, digest, &r);
            if is_zero(&r) || is_zero(&s) {
                return Err(CryptoError::Failed);
            }
            // R26: as if the nonce's point had even y, which is no secret.
            let s = if y[0] & 1 == 1 { order::negate(&s) } else { s };
            let mut out = [0; 64];
            out[..32].copy_from_slice(&write(&r));
            out[32..].copy_from_slice(&write(&s));
            return Ok(out);
        }
        Err(CryptoError::Failed)
    }

    #[inline(never)]
    fn verify(key: &PublicKey, digest: &[u8; 32], signature: &Signature) -> bool {
        let (Some(r), Some(s)) = (signature.first_chunk(), signature.last_chunk()) else {
            return false;
        };
        let (r, s) = (read(r), read(s));
        if [&r, &s].into_iter().any(|it| is_zero(it) || !order::holds(it)) {
            return false;
        }
        let Some(key) = point::find(key) else { return false };
        let inverse = order::invert(&order::enter(&s));
        let part = |factor: &Number| order::mul(factor, &inverse);
        let u = part(&order::reduce(&read(digest)));
        let other = point::multiply(&write(&part(&r)), &key);
        let sum = if is_zero(&u) {
            other
        } else {
            point::sum(&point::multiply_generator(&write(&u)), &other)
        };
        // The point at infinity has 0 for its x, which r is not.
        order::reduce(&sum[0]) == r
    }

    fn seal(&self, key: &[u8; 16], nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; 16] {
        let gcm = Gcm::new(key);
        gcm.apply(nonce, text);
        gcm.tag(nonce, aad, text)
    }

    fn open(
        &self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> bool {
        let gcm = Gcm::new(key);
        let authentic = gcm.is_tag(nonce, aad, text, tag);
        if authentic {
            gcm.apply(nonce, text);
        }
        authentic
    }

    #[inline(never)]
    fn scrub() {
        // Never read, and yet written: the black box may look at it.
        let mut below = [0u32; STACK_WORDS];
        core::hint::black_box(&mut below);
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::ec;

    use super::*;
    use crate::{
        crypto::PrivateKey,
        software::{Portable, Software},
    };

    /// n − 1, and what lies near it and near 0.
    fn scalars() -> impl Iterator<Item = SecretScalar> {
        let edge = |less: u8| {
            let mut bytes = write(&order::PRIME);
            bytes[31] -= less;
            bytes
        };
        let small = |value: u8| {
            let mut bytes = [0; 32];
            bytes[31] = value;
            bytes
        };
        let mut c = Software::seeded([9; 32]);
        let random = (0..8).map(move |_| {
            let mut bytes = [0; 32];
            c.random(&mut bytes).unwrap();
            bytes
        });
        let all = (1..4).map(edge).chain((1..9).map(small)).chain([[0x80; 32], [0x7f; 32]]);
        all.chain(random).filter_map(|bytes| SecretScalar::from_bytes(&bytes))
    }

    #[test]
    fn it_agrees_with_the_portable_code() {
        let (mut small, mut big) = (Compact::seeded([1; 32]), Software::seeded([1; 32]));
        let mut peer = SecretScalar::from_bytes(&[0x55; 32]).unwrap().public_key();
        for (round, scalar) in (0u8..).zip(scalars()) {
            let ours = small.encapsulate(&scalar, &peer).unwrap();
            let theirs = big.encapsulate(&scalar, &peer).unwrap();
            assert_eq!(ours.point, theirs.point);
            assert!(ours.shared.0 == theirs.shared.0);
            let key = PrivateKey::Scalar(&scalar);
            let ours = small.agree(key, &peer.x()).unwrap().unwrap();
            let theirs = big.agree(key, &peer.x()).unwrap().unwrap();
            assert_eq!(ours.point, theirs.point);
            assert!(ours.shared.0 == theirs.shared.0);
            peer = small.public_key(&scalar).unwrap();
            assert_eq!(peer, scalar.public_key());
            // Digests above the order, too.
            let digest = [round.wrapping_mul(97) | 0xf0; 32];
            let ours = small.sign(key, &digest, &[round; 32]).unwrap();
            assert_eq!(ours, big.sign(key, &digest, &[round; 32]).unwrap(), "round {round}");
            assert_eq!(small.verify(&peer, &digest, &ours), Ok(true));
            for bit in [0, 255, 256, 511] {
                let mut wrong = ours;
                wrong[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(small.verify(&peer, &digest, &wrong), Ok(false));
            }
            assert_eq!(small.verify(&peer, &[round; 32], &ours), Ok(false));
        }
    }

    /// With the right comb, with one that is damaged and with one of another key: the same secret, on and off the fast way.
    #[test]
    fn a_comb_changes_no_secret() {
        let leak = |comb| -> &'static Comb { std::boxed::Box::leak(std::boxed::Box::new(comb)) };
        let key = |byte| SecretScalar::from_bytes(&[byte; 32]).unwrap().public_key();
        let (gateway, other) = (key(0x55), key(0x56));
        let right = comb(&gateway).unwrap();
        let mut damaged = right;
        damaged[6][1][7] ^= 0x8000_0000;
        assert!(comb(&PublicKey([4; 65])).is_none());
        for comb in [right, damaged, comb(&other).unwrap()] {
            let small = Small { comb: Some(leak(comb)) };
            for scalar in scalars() {
                let ours = small.encapsulate(&scalar, &gateway).unwrap();
                let theirs = Portable.encapsulate(&scalar, &gateway).unwrap();
                assert_eq!(ours.point, theirs.point);
                assert!(ours.shared.0 == theirs.shared.0);
            }
        }
    }

    #[test]
    fn what_is_no_point_is_refused() {
        let mut c = Compact::seeded([1; 32]);
        let scalar = SecretScalar::from_bytes(&[3; 32]).unwrap();
        let good = scalar.public_key();
        let mut found = 0;
        for byte in (0..=255u8).step_by(5) {
            for x in [
                [byte; 32],
                core::array::from_fn(|at| {
                    byte.wrapping_mul(31).wrapping_add(u8::try_from(at).unwrap())
                }),
            ] {
                let ours = c.agree(PrivateKey::Scalar(&scalar), &x).unwrap();
                assert_eq!(ours.map(|it| it.point), ec::lift_even(&x));
                found += usize::from(ec::lift_even(&x).is_some());
            }
        }
        assert!((30..75).contains(&found), "{found}");
        for bit in (0..520).step_by(3) {
            let mut bad = good;
            bad.0[bit / 8] ^= 1 << (bit % 8);
            assert!(c.encapsulate(&scalar, &bad).is_err(), "bit {bit}");
        }
        for (r, s) in [([0; 32], [1; 32]), ([1; 32], [0; 32]), ([0xff; 32], [1; 32])] {
            let signature: Signature = [r, s].concat().try_into().unwrap();
            assert_eq!(c.verify(&good, &[1; 32], &signature), Ok(false));
        }
    }
}
