//! HPKE base mode (RFC 9180) for the one suite: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256,
//! AES-128-GCM. The Diffie-Hellman itself is done elsewhere; this is everything after it.

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    aead,
    ec::SharedX,
    identity::PublicKey,
    schedule::{self, Hkdf, Secret},
};

const KEM_SUITE: &[u8] = b"KEM\x00\x10";
const HPKE_SUITE: &[u8] = b"HPKE\x00\x10\x00\x01\x00\x01";
/// LabeledExtract("", "psk_id_hash", ""): mode base has no PSK, so it is always this.
const PSK_ID_HASH: [u8; 32] = [
    0xb8, 0x8d, 0x4e, 0x6d, 0x91, 0x75, 0x9e, 0x65, 0xe8, 0x7c, 0x47, 0x0e, 0x8b, 0x91, 0x41, 0x11,
    0x3e, 0x9a, 0xd5, 0xf0, 0xc8, 0xce, 0xef, 0xc1, 0xe0, 0x88, 0xc8, 0x2e, 0x69, 0x80, 0x50, 0x07,
];

/// The key schedule's result: seals or opens exactly one message (sequence number 0), and exports.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Context {
    key: [u8; 16],
    base_nonce: [u8; 12],
    exporter: [u8; 32],
}

/// LabeledExtract (RFC 9180 §4): HMAC with the salt as its key.
fn labeled_extract(suite: &[u8], salt: &[u8], label: &[u8], ikm: &[&[u8]]) -> Secret {
    let mut parts: [&[u8]; 7] = [&[]; 7];
    parts[..3].copy_from_slice(&[b"HPKE-v1", suite, label]);
    parts[3..3 + ikm.len()].copy_from_slice(ikm);
    Secret(schedule::mac(salt, &parts))
}

fn labeled_expand(prk: &Hkdf, suite: &[u8], label: &[u8], info: &[&[u8]], out: &mut [u8]) {
    let Ok(len) = u16::try_from(out.len()) else { unreachable!("labels expand to constants") };
    let mut parts: [&[u8]; 8] = [&[]; 8];
    let length = len.to_be_bytes();
    parts[..4].copy_from_slice(&[&length, b"HPKE-v1", suite, label]);
    parts[4..4 + info.len()].copy_from_slice(info);
    crate::schedule::expand_parts(prk, &parts, out);
}

impl Context {
    /// `SetupBase` after the Diffie-Hellman (RFC 9180 §4.1, §5.1.1): `enc` is the encapsulated key,
    /// `recipient` the receiver's public key, `info` the concatenation of its parts.
    #[must_use]
    pub fn new(dh: &SharedX, enc: &PublicKey, recipient: &PublicKey, info: &[&[u8]]) -> Self {
        let prk = labeled_extract(KEM_SUITE, &[], b"eae_prk", &[&dh.0]).prk();
        let mut shared = Zeroizing::new([0; 32]);
        labeled_expand(
            &prk,
            KEM_SUITE,
            b"shared_secret",
            &[&enc.0, &recipient.0],
            shared.as_mut_slice(),
        );

        let info_hash = labeled_extract(HPKE_SUITE, &[], b"info_hash", info);
        let context: [&[u8]; 3] = [&[0], &PSK_ID_HASH, &info_hash.0];
        let secret = labeled_extract(HPKE_SUITE, shared.as_slice(), b"secret", &[]).prk();
        let mut this = Self { key: [0; 16], base_nonce: [0; 12], exporter: [0; 32] };
        labeled_expand(&secret, HPKE_SUITE, b"key", &context, &mut this.key);
        labeled_expand(&secret, HPKE_SUITE, b"base_nonce", &context, &mut this.base_nonce);
        labeled_expand(&secret, HPKE_SUITE, b"exp", &context, &mut this.exporter);
        this
    }

    #[cfg(feature = "hazmat")]
    pub(crate) const fn parts(&self) -> (&[u8; 16], &[u8; 12], &[u8; 32]) {
        (&self.key, &self.base_nonce, &self.exporter)
    }

    /// Seals `buffer` in place: the context's only message.
    #[must_use]
    pub fn seal(&self, aad: &[u8], buffer: &mut [u8]) -> [u8; 16] {
        aead::seal(&self.key, &self.base_nonce, aad, buffer)
    }

    /// Opens `buffer` in place; `false` (and the ciphertext left as it was) when it is not authentic.
    #[must_use]
    pub fn open(&self, aad: &[u8], buffer: &mut [u8], tag: &[u8; 16]) -> bool {
        aead::open(&self.key, &self.base_nonce, aad, buffer, tag)
    }

    /// `Context.Export` (RFC 9180 §5.3).
    pub fn export(&self, exporter_context: &[u8], out: &mut [u8]) {
        let Ok(prk) = Hkdf::from_prk(&self.exporter) else { unreachable!("32 bytes are a PRK") };
        labeled_expand(&prk, HPKE_SUITE, b"sec", &[exporter_context], out);
    }
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;
    use crate::ec::{self, SecretScalar};

    #[test]
    fn the_constant_is_the_hash() {
        assert_eq!(labeled_extract(HPKE_SUITE, &[], b"psk_id_hash", &[]).0, PSK_ID_HASH);
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    /// RFC 9180, appendix A.3.1 (mode base).
    #[test]
    fn rfc_9180_a_3_1() {
        let recipient = SecretScalar::from_bytes(
            &hex("f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2")
                .try_into()
                .unwrap(),
        )
        .unwrap();
        let enc = PublicKey::from_sec1(&hex("04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac98536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4")).unwrap();
        let public = PublicKey::from_sec1(&hex("04fe8c19ce0905191ebc298a9245792531f26f0cece2460639e8bc39cb7f706a826a779b4cf969b8a0e539c7f62fb3d30ad6aa8f80e30f1d128aafd68a2ce72ea0")).unwrap();
        assert_eq!(recipient.public_key(), public);
        let sender = SecretScalar::from_bytes(
            &hex("4995788ef4b9d6132b249ce59a77281493eb39af373d236a1fe415cb0c2d7beb")
                .try_into()
                .unwrap(),
        )
        .unwrap();
        assert_eq!(sender.public_key(), enc);
        let task = ec::EncapsulateTask { scalar: sender, peer: public };
        let dh = ec::encapsulate(&task).unwrap().shared;
        let info = hex("4f6465206f6e2061204772656369616e2055726e");
        let context = Context::new(&dh, &enc, &public, &[&info[..7], &info[7..]]);
        assert_eq!(context.key.to_vec(), hex("868c066ef58aae6dc589b6cfdd18f97e"));
        assert_eq!(context.base_nonce.to_vec(), hex("4e0bc5018beba4bf004cca59"));
        assert_eq!(
            context.exporter.to_vec(),
            hex("14ad94af484a7ad3ef40e9f3be99ecc6fa9036df9d4920548424df127ee0d99f")
        );
        let mut text = hex("4265617574792069732074727574682c20747275746820626561757479");
        let plain = text.clone();
        let tag = context.seal(&hex("436f756e742d30"), &mut text);
        let sealed = [text.clone(), tag.to_vec()].concat();
        assert_eq!(
            sealed,
            hex(
                "5ad590bb8baa577f8619db35a36311226a896e7342a6d836d8b7bcd2f20b6c7f9076ac232e3ab2523f39513434"
            )
        );
        assert!(!context.open(b"other", &mut text, &tag));
        assert!(context.open(&hex("436f756e742d30"), &mut text, &tag));
        assert_eq!(text, plain);
        for (exporter_context, exported) in [
            ("", "5e9bc3d236e1911d95e65b576a8a86d478fb827e8bdfe77b741b289890490d4d"),
            ("00", "6cff87658931bda83dc857e6353efe4987a201b849658d9b047aab4cf216e796"),
            (
                "54657374436f6e74657874",
                "d8f1ea7942adbba7412c6d431c62d01371ea476b823eb697e1f6e6cae1dab85a",
            ),
        ] {
            let mut out = vec![0; 32];
            context.export(&hex(exporter_context), &mut out);
            assert_eq!(out, hex(exported));
        }
    }
}
