//! The page of flash in which whoever makes the device puts its credential.

#![allow(unsafe_code, reason = "the page lies at a fixed address")]

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
    /// Both coordinates. That they are a point is found out where it is used.
    gateway_key: [[u8; 32]; 2],
    /// Zeros: what follows is words.
    _filling: [u8; 2],
    #[cfg(all(feature = "compact", not(feature = "outside")))]
    gateway_comb: duet_device::compact::Comb,
}

fn page() -> &'static Page {
    // The address is not known before: else the compiler would take what lies there for what the linker put there.
    let address = core::hint::black_box(ADDRESS) as *const Page;
    // SAFETY: the address is in flash behind the program, nobody writes there, and any bytes are a page.
    unsafe { &*address }
}

/// The comb of the gateway's key, or whatever lies there.
#[cfg(all(feature = "compact", not(feature = "outside")))]
pub(crate) fn comb() -> &'static duet_device::compact::Comb {
    &page().gateway_comb
}

/// What the page says; `None` where there is none or it makes no sense.
pub(crate) fn read() -> Option<Config> {
    let page = page();
    if page.magic != MAGIC {
        return None;
    }
    let profile = Offer::decode(page.profile).ok()?.profile;
    let key = if profile.mode.has_certificate() {
        DeviceKey::Private(SecretScalar::from_bytes(&page.secret)?)
    } else {
        DeviceKey::Registration(RegistrationKey(page.secret))
    };
    let [x, y] = &page.gateway_key;
    let gateway = Gateway {
        key_id: page.key_id,
        fingerprint: Fingerprint(page.gateway_fingerprint),
        key: PublicKey::from_coordinates(x, y),
    };
    let (id, fingerprint) = (DeviceId(page.id), Fingerprint(page.fingerprint));
    let identity = Identity { id, fingerprint, key };
    let fresh = u64::from_be_bytes(page.first_fresh);
    Some(Config { identity, gateway, profile, transport: Transport::Stream, fresh })
}
