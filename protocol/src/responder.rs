//! The gateway's half of the handshake, as states that are consumed one by one:
//!
//! ```text
//! Hello ─ decapsulate ─▶ Opened ─ look up ─▶ Claim ─ verify ─▶ Proven ─┬─▶ CHALLENGE
//!                                                                      └─▶ Responding ─ agree ─▶ Signing ─ sign ─▶ ACCEPT
//! ```
//!
//! *In* goes a decoded HELLO; each arrow is work that the caller does, in whatever batches it likes, and whose answer goes in,
//! too. *Out* come CHALLENGE, or ACCEPT and the session's keys, or the reason why there is neither. *Never* is anything here
//! remembered, sent or looked up, nor an elliptic-curve operation performed. The order is R36's: open, slot, look up,
//! proof, then what the device may use and whether its counter is fresh, which the caller judges; nothing that a stranger
//! can see differs before the proof.

use alloc::vec::Vec;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    aead,
    ec::{EncapsulateTask, Encapsulated, SecretScalar, SharedX, Signature, VerifyTask},
    hpke::Context,
    identity::{Credential, DeviceId, Fingerprint, Gateway, Proof, PublicKey, RegistrationKey},
    message::Up,
    profile::{KeySource, Mode, Transfer},
    reading::{EarlyReading, ReadingId},
    reason::DropReason,
    schedule::{self, Claim as ClaimText, Grant, Secret, SessionKeys},
    wire::{ACCEPT_MAX, CHALLENGE_LEN, Hello, Kind, RANDOM, TAG},
};

/// A HELLO that opened under the gateway's key. Anyone can make one; nothing is proven.
pub struct Opened {
    hello: Hello,
    gateway: Fingerprint,
    enc: PublicKey,
    ex: Secret,
    id: DeviceId,
    fresh: u64,
    challenge: [u8; 16],
    random: Random,
    proof: [u8; 64],
    reading: Zeroizing<Vec<u8>>,
}

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Random {
    bytes: [u8; RANDOM],
    len: usize,
}

impl Random {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Reads fixed-length fields off the front of the opened text.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], DropReason> {
        let (field, rest) = self.0.split_at_checked(len).ok_or(DropReason::Malformed)?;
        self.0 = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DropReason> {
        let (field, rest) = self.0.split_first_chunk().ok_or(DropReason::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }
}

impl Opened {
    /// Opens the HELLO with the answer to its decapsulation: E lifted to even y, and x(s·E).
    ///
    /// # Errors
    /// [`DropReason::HelloOpen`] when it is not sealed to this gateway, [`DropReason::Malformed`] when
    /// its padding is not zeros, [`DropReason::Message`] when it carries something that is not a
    /// reading, [`DropReason::Slot`] when the clear slot is not the sealed identity's (R37).
    pub fn new(
        hello: Hello,
        gateway: &Gateway,
        enc: PublicKey,
        dh: &SharedX,
    ) -> Result<Self, DropReason> {
        let header = hello.header();
        let context = Context::new(
            dh,
            &enc,
            &gateway.key,
            &[b"duet1 hello", &header, &gateway.fingerprint.0],
        );
        let (text, tag) = hello.sealed().split_last_chunk().ok_or(DropReason::Malformed)?;
        let mut opened = Zeroizing::new(text.to_vec());
        if !context.open(&header, &mut opened, tag) {
            return Err(DropReason::HelloOpen);
        }

        let profile = hello.offer.profile;
        let mut fields = Fields(&opened);
        let id = DeviceId(fields.array()?);
        let fresh = u64::from_be_bytes(fields.array()?);
        let challenge = if hello.offer.challenged { fields.array()? } else { [0; 16] };
        let mut random = Random { bytes: [0; RANDOM], len: 0 };
        if profile.source.has_random() {
            random = Random { bytes: fields.array()?, len: RANDOM };
        }
        let mut proof = [0; 64];
        let proof_len = profile.proof_len();
        proof[..proof_len].copy_from_slice(fields.take(proof_len)?);
        let reading = Zeroizing::new(fields.take(hello.reading_len())?.to_vec());
        // R17: padding is zeros.
        if fields.0.iter().any(|&byte| byte != 0) {
            return Err(DropReason::Malformed);
        }
        if id.slot() != hello.slot() {
            return Err(DropReason::Slot);
        }
        // R94: nothing but a reading that waits to be confirmed belongs into a HELLO.
        if hello.offer.early {
            let Up::Reading { confirm: true, .. } = Up::decode(reading.as_slice())? else {
                return Err(DropReason::Message);
            };
        }

        let mut ex = Secret([0; 32]);
        context.export(b"duet1 export", &mut ex.0);
        Ok(Self {
            hello,
            gateway: gateway.fingerprint,
            enc,
            ex,
            id,
            fresh,
            challenge,
            random,
            proof,
            reading,
        })
    }

    /// Whom the sender claims to be: what to look up.
    #[must_use]
    pub const fn id(&self) -> DeviceId {
        self.id
    }

    /// Goes on with what the registry holds for this id, or with nothing: then the same work is
    /// done against a stand-in and the verdict is no, so that a stranger cannot tell (R38).
    #[must_use]
    pub fn claim(self, gateway: &Gateway, credential: Option<&Credential>) -> Claim {
        let mode = self.hello.offer.profile.mode;
        // R5: a device belongs to one mode.
        let known = credential.filter(|credential| credential.mode == mode);
        let stand_in;
        let credential = if let Some(credential) = known {
            credential
        } else {
            stand_in = stand_in_for(self.id, mode, gateway);
            &stand_in
        };
        let registration = match &credential.proof {
            Proof::Binder(key) => Some(key),
            Proof::Signature(_) => None,
        };
        let hs = schedule::handshake_secret(&self.ex, registration);
        let text = ClaimText {
            header: self.hello.header(),
            gateway: &self.gateway,
            enc: &self.enc,
            device: &credential.fingerprint,
            id: self.id.0,
            fresh: self.fresh,
            challenge: self.challenge,
            random: self.random.as_slice(),
            reading: self.reading.as_slice(),
        };
        let (check, key) = match &credential.proof {
            Proof::Signature(key) => {
                let task = VerifyTask { key: *key, digest: text.digest(), signature: self.proof };
                (Check::Signature(task), Some(*key))
            }
            Proof::Binder(_) => {
                use subtle::ConstantTimeEq as _;
                (Check::Binder(text.binder(&hs).ct_eq(&self.proof[..8]).into()), None)
            }
        };
        let device = credential.fingerprint;
        Claim { opened: self, hs, device, device_key: key, check, known: known.is_some() }
    }
}

fn stand_in_for(id: DeviceId, mode: Mode, gateway: &Gateway) -> Credential {
    if mode.has_certificate() {
        let proof = Proof::Signature(gateway.key);
        Credential { id, mode, fingerprint: gateway.fingerprint, proof }
    } else {
        Credential::registered_id(id, RegistrationKey(gateway.fingerprint.0))
    }
}

enum Check {
    Signature(VerifyTask),
    Binder(bool),
}

/// A HELLO whose proof waits for its verdict.
pub struct Claim {
    opened: Opened,
    hs: Secret,
    device: Fingerprint,
    device_key: Option<PublicKey>,
    check: Check,
    known: bool,
}

impl Claim {
    /// Whether what it is checked against is the device's own, and no stand-in.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.known
    }

    /// The signature to verify; `None` when the proof is a MAC, which is already checked.
    #[must_use]
    pub const fn verify_task(&self) -> Option<&VerifyTask> {
        match &self.check {
            Check::Signature(task) => Some(task),
            Check::Binder(_) => None,
        }
    }

    /// Goes on with the verdict on [`verify_task`](Self::verify_task) (ignored when there is none).
    ///
    /// # Errors
    /// [`DropReason::Proof`], also when the id is unknown.
    pub fn verified(self, verdict: bool) -> Result<Proven, DropReason> {
        let proven = match self.check {
            Check::Signature(_) => verdict,
            Check::Binder(verdict) => verdict,
        };
        if !(proven & self.known) {
            return Err(DropReason::Proof);
        }
        let Self { opened, hs, device, device_key, .. } = self;
        Ok(Proven { opened, hs, device, device_key })
    }
}

/// A HELLO that its device made: but perhaps long ago, and perhaps played back.
pub struct Proven {
    opened: Opened,
    hs: Secret,
    device: Fingerprint,
    device_key: Option<PublicKey>,
}

impl Proven {
    /// Whether the Diffie-Hellman of the answer is with the HELLO's own point E (key source `ephemeral`), and not with the
    /// device's key.
    #[must_use]
    pub const fn peer_is_hello(&self) -> bool {
        matches!(self.opened.hello.offer.profile.source, KeySource::Ephemeral)
    }

    /// The device.
    #[must_use]
    pub const fn id(&self) -> DeviceId {
        self.opened.id
    }

    /// The credential that proved it.
    #[must_use]
    pub const fn fingerprint(&self) -> &Fingerprint {
        &self.device
    }

    /// The certificate that it was sealed to.
    #[must_use]
    pub const fn gateway(&self) -> &Fingerprint {
        &self.opened.gateway
    }

    /// The message.
    #[must_use]
    pub const fn hello(&self) -> &Hello {
        &self.opened.hello
    }

    /// The device's counter: higher in every HELLO that it makes.
    #[must_use]
    pub const fn fresh(&self) -> u64 {
        self.opened.fresh
    }

    /// The reading that the HELLO carries, if it carries one: the proof covers it (R95). Whether it may
    /// be stored is for the mark to say (R97).
    #[must_use]
    pub fn reading(&self) -> Option<EarlyReading<'_>> {
        if !self.opened.hello.offer.early {
            return None;
        }
        let Ok(Up::Reading { channel, age_ms, again, payload, .. }) =
            Up::decode(self.opened.reading.as_slice())
        else {
            return None;
        };
        let id = again.unwrap_or_else(|| ReadingId::early(&self.opened.hello.digest));
        Some(EarlyReading { id, again: again.is_some(), channel, age_ms, payload })
    }

    /// The challenge that the HELLO answers, if it answers one.
    #[must_use]
    pub fn challenge(&self) -> Option<&[u8; 16]> {
        self.opened.hello.offer.challenged.then_some(&self.opened.challenge)
    }

    /// The CHALLENGE message: the challenge and the gateway's mark, for this device's eyes only.
    /// `nonce` is random.
    #[must_use]
    pub fn challenge_message(
        &self,
        challenge: &[u8; 16],
        mark: u64,
        nonce: &[u8; 16],
    ) -> [u8; CHALLENGE_LEN] {
        let mut out = [0; CHALLENGE_LEN];
        out[0] = Kind::Challenge.byte();
        out[1..17].copy_from_slice(nonce);
        out[17..33].copy_from_slice(challenge);
        out[33..41].copy_from_slice(&mark.to_be_bytes());
        let mut aad = [0; 25];
        aad[..17].copy_from_slice(&out[..17]);
        aad[17..].copy_from_slice(&self.opened.hello.digest[..8]);
        let keys = schedule::challenge_key(&self.hs, nonce);
        let tag = aead::seal(&keys.key, &keys.iv, &aad, &mut out[17..41]);
        out[41..].copy_from_slice(&tag);
        out
    }

    /// Goes on to ACCEPT. `scalar` and `random` (N_s, then R_s) are fresh; profiles use one, the
    /// other or both.
    #[must_use]
    pub fn respond(self, grant: Grant, scalar: SecretScalar, random: [u8; 48]) -> Responding {
        let source = self.opened.hello.offer.profile.source;
        let peer = match source {
            KeySource::Ephemeral => Some(self.opened.enc),
            KeySource::Xor(_) | KeySource::Client(_) => self.device_key,
        };
        let task = peer.map(|peer| EncapsulateTask { scalar, peer });
        Responding { proven: self, grant, random: ServerRandom(random), task }
    }
}

#[derive(Zeroize, ZeroizeOnDrop)]
struct ServerRandom([u8; 48]);

/// A response that waits for its Diffie-Hellman.
pub struct Responding {
    proven: Proven,
    grant: Grant,
    random: ServerRandom,
    task: Option<EncapsulateTask>,
}

impl Responding {
    /// What to compute; `None` when this profile needs no elliptic-curve operation here.
    #[must_use]
    pub const fn task(&self) -> Option<&EncapsulateTask> {
        self.task.as_ref()
    }

    /// Goes on with the answer (ignored when there was no task).
    #[must_use]
    pub fn agreed(self, answer: Option<Encapsulated>) -> Signing {
        let Self { proven, grant, random, .. } = self;
        let mut clear = [0; 33];
        clear[0] = Kind::Accept.byte();
        match &answer {
            Some(answer) => clear[1..].copy_from_slice(&answer.point.x()),
            None => clear[1..].copy_from_slice(&random.0[..32]),
        }
        let hello = &proven.opened.hello;
        let th =
            schedule::transcript(hello.bytes(), &clear, &proven.opened.gateway, &proven.device);
        let mut ikm_part = Random { bytes: [0; RANDOM], len: 0 };
        if let KeySource::Xor(transfer) = hello.offer.profile.source {
            ikm_part.len = RANDOM;
            ikm_part.bytes.copy_from_slice(&random.0[32..]);
            if transfer == Transfer::Key {
                xor(&mut ikm_part.bytes, &proven.opened.random.bytes);
            }
        }
        Signing { proven, grant, clear, th, ikm_part, answer }
    }
}

fn xor(into: &mut [u8; RANDOM], other: &[u8; RANDOM]) {
    into.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}

/// A response that waits for the gateway's signature, where the profile has one.
pub struct Signing {
    proven: Proven,
    grant: Grant,
    clear: [u8; 33],
    th: [u8; 32],
    ikm_part: Random,
    answer: Option<Encapsulated>,
}

/// The ACCEPT message.
#[derive(Clone)]
pub struct Accept {
    bytes: [u8; ACCEPT_MAX],
    len: usize,
}

impl Accept {
    /// The message as it goes on the wire.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn append(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn seal(&mut self, clear: &[u8; 33], seal: impl FnOnce(&[u8], &mut [u8]) -> [u8; TAG]) {
        let tag = seal(clear, &mut self.bytes[clear.len()..self.len]);
        self.append(&tag);
    }
}

impl Signing {
    /// What the gateway signs; `None` in key source `ephemeral`. The signature is sealed (R31).
    #[must_use]
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.proven.opened.hello.offer.profile.source.has_random().then(|| {
            schedule::gateway_digest(&self.th, self.ikm_part.as_slice(), &self.grant.encode())
        })
    }

    /// ACCEPT and the session's keys. `signature` is ignored where there is no digest.
    #[must_use]
    pub fn signed(self, signature: &Signature) -> (Accept, SessionKeys) {
        let Self { proven, grant, clear, th, ikm_part, answer } = self;
        let profile = proven.opened.hello.offer.profile;
        let client_random = &proven.opened.random;
        let master = match (profile.source, &answer) {
            (KeySource::Ephemeral, Some(answer)) => {
                schedule::master(&proven.hs, &th, &answer.shared.0)
            }
            (KeySource::Xor(Transfer::Key), _) => {
                schedule::master(&proven.hs, &th, ikm_part.as_slice())
            }
            (KeySource::Xor(Transfer::Random), _) => {
                let mut key = client_random.clone();
                xor(&mut key.bytes, &ikm_part.bytes);
                schedule::master(&proven.hs, &th, key.as_slice())
            }
            (KeySource::Client(_) | KeySource::Ephemeral, _) => {
                schedule::master(&proven.hs, &th, client_random.as_slice())
            }
        };

        let master = master.prk();
        let mut accept = Accept { bytes: [0; ACCEPT_MAX], len: 0 };
        accept.append(&clear);
        accept.append(ikm_part.as_slice());
        let grant = Zeroizing::new(grant.encode());
        accept.append(grant.as_slice());
        if profile.source.has_random() {
            accept.append(signature);
        }
        match (&answer, proven.device_key.filter(|_| profile.source.has_random())) {
            (Some(answer), Some(device_key)) => {
                let hello = &proven.opened.hello.digest;
                let (gateway, device) = (&proven.opened.gateway.0, &proven.device.0);
                let info: [&[u8]; 4] = [b"duet1 accept", hello, gateway, device];
                let context = Context::new(&answer.shared, &answer.point, &device_key, &info);
                accept.seal(&clear, |aad, text| context.seal(aad, text));
            }
            _ => {
                let keys = if profile.source.has_random() {
                    schedule::accept_key_registered(&proven.hs, &th)
                } else {
                    schedule::accept_key(&master)
                };
                accept.seal(&clear, |aad, text| aead::seal(&keys.key, &keys.iv, aad, text));
            }
        }
        (accept, schedule::session_keys(&master))
    }
}
