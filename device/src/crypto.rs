//! The one door to cryptography. The state machine computes nothing itself: whoever has an
//! accelerator, a PSA key store or a secure element implements [`Crypto`].
//!
//! Every operation may fail, as hardware does. A failure is never taken for a verdict: a signature
//! that is wrong and an accelerator that does not answer are different things.

use duet_protocol::{
    ec::{Agreed, Encapsulated, SecretScalar, Signature},
    identity::PublicKey,
};

/// Why an operation gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The random generator gave nothing.
    #[error("the random generator failed")]
    Random,
    /// The operation failed; it may succeed another time.
    #[error("the cryptographic operation failed")]
    Failed,
    /// This implementation does not have the operation, for example a key inside an element.
    #[error("the cryptographic operation is not there")]
    Unsupported,
}

/// Which private key an operation uses.
#[derive(Clone, Copy)]
pub enum PrivateKey<'a> {
    /// This one, in memory.
    Scalar(&'a SecretScalar),
    /// The device's own key, which never leaves its element.
    External,
}

/// The longest list of parts that the state machine gives to a hash.
pub const PARTS_MAX: usize = 16;

/// What a device needs of cryptography: SHA-256, AES-128-GCM, P-256, random bytes.
pub trait Crypto {
    /// Fills `out` with random bytes.
    ///
    /// # Errors
    /// [`CryptoError::Random`]. A weak generator must not fail but give what it has: ephemeral keys
    /// are hedged (R19).
    fn random(&mut self, out: &mut [u8]) -> Result<(), CryptoError>;

    /// SHA-256 of the parts, joined; at most [`PARTS_MAX`] of them.
    ///
    /// # Errors
    /// [`CryptoError`].
    fn sha256(&mut self, parts: &[&[u8]]) -> Result<[u8; 32], CryptoError>;

    /// HMAC-SHA-256 of the parts, joined. Unless replaced it is made of two [`sha256`](Self::sha256).
    ///
    /// # Errors
    /// [`CryptoError`]; [`CryptoError::Unsupported`] for [`PARTS_MAX`] parts and more.
    fn hmac(&mut self, key: &[u8], parts: &[&[u8]]) -> Result<[u8; 32], CryptoError> {
        use zeroize::Zeroizing;
        let mut block = Zeroizing::new([0u8; 64]);
        if let Some(place) = block.get_mut(..key.len()) {
            place.copy_from_slice(key);
        } else {
            block[..32].copy_from_slice(&self.sha256(&[key])?);
        }
        block.iter_mut().for_each(|byte| *byte ^= 0x36);
        let mut all: [&[u8]; PARTS_MAX] = [&[]; PARTS_MAX];
        all[0] = block.as_slice();
        let rest = all.get_mut(1..=parts.len()).ok_or(CryptoError::Unsupported)?;
        rest.copy_from_slice(parts);
        let inner = Zeroizing::new(self.sha256(&all[..=parts.len()])?);
        block.iter_mut().for_each(|byte| *byte ^= 0x36 ^ 0x5c);
        self.sha256(&[block.as_slice(), inner.as_slice()])
    }

    /// AES-128-GCM: seals `text` in place, returns the tag.
    ///
    /// # Errors
    /// [`CryptoError`].
    fn seal(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; 16], CryptoError>;

    /// AES-128-GCM: opens `text` in place; `false`, with the text as it was, when it is not authentic.
    ///
    /// # Errors
    /// [`CryptoError`].
    fn open(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<bool, CryptoError>;

    /// The fresh scalar's point with even y, and x(scalar · peer) (R18).
    ///
    /// # Errors
    /// [`CryptoError`].
    fn encapsulate(
        &mut self,
        scalar: &SecretScalar,
        peer: &PublicKey,
    ) -> Result<Encapsulated, CryptoError>;

    /// The public key of a private key.
    ///
    /// # Errors
    /// [`CryptoError`].
    fn public_key(&mut self, scalar: &SecretScalar) -> Result<PublicKey, CryptoError>;

    /// The point with this x and even y; `None` when no point has this x. Only a key inside an element needs it.
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] unless replaced.
    fn lift(&mut self, x: &[u8; 32]) -> Result<Option<PublicKey>, CryptoError> {
        let _ = x;
        Err(CryptoError::Unsupported)
    }

    /// Lifts `x` to the point with even y and multiplies it with the key; `None` when no point has
    /// this x.
    ///
    /// # Errors
    /// [`CryptoError`].
    fn agree(&mut self, key: PrivateKey<'_>, x: &[u8; 32]) -> Result<Option<Agreed>, CryptoError>;

    /// ECDSA over a digest. Who knows the nonce normalises its point to even y (R26); an element that
    /// does not tell gives r ‖ s as they are. `extra` is additional input for the nonce (R27), which
    /// an element may ignore.
    ///
    /// # Errors
    /// [`CryptoError`].
    fn sign(
        &mut self,
        key: PrivateKey<'_>,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError>;

    /// Whether the signature is the key's over the digest, with either parity of its nonce point (R33).
    ///
    /// # Errors
    /// [`CryptoError`].
    fn verify(
        &mut self,
        key: &PublicKey,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, CryptoError>;

    /// HMAC-SHA-256(k, "duet1 hedge" ‖ salt) with a key k that stays inside the element: for devices
    /// whose [`Hedge`](crate::Hedge) is [`Element`](crate::Hedge::Element).
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] unless replaced.
    fn hedge(&mut self, salt: &[u8; 32]) -> Result<[u8; 32], CryptoError> {
        let _ = salt;
        Err(CryptoError::Unsupported)
    }

    /// Overwrites what operations may have left on the stack: called where keys end.
    fn scrub(&mut self) {}
}

/// What a secure element does with the device's key: sign and agree, and nothing else.
pub trait Element {
    /// ECDSA over a digest, r ‖ s.
    ///
    /// # Errors
    /// [`CryptoError`].
    fn sign(&mut self, digest: &[u8; 32]) -> Result<Signature, CryptoError>;

    /// x(d · point). Only key sources `xor` and `client` with a certificate need it.
    ///
    /// # Errors
    /// [`CryptoError`].
    fn agree(&mut self, point: &PublicKey) -> Result<[u8; 32], CryptoError>;

    /// HMAC-SHA-256(k, "duet1 hedge" ‖ salt) with a key that stays inside.
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] unless replaced.
    fn hedge(&mut self, salt: &[u8; 32]) -> Result<[u8; 32], CryptoError> {
        let _ = salt;
        Err(CryptoError::Unsupported)
    }
}
