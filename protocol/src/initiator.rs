//! The device's half of the handshake, as states that are consumed one by one:
//!
//! ```text
//! Start ─ encapsulate ─▶ Proving ─ sign ─▶ Waiting ─ ACCEPT ─▶ Accepting ─ agree ─▶ Answered ─ verify ─▶ keys
//!                                             └─ CHALLENGE, RETRY
//! ```
//!
//! Each arrow is an elliptic-curve operation that the caller does, or a message that came in.
//! [`Waiting`] stays until a genuine ACCEPT has come: forged ones cost it nothing (R33).

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    aead,
    ec::{Agreed, EncapsulateTask, Encapsulated, SecretScalar, SharedX, Signature, VerifyTask},
    hpke::Context,
    identity::{DeviceId, Fingerprint, Gateway, PublicKey, RegistrationKey},
    profile::{KeySource, Offer, Transfer},
    reason::DropReason,
    schedule::{self, Claim, Grant, Secret, SessionKeys},
    wire::{
        ACCEPT_MAX, BARE_HELLO_MAX, CHALLENGE_LEN, COOKIE, GRANT, HELLO_HEADER, Kind, RANDOM, Retry,
    },
};

/// The device's own secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub enum DeviceKey {
    /// The private key of its certificate.
    Private(SecretScalar),
    /// Its registration key.
    Registration(RegistrationKey),
}

/// What a device holds of itself.
#[derive(Clone)]
pub struct Identity {
    /// How it names itself.
    pub id: DeviceId,
    /// `cD`: its certificate's fingerprint, or [`Fingerprint::of_registered_id`].
    pub fingerprint: Fingerprint,
    /// Its secret.
    pub key: DeviceKey,
}

/// The fresh values of one HELLO.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Freshness {
    /// The device's counter: higher than in every HELLO before (R22).
    pub fresh: u64,
    /// The challenge that this HELLO answers, if it answers one.
    pub challenge: Option<[u8; 16]>,
    /// For the hedged ephemeral scalar.
    pub random: [u8; 32],
    /// S: the random or key of the profiles that send one (R23).
    pub secret: [u8; RANDOM],
}

/// A HELLO before its ephemeral key.
pub struct Start<'a> {
    identity: &'a Identity,
    gateway: &'a Gateway,
    offer: Offer,
    freshness: Freshness,
    task: EncapsulateTask,
}

impl<'a> Start<'a> {
    /// Begins a HELLO. The identity's key must be of the kind that `offer`'s mode wants.
    #[must_use]
    pub fn new(
        identity: &'a Identity,
        gateway: &'a Gateway,
        offer: Offer,
        freshness: Freshness,
    ) -> Self {
        let d = match &identity.key {
            DeviceKey::Private(scalar) => scalar.expose(),
            DeviceKey::Registration(key) => &key.0,
        };
        assert_eq!(
            offer.profile.mode.has_certificate(),
            matches!(identity.key, DeviceKey::Private(_)),
            "the profile's mode and the device's key belong together"
        );
        let offer = Offer { challenged: freshness.challenge.is_some(), ..offer };
        let scalar = schedule::hedged_scalar(
            &freshness.random,
            d,
            &gateway.fingerprint,
            freshness.fresh,
            freshness.challenge.as_ref(),
            None,
        );
        let task = EncapsulateTask { scalar, peer: gateway.key };
        Self { identity, gateway, offer, freshness, task }
    }

    /// What to compute.
    #[must_use]
    pub const fn task(&self) -> &EncapsulateTask {
        &self.task
    }

    /// Goes on with the answer.
    #[must_use]
    pub fn encapsulated(self, answer: &Encapsulated) -> Proving<'a> {
        let Self { identity, gateway, offer, freshness, task } = self;
        let header = [Kind::Hello.byte(), identity.id.slot(), offer.encode(), gateway.key_id];
        let info: [&[u8]; 3] = [b"duet1 hello", &header, &gateway.fingerprint.0];
        let context = Context::new(&answer.shared, &answer.point, &gateway.key, &info);
        let mut ex = Secret([0; 32]);
        context.export(b"duet1 export", &mut ex.0);
        let registration = match &identity.key {
            DeviceKey::Registration(key) => Some(key),
            DeviceKey::Private(_) => None,
        };
        let hs = schedule::handshake_secret(&ex, registration);
        let enc = answer.point;
        let scalar = task.scalar.clone();
        Proving { identity, gateway, offer, freshness, header, enc, context, hs, scalar }
    }
}

/// A HELLO before its proof.
pub struct Proving<'a> {
    identity: &'a Identity,
    gateway: &'a Gateway,
    offer: Offer,
    freshness: Freshness,
    header: [u8; HELLO_HEADER],
    enc: PublicKey,
    context: Context,
    hs: Secret,
    scalar: SecretScalar,
}

impl Proving<'_> {
    fn random(&self) -> &[u8] {
        if self.offer.profile.source.has_random() { &self.freshness.secret } else { &[] }
    }

    fn claim(&self) -> Claim<'_> {
        Claim {
            header: self.header,
            gateway: &self.gateway.fingerprint,
            enc: &self.enc,
            device: &self.identity.fingerprint,
            id: self.identity.id.0,
            fresh: self.freshness.fresh,
            challenge: self.freshness.challenge.unwrap_or([0; 16]),
            random: self.random(),
            reading: &[],
        }
    }

    /// What to sign with the device's private key (normalised, R26); `None` when the proof is a
    /// MAC.
    #[must_use]
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.offer.profile.mode.has_certificate().then(|| self.claim().digest())
    }

    /// The sealed HELLO. `signature` is ignored when the proof is a MAC.
    #[must_use]
    pub fn signed(self, signature: &Signature) -> Waiting {
        let mut text = Zeroizing::new([0; BARE_HELLO_MAX]);
        let mut end = 0;
        let mut append = |bytes: &[u8]| {
            text[end..end + bytes.len()].copy_from_slice(bytes);
            end += bytes.len();
        };
        append(&self.identity.id.0);
        append(&self.freshness.fresh.to_be_bytes());
        if let Some(challenge) = &self.freshness.challenge {
            append(challenge);
        }
        append(self.random());
        if self.offer.profile.mode.has_certificate() {
            append(signature);
        } else {
            append(&self.claim().binder(&self.hs));
        }
        let text = &mut text[..self.offer.sealed_text_len(0)];
        let tag = self.context.seal(&self.header, text);

        let mut message = Message { bytes: [0; BARE_HELLO_MAX], len: 0 };
        message.append(&self.header);
        message.append(&self.enc.x());
        message.append(text);
        message.append(&tag);
        let digest = <sha2::Sha256 as sha2::Digest>::digest(message.as_slice()).into();
        let secret = self.freshness.secret;
        let Self { identity, gateway, offer, scalar, hs, .. } = self;
        Waiting {
            offer,
            message,
            digest,
            gateway: *gateway,
            device: identity.fingerprint,
            secrets: Secrets { scalar, hs, random: secret },
        }
    }
}

/// A HELLO as it goes on the wire.
#[derive(Clone)]
struct Message {
    bytes: [u8; BARE_HELLO_MAX],
    len: usize,
}

impl Message {
    fn append(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What is destroyed with the wait (R35).
#[derive(Zeroize, ZeroizeOnDrop)]
struct Secrets {
    scalar: SecretScalar,
    hs: Secret,
    random: [u8; RANDOM],
}

/// A HELLO that is out, and everything needed to understand its answer.
pub struct Waiting {
    offer: Offer,
    message: Message,
    digest: [u8; 32],
    gateway: Gateway,
    device: Fingerprint,
    secrets: Secrets,
}

impl Waiting {
    /// The message: only ever sent again byte for byte (R21).
    #[must_use]
    pub fn hello(&self) -> &[u8] {
        self.message.as_slice()
    }

    /// The cookie of a RETRY that answers this HELLO, by its echo (R53).
    ///
    /// # Errors
    /// [`DropReason::Malformed`]; [`DropReason::Unexpected`] when it answers another HELLO.
    pub fn retry(&self, message: &[u8]) -> Result<Retry, DropReason> {
        let retry = Retry::decode(message)?;
        if retry.echo != self.digest[..8] {
            return Err(DropReason::Unexpected);
        }
        Ok(retry)
    }

    /// The message with a cookie behind it, which no hash covers (R55), written to `out`; its length.
    ///
    /// # Panics
    /// When `out` is shorter than [`BARE_HELLO_MAX`].
    #[must_use]
    pub fn hello_with_cookie(&self, cookie: &[u8; COOKIE], out: &mut [u8]) -> usize {
        let len = self.message.len;
        out[..len].copy_from_slice(self.hello());
        out[len..len + COOKIE].copy_from_slice(cookie);
        len + COOKIE
    }

    /// The challenge and the gateway's mark in a CHALLENGE that answers this HELLO.
    ///
    /// # Errors
    /// [`DropReason::Malformed`]; [`DropReason::Unexpected`] when it does not open.
    pub fn challenge(&self, message: &[u8]) -> Result<([u8; 16], u64), DropReason> {
        let message: &[u8; CHALLENGE_LEN] =
            message.try_into().map_err(|_| DropReason::Malformed)?;
        let (clear, rest) = message.split_first_chunk::<17>().ok_or(DropReason::Malformed)?;
        let (text, tag) = rest.split_last_chunk::<16>().ok_or(DropReason::Malformed)?;
        let nonce: &[u8; 16] = clear.last_chunk().ok_or(DropReason::Malformed)?;
        let mut aad = [0; 25];
        aad[..17].copy_from_slice(clear);
        aad[17..].copy_from_slice(&self.digest[..8]);
        let keys = schedule::challenge_key(&self.secrets.hs, nonce);
        let mut buffer = [0; 24];
        buffer.copy_from_slice(text);
        if !aead::open(&keys.key, &keys.iv, &aad, &mut buffer, tag) {
            return Err(DropReason::Unexpected);
        }
        let (challenge, mark) = buffer.split_first_chunk().ok_or(DropReason::Malformed)?;
        let mark = mark.try_into().map_err(|_| DropReason::Malformed)?;
        Ok((*challenge, u64::from_be_bytes(mark)))
    }

    /// Begins to read an ACCEPT.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a wrong length.
    pub fn accept(&self, message: &[u8]) -> Result<Accepting<'_>, DropReason> {
        if message.len() != self.offer.profile.accept_len() {
            return Err(DropReason::Malformed);
        }
        let (clear, sealed) = message.split_first_chunk().ok_or(DropReason::Malformed)?;
        let mut text = [0; ACCEPT_MAX];
        text[..sealed.len()].copy_from_slice(sealed);
        Ok(Accepting { waiting: self, clear: *clear, text, len: sealed.len() })
    }
}

/// An ACCEPT before its Diffie-Hellman.
pub struct Accepting<'a> {
    waiting: &'a Waiting,
    clear: [u8; 33],
    text: [u8; ACCEPT_MAX],
    len: usize,
}

impl Accepting<'_> {
    /// The scalar and the x-coordinate to multiply; `None` when the profile needs no
    /// Diffie-Hellman here. `key` is the device's.
    #[must_use]
    pub fn task<'t>(&'t self, key: &'t DeviceKey) -> Option<(&'t SecretScalar, &'t [u8; 32])> {
        let x = self.clear.last_chunk()?;
        match (self.waiting.offer.profile.source, key) {
            (KeySource::Ephemeral, _) => Some((&self.waiting.secrets.scalar, x)),
            (_, DeviceKey::Private(private)) => Some((private, x)),
            (_, DeviceKey::Registration(_)) => None,
        }
    }

    /// Goes on with the answer (`None` when there was no task or the point does not exist), and
    /// the device's public key where it has one.
    ///
    /// # Errors
    /// [`DropReason::Point`], [`DropReason::AcceptOpen`].
    pub fn agreed(
        self,
        answer: Option<&Agreed>,
        device_key: Option<&PublicKey>,
    ) -> Result<Answered, DropReason> {
        let Self { waiting, clear, mut text, len } = self;
        let profile = waiting.offer.profile;
        let secrets = &waiting.secrets;
        let th = schedule::transcript(
            waiting.hello(),
            &clear,
            &waiting.gateway.fingerprint,
            &waiting.device,
        );
        let (text, tag) = text[..len].split_last_chunk_mut().ok_or(DropReason::Malformed)?;
        let mut master = None;
        let opened = match (profile.source, device_key) {
            (KeySource::Ephemeral, _) => {
                let shared: &SharedX = &answer.ok_or(DropReason::Point)?.shared;
                let secret = schedule::master(&secrets.hs, &th, &shared.0);
                let keys = schedule::accept_key(&secret.prk());
                master = Some(secret);
                aead::open(&keys.key, &keys.iv, &clear, text, tag)
            }
            (_, Some(device_key)) => {
                let answer = answer.ok_or(DropReason::Point)?;
                let (gateway, device) = (&waiting.gateway.fingerprint.0, &waiting.device.0);
                let info: [&[u8]; 4] = [b"duet1 accept", &waiting.digest, gateway, device];
                Context::new(&answer.shared, &answer.point, device_key, &info)
                    .open(&clear, text, tag)
            }
            (_, None) => {
                let keys = schedule::accept_key_registered(&secrets.hs, &th);
                aead::open(&keys.key, &keys.iv, &clear, text, tag)
            }
        };
        if !opened {
            return Err(DropReason::AcceptOpen);
        }

        let (ikm_part, rest) =
            text.split_at_checked(profile.ikm_part_len()).ok_or(DropReason::Malformed)?;
        let (grant, signature) = rest.split_first_chunk::<GRANT>().ok_or(DropReason::Malformed)?;
        let verify = match Signature::try_from(signature) {
            Ok(signature) => Some(VerifyTask {
                key: waiting.gateway.key,
                digest: schedule::gateway_digest(&th, ikm_part, grant),
                signature,
            }),
            Err(_) => None,
        };
        let master = match master {
            Some(master) => master,
            None => {
                let mut ikm = Zeroizing::new(secrets.random);
                match profile.source {
                    KeySource::Xor(Transfer::Key) => ikm.copy_from_slice(ikm_part),
                    KeySource::Xor(Transfer::Random) => {
                        ikm.iter_mut().zip(ikm_part).for_each(|(a, b)| *a ^= b);
                    }
                    KeySource::Client(_) | KeySource::Ephemeral => {}
                }
                schedule::master(&secrets.hs, &th, ikm.as_slice())
            }
        };
        let grant = Grant::decode(grant);
        text.zeroize();
        Ok(Answered { grant, master, verify })
    }
}

/// An ACCEPT that opened; in the method's own profiles its signature waits for its verdict.
pub struct Answered {
    grant: Grant,
    master: Secret,
    verify: Option<VerifyTask>,
}

impl Answered {
    /// The gateway's signature to verify; `None` in key source `ephemeral`.
    #[must_use]
    pub const fn verify_task(&self) -> Option<&VerifyTask> {
        self.verify.as_ref()
    }

    /// What the gateway granted, and the session's keys.
    ///
    /// # Errors
    /// [`DropReason::AcceptOpen`] when the verdict is no.
    pub fn verified(self, verdict: bool) -> Result<(Grant, SessionKeys), DropReason> {
        if self.verify.is_some() && !verdict {
            return Err(DropReason::AcceptOpen);
        }
        let keys = schedule::session_keys(&self.master.prk());
        Ok((self.grant, keys))
    }
}
