//! HELLO's sealing against an independent HPKE: the `hpke` crate opens what a device sealed, and
//! exports what the key schedule starts from.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod steps;

use duet_protocol::{
    ec::{self, SecretScalar},
    hpke::Context,
    identity::{Credential, DeviceId, Fingerprint, Gateway, RegistrationKey},
    profile::{Offer, Profile, Transport},
};
use hpke::{
    Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _, aead::AesGcm128,
    kdf::HkdfSha256, kem::DhP256HkdfSha256 as Kem,
};
use steps::{Device, Recipe};

fn gateway() -> (SecretScalar, Gateway) {
    let secret = SecretScalar::from_bytes(&[0x51; 32]).unwrap();
    let fingerprint = Fingerprint::of_certificate(b"gateway certificate");
    let gateway = Gateway { key_id: 3, fingerprint, key: secret.public_key() };
    (secret, gateway)
}

fn receiver(
    secret: &SecretScalar,
    enc: &[u8; 65],
    info: &[u8],
) -> hpke::aead::AeadCtxR<AesGcm128, HkdfSha256, Kem> {
    let secret = <Kem as hpke::Kem>::PrivateKey::from_bytes(secret.expose()).unwrap();
    let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(enc).unwrap();
    hpke::setup_receiver(&OpModeR::Base, &secret, &enc, info).unwrap()
}

#[test]
fn another_hpke_opens_every_hello() {
    let (secret, gateway) = gateway();
    assert_eq!(
        Kem::sk_to_pk(&<Kem as hpke::Kem>::PrivateKey::from_bytes(secret.expose()).unwrap())
            .to_bytes()[..],
        gateway.key.0
    );
    for (number, profile) in (0..).zip(Profile::ALL) {
        for challenge in [None, Some([0xcc; 16])] {
            let id = DeviceId([number; 8]);
            let mut credential = if profile.mode.has_certificate() {
                let key = SecretScalar::from_bytes(&[0x22; 32]).unwrap().public_key();
                Credential::registered_certificate(id, &[number], key)
            } else {
                Credential::registered_id(id, RegistrationKey([0x22; 32]))
            };
            credential.mode = profile.mode;
            let device = Device { credential, d: [0x22; 32] };
            let made = steps::hello(
                &gateway,
                &device,
                &Recipe {
                    offer: Offer::new(profile, Transport::Stream),
                    fresh: 42,
                    challenge,
                    random: [number; 32],
                    secret: [2; 16],
                    reading: None,
                    extra: [3; 32],
                },
            );
            let hello = &made.message[..];

            let (header, sealed) = (&hello[..4], &hello[36..]);
            let info = [b"duet1 hello", header, &gateway.fingerprint.0].concat();
            let mut context = receiver(&secret, &made.enc.0, &info);
            assert!(context.open(sealed, b"other").is_err());
            // A refused message does not advance the context.
            let text = context.open(sealed, header).unwrap();
            assert_eq!(text[..8], id.0);
            assert_eq!(text[8..16], 42u64.to_be_bytes());
            if let Some(challenge) = challenge {
                assert_eq!(text[16..32], challenge);
            }

            let mut theirs = [0; 32];
            context.export(b"duet1 export", &mut theirs).unwrap();
            assert_eq!(made.ex, theirs);
        }
    }
}

#[test]
fn we_open_what_another_hpke_sealed() {
    let (secret, gateway) = gateway();
    let public = <Kem as hpke::Kem>::PublicKey::from_bytes(&gateway.key.0).unwrap();
    let info = b"duet1 hello";
    let (mut even, mut odd) = (0, 0);
    while even < 4 || odd == 0 {
        let (enc, mut context) =
            hpke::setup_sender::<AesGcm128, HkdfSha256, Kem>(&OpModeS::Base, &public, info)
                .unwrap();
        let sealed = context.seal(b"text", b"header").unwrap();
        let enc: [u8; 65] = enc.to_bytes().as_slice().try_into().unwrap();
        let agreed = ec::agree(&secret, enc[1..33].try_into().unwrap()).unwrap();
        let ours = Context::new(&agreed.shared, &agreed.point, &gateway.key, &[info]);
        let (text, tag) = sealed.split_last_chunk().unwrap();
        let mut text = text.to_vec();
        // An x-coordinate stands for the point with even y, and for no other (R18).
        if enc[64] & 1 == 1 {
            assert!(!ours.open(b"header", &mut text, tag));
            odd += 1;
        } else {
            assert_eq!(agreed.point.0, enc);
            assert!(ours.open(b"header", &mut text, tag));
            assert_eq!(text, b"text");
            even += 1;
        }
    }
}
