//! Batched verification against `p256`: the same verdict for every item of every batch.
#![no_main]

use std::sync::LazyLock;

use duet_curve::{Backend, Engine, Key, PublicKey, Teeth, VerifyItem};
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};

static ENGINES: LazyLock<[Engine; 2]> = LazyLock::new(|| {
    [Engine::new(Backend::detect(), &[7; 32]), Engine::new(Backend::portable(), &[9; 32])]
});

fuzz_target!(|bytes: &[u8]| {
    // Key seed, digest, signature: 1 + 32 + 64 bytes an item.
    let items: Vec<_> = bytes
        .as_chunks::<97>()
        .0
        .iter()
        .take(20)
        .map(|item| {
            // All but 0 and 255 repeated are below the order.
            let key = SigningKey::from_slice(&[item[0].clamp(1, 254); 32]).expect("in range");
            let digest: [u8; 32] = item[1..33].try_into().expect("32 bytes");
            let signature: [u8; 64] = item[33..].try_into().expect("64 bytes");
            (*key.verifying_key(), digest, signature)
        })
        .collect();
    let expected: Vec<_> = items
        .iter()
        .map(|(key, digest, signature): &(VerifyingKey, _, _)| {
            Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_prehash(digest, &signature).is_ok())
        })
        .collect();
    let keys: Vec<_> = items.iter().map(|(key, ..)| PublicKey::from(key)).collect();
    let teeth = Teeth::of(Backend::detect(), &keys);
    let batch: Vec<_> = (items.iter().zip(&keys).zip(&teeth))
        .map(|(((_, digest, signature), key), teeth)| {
            let key = if digest[0] & 1 == 0 { Key::Plain(key) } else { Key::Teeth(key, teeth) };
            VerifyItem { key, digest, signature }
        })
        .collect();
    for engine in ENGINES.iter() {
        let mut verdicts = Vec::new();
        engine.verify(&batch, &mut verdicts);
        let verdicts: Vec<_> = verdicts.into_iter().map(|verdict| verdict.is_valid()).collect();
        assert_eq!(verdicts, expected);
    }
});
