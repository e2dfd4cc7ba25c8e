//! Operations stay within the slices they were given: buffers lie against pages that may not be
//! touched, once at their front and once at their back.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "pages with chosen protection")]

mod common;

use common::{Case, Random, backends, expand};
use duet_aead::{Record, Verdict};

const PAGE: usize = 4096;

/// One page between two that fault.
struct Guarded(*mut u8);

impl Guarded {
    fn new() -> Self {
        // SAFETY: a fresh anonymous mapping; protecting its middle page affects nothing else.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let at = libc::mmap(std::ptr::null_mut(), 3 * PAGE, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            let page = at.cast::<u8>().add(PAGE);
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(page.cast(), PAGE, rights), 0);
            Self(page)
        }
    }

    /// `len` bytes at the page's front or back.
    fn slice(&mut self, len: usize, back: bool) -> &mut [u8] {
        assert!(len <= PAGE);
        let offset = if back { PAGE - len } else { 0 };
        // SAFETY: within the page, which is ours, readable, writable and zeroed by the kernel.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.0.sub(PAGE).cast(), 3 * PAGE) };
    }
}

#[test]
fn nothing_outside_the_slices_is_touched() {
    let mut random = Random(1);
    let (mut payloads, mut aads, mut tags) = (Guarded::new(), Guarded::new(), Guarded::new());
    for gcm in backends() {
        for back in [false, true] {
            for (len, aad_len) in (0..=300).flat_map(|len| [(len, len % 17), (len, len % 41)]) {
                let plain = Case::random(&mut random, len, aad_len);
                let sealed = plain.sealed();
                let keys = expand(gcm, std::slice::from_ref(&plain));
                let payload = payloads.slice(len, back);
                let aad = aads.slice(aad_len, back);
                let tag: &mut [u8; 16] = tags.slice(16, back).try_into().unwrap();
                payload.copy_from_slice(&plain.payload);
                aad.copy_from_slice(&plain.aad);

                let mut record = [Record { key: &keys[0], nonce: plain.nonce, aad, payload, tag }];
                gcm.seal_batch(&mut record);
                assert_eq!(record[0].payload, sealed.payload);
                assert_eq!(*record[0].tag, sealed.tag);
                let mut verdict = [Verdict::Rejected];
                gcm.open_batch(&mut record, &mut verdict);
                assert_eq!(verdict, [Verdict::Authentic]);
                assert_eq!(record[0].payload, plain.payload);
            }
        }
    }
}

/// Neighbouring bytes keep their values, which a faulting page cannot show for stores that read
/// and write back.
#[test]
fn neighbours_keep_their_values() {
    let mut random = Random(2);
    for gcm in backends() {
        for len in 0..=300 {
            let plain = Case::random(&mut random, len, 9);
            let keys = expand(gcm, std::slice::from_ref(&plain));
            let mut buffer = vec![0xc3; len + 128];
            buffer[64..64 + len].copy_from_slice(&plain.payload);
            let tag = gcm.seal(&keys[0], &plain.nonce, &plain.aad, &mut buffer[64..64 + len]);
            let verdict =
                gcm.open(&keys[0], &plain.nonce, &plain.aad, &mut buffer[64..64 + len], &tag);
            assert!(verdict.is_authentic());
            let outside = buffer[..64].iter().chain(&buffer[64 + len..]);
            assert!(outside.into_iter().all(|&byte| byte == 0xc3), "{len} B");
        }
    }
}
