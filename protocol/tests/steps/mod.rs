//! A device's half of the handshake from the single steps of the key schedule, as the specification
//! writes them down: a second way to the same bytes, with every value in between at hand.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use duet_protocol::{
    aead,
    ec::{self, EncapsulateTask, SecretScalar},
    hazmat,
    hpke::Context,
    identity::{Credential, DeviceId, Gateway, Proof, PublicKey, RegistrationKey},
    profile::{KeySource, Offer, Transfer},
    schedule::{self, Secret, SessionKeys},
};
use sha2::{Digest as _, Sha256};

/// A device: its credential as the gateway has it, and its own secret.
pub(crate) struct Device {
    pub(crate) credential: Credential,
    pub(crate) d: [u8; 32],
}

impl Device {
    pub(crate) fn id(&self) -> DeviceId {
        self.credential.id
    }

    pub(crate) fn public(&self) -> Option<PublicKey> {
        match &self.credential.proof {
            Proof::Signature(key) => Some(*key),
            Proof::Binder(_) => None,
        }
    }

    fn registration(&self) -> Option<RegistrationKey> {
        match &self.credential.proof {
            Proof::Signature(_) => None,
            Proof::Binder(key) => Some(key.clone()),
        }
    }

    fn private(&self) -> SecretScalar {
        SecretScalar::from_bytes(&self.d).unwrap()
    }
}

/// What a HELLO is made from.
#[derive(Clone)]
pub(crate) struct Recipe<'a> {
    pub(crate) offer: Offer,
    pub(crate) fresh: u64,
    pub(crate) challenge: Option<[u8; 16]>,
    /// The random that the ephemeral scalar is hedged with.
    pub(crate) random: [u8; 32],
    /// S, where the profile has one.
    pub(crate) secret: [u8; 16],
    /// The text of the reading inside.
    pub(crate) reading: Option<&'a [u8]>,
    /// The additional input of the signature's nonce.
    pub(crate) extra: [u8; 32],
}

/// A HELLO and every value on the way to it.
pub(crate) struct Made {
    pub(crate) message: Vec<u8>,
    pub(crate) offer: Offer,
    pub(crate) secret: [u8; 16],
    pub(crate) header: [u8; 4],
    pub(crate) e: SecretScalar,
    pub(crate) enc: PublicKey,
    pub(crate) dh: [u8; 32],
    pub(crate) info: Vec<u8>,
    pub(crate) context: Context,
    pub(crate) ex: [u8; 32],
    pub(crate) hs: Secret,
    pub(crate) m: Vec<u8>,
    pub(crate) signed: [u8; 32],
    pub(crate) proof: Vec<u8>,
    pub(crate) text: Vec<u8>,
}

impl Made {
    pub(crate) fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.message).into()
    }

    pub(crate) fn with_cookie(&self, cookie: &[u8; 16]) -> Vec<u8> {
        [&self.message[..], cookie].concat()
    }

    /// The challenge and the mark in a CHALLENGE that answers this HELLO.
    pub(crate) fn challenge(&self, message: &[u8]) -> Option<([u8; 16], u64)> {
        let message: &[u8; 57] = message.try_into().ok()?;
        let keys = hazmat::challenge_key(&self.hs, message[1..17].try_into().unwrap());
        let aad = [&message[..17], &self.digest()[..8]].concat();
        let mut text = message[17..41].to_vec();
        let tag = message.last_chunk().unwrap();
        let opened = aead::open(keys.key(), keys.iv(), &aad, &mut text, tag);
        let mark = u64::from_be_bytes(text[16..].try_into().unwrap());
        opened.then(|| (text[..16].try_into().unwrap(), mark))
    }
}

/// The HELLO that this recipe gives.
pub(crate) fn hello(gateway: &Gateway, device: &Device, recipe: &Recipe<'_>) -> Made {
    let Recipe { offer, fresh, challenge, .. } = *recipe;
    let offer = Offer { challenged: challenge.is_some(), early: recipe.reading.is_some(), ..offer };
    let header = [0x11, device.id().slot(), offer.encode(), gateway.key_id];
    let e = schedule::hedged_scalar(
        &recipe.random,
        &device.d,
        &gateway.fingerprint,
        fresh,
        challenge.as_ref(),
        recipe.reading,
    );
    seal(gateway, device, recipe, offer, header, e, |_| ())
}

/// The HELLO that this recipe gives with this clear header and ephemeral scalar. `forge` may change the
/// sealed text, as somebody does who makes HELLOs that must be refused.
pub(crate) fn seal(
    gateway: &Gateway,
    device: &Device,
    recipe: &Recipe<'_>,
    offer: Offer,
    header: [u8; 4],
    e: SecretScalar,
    forge: impl FnOnce(&mut Vec<u8>),
) -> Made {
    let sent = ec::encapsulate(&EncapsulateTask { scalar: e.clone(), peer: gateway.key }).unwrap();
    let info: [&[u8]; 3] = [b"duet1 hello", &header, &gateway.fingerprint.0];
    let context = Context::new(&sent.shared, &sent.point, &gateway.key, &info);
    let mut ex = [0; 32];
    context.export(b"duet1 export", &mut ex);
    let hs = schedule::handshake_secret(&hazmat::secret(ex), device.registration().as_ref());

    let id = device.id().0;
    let fresh = recipe.fresh.to_be_bytes();
    let random: &[u8] = if offer.profile.source.has_random() { &recipe.secret } else { &[] };
    let reading = recipe.reading.unwrap_or_default();
    let m = [
        &header[..],
        &gateway.fingerprint.0,
        &sent.point.0,
        &device.credential.fingerprint.0,
        &id,
        &fresh,
        &recipe.challenge.unwrap_or_default(),
        random,
        reading,
    ]
    .concat();
    let signed: [u8; 32] =
        Sha256::new_with_prefix(b"duet1 device sig").chain_update(&m).finalize().into();
    let proof = if device.public().is_some() {
        ec::sign(&device.private(), &signed, &recipe.extra).unwrap().to_vec()
    } else {
        let claim = hazmat::Claim {
            header,
            gateway: &gateway.fingerprint,
            enc: &sent.point,
            device: &device.credential.fingerprint,
            id: device.id(),
            fresh: recipe.fresh,
            challenge: recipe.challenge.unwrap_or_default(),
            random,
            reading,
        };
        claim.binder(&hs).to_vec()
    };
    let challenge = recipe.challenge.as_ref().map_or(&[][..], |challenge| challenge);
    let padding = vec![0; offer.padding_len(reading.len())];
    let mut text = [&id, &fresh[..], challenge, random, &proof, reading, &padding].concat();
    forge(&mut text);
    let mut sealed = text.clone();
    let tag = context.seal(&header, &mut sealed);
    let n = u16::try_from(reading.len()).unwrap().to_be_bytes();
    let n: &[u8] = if recipe.reading.is_some() { &n } else { &[] };
    let message = [&header[..], &sent.point.x(), n, &sealed, &tag].concat();
    let (enc, dh, info, secret) = (sent.point, sent.shared.0, info.concat(), recipe.secret);
    Made {
        message,
        offer,
        secret,
        header,
        e,
        enc,
        dh,
        info,
        context,
        ex,
        hs,
        m,
        signed,
        proof,
        text,
    }
}

/// What an ACCEPT says to the device that made this HELLO: P and the session's keys, or nothing where
/// it is not genuine.
pub(crate) fn accepted(
    gateway: &Gateway,
    device: &Device,
    made: &Made,
    accept: &[u8],
) -> Option<([u8; 20], SessionKeys)> {
    let source = made.offer.profile.source;
    if accept.len() != made.offer.profile.accept_len() {
        return None;
    }
    let clear: &[u8; 33] = accept.first_chunk()?;
    let (text, tag) = accept[33..].split_last_chunk::<16>()?;
    let mut text = text.to_vec();
    let server = clear.last_chunk()?;
    let fingerprint = &device.credential.fingerprint;
    let th = hazmat::transcript(&made.message, clear, &gateway.fingerprint, fingerprint);
    let mut ephemeral = None;
    let opened = match (source, device.public()) {
        (KeySource::Ephemeral, _) => {
            let shared = ec::agree(&made.e, server)?.shared;
            let master = hazmat::master(&made.hs, &th, &shared.0);
            let keys = hazmat::accept_key(&master);
            ephemeral = Some(master);
            aead::open(keys.key(), keys.iv(), clear, &mut text, tag)
        }
        (_, Some(public)) => {
            let agreed = ec::agree(&device.private(), server)?;
            let (cs, digest) = (&gateway.fingerprint.0, made.digest());
            let info: [&[u8]; 4] = [b"duet1 accept", &digest, cs, &fingerprint.0];
            let context = Context::new(&agreed.shared, &agreed.point, &public, &info);
            context.open(clear, &mut text, tag)
        }
        (_, None) => {
            let keys = hazmat::accept_key_registered(&made.hs, &th);
            aead::open(keys.key(), keys.iv(), clear, &mut text, tag)
        }
    };
    if !opened {
        return None;
    }
    let (part, rest) = text.split_at_checked(made.offer.profile.ikm_part_len())?;
    let (grant, signature) = rest.split_first_chunk::<20>()?;
    if source.has_random() {
        let task = ec::VerifyTask {
            key: gateway.key,
            digest: hazmat::gateway_digest(&th, part, grant),
            signature: signature.try_into().ok()?,
        };
        if !ec::verify(&task) {
            return None;
        }
    }
    let mut ikm = made.secret;
    match source {
        KeySource::Xor(Transfer::Key) => ikm.copy_from_slice(part),
        KeySource::Xor(Transfer::Random) => ikm.iter_mut().zip(part).for_each(|(a, b)| *a ^= b),
        KeySource::Client(_) | KeySource::Ephemeral => {}
    }
    let master = ephemeral.unwrap_or_else(|| hazmat::master(&made.hs, &th, &ikm));
    Some((*grant, hazmat::session_keys(&master)))
}
