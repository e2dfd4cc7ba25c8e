//! The key schedule of the one suite (R1), with the specification's names. `‖` joins fixed-length fields; every label is
//! ASCII without a NUL; Extract and Expand are RFC 5869 with SHA-256.

use hkdf::GenericHkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    ec::SecretScalar,
    identity::{Fingerprint, PublicKey, RegistrationKey},
    wire::{GRANT, HELLO_HEADER, SessionId},
};

pub(crate) type Hkdf = GenericHkdf<Hmac<Sha256>>;

/// A 32-byte secret of the schedule (`ex`, `hs`, `master`, …).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(pub(crate) [u8; 32]);

/// An AES-128-GCM key with the IV that its nonces are made from.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct KeyIv {
    pub(crate) key: [u8; 16],
    pub(crate) iv: [u8; 12],
}

impl KeyIv {
    /// The key: secret.
    #[must_use]
    #[inline]
    pub const fn key(&self) -> &[u8; 16] {
        &self.key
    }

    /// The IV: secret, too.
    #[must_use]
    #[inline]
    pub const fn iv(&self) -> &[u8; 12] {
        &self.iv
    }
}

/// The keys of both directions of a session. They are never stored (R72).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SessionKeys {
    /// Device to gateway.
    pub up: KeyIv,
    /// Gateway to device.
    pub down: KeyIv,
}

impl SessionKeys {
    /// The length of the keys that are handed over, bytes.
    pub const LEN: usize = 56;

    /// Writes the keys for the process that takes this one's place: into memory, and nowhere else (R72).
    pub fn hand_over(&self, out: &mut [u8; Self::LEN]) {
        let (up, down) = out.split_at_mut(Self::LEN / 2);
        for (place, of) in [(up, &self.up), (down, &self.down)] {
            place[..16].copy_from_slice(&of.key);
            place[16..].copy_from_slice(&of.iv);
        }
    }

    /// The keys that the process before has [handed over](Self::hand_over).
    #[must_use]
    pub fn taken_over(bytes: &[u8; Self::LEN]) -> Self {
        let mut keys = Self {
            up: KeyIv { key: [0; 16], iv: [0; 12] },
            down: KeyIv { key: [0; 16], iv: [0; 12] },
        };
        let (up, down) = bytes.split_at(Self::LEN / 2);
        for (part, of) in [(up, &mut keys.up), (down, &mut keys.down)] {
            of.key.copy_from_slice(&part[..16]);
            of.iv.copy_from_slice(&part[16..]);
        }
        keys
    }
}

/// The top bit of the lifetime's field: the reading inside HELLO is durable.
const STORED: u32 = 1 << 31;
/// The bit below it: no command waits for the device.
const NOTHING_WAITS: u32 = 1 << 30;
/// The longest lifetime that the field can say, seconds.
pub const LIFETIME_MAX_S: u32 = NOTHING_WAITS - 1;

/// What the gateway grants inside ACCEPT (P in the specification).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Grant {
    /// The session's name on this gateway.
    #[zeroize(skip)]
    pub session: SessionId,
    /// How long the session may live, seconds: below 2³⁰.
    pub lifetime_s: u32,
    /// Whether the reading inside HELLO is durable on the gateway.
    pub stored: bool,
    /// Whether no command waits for the device.
    pub nothing_waits: bool,
    /// By which a later RESET proves that it comes from this gateway.
    pub reset_token: [u8; 12],
}

impl Grant {
    pub(crate) fn encode(&self) -> [u8; GRANT] {
        let mut out = [0; GRANT];
        out[..4].copy_from_slice(&self.session.0.to_be_bytes());
        let mut lifetime = self.lifetime_s.min(LIFETIME_MAX_S);
        lifetime |= if self.stored { STORED } else { 0 };
        lifetime |= if self.nothing_waits { NOTHING_WAITS } else { 0 };
        out[4..8].copy_from_slice(&lifetime.to_be_bytes());
        out[8..].copy_from_slice(&self.reset_token);
        out
    }

    /// Reads P as it stands in ACCEPT; every 20 bytes are a grant.
    #[must_use]
    pub fn decode(bytes: &[u8; GRANT]) -> Self {
        let [s0, s1, s2, s3, l0, l1, l2, l3, token @ ..] = *bytes;
        let lifetime = u32::from_be_bytes([l0, l1, l2, l3]);
        Self {
            session: SessionId(u32::from_be_bytes([s0, s1, s2, s3])),
            lifetime_s: lifetime & LIFETIME_MAX_S,
            stored: lifetime & STORED != 0,
            nothing_waits: lifetime & NOTHING_WAITS != 0,
            reset_token: token,
        }
    }
}

pub(crate) fn expand_parts(prk: &Hkdf, info: &[&[u8]], out: &mut [u8]) {
    if prk.expand_multi_info(info, out).is_err() {
        unreachable!("every output is far below 255 blocks");
    }
}

impl Secret {
    /// Ready to expand: worth keeping while several keys come from one secret.
    pub(crate) fn prk(&self) -> Hkdf {
        let Ok(prk) = Hkdf::from_prk(&self.0) else { unreachable!("32 bytes are a PRK") };
        prk
    }
}

fn expand(secret: &Secret, info: &[&[u8]], out: &mut [u8]) {
    expand_parts(&secret.prk(), info, out);
}

/// Extract is HMAC with the salt as its key (RFC 5869 §2.2).
fn extract(salt: &[u8], ikm: &[u8]) -> Secret {
    Secret(mac(salt, &[ikm]))
}

pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        unreachable!("HMAC takes keys of any length")
    };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn head<const N: usize>(bytes: &[u8; 32]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

/// `e_c`: the device's ephemeral scalar, safe even when `random` is bad, since a secret `d` of the
/// device's own (its private scalar, registration key or hedge key, R121) and the ever-rising `fresh`
/// enter too (R19). A challenge and a reading's text enter where there are any: a device with a bad
/// generator and without a counter must not seal two texts under one E.
#[must_use]
pub fn hedged_scalar(
    random: &[u8; 32],
    d: &[u8; 32],
    gateway: &Fingerprint,
    fresh: u64,
    challenge: Option<&[u8; 16]>,
    reading: Option<&[u8]>,
) -> SecretScalar {
    let prk = extract(random, d);
    let mut wide = Zeroizing::new([0; 48]);
    let bound = hedge_bound(challenge, reading);
    let bound: &[u8] = bound.as_ref().map_or(&[], |bound| bound);
    let info: [&[u8]; 4] = [b"duet1 hedge", &gateway.0, &fresh.to_be_bytes(), bound];
    expand(&prk, &info, wide.as_mut_slice());
    SecretScalar::from_wide(&wide)
}

/// What a challenge and a reading add to the hedge's info: SHA-256(ch ‖ reading's text), ch being
/// zeros where there is none; nothing where there is neither.
#[must_use]
pub fn hedge_bound(challenge: Option<&[u8; 16]>, reading: Option<&[u8]>) -> Option<[u8; 32]> {
    let hash = Sha256::new()
        .chain_update(challenge.unwrap_or(&[0; 16]))
        .chain_update(reading.unwrap_or_default());
    (challenge.is_some() || reading.is_some()).then(|| hash.finalize().into())
}

/// `hs`: the HPKE exporter's secret, bound to the registration key where there is one (R24).
#[must_use]
pub fn handshake_secret(ex: &Secret, registration: Option<&RegistrationKey>) -> Secret {
    extract(&ex.0, registration.map_or(&[0; 32], |key| &key.0))
}

/// The fields of M, the text that the device's proof covers.
pub(crate) struct Claim<'a> {
    pub(crate) header: [u8; HELLO_HEADER],
    pub(crate) gateway: &'a Fingerprint,
    pub(crate) enc: &'a PublicKey,
    pub(crate) device: &'a Fingerprint,
    pub(crate) id: [u8; 8],
    pub(crate) fresh: u64,
    pub(crate) challenge: [u8; 16],
    pub(crate) random: &'a [u8],
    /// The reading's text; it stands last, so that its length needs no field.
    pub(crate) reading: &'a [u8],
}

impl Claim<'_> {
    fn parts<'p>(&'p self, label: &'p [u8], fresh: &'p [u8; 8]) -> [&'p [u8]; 10] {
        [
            label,
            &self.header,
            &self.gateway.0,
            &self.enc.0,
            &self.device.0,
            &self.id,
            fresh,
            &self.challenge,
            self.random,
            self.reading,
        ]
    }

    /// What the device signs: SHA-256("duet1 device sig" ‖ M) (R25).
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let fresh = self.fresh.to_be_bytes();
        self.parts(b"duet1 device sig", &fresh).iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    }

    /// The proof by registration key: HMAC(binder key, "duet1 binder" ‖ M)\[0..8] (R28).
    pub(crate) fn binder(&self, hs: &Secret) -> [u8; 8] {
        let mut key = Zeroizing::new([0; 32]);
        expand(hs, &[b"duet1 binder"], key.as_mut_slice());
        let fresh = self.fresh.to_be_bytes();
        head(&mac(key.as_slice(), &self.parts(b"duet1 binder", &fresh)))
    }
}

/// `th`: everything both sides have seen when ACCEPT is made (R29).
#[must_use]
pub(crate) fn transcript(
    hello: &[u8],
    clear: &[u8; 33],
    gateway: &Fingerprint,
    device: &Fingerprint,
) -> [u8; 32] {
    let Ok(len) = u16::try_from(hello.len()) else { unreachable!("HELLO is short") };
    Sha256::new()
        .chain_update(b"duet1 transcript")
        .chain_update(len.to_be_bytes())
        .chain_update(hello)
        .chain_update(clear)
        .chain_update(gateway.0)
        .chain_update(device.0)
        .finalize()
        .into()
}

/// What the gateway signs in the method's own profiles: SHA-256("duet1 gateway sig" ‖ th ‖ …).
#[must_use]
pub(crate) fn gateway_digest(th: &[u8; 32], ikm_part: &[u8], grant: &[u8; GRANT]) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"duet1 gateway sig")
        .chain_update(th)
        .chain_update(ikm_part)
        .chain_update(grant)
        .finalize()
        .into()
}

/// `master`, from which the session's keys come (R29).
#[must_use]
pub(crate) fn master(hs: &Secret, th: &[u8; 32], ikm: &[u8]) -> Secret {
    extract(&salt(hs, th).0, ikm)
}

pub(crate) fn salt(hs: &Secret, th: &[u8; 32]) -> Secret {
    let mut salt = Secret([0; 32]);
    expand(hs, &[b"duet1 salt", th], &mut salt.0);
    salt
}

/// The key that seals ACCEPT in key source `ephemeral`.
#[must_use]
pub(crate) fn accept_key(master: &Hkdf) -> KeyIv {
    let mut out = KeyIv { key: [0; 16], iv: [0; 12] };
    expand_parts(master, &[b"duet1 accept key"], &mut out.key);
    expand_parts(master, &[b"duet1 accept iv"], &mut out.iv);
    out
}

/// The key that seals ACCEPT in the method's own profiles with a registered id.
#[must_use]
pub(crate) fn accept_key_registered(hs: &Secret, th: &[u8; 32]) -> KeyIv {
    let prk = hs.prk();
    let mut out = KeyIv { key: [0; 16], iv: [0; 12] };
    expand_parts(&prk, &[b"duet1 accept key", th], &mut out.key);
    expand_parts(&prk, &[b"duet1 accept iv", th], &mut out.iv);
    out
}

/// The session's keys in both directions.
#[must_use]
pub(crate) fn session_keys(master: &Hkdf) -> SessionKeys {
    let empty = || KeyIv { key: [0; 16], iv: [0; 12] };
    let mut keys = SessionKeys { up: empty(), down: empty() };
    expand_parts(master, &[b"duet1 up key"], &mut keys.up.key);
    expand_parts(master, &[b"duet1 up iv"], &mut keys.up.iv);
    expand_parts(master, &[b"duet1 down key"], &mut keys.down.key);
    expand_parts(master, &[b"duet1 down iv"], &mut keys.down.iv);
    keys
}

/// The key that seals a CHALLENGE: only the sender of the HELLO can open it (R56).
#[must_use]
pub(crate) fn challenge_key(hs: &Secret, nonce: &[u8; 16]) -> KeyIv {
    let prk = extract(nonce, &hs.0).prk();
    let mut out = KeyIv { key: [0; 16], iv: [0; 12] };
    expand_parts(&prk, &[b"duet1 retry key"], &mut out.key);
    expand_parts(&prk, &[b"duet1 retry iv"], &mut out.iv);
    out
}

/// The MAC inside RESET: HMAC(token, the record that triggered it)\[0..16].
#[must_use]
pub fn reset_mac(token: &[u8; 12], record: &[u8]) -> [u8; 16] {
    head(&mac(token, &[record]))
}

/// A gateway node's reset token for a session: HMAC(node key, label ‖
/// session id)\[0..12] (R61). The session id's first byte is its slot.
#[must_use]
pub fn reset_token(node_key: &[u8; 32], session: SessionId) -> [u8; 12] {
    head(&mac(node_key, &[b"duet1 reset token", &session.0.to_be_bytes()]))
}

/// A gateway node's cookie for an address and a HELLO in an epoch (R52).
#[must_use]
pub fn cookie(node_key: &[u8; 32], epoch: u32, address: &[u8], hello: &[u8; 32]) -> [u8; 16] {
    head(&mac(node_key, &[b"duet1 cookie", &epoch.to_be_bytes(), hello, address]))
}

/// A gateway node's question to an address, in an epoch: who answers it from there receives there
/// (R109).
/// It is not made from the session's keys, since the device has those. `address` is the IPv6 or
/// mapped IPv4 address and the port.
#[must_use]
pub fn path_challenge(
    node_key: &[u8; 32],
    epoch: u32,
    session: SessionId,
    address: &[u8; 18],
) -> [u8; 4] {
    let (epoch, session) = (epoch.to_be_bytes(), session.0.to_be_bytes());
    head(&mac(node_key, &[b"duet1 path", &epoch, &session, address]))
}

/// A gateway node's challenge to a device (R57).
#[must_use]
pub fn challenge(
    node_key: &[u8; 32],
    id: [u8; 8],
    credential: &Fingerprint,
    hello: &[u8; 32],
    now_us: u64,
) -> [u8; 16] {
    let now = now_us.to_be_bytes();
    head(&mac(node_key, &[b"duet1 challenge", &id, &credential.0, hello, &now]))
}
