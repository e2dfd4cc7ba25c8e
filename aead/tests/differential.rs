//! Every backend against `aes-gcm`, a million records.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Case, Random, backends, expand, open, seal};

/// Seals with each backend and compares; damages one record of the batch; opens and compares.
fn check(random: &mut Random, plain: &[Case]) {
    let sealed: Vec<Case> = plain.iter().map(Case::sealed).collect();
    let bad = random.below(plain.len());
    let mut received = sealed.clone();
    received[bad].damage(random);

    for gcm in backends() {
        let backend = gcm.backend();
        let keys = expand(gcm, plain);

        let mut ours = plain.to_vec();
        seal(gcm, &keys, &mut ours);
        assert_eq!(ours, sealed, "{backend} seals differently");

        let mut ours = received.clone();
        let verdicts = open(gcm, &keys, &mut ours);
        for (i, opened) in ours.iter().enumerate() {
            let len = opened.payload.len();
            assert_eq!(verdicts[i], i != bad, "{backend}: verdict on {i}, {len} B");
            if i == bad {
                assert_eq!(opened, &received[i], "{backend} touched a rejected record, {len} B");
            } else {
                assert_eq!(opened.payload, plain[i].payload, "{backend} opens differently");
                assert_eq!(opened.tag, sealed[i].tag, "{backend} touched a tag");
            }
        }
    }
}

/// Every payload length with every length of associated data.
#[test]
fn all_lengths() {
    let mut random = Random(1);
    for len in 0..=300 {
        let plain: Vec<Case> = (0..=40).map(|aad| Case::random(&mut random, len, aad)).collect();
        check(&mut random, &plain);
    }
}

/// Batches of any size, lengths mixed, as they would arrive.
#[test]
fn a_million_records() {
    let mut random = Random(2);
    let mut done = 0;
    while done < 1_000_000 {
        let batch = 1 + random.below(64);
        // Half the batches hold one length, so that each length meets itself as a neighbour.
        let common_len = (random.below(2) == 0).then(|| random.below(301));
        let plain: Vec<Case> = (0..batch)
            .map(|_| {
                let len = common_len.unwrap_or_else(|| random.below(301));
                let aad = random.below(41);
                Case::random(&mut random, len, aad)
            })
            .collect();
        check(&mut random, &plain);
        done += batch;
    }
}

/// Keys, nonces and contents made of zeros and ones: carries and masks at their extremes.
#[test]
fn extreme_values() {
    let mut random = Random(3);
    for pattern in 0..16_u8 {
        let fill = |bit: u8| if pattern >> bit & 1 == 1 { 0xff } else { 0 };
        for len in [0, 1, 15, 16, 17, 63, 64, 65, 96, 97, 112, 128, 192, 193, 255, 256, 257] {
            let plain: Vec<Case> = [0, 1, 8, 13, 16, 17, 40]
                .map(|aad| Case {
                    key: [fill(0); 16],
                    nonce: [fill(1); 12],
                    aad: vec![fill(2); aad],
                    payload: vec![fill(3); len],
                    tag: [0; 16],
                })
                .to_vec();
            check(&mut random, &plain);
        }
    }
}

/// Far beyond the fast paths.
#[test]
fn long_records() {
    let mut random = Random(4);
    for len in [1000, 1024, 1500, 4096, 65_535, 1 << 20] {
        let plain: Vec<Case> =
            [0, 13, 128, 5000].iter().map(|&aad| Case::random(&mut random, len, aad)).collect();
        check(&mut random, &plain);
    }
}
