//! The latest reading of each device and channel, as it was taken, for whoever asks how a device is.
//!
//! Owns a bounded memory of them. A shard writes to its own for each reading, so this must be cheap: readings come by the
//! batch, so that fetching one device overlaps with the next one; a device is found by its session, and what is written lies
//! together in two lines of the cache; nothing is allocated for a device that keeps to one channel. When there is room for
//! no more, a device that has not been heard of since the hand last came by makes room (the clock algorithm).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use duet_protocol::identity::DeviceId;
use duet_protocol::wire::SessionId;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::hex::Hex;

/// How many devices a shard keeps.
const DEVICES: usize = 32_768;
/// How many channels of a device are kept; with more, the one that was longest not heard of makes room.
const CHANNELS: usize = 8;
/// How much of a payload is kept, bytes.
const PAYLOAD: usize = 64;

/// The latest reading of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastValue {
    /// The device's channel.
    pub channel: u16,
    /// How many readings of it came since the device was forgotten last, or the gateway started.
    pub count: u64,
    /// When it came, milliseconds since 1970.
    pub received_ms: u64,
    /// When it was measured, the same way.
    pub measured_ms: u64,
    /// Its payload, hexadecimal; at most the first 64 bytes.
    pub payload: String,
    /// Whether there was more of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

#[derive(Clone)]
struct Last {
    channel: u16,
    len: u8,
    cut: bool,
    count: u64,
    received_ms: u64,
    measured_ms: u64,
    payload: [u8; PAYLOAD],
}

impl Last {
    const fn new(channel: u16) -> Self {
        let payload = [0; PAYLOAD];
        Self { channel, len: 0, cut: false, count: 0, received_ms: 0, measured_ms: 0, payload }
    }

    fn set(&mut self, received_ms: u64, measured_ms: u64, payload: &[u8]) {
        (self.received_ms, self.measured_ms) = (received_ms, measured_ms);
        self.count += 1;
        let kept = &payload[..payload.len().min(PAYLOAD)];
        self.payload[..kept.len()].copy_from_slice(kept);
        #[expect(clippy::cast_possible_truncation, reason = "at most PAYLOAD")]
        let len = kept.len() as u8;
        (self.len, self.cut) = (len, payload.len() > PAYLOAD);
    }

    fn shown(&self) -> LastValue {
        LastValue {
            channel: self.channel,
            count: self.count,
            received_ms: self.received_ms,
            measured_ms: self.measured_ms,
            payload: Hex(&self.payload[..self.len.into()]).to_string(),
            cut: self.cut,
        }
    }
}

/// A reading that was taken, without its payload.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Whose it is.
    pub device: DeviceId,
    /// The session that it came in.
    pub session: SessionId,
    /// The device's channel.
    pub channel: u16,
    /// When it came, milliseconds since 1970.
    pub received_ms: u64,
    /// When it was measured, the same way.
    pub measured_ms: u64,
}

/// A device that is kept.
#[repr(align(64))]
struct Kept {
    device: DeviceId,
    /// The session that it was heard in last, which finds it.
    session: SessionId,
    /// Whether it was heard of since the hand came by.
    used: bool,
    /// Of the channel that it used last.
    last: Last,
    /// Of its other channels.
    #[expect(clippy::box_collection, reason = "few devices have more than one channel")]
    others: Option<Box<Vec<Last>>>,
}

const _: () =
    assert!(size_of::<Kept>() == 128, "two lines of the cache, which are fetched together");

impl Kept {
    /// Makes a channel the last one.
    #[cold]
    fn change_channel(&mut self, channel: u16) {
        let others = self.others.get_or_insert_default();
        let known = others.iter().position(|other| other.channel == channel);
        let next = match known {
            Some(place) => others.swap_remove(place),
            None => Last::new(channel),
        };
        if others.len() == CHANNELS - 1 {
            let oldest = (0..others.len()).min_by_key(|place| others[*place].received_ms);
            oldest.map(|place| others.swap_remove(place));
        }
        others.push(std::mem::replace(&mut self.last, next));
    }
}

#[derive(Default)]
struct Table {
    kept: Vec<Kept>,
    /// Ids come from certificates, so whoever has many made could make them collide: not by a hash that he knows.
    by_device: HashMap<DeviceId, u32>,
    /// Of each device the session that it was heard in last.
    by_session: FxHashMap<SessionId, u32>,
    hand: usize,
}

impl Table {
    fn take(&mut self, taken: &Taken, payload: &[u8]) {
        let Taken { device, session, channel, .. } = *taken;
        let found = self.by_session.get(&session).map(|place| *place as usize);
        let place = match found.filter(|place| self.kept[*place].device == device) {
            Some(place) => place,
            None => self.enter(device, session, channel),
        };
        let kept = &mut self.kept[place];
        kept.used = true;
        if kept.last.channel != channel {
            kept.change_channel(channel);
        }
        kept.last.set(taken.received_ms, taken.measured_ms, payload);
    }

    /// The place of a device that is heard of in a session for the first time.
    #[cold]
    fn enter(&mut self, device: DeviceId, session: SessionId, channel: u16) -> usize {
        let place = match self.by_device.get(&device) {
            Some(place) => *place as usize,
            None => self.add(device, session, channel),
        };
        let before = std::mem::replace(&mut self.kept[place].session, session);
        self.leave(before, place);
        self.by_session.insert(session, number(place));
        place
    }

    /// This place's device is not found by this session any more; another device may be, by now.
    fn leave(&mut self, session: SessionId, place: usize) {
        if self.by_session.get(&session) == Some(&number(place)) {
            self.by_session.remove(&session);
        }
    }

    fn add(&mut self, device: DeviceId, session: SessionId, channel: u16) -> usize {
        let new = Kept { device, session, used: true, last: Last::new(channel), others: None };
        let place = if self.kept.len() < DEVICES {
            self.kept.push(new);
            self.kept.len() - 1
        } else {
            while std::mem::take(&mut self.kept[self.hand].used) {
                self.hand = (self.hand + 1) % DEVICES;
            }
            let place = self.hand;
            self.hand = (self.hand + 1) % DEVICES;
            let left = std::mem::replace(&mut self.kept[place], new);
            self.by_device.remove(&left.device);
            self.leave(left.session, place);
            place
        };
        self.by_device.insert(device, number(place));
        place
    }
}

fn number(place: usize) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "below DEVICES")]
    let number = place as u32;
    number
}

/// A shard's memory of latest readings. It and whoever asks share it.
#[derive(Default)]
pub struct Values(Mutex<Table>);

impl Values {
    /// Readings were taken, in this order.
    pub fn take<'a>(&self, readings: impl Iterator<Item = (&'a Taken, &'a [u8])>) {
        // What it protects is sound after each reading.
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readings.for_each(|(taken, payload)| table.take(taken, payload));
    }

    /// The latest reading of each of a device's channels, as far as they are kept.
    #[must_use]
    pub fn of(&self, device: DeviceId) -> Vec<LastValue> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = table.by_device.get(&device) else { return Vec::new() };
        let kept = &table.kept[*place as usize];
        let others = kept.others.iter().flat_map(|others| others.iter());
        let mut values: Vec<_> = others.chain([&kept.last]).map(Last::shown).collect();
        values.sort_unstable_by_key(|value| value.channel);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> DeviceId {
        DeviceId((number as u64).to_be_bytes())
    }

    impl Values {
        fn take_of(&self, device: usize, session: u32, channel: u16, ms: u64, payload: &[u8]) {
            let (device, session) = (id(device), SessionId(session));
            let taken = Taken { device, session, channel, received_ms: ms, measured_ms: ms - 1 };
            self.take([(&taken, payload)].into_iter());
        }
    }

    #[test]
    fn the_latest_of_each_channel_is_kept_with_its_count() {
        let values = Values::default();
        values.take_of(7, 1, 2, 5, b"old");
        values.take_of(7, 1, 2, 7, b"new");
        values.take_of(7, 1, 1, 8, &[b'x'; PAYLOAD + 1]);
        values.take_of(7, 1, 2, 9, b"");
        values.take_of(7, 1, 2, 10, b"last");
        let kept = values.of(id(7));
        assert_eq!(
            kept.iter().map(|one| (one.channel, one.count)).collect::<Vec<_>>(),
            [(1, 1), (2, 4)]
        );
        assert_eq!(
            (&*kept[1].payload, kept[1].received_ms, kept[1].measured_ms),
            ("6c617374", 10, 9)
        );
        assert!(kept[0].cut && kept[0].payload.len() == 2 * PAYLOAD && !kept[1].cut);
        assert!(values.of(id(8)).is_empty());
    }

    #[test]
    fn a_session_number_that_is_given_again_finds_whoever_has_it() {
        let values = Values::default();
        let take = |device, session| values.take_of(device, session, 0, 1, b"");
        let counts =
            || [1, 2].map(|device| values.of(id(device)).first().map_or(0, |one| one.count));
        take(1, 1);
        take(2, 1);
        take(1, 2);
        take(2, 1);
        assert_eq!(counts(), [2, 2]);
        take(1, 1);
        take(2, 2);
        assert_eq!(counts(), [3, 3]);
        assert_eq!(values.0.lock().unwrap().by_session.len(), 2);
    }

    #[test]
    fn memory_is_bounded_and_who_is_heard_of_stays() {
        let values = Values::default();
        let steady = 3 * DEVICES;
        for (session, device) in (0..).zip(0..3 * DEVICES) {
            values.take_of(device, session, 0, 1, b"1");
            values.take_of(steady, u32::MAX, 0, 1, b"1");
        }
        let table = values.0.lock().unwrap();
        let sizes = (table.kept.len(), table.by_device.len(), table.by_session.len());
        drop(table);
        assert_eq!(sizes, (DEVICES, DEVICES, DEVICES));
        assert_eq!(values.of(id(steady))[0].count, 3 * DEVICES as u64);
        assert!(values.of(id(0)).is_empty());
        for channel in 0..100 {
            values.take_of(steady, u32::MAX, channel, 2 + u64::from(channel), b"1");
        }
        let kept: Vec<_> = values.of(id(steady)).iter().map(|one| one.channel).collect();
        assert_eq!(kept, (92..100).collect::<Vec<_>>(), "the latest ones");
    }
}
