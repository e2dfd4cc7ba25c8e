//! The page of flash in which whoever makes the device puts its credential.

#![allow(unsafe_code, reason = "the page lies at a fixed address")]

use core::ptr;

use duet_device::{
    Config, DeviceKey, Identity,
    protocol::{
        ec::SecretScalar,
        identity::{DeviceId, Fingerprint, Gateway, PublicKey, RegistrationKey},
        profile::{Offer, Transport},
    },
};

/// Behind the program: see `memory.x`.
const ADDRESS: usize = 0x0003_f000;
/// What a page begins with.
const MAGIC: [u8; 4] = *b"dfp1";

/// The page, byte for byte.
#[repr(C)]
struct Page {
    magic: [u8; 4],
    /// The profile byte of the specification, bits 0 to 4.
    profile: u8,
    /// Which of the gateway's keys.
    key_id: u8,
    /// Where the counter begins.
    first_fresh: [u8; 8],
    id: [u8; 8],
    fingerprint: [u8; 32],
    /// The registration key, or the certificate's private key.
    secret: [u8; 32],
    gateway_fingerprint: [u8; 32],
    gateway_key: [u8; 65],
}

/// What the page says; `None` where there is none or it makes no sense.
pub(crate) fn read() -> Option<Config> {
    // SAFETY: the address is in flash behind the program, bytes are aligned everywhere, and any are a page.
    let page = unsafe { ptr::read_volatile(ADDRESS as *const Page) };
    let profile = Offer::decode(page.profile).ok()?.profile;
    let key = if profile.mode.has_certificate() {
        DeviceKey::Private(SecretScalar::from_bytes(&page.secret)?)
    } else {
        DeviceKey::Registration(RegistrationKey(page.secret))
    };
    let gateway = Gateway {
        key_id: page.key_id,
        fingerprint: Fingerprint(page.gateway_fingerprint),
        key: PublicKey::from_sec1(&page.gateway_key)?,
    };
    let identity =
        Identity { id: DeviceId(page.id), fingerprint: Fingerprint(page.fingerprint), key };
    (page.magic == MAGIC).then_some(Config {
        identity,
        gateway,
        profile,
        transport: Transport::Stream,
        fresh: u64::from_be_bytes(page.first_fresh),
    })
}
