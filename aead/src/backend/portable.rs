//! The backend for every other CPU: the `aes-gcm` crate, one record at a time.
//!
//! Also where hardware backends send records whose key was made without hardware, which happens
//! only if two tokens are mixed in one process.

use aes_gcm::{Aes128Gcm, KeyInit, aead::AeadInOut};

#[cfg(target_arch = "x86_64")]
use super::aesni::AesNi;
use crate::{
    KEY_LEN, Key, Record, Verdict,
    key::{State, wipe_stack},
};

/// A key as `aes-gcm` holds it; wipes itself when dropped.
pub(crate) type Portable = Aes128Gcm;

/// More than `aes-gcm` uses of the stack, in units of 16 bytes. It returns keys by value and keeps
/// round keys in its frames, and wipes neither.
const FRAME: usize = 1024;

pub(crate) fn expand_batch(bytes: &[&[u8; KEY_LEN]], keys: &mut [Key]) {
    expand_unwiped(bytes, keys);
    wipe_stack::<FRAME>();
}

#[inline(never)]
fn expand_unwiped(bytes: &[&[u8; KEY_LEN]], keys: &mut [Key]) {
    for (&bytes, key) in bytes.iter().zip(keys) {
        key.state = State::Portable(Box::new(Aes128Gcm::new(bytes.into())));
    }
}

pub(crate) fn seal_batch(records: &mut [Record<'_>]) {
    for record in records {
        match &record.key.state {
            State::Portable(key) => seal(key, record),
            other => seal_foreign(other, record),
        }
    }
    wipe_stack::<FRAME>();
}

pub(crate) fn open_batch(records: &mut [Record<'_>], verdicts: &mut [Verdict]) {
    for (record, verdict) in records.iter_mut().zip(verdicts) {
        *verdict = match &record.key.state {
            State::Portable(key) => open(key, record),
            other => open_foreign(other, record),
        };
    }
    wipe_stack::<FRAME>();
}

fn seal(key: &Portable, record: &mut Record<'_>) {
    let tag = key
        .encrypt_inout_detached(&record.nonce.into(), record.aad, (&mut *record.payload).into())
        .expect("the length was checked before the batch began");
    *record.tag = tag.into();
}

fn open(key: &Portable, record: &mut Record<'_>) -> Verdict {
    let tag = (*record.tag).into();
    key.decrypt_inout_detached(
        &record.nonce.into(),
        record.aad,
        (&mut *record.payload).into(),
        &tag,
    )
    .is_ok()
    .into()
}

/// A portable key in a batch of a hardware backend.
#[cold]
pub(super) fn seal_alone(key: &Portable, record: &mut Record<'_>) {
    seal(key, record);
    wipe_stack::<FRAME>();
}

/// A portable key in a batch of a hardware backend.
#[cold]
pub(super) fn open_alone(key: &Portable, record: &mut Record<'_>) -> Verdict {
    let verdict = open(key, record);
    wipe_stack::<FRAME>();
    verdict
}

/// A hardware key under a portable token: the key could only be made where AES-NI is present.
#[cold]
fn seal_foreign(state: &State, record: &mut Record<'_>) {
    match state {
        #[cfg(target_arch = "x86_64")]
        State::Hardware(_) => hardware().seal_batch(core::slice::from_mut(record)),
        State::Portable(key) => seal(key, record),
        State::Vacant => vacant(),
    }
}

#[cold]
fn open_foreign(state: &State, record: &mut Record<'_>) -> Verdict {
    match state {
        #[cfg(target_arch = "x86_64")]
        State::Hardware(_) => {
            let mut verdict = Verdict::Rejected;
            hardware()
                .open_batch(core::slice::from_mut(record), core::slice::from_mut(&mut verdict));
            verdict
        }
        State::Portable(key) => open(key, record),
        State::Vacant => vacant(),
    }
}

#[cfg(target_arch = "x86_64")]
fn hardware() -> AesNi {
    AesNi::detect().expect("a hardware key was made by a hardware backend")
}

#[cold]
pub(super) fn vacant() -> ! {
    panic!("record with a vacant key");
}
