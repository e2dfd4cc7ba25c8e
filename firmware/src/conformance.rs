//! The protocol's vectors on the board: each HELLO is the same byte for byte, each ACCEPT and record is taken, and the record
//! that answers is the same, too. It says how many, or which one was wrong and at which step; and of each vector what HELLO,
//! ACCEPT and a record took, in ticks.
#![no_std]
#![no_main]

#[allow(dead_code, reason = "the sensor needs more of it")]
mod board;
#[allow(dead_code, reason = "the sensor needs more of it")]
mod host;

use core::mem::MaybeUninit;

use cortex_m_rt::entry;
#[cfg(feature = "compact")]
use duet_device::compact::{Comb, Small as Primitives, comb};
#[cfg(not(feature = "compact"))]
use duet_device::software::Portable as Primitives;
use duet_device::{
    Config, CryptoError, Device, DeviceKey, Early, Event, Identity, Volatile,
    certificate::checked,
    protocol::{
        ec::SecretScalar,
        identity::{DeviceId, Fingerprint, Gateway, RegistrationKey},
        profile::{Offer, Transport},
    },
    software::{Random, Suite},
};

use crate::board::Board;

/// What `device/c/tests/vectors.rs` makes of the vectors.
static VECTORS: &[u8] = include_bytes!("../../device/c/tests/vectors.bin");

/// The random bytes of a vector, in the order in which a device draws them.
struct Given(&'static [u8]);

impl Random for Given {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        let (head, rest) = self.0.split_at_checked(out.len()).ok_or(CryptoError::Random)?;
        out.copy_from_slice(head);
        self.0 = rest;
        Ok(())
    }
}

type Sensor = Device<Suite<Primitives, Given>, Volatile, 2, 64>;

/// The curve and the cipher, with the comb of the gateway's key, which is the same in all vectors.
#[cfg(feature = "compact")]
fn primitives() -> Option<Primitives> {
    let mut reader = Reader(VECTORS);
    reader.bytes(3);
    let made = comb(&reader.config(Transport::Datagram)?.gateway.key)?;
    Some(Primitives { comb: Some(cortex_m::singleton!(: Comb = made)?) })
}

/// The curve and the cipher.
#[cfg(not(feature = "compact"))]
fn primitives() -> Option<Primitives> {
    Some(Primitives)
}

/// Takes bytes off the vectors.
struct Reader(&'static [u8]);

impl Reader {
    fn bytes(&mut self, len: usize) -> &'static [u8] {
        let (head, rest) = self.0.split_at_checked(len).unwrap_or((&[], &[]));
        self.0 = rest;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.bytes(N).try_into().unwrap_or([0; N])
    }

    fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// What stands behind its length.
    fn message(&mut self) -> &'static [u8] {
        let len = usize::from(u16::from_be_bytes(self.array()));
        self.bytes(len)
    }

    fn config(&mut self, transport: Transport) -> Option<Config> {
        let profile = Offer::decode(self.byte()).ok()?.profile;
        let (key_id, id, secret) = (self.byte(), DeviceId(self.array()), self.array());
        let fingerprint = Fingerprint(self.array());
        let _public = self.bytes(65);
        let gateway_fingerprint = Fingerprint(self.array());
        let gateway =
            Gateway { key_id, fingerprint: gateway_fingerprint, key: checked(self.bytes(65))? };
        let key = if profile.mode.has_certificate() {
            DeviceKey::Private(SecretScalar::from_bytes(&secret)?)
        } else {
            DeviceKey::Registration(RegistrationKey(secret))
        };
        let identity = Identity { id, fingerprint, key };
        let fresh = u64::from_be_bytes(self.array());
        Some(Config { identity, gateway, profile, transport, fresh })
    }
}

/// Whether the device sends this.
fn sends(board: &Board, device: &mut Sensor, out: &mut [u8], wanted: &[u8], what: &str) -> bool {
    let before = board.ticks();
    let len = device.poll_transmit(1_000, out).unwrap_or(0);
    host::say(what, Some(board.ticks().wrapping_sub(before)));
    out.get(..len) == Some(wanted)
}

/// What the device makes of this message: a number for each event.
fn receives(device: &mut Sensor, room: &mut [u8], message: &[u8]) -> Option<u8> {
    let room = room.get_mut(..message.len())?;
    room.copy_from_slice(message);
    match device.handle_message(1_000, room) {
        Ok(Event::Opened) => Some(1),
        Ok(Event::Confirmed) => Some(2),
        Ok(Event::Nothing) => Some(3),
        Ok(_) | Err(_) => None,
    }
}

/// Goes through one vector; the step that went wrong.
fn check(board: &Board, reader: &mut Reader, primitives: Primitives) -> Result<(), u32> {
    let transport = if reader.byte() == 1 { Transport::Stream } else { Transport::Datagram };
    let (early, stored) = (reader.byte() == 1, reader.byte() == 1);
    let config = reader.config(transport).ok_or(1u32)?;
    let engine = Suite::with(primitives, Given(reader.bytes(80)));
    let [payload, hello, accept, ack, prove, here] = [(); 6].map(|()| reader.message());
    let mut place = MaybeUninit::uninit();
    let device = Sensor::new_in(&mut place, engine, Volatile, config).map_err(|_| 1u32)?;
    if early {
        device.set_early(Early::Stay);
        device.send_reading(1_000, 2, payload, true).map_err(|_| 2u32)?;
    }
    let mut room = [0; Sensor::TRANSMIT_MAX];
    device.open(1_000);
    let mut step = 3;
    let mut is = |good: bool| {
        step += 1;
        if good { Ok(()) } else { Err(step - 1) }
    };
    is(sends(board, device, &mut room, hello, "ticks hello"))?;
    let before = board.ticks();
    let opened = receives(device, &mut room, accept) == Some(1);
    host::say("ticks accept", Some(board.ticks().wrapping_sub(before)));
    is(opened)?;
    is(device.poll_confirmed().is_some() == stored)?;
    is(receives(device, &mut room, ack) == Some(2))?;
    // A copy is discarded.
    is(receives(device, &mut room, ack).is_none())?;
    is(receives(device, &mut room, prove) == Some(3))?;
    is(sends(board, device, &mut room, here, "ticks record"))
}

#[entry]
fn main() -> ! {
    let board = Board::start();
    let (mut reader, mut count) = (Reader(VECTORS), 0u32);
    let Some(primitives) = primitives() else {
        host::say("failed", None);
        host::exit(false)
    };
    while !reader.0.is_empty() {
        if let Err(step) = check(&board, &mut reader, primitives) {
            host::say("vector", Some(count));
            host::say("step", Some(step));
            host::say("failed", None);
            host::exit(false)
        }
        count += 1;
    }
    host::say("vectors", Some(count));
    host::exit(true)
}
