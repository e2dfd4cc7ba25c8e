//! Every AEAD backend against `aes-gcm`: the same ciphertexts, tags and verdicts, by a key expanded alone and by
//! each of a batch.
#![no_main]

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes128Gcm, KeyInit as _};
use duet_aead::{Backend, Gcm, Key};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, rest)) = bytes.split_first_chunk::<29>() else { return };
    let key_bytes: [u8; 16] = head[..16].try_into().expect("16 bytes");
    let nonce: [u8; 12] = head[16..28].try_into().expect("12 bytes");
    let (aad, text) = rest.split_at(usize::from(head[28] % 41).min(rest.len()));
    let cipher = Aes128Gcm::new(&key_bytes.into());
    let mut expected = text.to_vec();
    let tag: [u8; 16] = cipher
        .encrypt_inout_detached(&nonce.into(), aad, expected.as_mut_slice().into())
        .expect("short enough")
        .into();
    for gcm in Backend::ALL.iter().filter_map(|backend| Gcm::with(*backend)) {
        let key = Key::boxed(gcm, &key_bytes);
        let mut buffer = text.to_vec();
        assert_eq!(gcm.seal(&key, &nonce, aad, &mut buffer), tag);
        assert_eq!(buffer, expected);
        assert!(gcm.open(&key, &nonce, aad, &mut buffer, &tag).is_authentic());
        assert_eq!(buffer, text);
        // Batches of every size around the four that are expanded together, the same key at every place but one.
        let count = 1 + usize::from(head[28] % 9);
        let other = key_bytes.map(|byte| byte ^ 0x5a);
        let mut batch = vec![&key_bytes; count];
        batch[usize::from(head[28] / 9) % count] = &other;
        let mut keys: Vec<_> = (0..count).map(|_| Key::vacant()).collect();
        gcm.expand_batch(&batch, &mut keys);
        for (bytes, key) in batch.iter().zip(&keys) {
            let mut buffer = expected.clone();
            let verdict = gcm.open(key, &nonce, aad, &mut buffer, &tag);
            assert_eq!(verdict.is_authentic(), **bytes == key_bytes);
        }
        let mut buffer = expected.clone();
        if let Some(first) = buffer.first_mut() {
            *first ^= 1;
            assert!(!gcm.open(&key, &nonce, aad, &mut buffer, &tag).is_authentic());
        }
    }
});
