//! HKDF, HPKE in mode base and the key schedule of the one suite (R1), with the specification's
//! names, over [`Crypto`]. The gateway's side of the same is in `duet_protocol::schedule`; the test
//! vectors hold both together.

use duet_protocol::{
    ec::{SecretScalar, SharedX},
    identity::{Fingerprint, PublicKey, RegistrationKey},
    wire::{GRANT, HELLO_HEADER},
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::crypto::{Crypto, CryptoError};

/// 32 secret bytes of the schedule: `ex`, `hs`, `master`, ….
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

/// An AES-128-GCM key with the IV that its nonces are made from.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct KeyIv {
    pub(crate) key: [u8; 16],
    pub(crate) iv: [u8; 12],
}

impl KeyIv {
    const fn empty() -> Self {
        Self { key: [0; 16], iv: [0; 12] }
    }
}

/// The keys of both directions of a session.
pub(crate) struct SessionKeys {
    pub(crate) up: KeyIv,
    pub(crate) down: KeyIv,
}

/// Extract is HMAC with the salt as its key (RFC 5869 §2.2).
fn extract(c: &mut impl Crypto, salt: &[u8], ikm: &[u8]) -> Result<Secret, CryptoError> {
    Ok(Secret(c.hmac(salt, &[ikm])?))
}

/// Expand (RFC 5869 §2.3) for outputs of at most two blocks; `info` is joined, at most 12 parts.
fn expand(
    c: &mut impl Crypto,
    prk: &[u8; 32],
    info: &[&[u8]],
    out: &mut [u8],
) -> Result<(), CryptoError> {
    let mut block = Zeroizing::new([0u8; 32]);
    for (number, chunk) in (1u8..).zip(out.chunks_mut(32)) {
        let (previous, number) = (block.clone(), [number]);
        let mut parts: [&[u8]; 14] = [&[]; 14];
        if number[0] > 1 {
            parts[0] = previous.as_slice();
        }
        parts.get_mut(1..=info.len()).ok_or(CryptoError::Unsupported)?.copy_from_slice(info);
        parts[info.len() + 1] = &number;
        *block = c.hmac(prk, &parts[..info.len() + 2])?;
        chunk.copy_from_slice(&block[..chunk.len()]);
    }
    Ok(())
}

fn head<const N: usize>(bytes: &[u8; 32]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

const KEM_SUITE: &[u8] = b"KEM\x00\x10";
const HPKE_SUITE: &[u8] = b"HPKE\x00\x10\x00\x01\x00\x01";
/// LabeledExtract("", "psk_id_hash", ""): mode base has no PSK, so it is always this.
const PSK_ID_HASH: [u8; 32] = [
    0xb8, 0x8d, 0x4e, 0x6d, 0x91, 0x75, 0x9e, 0x65, 0xe8, 0x7c, 0x47, 0x0e, 0x8b, 0x91, 0x41, 0x11,
    0x3e, 0x9a, 0xd5, 0xf0, 0xc8, 0xce, 0xef, 0xc1, 0xe0, 0x88, 0xc8, 0x2e, 0x69, 0x80, 0x50, 0x07,
];

/// The result of HPKE's key schedule: what seals or opens its only message, and a secret that exports.
pub(crate) struct Hpke {
    pub(crate) message: KeyIv,
    exporter: Secret,
}

/// LabeledExtract (RFC 9180 §4).
fn labeled_extract(
    c: &mut impl Crypto,
    suite: &[u8],
    label: &[u8],
    salt: &[u8],
    ikm: &[&[u8]],
) -> Result<Secret, CryptoError> {
    let mut parts: [&[u8]; 8] = [&[]; 8];
    parts[..3].copy_from_slice(&[b"HPKE-v1", suite, label]);
    parts.get_mut(3..3 + ikm.len()).ok_or(CryptoError::Unsupported)?.copy_from_slice(ikm);
    Ok(Secret(c.hmac(salt, &parts)?))
}

/// LabeledExpand (RFC 9180 §4).
fn labeled_expand(
    c: &mut impl Crypto,
    prk: &Secret,
    suite: &[u8],
    label: &[u8],
    info: &[&[u8]],
    out: &mut [u8],
) -> Result<(), CryptoError> {
    let length = u16::try_from(out.len()).map_err(|_| CryptoError::Unsupported)?.to_be_bytes();
    let mut parts: [&[u8]; 8] = [&[]; 8];
    parts[..4].copy_from_slice(&[&length, b"HPKE-v1", suite, label]);
    parts.get_mut(4..4 + info.len()).ok_or(CryptoError::Unsupported)?.copy_from_slice(info);
    expand(c, &prk.0, &parts, out)
}

impl Hpke {
    /// `SetupBase` after its Diffie-Hellman (RFC 9180 §4.1, §5.1.1).
    pub(crate) fn new(
        c: &mut impl Crypto,
        dh: &SharedX,
        enc: &PublicKey,
        recipient: &PublicKey,
        info: &[&[u8]],
    ) -> Result<Self, CryptoError> {
        let prk = labeled_extract(c, KEM_SUITE, b"eae_prk", &[], &[&dh.0])?;
        let mut shared = Secret([0; 32]);
        let kem_context: [&[u8]; 2] = [&enc.0, &recipient.0];
        labeled_expand(c, &prk, KEM_SUITE, b"shared_secret", &kem_context, &mut shared.0)?;
        let info_hash = labeled_extract(c, HPKE_SUITE, b"info_hash", &[], info)?;
        let context: [&[u8]; 3] = [&[0], &PSK_ID_HASH, &info_hash.0];
        let secret = labeled_extract(c, HPKE_SUITE, b"secret", &shared.0, &[])?;
        let mut this = Self { message: KeyIv::empty(), exporter: Secret([0; 32]) };
        let Self { message: KeyIv { key, iv }, exporter } = &mut this;
        labeled_expand(c, &secret, HPKE_SUITE, b"key", &context, key)?;
        labeled_expand(c, &secret, HPKE_SUITE, b"base_nonce", &context, iv)?;
        labeled_expand(c, &secret, HPKE_SUITE, b"exp", &context, &mut exporter.0)?;
        Ok(this)
    }

    /// `Context.Export` (RFC 9180 §5.3), 32 bytes.
    pub(crate) fn export(&self, c: &mut impl Crypto, label: &[u8]) -> Result<Secret, CryptoError> {
        let mut out = Secret([0; 32]);
        labeled_expand(c, &self.exporter, HPKE_SUITE, b"sec", &[label], &mut out.0)?;
        Ok(out)
    }
}

/// n − 1: eight words, the lowest first.
const ORDER_MINUS_ONE: [u32; 8] = [
    0xfc63_2550,
    0xf3b9_cac2,
    0xa717_9e84,
    0xbce6_faad,
    0xffff_ffff,
    0xffff_ffff,
    0x0000_0000,
    0xffff_ffff,
];

/// (wide mod (n−1)) + 1 (R20), bit by bit: little code, and the same time for every value.
fn hash_to_scalar(wide: &[u8; 48]) -> Option<SecretScalar> {
    // Little-endian words; `carry` is bit 256.
    let mut rest = Zeroizing::new([0u32; 8]);
    let mut less = Zeroizing::new([0u32; 8]);
    for bit in (0..384).rev() {
        let mut carry = u32::from(wide[47 - bit / 8] >> (bit % 8) & 1);
        let mut borrow = false;
        for ((digit, less), part) in rest.iter_mut().zip(less.iter_mut()).zip(&ORDER_MINUS_ONE) {
            (*digit, carry) = (*digit << 1 | carry, *digit >> 31);
            (*less, borrow) = digit.borrowing_sub(*part, borrow);
        }
        // The difference is taken unless it fell below zero.
        let keep = 0u32.wrapping_sub(u32::from(borrow) & (carry ^ 1));
        for (digit, less) in rest.iter_mut().zip(less.iter()) {
            *digit = *digit & keep | *less & !keep;
        }
    }
    let mut carry = true;
    let mut out = Zeroizing::new([0u8; 32]);
    for (digit, to) in rest.iter().zip(out.rchunks_exact_mut(4)) {
        let sum;
        (sum, carry) = digit.carrying_add(0, carry);
        to.copy_from_slice(&sum.to_be_bytes());
    }
    SecretScalar::from_bytes(&out)
}

/// `e_c`, from the PRK of the hedge (R19): safe even where the random bytes in it are bad, since the
/// device's own secret, the ever-rising `fresh` and what HELLO carries enter too.
pub(crate) fn hedged_scalar(
    c: &mut impl Crypto,
    prk: &Secret,
    gateway: &Fingerprint,
    fresh: u64,
    carried: Option<&[u8; 32]>,
) -> Result<SecretScalar, CryptoError> {
    let mut wide = Zeroizing::new([0; 48]);
    let carried: &[u8] = carried.map_or(&[], |digest| digest);
    let info: [&[u8]; 4] = [b"duet1 hedge", &gateway.0, &fresh.to_be_bytes(), carried];
    expand(c, &prk.0, &info, wide.as_mut_slice())?;
    hash_to_scalar(&wide).ok_or(CryptoError::Failed)
}

/// The hedge's PRK where the secret `d` is at hand.
pub(crate) fn hedge(c: &mut impl Crypto, salt: &[u8; 32], d: &[u8]) -> Result<Secret, CryptoError> {
    extract(c, salt, d)
}

/// `hs`: the HPKE exporter's secret, bound to the registration key where there is one (R24).
pub(crate) fn handshake_secret(
    c: &mut impl Crypto,
    ex: &Secret,
    registration: Option<&RegistrationKey>,
) -> Result<Secret, CryptoError> {
    extract(c, &ex.0, registration.map_or(&[0; 32], |key| &key.0))
}

/// The fields of M, the text that the device's proof covers.
pub(crate) struct Claim<'a> {
    pub(crate) header: &'a [u8; HELLO_HEADER],
    pub(crate) gateway: &'a Fingerprint,
    pub(crate) enc: &'a PublicKey,
    pub(crate) device: &'a Fingerprint,
    pub(crate) id: &'a [u8; 8],
    pub(crate) fresh: &'a [u8; 8],
    pub(crate) challenge: &'a [u8; 16],
    pub(crate) random: &'a [u8],
    pub(crate) reading: [&'a [u8]; 2],
}

impl Claim<'_> {
    #[inline(never)]
    fn parts<'p>(&'p self, label: &'p [u8]) -> [&'p [u8]; 11] {
        [
            label,
            self.header,
            &self.gateway.0,
            &self.enc.0,
            &self.device.0,
            self.id,
            self.fresh,
            self.challenge,
            self.random,
            self.reading[0],
            self.reading[1],
        ]
    }

    /// What the device signs: SHA-256("duet1 device sig" ‖ M) (R25).
    pub(crate) fn digest(&self, c: &mut impl Crypto) -> Result<[u8; 32], CryptoError> {
        c.sha256(&self.parts(b"duet1 device sig"))
    }

    /// The proof by registration key: HMAC(binder key, "duet1 binder" ‖ M)\[0..8] (R28).
    pub(crate) fn binder(&self, c: &mut impl Crypto, hs: &Secret) -> Result<[u8; 8], CryptoError> {
        let mut key = Secret([0; 32]);
        expand(c, &hs.0, &[b"duet1 binder"], &mut key.0)?;
        Ok(head(&c.hmac(&key.0, &self.parts(b"duet1 binder"))?))
    }
}

/// `th`: everything both sides have seen when ACCEPT is made (R29). HELLO comes in two parts.
pub(crate) fn transcript(
    c: &mut impl Crypto,
    hello: [&[u8]; 2],
    clear: &[u8; 33],
    gateway: &Fingerprint,
    device: &Fingerprint,
) -> Result<[u8; 32], CryptoError> {
    let len = u16::try_from(hello[0].len() + hello[1].len()).map_err(|_| CryptoError::Failed)?;
    let len = len.to_be_bytes();
    c.sha256(&[b"duet1 transcript", &len, hello[0], hello[1], clear, &gateway.0, &device.0])
}

/// What the gateway signs in the method's own profiles.
pub(crate) fn gateway_digest(
    c: &mut impl Crypto,
    th: &[u8; 32],
    ikm_part: &[u8],
    grant: &[u8; GRANT],
) -> Result<[u8; 32], CryptoError> {
    c.sha256(&[b"duet1 gateway sig", th, ikm_part, grant])
}

/// `master`, from which the session's keys come (R29).
pub(crate) fn master(
    c: &mut impl Crypto,
    hs: &Secret,
    th: &[u8; 32],
    ikm: &[u8],
) -> Result<Secret, CryptoError> {
    let mut salt = Secret([0; 32]);
    expand(c, &hs.0, &[b"duet1 salt", th], &mut salt.0)?;
    extract(c, &salt.0, ikm)
}

fn key_iv(
    c: &mut impl Crypto,
    prk: &Secret,
    [key, iv]: [&[u8]; 2],
    context: &[u8],
) -> Result<KeyIv, CryptoError> {
    let mut out = KeyIv::empty();
    expand(c, &prk.0, &[key, context], &mut out.key)?;
    expand(c, &prk.0, &[iv, context], &mut out.iv)?;
    Ok(out)
}

/// The key that seals ACCEPT: from `master` in key source `ephemeral`, or from `hs` and `th` with a
/// registered id.
pub(crate) fn accept_key(
    c: &mut impl Crypto,
    from: &Secret,
    th: &[u8],
) -> Result<KeyIv, CryptoError> {
    key_iv(c, from, [b"duet1 accept key", b"duet1 accept iv"], th)
}

/// The session's keys in both directions.
pub(crate) fn session_keys(
    c: &mut impl Crypto,
    master: &Secret,
) -> Result<SessionKeys, CryptoError> {
    Ok(SessionKeys {
        up: key_iv(c, master, [b"duet1 up key", b"duet1 up iv"], &[])?,
        down: key_iv(c, master, [b"duet1 down key", b"duet1 down iv"], &[])?,
    })
}

/// The key that seals a CHALLENGE: only the sender of the HELLO can open it (R56).
pub(crate) fn challenge_key(
    c: &mut impl Crypto,
    hs: &Secret,
    nonce: &[u8; 16],
) -> Result<KeyIv, CryptoError> {
    let prk = extract(c, nonce, &hs.0)?;
    key_iv(c, &prk, [b"duet1 retry key", b"duet1 retry iv"], &[])
}

/// The MAC inside RESET: HMAC(token, the record that triggered it)\[0..16].
pub(crate) fn reset_mac(
    c: &mut impl Crypto,
    token: &[u8; 12],
    record: &[u8],
) -> Result<[u8; 16], CryptoError> {
    Ok(head(&c.hmac(token, &[record])?))
}

#[cfg(all(test, feature = "software"))]
mod tests {
    use super::*;
    use crate::software::Software;

    #[test]
    fn scalars_are_reduced_as_the_gateways_code_does() {
        let mut c = Software::seeded([7; 32]);
        let mut wide = [0; 48];
        for round in 0..200 {
            c.random(&mut wide).unwrap();
            if round < 20 {
                // The edges: around multiples of the modulus.
                wide = [0; 48];
                for (to, word) in wide[16..].rchunks_exact_mut(4).zip(ORDER_MINUS_ONE) {
                    to.copy_from_slice(&word.to_be_bytes());
                }
                wide[47] = wide[47].wrapping_add(round).wrapping_sub(10);
            }
            if round == 20 {
                wide = [0xff; 48];
            }
            let (ours, theirs) = (hash_to_scalar(&wide).unwrap(), SecretScalar::from_wide(&wide));
            assert_eq!(ours.expose(), theirs.expose(), "{wide:02x?}");
        }
    }

    #[test]
    fn hmac_and_expand_are_those_of_the_rfcs() {
        let mut c = Software::seeded([7; 32]);
        // RFC 4231, cases 2 and 6 (a key longer than a block).
        let mac = c.hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"]).unwrap();
        assert_eq!(mac[..4], [0x5b, 0xdc, 0xc1, 0x46]);
        let mac = c
            .hmac(&[0xaa; 131], &[b"Test Using Larger Than Block-Size Key - Hash Key First"])
            .unwrap();
        assert_eq!(mac[..4], [0x60, 0xe4, 0x31, 0x59]);
        // RFC 5869, case 1.
        let salt: [u8; 13] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        let info: [u8; 10] = core::array::from_fn(|i| 0xf0 + u8::try_from(i).unwrap());
        let prk = extract(&mut c, &salt, &[0x0b; 22]).unwrap();
        let mut okm = [0; 42];
        expand(&mut c, &prk.0, &[&info], &mut okm).unwrap();
        assert_eq!(okm[..4], [0x3c, 0xb2, 0x5f, 0x25]);
        assert_eq!(okm[38..], [0x87, 0x18, 0x58, 0x65]);
    }
}
