//! One verdict a record, whatever its neighbours are; and tokens and keys in any combination.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Case, Random, backends, expand, open, seal};
use duet_aead::{Gcm, Verdict};

/// A forged record in each position of batches of each size: only it is rejected, and its buffer
/// stays as it was, whichever byte was changed.
#[test]
fn one_forgery_in_each_position() {
    let mut random = Random(1);
    for gcm in backends() {
        for len in [0, 5, 64, 100, 200, 256, 300] {
            for size in [1, 2, 3, 8, 17] {
                let plain: Vec<Case> =
                    (0..size).map(|_| Case::random(&mut random, len, 8)).collect();
                let sealed: Vec<Case> = plain.iter().map(Case::sealed).collect();
                let keys = expand(gcm, &plain);
                for bad in 0..size {
                    let mut received = sealed.clone();
                    received[bad].damage(&mut random);
                    let mut opened = received.clone();
                    let verdicts = open(gcm, &keys, &mut opened);
                    for i in 0..size {
                        assert_eq!(verdicts[i], i != bad);
                        let expected = if i == bad { &received[i] } else { &plain[i] };
                        assert_eq!(opened[i].payload, expected.payload);
                    }
                }
            }
        }
    }
}

/// Any single changed bit of tag, payload, nonce or associated data is found.
#[test]
fn every_bit_counts() {
    let mut random = Random(2);
    for gcm in backends() {
        for len in [3, 64, 130, 260] {
            let sealed = Case::random(&mut random, len, 11).sealed();
            let keys = expand(gcm, std::slice::from_ref(&sealed));
            let rejects = |change: &dyn Fn(&mut Case)| {
                let mut received = sealed.clone();
                change(&mut received);
                let before = received.clone();
                assert_eq!(open(gcm, &keys, std::slice::from_mut(&mut received)), [false]);
                assert_eq!(received, before);
            };
            for bit in 0..8 {
                (0..16).for_each(|i| rejects(&|c| c.tag[i] ^= 1 << bit));
                (0..12).for_each(|i| rejects(&|c| c.nonce[i] ^= 1 << bit));
                (0..11).for_each(|i| rejects(&|c| c.aad[i] ^= 1 << bit));
                (0..len).for_each(|i| rejects(&|c| c.payload[i] ^= 1 << bit));
            }
            // Lengths count too: GHASH pads, so only the length block tells these apart.
            rejects(&|c| c.aad.push(0));
            rejects(&|c| c.payload.push(0));
        }
    }
}

#[test]
fn singles_agree_with_batches() {
    let mut random = Random(3);
    for gcm in backends() {
        let plain = Case::random(&mut random, 64, 13);
        let sealed = plain.sealed();
        let keys = expand(gcm, std::slice::from_ref(&plain));
        let mut payload = plain.payload.clone();
        let tag = gcm.seal(&keys[0], &plain.nonce, &plain.aad, &mut payload);
        assert_eq!((&payload, tag), (&sealed.payload, sealed.tag));
        let forged = [1; 16];
        let verdict = gcm.open(&keys[0], &plain.nonce, &plain.aad, &mut payload, &forged);
        assert_eq!((verdict, &payload), (Verdict::Rejected, &sealed.payload));
        let verdict = gcm.open(&keys[0], &plain.nonce, &plain.aad, &mut payload, &tag);
        assert_eq!((verdict, &payload), (Verdict::Authentic, &plain.payload));
    }
}

#[test]
fn an_empty_batch_is_nothing() {
    for gcm in backends() {
        gcm.seal_batch(&mut []);
        gcm.open_batch(&mut [], &mut []);
    }
}

/// A key works with a token it was not made with.
#[test]
fn keys_and_tokens_mix() {
    let mut random = Random(4);
    let plain: Vec<Case> = (0..9).map(|i| Case::random(&mut random, 40 * i, 10)).collect();
    let sealed: Vec<Case> = plain.iter().map(Case::sealed).collect();
    for maker in backends() {
        let keys = expand(maker, &plain);
        for user in backends() {
            let mut cases = plain.clone();
            seal(user, &keys, &mut cases);
            assert_eq!(cases, sealed);
            assert!(open(user, &keys, &mut cases).iter().all(|&authentic| authentic));
        }
    }
}

#[test]
#[should_panic(expected = "one verdict a record")]
fn verdicts_must_match_records() {
    Gcm::best().open_batch(&mut [], &mut [Verdict::Rejected]);
}
