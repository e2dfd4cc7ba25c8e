//! A device whose cryptography is elsewhere: in a chip's ROM, its accelerators, behind PSA. It shows what Duet itself takes of
//! flash, and how little such a driver is. The functions lie at addresses where this board has nothing: it cannot run.
#![allow(unsafe_code, reason = "each call hands over memory that is there, and its length")]

use duet_device::{
    Crypto, CryptoError, PrivateKey,
    protocol::{
        ec::{Agreed, Encapsulated, SecretScalar, SharedX, Signature},
        identity::PublicKey,
    },
};

// Addresses are given to the linker in `build.rs`. All return 0 when they have done it.
unsafe extern "C" {
    fn outside_random(out: *mut u8, len: usize) -> i32;
    fn outside_sha256_begin() -> i32;
    fn outside_sha256_update(bytes: *const u8, len: usize) -> i32;
    fn outside_sha256_end(digest: *mut u8) -> i32;
    fn outside_gcm(job: *const Gcm, seals: i32) -> i32;
    fn outside_public(scalar: *const u8, point: *mut u8) -> i32;
    fn outside_agree(scalar: *const u8, point: *const u8, shared: *mut u8) -> i32;
    fn outside_lift(x: *const u8, point: *mut u8) -> i32;
    fn outside_sign(scalar: *const u8, digest: *const u8, extra: *const u8, out: *mut u8) -> i32;
    fn outside_verify(point: *const u8, digest: *const u8, signature: *const u8) -> i32;
}

/// What AES-128-GCM works on.
#[repr(C)]
struct Gcm {
    key: *const u8,
    nonce: *const u8,
    aad: *const u8,
    aad_len: usize,
    text: *mut u8,
    text_len: usize,
    tag: *mut u8,
}

pub(crate) struct Outside;

fn done(code: i32) -> Result<(), CryptoError> {
    if code == 0 { Ok(()) } else { Err(CryptoError::Failed) }
}

fn gcm(
    key: &[u8; 16],
    nonce: &[u8; 12],
    aad: &[u8],
    text: &mut [u8],
    tag: &mut [u8; 16],
    seals: bool,
) -> i32 {
    let job = Gcm {
        key: key.as_ptr(),
        nonce: nonce.as_ptr(),
        aad: aad.as_ptr(),
        aad_len: aad.len(),
        text: text.as_mut_ptr(),
        text_len: text.len(),
        tag: tag.as_mut_ptr(),
    };
    // SAFETY: see above.
    unsafe { outside_gcm(&raw const job, i32::from(seals)) }
}

fn agree(scalar: &SecretScalar, point: &PublicKey) -> Result<SharedX, CryptoError> {
    let mut shared = SharedX([0; 32]);
    // SAFETY: see above.
    done(unsafe {
        outside_agree(scalar.expose().as_ptr(), point.0.as_ptr(), shared.0.as_mut_ptr())
    })?;
    Ok(shared)
}

impl Outside {
    /// The seed is not needed: random bytes are outside, too.
    pub(crate) const fn seeded(_: [u8; 32]) -> Self {
        Self
    }
}

impl Crypto for Outside {
    fn random(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        // SAFETY: see above.
        done(unsafe { outside_random(out.as_mut_ptr(), out.len()) })
    }

    fn sha256(&mut self, parts: &[&[u8]]) -> Result<[u8; 32], CryptoError> {
        let mut digest = [0; 32];
        // SAFETY: see above.
        unsafe {
            done(outside_sha256_begin())?;
            for part in parts {
                done(outside_sha256_update(part.as_ptr(), part.len()))?;
            }
            done(outside_sha256_end(digest.as_mut_ptr()))?;
        }
        Ok(digest)
    }

    fn seal(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; 16], CryptoError> {
        let mut tag = [0; 16];
        done(gcm(key, nonce, aad, text, &mut tag, true)).map(|()| tag)
    }

    fn open(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<bool, CryptoError> {
        Ok(gcm(key, nonce, aad, text, &mut { *tag }, false) == 0)
    }

    fn encapsulate(
        &mut self,
        scalar: &SecretScalar,
        peer: &PublicKey,
    ) -> Result<Encapsulated, CryptoError> {
        let point = self.public_key(scalar)?.with_even_y();
        Ok(Encapsulated { point, shared: agree(scalar, peer)? })
    }

    fn public_key(&mut self, scalar: &SecretScalar) -> Result<PublicKey, CryptoError> {
        let mut point = PublicKey([0; 65]);
        // SAFETY: see above.
        done(unsafe { outside_public(scalar.expose().as_ptr(), point.0.as_mut_ptr()) })?;
        Ok(point)
    }

    fn agree(&mut self, key: PrivateKey<'_>, x: &[u8; 32]) -> Result<Option<Agreed>, CryptoError> {
        let PrivateKey::Scalar(scalar) = key else { return Err(CryptoError::Unsupported) };
        let mut point = PublicKey([0; 65]);
        // SAFETY: see above.
        if unsafe { outside_lift(x.as_ptr(), point.0.as_mut_ptr()) } != 0 {
            return Ok(None);
        }
        let shared = agree(scalar, &point)?;
        Ok(Some(Agreed { point, shared }))
    }

    fn sign(
        &mut self,
        key: PrivateKey<'_>,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError> {
        let PrivateKey::Scalar(scalar) = key else { return Err(CryptoError::Unsupported) };
        let (mut out, key) = ([0; 64], scalar.expose());
        // SAFETY: see above.
        done(unsafe {
            outside_sign(key.as_ptr(), digest.as_ptr(), extra.as_ptr(), out.as_mut_ptr())
        })?;
        Ok(out)
    }

    fn verify(
        &mut self,
        key: &PublicKey,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, CryptoError> {
        // SAFETY: see above.
        Ok(unsafe { outside_verify(key.0.as_ptr(), digest.as_ptr(), signature.as_ptr()) } == 0)
    }
}
