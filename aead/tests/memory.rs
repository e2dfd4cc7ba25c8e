//! After a key is dropped, nothing of it is left in the process's memory.
//!
//! Everything readable is searched, stacks included: for the key, for each of its round keys, and
//! for the powers of H that expansion derives.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::{self, File},
    hint::black_box,
    os::unix::fs::FileExt,
};

use common::backends;
use duet_aead::{Backend, Gcm, Key};

/// The key of FIPS 197 appendix A.1 and its round keys, each byte exclusive-or'ed with [`VEIL`],
/// so that the patterns searched for are not themselves found.
const VEIL: u8 = 0xa5;
const VEILED: [[u8; 16]; 11] = veil([
    0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c,
    0xa0fa_fe17_8854_2cb1_23a3_3939_2a6c_7605,
    0xf2c2_95f2_7a96_b943_5935_807a_7359_f67f,
    0x3d80_477d_4716_fe3e_1e23_7e44_6d7a_883b,
    0xef44_a541_a852_5b7f_b671_253b_db0b_ad00,
    0xd4d1_c6f8_7c83_9d87_caf2_b8bc_11f9_15bc,
    0x6d88_a37a_110b_3efd_dbf9_8641_ca00_93fd,
    0x4e54_f70e_5f5f_c9f3_84a6_4fb2_4ea6_dc4f,
    0xead2_7321_b58d_bad2_312b_f560_7f8d_292f,
    0xac77_66f3_19fa_dc21_28d1_2941_575c_006e,
    0xd014_f9a8_c9ee_2589_e13f_0cc8_b663_0ca6,
]);

/// Where H is among the patterns. No backend keeps it.
const H: usize = 11;
/// H (the zero block encrypted), then H¹ to H⁸ in POLYVAL form as the hardware backends hold them.
const VEILED_H: [[u8; 16]; 9] = {
    let h = 0x7df7_6b0c_1ab8_99b3_3e42_f047_b91b_546f_u128;
    // Reversed bytes read as a little-endian number are the bytes read as a big-endian one.
    let mut words = [h; 9];
    words[1] = times_x(h);
    let mut power = 2;
    while power < 9 {
        words[power] = dot(words[power - 1], words[1]);
        power += 1;
    }
    power = 1;
    while power < 9 {
        words[power] = words[power].swap_bytes();
        power += 1;
    }
    veil(words)
};

const fn times_x(a: u128) -> u128 {
    (a << 1) ^ ((a >> 127) * 0xc200_0000_0000_0000_0000_0000_0000_0001)
}

/// a·b·x⁻¹²⁸, a bit at a time.
const fn dot(a: u128, b: u128) -> u128 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 128 {
        product ^= (b >> bit & 1) * a;
        // Times x⁻¹: an odd polynomial becomes even by adding the field's own.
        let odd = product & 1;
        product = (product >> 1) ^ (odd * 0xe100_0000_0000_0000_0000_0000_0000_0000);
        bit += 1;
    }
    product
}

const fn veil<const N: usize>(words: [u128; N]) -> [[u8; 16]; N] {
    let mut veiled = [[0; 16]; N];
    let mut i = 0;
    while i < N {
        veiled[i] = (words[i] ^ u128::from_be_bytes([VEIL; 16])).to_be_bytes();
        i += 1;
    }
    veiled
}

/// One test, because a second one's living keys would be found.
#[test]
fn a_dropped_key_leaves_nothing() {
    let mut patterns = VEILED.to_vec();
    patterns.extend(VEILED_H);
    let mut clean = true;
    for gcm in backends() {
        use_and_drop(gcm);
        let found = search(&patterns);
        eprintln!("{}: {found:x?}", gcm.backend());
        clean &= found.is_empty();
    }
    assert!(clean, "parts of a key were left");

    // The search does find a key that is alive, or it would prove nothing. (How `aes-gcm` keeps
    // its keys is its own affair, and depends on the CPU.)
    for gcm in backends().into_iter().filter(|gcm| gcm.backend() != Backend::Portable) {
        let key = with_key(|bytes| Key::boxed(gcm, bytes));
        let found: Vec<usize> = search(&patterns).into_iter().map(|(pattern, _)| pattern).collect();
        let all = (0..patterns.len()).filter(|&pattern| pattern != H);
        assert!(all.clone().all(|pattern| found.contains(&pattern)), "{found:?}");
        drop(key);
    }
}

#[inline(never)]
fn use_and_drop(gcm: Gcm) {
    let mut in_place = Key::vacant();
    let boxed = with_key(|bytes| {
        in_place.init(gcm, bytes);
        Key::boxed(gcm, bytes)
    });
    let mut batch: Vec<Key> = (0..5).map(|_| Key::vacant()).collect();
    with_key(|bytes| gcm.expand_batch(&[bytes; 5], &mut batch));
    for len in [0, 10, 64, 100, 250, 1000] {
        for key in [&in_place, &boxed].into_iter().chain(&batch) {
            let mut payload = vec![0; len];
            let tag = gcm.seal(key, &[1; 12], b"header", &mut payload);
            assert!(gcm.open(key, &[1; 12], b"header", &mut payload, &tag).is_authentic());
        }
    }
}

/// Lends out the key, unveiled where it lies and veiled again afterwards.
fn with_key<T>(f: impl FnOnce(&[u8; 16]) -> T) -> T {
    let mut bytes = black_box(Box::new(VEILED[0]));
    bytes.iter_mut().for_each(|byte| *byte ^= VEIL);
    let result = f(&bytes);
    bytes.iter_mut().for_each(|byte| *byte ^= VEIL);
    black_box(&bytes);
    result
}

/// Which patterns lie where in readable memory, apart from the buffer that reads it.
fn search(veiled: &[[u8; 16]]) -> Vec<(usize, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut chunk = vec![0_u8; 1 << 20];
    let own = chunk.as_ptr() as u64..chunk.as_ptr() as u64 + chunk.len() as u64;
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with('r')) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let mut at = u64::from_str_radix(from, 16).unwrap();
        let end = u64::from_str_radix(to, 16).unwrap();
        while at < end {
            let len = chunk.len().min(usize::try_from(end - at).unwrap());
            let Ok(len) = memory.read_at(&mut chunk[..len], at) else { break };
            if len < 16 {
                break;
            }
            for (offset, window) in chunk[..len].windows(16).enumerate() {
                let here = at + offset as u64;
                let matches = |pattern: &[u8; 16]| {
                    window.iter().zip(pattern).all(|(&byte, &veiled)| byte ^ VEIL == veiled)
                };
                if let Some(pattern) =
                    veiled.iter().position(matches).filter(|_| !own.contains(&here))
                {
                    found.push((pattern, here));
                }
            }
            // Chunks overlap, or a pattern across their border would be missed.
            at += if at + len as u64 == end { len as u64 } else { len as u64 - 15 };
        }
    }
    // What was read is a copy too.
    chunk.fill(0);
    black_box(&chunk);
    found
}
