//! Cryptography for small flash: a curve of its own in some three kilobytes, beside RustCrypto's SHA-256, AES
//! and GHASH. It computes the same as [`Software`](crate::Software), in less flash and memory, and on a processor
//! of 32 bits sooner; on one of 64 bits `Software` is faster.
//!
//! Secrets never steer a branch or an address. What must be fast or small nowhere else is not here: a gateway has
//! `curve/`.

mod gcm;
mod modulus;
mod point;

use duet_protocol::{
    ec::{Agreed, Encapsulated, SecretScalar, SharedX, Signature},
    identity::PublicKey,
};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    crypto::{Crypto, CryptoError, PrivateKey},
    software::{Random, Seeded},
};

use self::{
    gcm::Gcm,
    modulus::{ORDER, is_zero, read, write},
};

/// How much of the stack below a caller may hold what operations have left there, in words.
const STACK_WORDS: usize = 384;

/// Small code for everything; random bytes from `R`.
pub struct Compact<R = Seeded>(R);

impl Compact {
    /// With a generator that this seed starts: 32 random bytes, used nowhere else.
    #[must_use]
    pub const fn seeded(seed: [u8; 32]) -> Self {
        Self(Seeded::new(seed))
    }
}

impl<R: Random> Compact<R> {
    /// With this generator.
    #[must_use]
    pub const fn new(random: R) -> Self {
        Self(random)
    }
}

/// x(scalar · point).
fn shared(scalar: &SecretScalar, point: &point::Point) -> SharedX {
    let mut product = point::multiply(scalar.expose(), point);
    let [mut x, mut y] = point::affine(&product);
    let out = SharedX(write(&x));
    product.zeroize();
    x.zeroize();
    y.zeroize();
    out
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

fn signed(
    c: &mut impl Crypto,
    key: &SecretScalar,
    digest: &[u8; 32],
    extra: &[u8; 32],
) -> Result<Signature, CryptoError> {
    let z = ORDER.reduce(&read(digest));
    let mut nonces = Nonces::new(c, key, &write(&z), extra)?;
    // A nonce is out of range once in 2³² times.
    for _ in 0..4 {
        let Some(nonce) = nonces.next(c)? else { continue };
        let [x, y] = point::affine(&point::multiply(nonce.expose(), &point::generator()));
        let r = ORDER.reduce(&x);
        let mut d = ORDER.enter(&read(key.expose()));
        let mut k = ORDER.enter(&read(nonce.expose()));
        let mut inverse = ORDER.invert(&k);
        // d and the inverse have a factor of 2²⁵⁶ each, which the products take off again.
        let sum = ORDER.add(&z, &ORDER.mul(&r, &d));
        let s = ORDER.mul(&sum, &inverse);
        d.zeroize();
        k.zeroize();
        inverse.zeroize();
        if is_zero(&r) || is_zero(&s) {
            return Err(CryptoError::Failed);
        }
        // R26: as if the nonce's point had even y, which is no secret.
        let s = if y[0] & 1 == 1 { ORDER.sub(&[0; 8], &s) } else { s };
        let mut out = [0; 64];
        out[..32].copy_from_slice(&write(&r));
        out[32..].copy_from_slice(&write(&s));
        return Ok(out);
    }
    Err(CryptoError::Failed)
}

fn verified(key: &PublicKey, digest: &[u8; 32], signature: &Signature) -> Option<bool> {
    let (r, s) = (read(signature.first_chunk()?), read(signature.last_chunk()?));
    if [&r, &s].into_iter().any(|it| is_zero(it) || !ORDER.holds(it)) {
        return Some(false);
    }
    let key = point::find(key)?;
    let inverse = ORDER.invert(&ORDER.enter(&s));
    let [u, v] =
        [ORDER.reduce(&read(digest)), r].map(|factor| write(&ORDER.mul(&factor, &inverse)));
    let sum = point::sum(&point::multiply(&u, &point::generator()), &point::multiply(&v, &key));
    Some(!is_zero(&sum[2]) && ORDER.reduce(&point::affine(&sum)[0]) == r)
}

impl<R: Random> Crypto for Compact<R> {
    fn random(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        self.0.fill(out)
    }

    #[inline(never)]
    fn sha256(&mut self, parts: &[&[u8]]) -> Result<[u8; 32], CryptoError> {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        Ok(hash.finalize().into())
    }

    fn seal(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; 16], CryptoError> {
        let gcm = Gcm::new(key);
        gcm.apply(nonce, text);
        Ok(gcm.tag(nonce, aad, text))
    }

    fn open(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<bool, CryptoError> {
        let gcm = Gcm::new(key);
        let authentic = gcm.is_tag(nonce, aad, text, tag);
        if authentic {
            gcm.apply(nonce, text);
        }
        Ok(authentic)
    }

    fn encapsulate(
        &mut self,
        scalar: &SecretScalar,
        peer: &PublicKey,
    ) -> Result<Encapsulated, CryptoError> {
        let peer = point::find(peer).ok_or(CryptoError::Failed)?;
        let point = self.public_key(scalar)?.with_even_y();
        Ok(Encapsulated { point, shared: shared(scalar, &peer) })
    }

    fn public_key(&mut self, scalar: &SecretScalar) -> Result<PublicKey, CryptoError> {
        Ok(point::key(&point::multiply(scalar.expose(), &point::generator())))
    }

    fn agree(&mut self, key: PrivateKey<'_>, x: &[u8; 32]) -> Result<Option<Agreed>, CryptoError> {
        let PrivateKey::Scalar(scalar) = key else { return Err(CryptoError::Unsupported) };
        let Some(point) = point::lift(x) else { return Ok(None) };
        Ok(Some(Agreed { point: point::key(&point), shared: shared(scalar, &point) }))
    }

    fn sign(
        &mut self,
        key: PrivateKey<'_>,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError> {
        match key {
            PrivateKey::Scalar(scalar) => signed(self, scalar, digest, extra),
            PrivateKey::External => Err(CryptoError::Unsupported),
        }
    }

    fn verify(
        &mut self,
        key: &PublicKey,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, CryptoError> {
        Ok(verified(key, digest, signature).unwrap_or(false))
    }

    #[inline(never)]
    fn scrub(&mut self) {
        // Never read, and yet written: the black box may look at it.
        let mut below = [0u32; STACK_WORDS];
        core::hint::black_box(&mut below);
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::ec;

    use super::*;
    use crate::software::Software;

    /// n − 1, and what lies near it and near 0.
    fn scalars() -> impl Iterator<Item = SecretScalar> {
        let edge = |less: u8| {
            let mut bytes = write(&ORDER.prime);
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
