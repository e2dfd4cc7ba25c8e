//! The latest reading of each device and channel, as it was taken, for whoever asks how a device is.
//!
//! Owns a bounded memory of them. A shard writes to its own for each reading, so this must be cheap: one look-up, and no
//! allocation for a channel that is known. What was longest not heard of is forgotten first, by halves.

use std::sync::{Mutex, PoisonError};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::hex::Hex;

/// How many devices each half holds.
const DEVICES: usize = 16_384;
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

#[derive(Default)]
struct Last {
    channel: u16,
    count: u64,
    received_ms: u64,
    measured_ms: u64,
    payload: Vec<u8>,
    cut: bool,
}

impl Last {
    fn set(&mut self, received_ms: u64, measured_ms: u64, payload: &[u8]) {
        (self.received_ms, self.measured_ms) = (received_ms, measured_ms);
        self.count += 1;
        self.payload.clear();
        self.payload.extend_from_slice(&payload[..payload.len().min(PAYLOAD)]);
        self.cut = payload.len() > PAYLOAD;
    }
}

/// The place of a channel among those that are kept of a device.
fn last(channels: &mut Vec<Last>, channel: u16) -> &mut Last {
    let place = channels.iter().position(|last| last.channel == channel);
    let place = place.unwrap_or_else(|| {
        let new = Last { channel, ..Last::default() };
        if channels.len() < CHANNELS {
            channels.push(new);
            return channels.len() - 1;
        }
        let oldest = (0..channels.len()).min_by_key(|place| channels[*place].received_ms);
        let place = oldest.unwrap_or(0);
        channels[place] = new;
        place
    });
    &mut channels[place]
}

type Half = FxHashMap<Box<str>, Vec<Last>>;

/// A shard's memory of latest readings. It and whoever asks share it.
#[derive(Default)]
pub struct Values(Mutex<[Half; 2]>);

impl Values {
    /// A reading was taken.
    pub fn take(
        &self,
        device: &str,
        channel: u16,
        received_ms: u64,
        measured_ms: u64,
        payload: &[u8],
    ) {
        // What it protects is sound after each statement.
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *halves;
        if let Some(channels) = young.get_mut(device) {
            last(channels, channel).set(received_ms, measured_ms, payload);
            return;
        }
        if young.len() >= DEVICES {
            *old = std::mem::take(young);
        }
        let (name, mut channels) =
            old.remove_entry(device).unwrap_or_else(|| (device.into(), Vec::new()));
        last(&mut channels, channel).set(received_ms, measured_ms, payload);
        young.insert(name, channels);
    }

    /// The latest reading of each of a device's channels, as far as they are kept.
    #[must_use]
    pub fn of(&self, device: &str) -> Vec<LastValue> {
        let halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let channels = halves.iter().find_map(|half| half.get(device));
        let value = |last: &Last| LastValue {
            channel: last.channel,
            count: last.count,
            received_ms: last.received_ms,
            measured_ms: last.measured_ms,
            payload: Hex(&last.payload).to_string(),
            cut: last.cut,
        };
        let mut values: Vec<_> = channels.into_iter().flatten().map(value).collect();
        values.sort_unstable_by_key(|value| value.channel);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_of_each_channel_is_kept_with_its_count() {
        let values = Values::default();
        values.take("a", 2, 5, 4, b"old");
        values.take("a", 2, 7, 6, b"new");
        values.take("a", 1, 8, 8, &[b'x'; PAYLOAD + 1]);
        let kept = values.of("a");
        assert_eq!(
            kept.iter().map(|one| (one.channel, one.count)).collect::<Vec<_>>(),
            [(1, 1), (2, 2)]
        );
        assert_eq!((&*kept[1].payload, kept[1].received_ms, kept[1].measured_ms), ("6e6577", 7, 6));
        assert!(kept[0].cut && kept[0].payload.len() == 2 * PAYLOAD && !kept[1].cut);
        assert!(values.of("b").is_empty());
    }

    #[test]
    fn memory_is_bounded_and_who_is_heard_of_stays() {
        let values = Values::default();
        for n in 0..4 * DEVICES as u64 {
            values.take(&format!("d{n}"), 0, n, n, b"1");
            values.take("steady", 0, n, n, b"1");
        }
        let halves = values.0.lock().unwrap();
        assert!(halves.iter().all(|half| half.len() <= DEVICES));
        drop(halves);
        assert_eq!(values.of("steady")[0].count, 4 * DEVICES as u64);
        for channel in 0..100 {
            values.take("steady", channel, 1 << 40 | u64::from(channel), 0, b"1");
        }
        let kept: Vec<_> = values.of("steady").iter().map(|one| one.channel).collect();
        assert_eq!(kept, (92..100).collect::<Vec<_>>(), "the latest ones");
    }
}
