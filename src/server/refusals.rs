//! Which refused devices the log tells of: each at most once a minute, and not more of them than a reader could bear,
//! since anybody who knows the ids of devices can have them refused.

use std::collections::HashMap;

use duet_core::RefusedDevice;
use duet_protocol::identity::DeviceId;
use duet_protocol::reason::DropReason;

/// How long a device that was told of is not told of again, µs.
const QUIET_US: u64 = 60_000_000;
/// The most devices of a shard that are told of in that time.
const DEVICES_MAX: usize = 256;

/// What a shard has told of.
#[derive(Default)]
pub(super) struct Refusals {
    told_us: HashMap<DeviceId, u64>,
}

impl Refusals {
    /// Tells of a refused device, where that is due.
    pub(super) fn tell(&mut self, now_us: u64, refused: &RefusedDevice) {
        if self.is_due(now_us, refused.device) {
            let RefusedDevice { name, proven, reason, from, .. } = refused;
            tracing::warn!(
                device = &**name,
                reason = reason.label(),
                from = %from,
                "device refused: {}",
                advice(*proven, *reason)
            );
        }
    }

    fn is_due(&mut self, now_us: u64, device: DeviceId) -> bool {
        if self.told_us.len() >= DEVICES_MAX {
            self.told_us.retain(|_, told_us| now_us.saturating_sub(*told_us) < QUIET_US);
        }
        let told_us = self.told_us.get(&device);
        let is_due = match told_us {
            Some(told_us) => now_us.saturating_sub(*told_us) >= QUIET_US,
            None => self.told_us.len() < DEVICES_MAX,
        };
        if is_due {
            self.told_us.insert(device, now_us);
        }
        is_due
    }
}

/// What is wrong, and what an operator can do.
fn advice(proven: bool, reason: DropReason) -> &'static str {
    match (proven, reason) {
        (true, DropReason::Proof) => "it was revoked a moment ago",
        (true, DropReason::Expired) => {
            "its certificate is not valid at this machine's time, or its registration has ended; `duet device show` \
             tells until when both are valid: compare with this machine's clock, give it a new certificate, or move \
             the end (`duet device set --expires`)"
        }
        (true, DropReason::NotAllowed) => {
            "it uses a key source that it is not registered for; change what the device uses, or register it anew with \
             this one (--key-sources)"
        }
        (true, DropReason::SessionsFull) => {
            "there are as many sessions as limits.max_sessions allows; raise it, or shorten session.idle_timeout_s"
        }
        (true, DropReason::PendingFull) => {
            "more sessions wait for their first record than limits.max_pending allows; the device tries again"
        }
        (false, _) => {
            "whoever named this device could not prove to be it: the device has another key than the one registered, or \
             somebody else uses its id; compare its credential with `duet device show`"
        }
        (true, _) => "docs/operating.md tells what the reason means",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: u16) -> DeviceId {
        let [high, low] = number.to_be_bytes();
        DeviceId([0, 0, 0, 0, 0, 0, high, low])
    }

    #[test]
    fn a_device_is_told_of_once_a_minute() {
        let mut refusals = Refusals::default();
        assert!(refusals.is_due(0, device(1)));
        assert!(refusals.is_due(5, device(2)));
        assert!(!refusals.is_due(QUIET_US - 1, device(1)));
        assert!(refusals.is_due(QUIET_US, device(1)));
        assert!(!refusals.is_due(QUIET_US + 4, device(1)));
        assert!(refusals.is_due(QUIET_US + 5, device(2)));
    }

    #[test]
    fn a_flood_of_known_ids_fills_neither_memory_nor_the_log() {
        let mut refusals = Refusals::default();
        let told = (0..10_000).filter(|number| refusals.is_due(7, device(*number))).count();
        assert_eq!((told, refusals.told_us.len()), (DEVICES_MAX, DEVICES_MAX));
        assert!(
            refusals.is_due(7 + QUIET_US, device(9_999)),
            "a minute later others have their turn"
        );
        assert_eq!(refusals.told_us.len(), 1);
    }
}
