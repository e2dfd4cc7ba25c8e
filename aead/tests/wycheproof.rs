//! Project Wycheproof's AES-GCM vectors in every backend, at every position of a batch.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Case, Random, backends, expand, open, seal};
use wycheproof::{
    TestResult,
    aead::{TestName, TestSet},
};

/// Wider than any number of records that a backend treats together.
const BATCH: usize = 9;

#[test]
fn aes_gcm() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let backends = backends();
    let (mut run, mut beyond) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            // Other keys, nonces and tags than ours cannot even be passed in.
            if group.key_size != 128 || test.nonce.len() != 12 || group.tag_size != 128 {
                beyond += 1;
                continue;
            }
            let case = Case {
                key: test.key[..].try_into().unwrap(),
                nonce: test.nonce[..].try_into().unwrap(),
                aad: test.aad.to_vec(),
                payload: test.ct.to_vec(),
                tag: test.tag[..].try_into().unwrap(),
            };
            let valid = match test.result {
                TestResult::Valid => true,
                TestResult::Invalid => false,
                TestResult::Acceptable => panic!("AES-GCM has no matter of taste"),
            };
            let plain = Case { payload: test.pt.to_vec(), tag: [0; 16], ..case.clone() };
            for &gcm in &backends {
                for position in 0..BATCH {
                    check(gcm, &case, &plain, valid, position, test.tc_id);
                }
            }
            run += 1;
        }
    }
    eprintln!("{run} vectors in {} backends; {beyond} with sizes not offered", backends.len());
    assert!(run >= 60, "vectors went missing");
}

fn check(
    gcm: duet_aead::Gcm,
    case: &Case,
    plain: &Case,
    valid: bool,
    position: usize,
    test: usize,
) {
    let mut random = Random(test as u64);
    let len = case.payload.len();
    let neighbours: Vec<Case> = (0..BATCH).map(|_| Case::random(&mut random, len, 8)).collect();
    let mut batch: Vec<Case> = neighbours.iter().map(Case::sealed).collect();
    batch[position] = case.clone();
    let keys = expand(gcm, &batch);
    let verdicts = open(gcm, &keys, &mut batch);
    for i in 0..BATCH {
        let right = i != position || valid;
        assert_eq!(verdicts[i], right, "test {test}, position {position}, {}", gcm.backend());
        let expected = match (i == position, valid) {
            (false, _) => &neighbours[i].payload,
            (true, true) => &plain.payload,
            (true, false) => &case.payload,
        };
        assert_eq!(&batch[i].payload, expected, "test {test}, position {position}");
    }

    if valid {
        let mut batch = neighbours.clone();
        batch[position] = plain.clone();
        seal(gcm, &keys, &mut batch);
        assert_eq!(&batch[position], case, "test {test}, position {position}");
        assert!((0..BATCH).all(|i| i == position || batch[i] == neighbours[i].sealed()));
    }
}
