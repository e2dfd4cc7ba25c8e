//! One HELLO from its random bytes to its answer: made once, sent as the same bytes, and kept with
//! all that is needed to understand RETRY, CHALLENGE and ACCEPT. States change only after a genuine
//! answer has come: forged ones cost nothing (R33).

use duet_protocol::{
    ec::{Agreed, Encapsulated, SecretScalar, Signature},
    identity::{Gateway, PublicKey},
    profile::{KeySource, Offer, Transfer},
    reading::{READING_ID, ReadingId},
    reason::DropReason,
    schedule::Grant,
    wire::{
        ACCEPT_MAX, CHALLENGE_LEN, COOKIE, GRANT, HELLO_HEADER, Kind, RANDOM, READING_LEN, Retry,
    },
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    crypto::{Crypto, CryptoError, PrivateKey},
    error::Error,
    identity::{DeviceKey, Hedge, Identity},
    schedule::{self, Claim, Hpke, Secret, SessionKeys},
};

/// The longest HELLO but for the payload of its reading, without a cookie.
const BASE: usize = {
    let header = HELLO_HEADER + 32 + READING_LEN;
    let sealed = 16 + 16 + RANDOM + 64;
    // Padding and a reading do not come together to more than this: padding shrinks by what a reading
    // brings, and the longest padding belongs to the shortest proof.
    header + sealed + 1 + 2 + 4 + READING_ID + 16
};

/// How much longer than its payload the longest message of a device can be.
pub(crate) const OVERHEAD: usize = BASE + COOKIE;

/// What a HELLO says.
pub(crate) struct Saying<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) gateway: &'a Gateway,
    pub(crate) offer: Offer,
    pub(crate) fresh: u64,
    pub(crate) challenge: Option<&'a [u8; 16]>,
    /// The text of a reading in two parts, its head and its payload; both empty where there is none.
    pub(crate) reading: [&'a [u8]; 2],
}

/// What is destroyed with the wait (R35).
#[derive(Zeroize, ZeroizeOnDrop)]
struct Secrets {
    scalar: SecretScalar,
    hs: Secret,
    random: [u8; RANDOM],
}

/// A HELLO that is out, with room for a reading of `PAYLOAD` bytes.
pub(crate) struct Waiting<const PAYLOAD: usize> {
    offer: Offer,
    fresh: u64,
    /// The message, in two parts: it can only be written where both lengths are known.
    base: [u8; BASE],
    more: [u8; PAYLOAD],
    len: usize,
    digest: [u8; 32],
    secrets: Option<Secrets>,
}

/// Writes one field after the other.
struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), CryptoError> {
        let place = self.out.get_mut(self.len..).and_then(|rest| rest.get_mut(..bytes.len()));
        place.ok_or(CryptoError::Unsupported)?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }
}

fn hedge(c: &mut impl Crypto, key: &DeviceKey, salt: &[u8; 32]) -> Result<Secret, CryptoError> {
    match key {
        DeviceKey::Private(scalar) => schedule::hedge(c, salt, scalar.expose()),
        DeviceKey::Registration(key) => schedule::hedge(c, salt, &key.0),
        DeviceKey::External { hedge: Hedge::Key(key), .. } => schedule::hedge(c, salt, &key.0),
        DeviceKey::External { hedge: Hedge::Element, .. } => Ok(Secret(c.hedge(salt)?)),
    }
}

/// HPKE's context for this HELLO; `hs` is put with the secrets.
#[inline(never)]
fn derive(
    c: &mut impl Crypto,
    secrets: &mut Secrets,
    sent: &Encapsulated,
    saying: &Saying<'_>,
    header: &[u8; HELLO_HEADER],
) -> Result<Hpke, CryptoError> {
    let Saying { identity, gateway, .. } = *saying;
    let info: [&[u8]; 3] = [b"duet1 hello", header, &gateway.fingerprint.0];
    let hpke = Hpke::new(c, &sent.shared, &sent.point, &gateway.key, &info)?;
    let ex = hpke.export(c, b"duet1 export")?;
    let registration = match &identity.key {
        DeviceKey::Registration(key) => Some(key),
        DeviceKey::Private(_) | DeviceKey::External { .. } => None,
    };
    secrets.hs = schedule::handshake_secret(c, &ex, registration)?;
    Ok(hpke)
}

/// Writes the device's proof of the claim.
#[inline(never)]
fn prove(
    c: &mut impl Crypto,
    key: &DeviceKey,
    claim: &Claim<'_>,
    hs: &Secret,
    extra: &[u8; 32],
    to: &mut Writer<'_>,
) -> Result<(), CryptoError> {
    let key = match key {
        DeviceKey::Private(scalar) => PrivateKey::Scalar(scalar),
        DeviceKey::External { .. } => PrivateKey::External,
        DeviceKey::Registration(_) => return to.put(&claim.binder(c, hs)?),
    };
    let digest = claim.digest(c)?;
    to.put(&c.sign(key, &digest, extra)?)
}

/// What the curve says to an ACCEPT's point, and the device's own point where that takes part.
struct Met {
    agreed: Agreed,
    own: Option<PublicKey>,
}

impl<const PAYLOAD: usize> Waiting<PAYLOAD> {
    /// None yet: [`make`](Self::make) follows. It is made where it stays, since a device has little stack.
    pub(crate) const fn empty(offer: Offer) -> Self {
        let (base, more, digest) = ([0; BASE], [0; PAYLOAD], [0; 32]);
        Self { offer, fresh: 0, base, more, len: 0, digest, secrets: None }
    }

    /// Makes a HELLO in `out`, which is long enough for it. Each step is a function of its own, so that what one needs of
    /// the stack is free again in the next.
    #[inline(never)]
    pub(crate) fn make(
        &mut self,
        c: &mut impl Crypto,
        saying: &Saying<'_>,
        out: &mut [u8],
    ) -> Result<(), CryptoError> {
        let Saying { identity, gateway, fresh, challenge, reading, .. } = *saying;
        let reading_len = reading[0].len() + reading[1].len();
        let early = reading_len > 0;
        let offer = Offer { challenged: challenge.is_some(), early, ..saying.offer };
        let extra = self.draw(c, saying)?;
        let secrets = self.secrets.as_mut().ok_or(CryptoError::Failed)?;
        let sent = c.encapsulate(&secrets.scalar, &gateway.key)?;

        let slot = c.sha256(&[&identity.id.0])?[0];
        let header = [Kind::Hello.byte(), slot, offer.encode(), gateway.key_id];
        let hpke = derive(c, secrets, &sent, saying, &header)?;

        let fresh_bytes = fresh.to_be_bytes();
        let random: &[u8] = if offer.profile.source.has_random() { &secrets.random } else { &[] };
        let len = offer.hello_len(reading_len);
        let message = out.get_mut(..len).ok_or(CryptoError::Unsupported)?;
        message.fill(0);
        let mut to = Writer { out: &mut *message, len: 0 };
        to.put(&header)?;
        to.put(&sent.point.x())?;
        if early {
            let n = u16::try_from(reading_len).map_err(|_| CryptoError::Unsupported)?;
            to.put(&n.to_be_bytes())?;
        }
        to.put(&identity.id.0)?;
        to.put(&fresh_bytes)?;
        if let Some(challenge) = challenge {
            to.put(challenge)?;
        }
        to.put(random)?;
        let claim = Claim {
            header: &header,
            gateway: &gateway.fingerprint,
            enc: &sent.point,
            device: &identity.fingerprint,
            id: &identity.id.0,
            fresh: &fresh_bytes,
            challenge: challenge.unwrap_or(&[0; 16]),
            random,
            reading,
        };
        prove(c, &identity.key, &claim, &secrets.hs, &extra, &mut to)?;
        to.put(reading[0])?;
        to.put(reading[1])?;

        let sealed = message.get_mut(offer.sealed_at()..).ok_or(CryptoError::Unsupported)?;
        let (text, tag) = sealed.split_last_chunk_mut::<16>().ok_or(CryptoError::Unsupported)?;
        *tag = c.seal(&hpke.message.key, &hpke.message.iv, &header, text)?;

        self.digest = c.sha256(&[message])?;
        let (head, tail) = message.split_at(len.min(BASE));
        self.base[..head.len()].copy_from_slice(head);
        self.more.get_mut(..tail.len()).ok_or(CryptoError::Unsupported)?.copy_from_slice(tail);
        (self.offer, self.fresh, self.len) = (offer, fresh, len);
        Ok(())
    }

    /// Draws what is random in a HELLO: the hedge's salt, S (R23), and what the signature's nonce takes in, which is returned.
    #[inline(never)]
    fn draw(
        &mut self,
        c: &mut impl Crypto,
        saying: &Saying<'_>,
    ) -> Result<Zeroizing<[u8; 32]>, CryptoError> {
        let Saying { identity, gateway, fresh, challenge, reading, .. } = *saying;
        let mut random = Zeroizing::new([0; 32 + RANDOM + 32]);
        c.random(random.as_mut_slice())?;
        let (salt, rest) = random.split_first_chunk::<32>().ok_or(CryptoError::Random)?;
        let (s, extra) = rest.split_first_chunk::<RANDOM>().ok_or(CryptoError::Random)?;
        let extra: &[u8; 32] = extra.try_into().map_err(|_| CryptoError::Random)?;
        let carried = if reading.iter().any(|part| !part.is_empty()) || challenge.is_some() {
            let challenge: &[u8] = challenge.unwrap_or(&[0; 16]);
            Some(c.sha256(&[challenge, reading[0], reading[1]])?)
        } else {
            None
        };
        let prk = hedge(c, &identity.key, salt)?;
        let scalar =
            schedule::hedged_scalar(c, &prk, &gateway.fingerprint, fresh, carried.as_ref())?;
        self.secrets = Some(Secrets { scalar, hs: Secret([0; 32]), random: *s });
        Ok(Zeroizing::new(*extra))
    }

    /// The counter in it.
    pub(crate) const fn fresh(&self) -> u64 {
        self.fresh
    }

    /// SHA-256 of the message.
    pub(crate) const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The name of a reading that this HELLO is the first to carry.
    pub(crate) fn early_id(&self) -> ReadingId {
        ReadingId::early(&self.digest)
    }

    fn parts(&self) -> [&[u8]; 2] {
        let head = self.len.min(BASE);
        [&self.base[..head], &self.more[..self.len - head]]
    }

    /// The message as it goes on the wire, with a cookie behind it that no hash covers (R55) if one is
    /// asked for; its length. `None` when `out` is too short.
    pub(crate) fn write(&self, cookie: Option<&[u8; COOKIE]>, out: &mut [u8]) -> Option<usize> {
        let mut to = Writer { out, len: 0 };
        self.parts().iter().try_for_each(|part| to.put(part)).ok()?;
        if let Some(cookie) = cookie {
            to.put(cookie).ok()?;
        }
        Some(to.len)
    }

    /// A RETRY that answers this HELLO, by its echo (R53).
    pub(crate) fn retry(&self, message: &[u8]) -> Result<Retry, DropReason> {
        let retry = Retry::decode(message)?;
        if retry.echo != self.digest[..8] {
            return Err(DropReason::Unexpected);
        }
        Ok(retry)
    }

    /// The challenge and the gateway's mark in a CHALLENGE that answers this HELLO.
    pub(crate) fn challenge(
        &self,
        c: &mut impl Crypto,
        message: &[u8],
    ) -> Result<([u8; 16], u64), Error> {
        let message: &[u8; CHALLENGE_LEN] =
            message.try_into().map_err(|_| DropReason::Malformed)?;
        let (clear, rest) = message.split_first_chunk::<17>().ok_or(DropReason::Malformed)?;
        let (text, tag) = rest.split_last_chunk::<16>().ok_or(DropReason::Malformed)?;
        let nonce: &[u8; 16] = clear.last_chunk().ok_or(DropReason::Malformed)?;
        let mut aad = [0; 25];
        aad[..17].copy_from_slice(clear);
        aad[17..].copy_from_slice(&self.digest[..8]);
        let secrets = self.secrets.as_ref().ok_or(DropReason::Unexpected)?;
        let keys = schedule::challenge_key(c, &secrets.hs, nonce)?;
        let mut buffer = [0; 24];
        buffer.copy_from_slice(text);
        if !c.open(&keys.key, &keys.iv, &aad, &mut buffer, tag)? {
            return Err(DropReason::Unexpected.into());
        }
        let (challenge, mark) = buffer.split_first_chunk().ok_or(DropReason::Malformed)?;
        let mark = mark.try_into().map_err(|_| DropReason::Malformed)?;
        Ok((*challenge, u64::from_be_bytes(mark)))
    }

    /// What an ACCEPT grants, and the session's keys. The curve comes first, while little else is on the stack.
    #[inline(never)]
    pub(crate) fn accept(
        &self,
        c: &mut impl Crypto,
        identity: &Identity,
        gateway: &Gateway,
        message: &[u8],
    ) -> Result<(Grant, SessionKeys), Error> {
        if message.len() != self.offer.profile.accept_len() {
            return Err(DropReason::Malformed.into());
        }
        let (clear, sealed) = message.split_first_chunk::<33>().ok_or(DropReason::Malformed)?;
        let met = self.meet(c, identity, clear)?;
        self.opened(c, identity, gateway, met.as_ref(), clear, sealed)
    }

    #[inline(never)]
    fn meet(
        &self,
        c: &mut impl Crypto,
        identity: &Identity,
        clear: &[u8; 33],
    ) -> Result<Option<Met>, Error> {
        let srv: &[u8; 32] = clear.last_chunk().ok_or(DropReason::Malformed)?;
        let secrets = self.secrets.as_ref().ok_or(DropReason::Unexpected)?;
        let (key, own) = match (self.offer.profile.source, &identity.key) {
            (KeySource::Ephemeral, _) => (PrivateKey::Scalar(&secrets.scalar), None),
            (_, DeviceKey::Registration(_)) => return Ok(None),
            (_, DeviceKey::Private(key)) => (PrivateKey::Scalar(key), Some(c.public_key(key)?)),
            (_, DeviceKey::External { public, .. }) => (PrivateKey::External, Some(*public)),
        };
        let agreed = c.agree(key, srv)?.ok_or(DropReason::Point)?;
        Ok(Some(Met { agreed, own }))
    }

    #[inline(never)]
    fn opened(
        &self,
        c: &mut impl Crypto,
        identity: &Identity,
        gateway: &Gateway,
        met: Option<&Met>,
        clear: &[u8; 33],
        sealed: &[u8],
    ) -> Result<(Grant, SessionKeys), Error> {
        let profile = self.offer.profile;
        let mut room = Zeroizing::new([0; ACCEPT_MAX]);
        let buffer = room.get_mut(..sealed.len()).ok_or(DropReason::Malformed)?;
        buffer.copy_from_slice(sealed);
        let (text, tag) = buffer.split_last_chunk_mut().ok_or(DropReason::Malformed)?;

        let (cs, cd) = (&gateway.fingerprint, &identity.fingerprint);
        let th = schedule::transcript(c, self.parts(), clear, cs, cd)?;
        let Secrets { hs, random, .. } = self.secrets.as_ref().ok_or(DropReason::Unexpected)?;
        let mut master = None;
        let keys = match met {
            Some(Met { agreed, own: None }) => {
                let secret = master.insert(schedule::master(c, hs, &th, &agreed.shared.0)?);
                schedule::accept_key(c, secret, &[])?
            }
            Some(Met { agreed, own: Some(own) }) => {
                let info: [&[u8]; 4] = [b"duet1 accept", &self.digest, &cs.0, &cd.0];
                Hpke::new(c, &agreed.shared, &agreed.point, own, &info)?.message
            }
            None => schedule::accept_key(c, hs, &th)?,
        };
        if !c.open(&keys.key, &keys.iv, clear, text, tag)? {
            return Err(DropReason::AcceptOpen.into());
        }

        let (ikm_part, rest) =
            text.split_at_checked(profile.ikm_part_len()).ok_or(DropReason::Malformed)?;
        let (grant, signature) = rest.split_first_chunk::<GRANT>().ok_or(DropReason::Malformed)?;
        if let Ok(signature) = Signature::try_from(signature) {
            let digest = schedule::gateway_digest(c, &th, ikm_part, grant)?;
            if !c.verify(&gateway.key, &digest, &signature)? {
                return Err(DropReason::AcceptOpen.into());
            }
        }
        let master = match master {
            Some(master) => master,
            None => {
                let mut ikm = Zeroizing::new(*random);
                match profile.source {
                    KeySource::Xor(Transfer::Key) => ikm.copy_from_slice(ikm_part),
                    KeySource::Xor(Transfer::Random) => {
                        ikm.iter_mut().zip(ikm_part).for_each(|(a, b)| *a ^= b);
                    }
                    KeySource::Client(_) | KeySource::Ephemeral => {}
                }
                schedule::master(c, hs, &th, ikm.as_slice())?
            }
        };
        let keys = schedule::session_keys(c, &master)?;
        Ok((Grant::decode(grant), keys))
    }
}
