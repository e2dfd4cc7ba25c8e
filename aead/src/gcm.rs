//! The entry to every operation: a token that proves the CPU check ran.

use crate::{
    KEY_LEN, Key, Nonce, Record, Tag, Verdict,
    backend::{self, Backend, Proof, SelectError},
};

/// A chosen backend. Small, `Copy`, and only to be had by asking the CPU what it offers.
///
/// Operations are chosen whole: a batch never switches backends between records, and nothing
/// looks at CPU features after the token was made.
#[derive(Clone, Copy, Debug)]
pub struct Gcm {
    proof: Proof,
}

impl Gcm {
    /// The backend named by the environment variable `DUET_AEAD` (`vaes`, `aesni` or `portable`),
    /// or the best one when it is unset or empty.
    ///
    /// # Errors
    /// When the variable names no backend, or one that this CPU lacks. A forced backend is never
    /// replaced by another: whoever forces one wants to know.
    pub fn select() -> Result<Self, SelectError> {
        match Backend::from_environment()? {
            None => Ok(Self::best()),
            Some(backend) => Self::with(backend).ok_or(SelectError::Unavailable(backend)),
        }
    }

    /// The fastest backend that this CPU has.
    #[must_use]
    pub fn best() -> Self {
        Backend::ALL
            .into_iter()
            .find_map(Self::with)
            .expect("the portable backend is always available")
    }

    /// A certain backend, if this CPU has it.
    #[must_use]
    pub fn with(backend: Backend) -> Option<Self> {
        Some(Self { proof: backend.detect()? })
    }

    /// The backend behind this token.
    #[must_use]
    pub fn backend(self) -> Backend {
        self.proof.backend()
    }

    /// Expands each of `bytes` in the key at the same place, over what was there: in a batch a key
    /// costs a third of what it costs alone.
    ///
    /// Whoever has more sessions than fit the caches keeps their keys as bytes, and expands those
    /// of a batch of records just before it. The caller wipes `bytes`.
    ///
    /// # Panics
    /// If `keys` is not as long as `bytes`.
    pub fn expand_batch(self, bytes: &[&[u8; KEY_LEN]], keys: &mut [Key]) {
        assert_eq!(bytes.len(), keys.len(), "one place a key");
        match self.proof {
            #[cfg(target_arch = "x86_64")]
            Proof::Vaes(vaes) => vaes.expand_batch(bytes, keys),
            #[cfg(target_arch = "x86_64")]
            Proof::AesNi(aesni) => aesni.expand_batch(bytes, keys),
            Proof::Portable => backend::portable::expand_batch(bytes, keys),
        }
    }

    /// Seals `payload` in place and returns its tag.
    ///
    /// # Panics
    /// If `key` is vacant, or the payload is longer than [`MAX_PAYLOAD`](crate::MAX_PAYLOAD).
    #[must_use = "a sealed payload is worthless without its tag"]
    pub fn seal(self, key: &Key, nonce: &Nonce, aad: &[u8], payload: &mut [u8]) -> Tag {
        let mut tag = [0; 16];
        self.seal_batch(&mut [Record { key, nonce: *nonce, aad, payload, tag: &mut tag }]);
        tag
    }

    /// Opens `payload` in place if `tag` is right, else leaves it untouched.
    ///
    /// # Panics
    /// If `key` is vacant.
    pub fn open(
        self,
        key: &Key,
        nonce: &Nonce,
        aad: &[u8],
        payload: &mut [u8],
        tag: &Tag,
    ) -> Verdict {
        let (mut tag, mut verdict) = (*tag, [Verdict::Rejected]);
        let record = Record { key, nonce: *nonce, aad, payload, tag: &mut tag };
        self.open_batch(&mut [record], &mut verdict);
        verdict[0]
    }

    /// Seals each record in place and writes its tag.
    ///
    /// # Panics
    /// If a key is vacant, or a payload is longer than [`MAX_PAYLOAD`](crate::MAX_PAYLOAD).
    pub fn seal_batch(self, records: &mut [Record<'_>]) {
        assert!(records.iter().all(Record::fits), "payload longer than GCM permits");
        match self.proof {
            #[cfg(target_arch = "x86_64")]
            Proof::Vaes(vaes) => vaes.seal_batch(records),
            #[cfg(target_arch = "x86_64")]
            Proof::AesNi(aesni) => aesni.seal_batch(records),
            Proof::Portable => backend::portable::seal_batch(records),
        }
    }

    /// Opens each record in place whose tag is right, and writes a verdict for each.
    ///
    /// One forged record changes nothing for its neighbours. Those that are rejected keep their
    /// payload as it was.
    ///
    /// # Panics
    /// If a key is vacant, or `verdicts` is not as long as `records`.
    pub fn open_batch(self, records: &mut [Record<'_>], verdicts: &mut [Verdict]) {
        assert_eq!(records.len(), verdicts.len(), "one verdict a record");
        match self.proof {
            #[cfg(target_arch = "x86_64")]
            Proof::Vaes(vaes) => vaes.open_batch(records, verdicts),
            #[cfg(target_arch = "x86_64")]
            Proof::AesNi(aesni) => aesni.open_batch(records, verdicts),
            Proof::Portable => backend::portable::open_batch(records, verdicts),
        }
    }
}
