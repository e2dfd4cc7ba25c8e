//! What one device may hand to the spool, so that it cannot stop confirmations for all others. Owns a shard's record of
//! who has used how much; stores nothing and asks no clock: the time is given.
//!
//! Each allowance is a bucket that fills with time, kept as the moment at which it will be full again (the generic
//! cell rate algorithm). A bucket that is full is the same as none, so only devices that used something lately are
//! kept, and their number is bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::config::Quota;

/// The most devices that are kept; with more, those with the fullest buckets are forgotten first.
const DEVICES_MAX: usize = 65_536;
/// How long a bucket takes to fill, for readings and bytes, µs.
const BURST_US: u64 = 10_000_000;
/// How long a device's share of a scarce spool takes to fill, µs.
const SHARE_US: u64 = 3_600_000_000;

/// Why a reading is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    /// Too many readings a second.
    Readings,
    /// Too many bytes a second.
    Bytes,
    /// The spool is nearly full, and this device has had its share of what is left.
    Share,
}

impl Excess {
    /// The metric's label.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Readings => "readings",
            Self::Bytes => "bytes",
            Self::Share => "share",
        }
    }
}

/// When each of a device's buckets is full again, µs.
#[derive(Clone, Copy, Default)]
struct Buckets {
    readings: u64,
    bytes: u64,
    share: u64,
}

impl Buckets {
    fn full_at(&self) -> u64 {
        self.readings.max(self.bytes).max(self.share)
    }
}

/// What every device is allowed, for all shards. It can change while they run.
pub(super) struct Allowance {
    /// What a reading costs of its bucket, µs; 0: no limit.
    reading_us: AtomicU64,
    /// Bytes a second; 0: no limit.
    bytes_per_s: AtomicU64,
    /// Bytes an hour while the spool is scarce; 0: no limit.
    share_bytes: AtomicU64,
    /// Of the spool.
    max_bytes: u64,
    /// Says that the spool is nearly full.
    scarce: Arc<AtomicBool>,
}

impl Allowance {
    /// For a spool of `max_bytes`, which is nearly full when `scarce` says so.
    pub(super) fn new(quota: &Quota, max_bytes: u64, scarce: Arc<AtomicBool>) -> Self {
        let none = || AtomicU64::new(0);
        let (reading_us, bytes_per_s, share_bytes) = (none(), none(), none());
        let this = Self { reading_us, bytes_per_s, share_bytes, max_bytes, scarce };
        this.change(quota);
        this
    }

    /// From now on this is allowed. A shard may see one of the three before the others.
    pub(super) fn change(&self, quota: &Quota) {
        let per_s = u64::from(quota.readings_per_s);
        let reading_us = 1_000_000_u64.checked_div(per_s).map_or(0, |us| us.max(1));
        self.reading_us.store(reading_us, Ordering::Relaxed);
        self.bytes_per_s.store(quota.bytes_per_s, Ordering::Relaxed);
        let share = self.max_bytes / 100 * u64::from(quota.share_percent);
        self.share_bytes.store(share, Ordering::Relaxed);
    }
}

/// A shard's quotas.
pub(super) struct Quotas {
    allowed: Arc<Allowance>,
    devices: HashMap<Box<str>, Buckets>,
}

impl Quotas {
    pub(super) fn new(allowed: Arc<Allowance>) -> Self {
        Self { allowed, devices: HashMap::new() }
    }

    /// Takes a reading of so many bytes into account; where it is too much, nothing is.
    pub(super) fn take(&mut self, device: &str, bytes: usize, now_us: u64) -> Result<(), Excess> {
        let now = |limit: &AtomicU64| limit.load(Ordering::Relaxed);
        let (reading_us, bytes_per_s) =
            (now(&self.allowed.reading_us), now(&self.allowed.bytes_per_s));
        let share_bytes = now(&self.allowed.share_bytes);
        let share = share_bytes > 0 && self.allowed.scarce.load(Ordering::Relaxed);
        if reading_us == 0 && bytes_per_s == 0 && !share {
            return Ok(());
        }
        let bytes = bytes as u64;
        let mut buckets = self.devices.get(device).copied().unwrap_or_default();
        buckets.readings =
            spend(buckets.readings, reading_us, BURST_US, now_us).ok_or(Excess::Readings)?;
        let cost = (bytes * 1_000_000).checked_div(bytes_per_s).unwrap_or(0);
        buckets.bytes = spend(buckets.bytes, cost, BURST_US, now_us).ok_or(Excess::Bytes)?;
        if share {
            let cost = (bytes * SHARE_US).checked_div(share_bytes).unwrap_or(0);
            buckets.share = spend(buckets.share, cost, SHARE_US, now_us).ok_or(Excess::Share)?;
        }
        match self.devices.get_mut(device) {
            Some(kept) => *kept = buckets,
            None => {
                self.make_room(now_us);
                self.devices.insert(device.into(), buckets);
            }
        }
        Ok(())
    }

    fn make_room(&mut self, now_us: u64) {
        if self.devices.len() < DEVICES_MAX {
            return;
        }
        self.devices.retain(|_, buckets| buckets.full_at() > now_us);
        if self.devices.len() >= DEVICES_MAX {
            // Whoever has used least loses least by being forgotten.
            let mut full: Vec<_> = self.devices.values().map(Buckets::full_at).collect();
            let (_, median, _) = full.select_nth_unstable(DEVICES_MAX / 2);
            let median = *median;
            self.devices.retain(|_, buckets| buckets.full_at() > median);
        }
    }
}

/// Takes `cost` from a bucket that would be full at `full_us` and holds `burst`; when it is full then. `None`: too much.
/// What costs more than a whole bucket is taken from a full one.
fn spend(full_us: u64, cost: u64, burst: u64, now_us: u64) -> Option<u64> {
    let after = full_us.max(now_us) + cost;
    (cost == 0 || after <= now_us + burst || full_us <= now_us).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(readings_per_s: u32, bytes_per_s: u64, share_percent: u8) -> Quotas {
        let quota = Quota { readings_per_s, bytes_per_s, share_percent };
        let allowed = Allowance::new(&quota, 1 << 20, Arc::new(AtomicBool::new(false)));
        Quotas::new(Arc::new(allowed))
    }

    /// How many readings of 100 bytes a device gets through at once.
    fn burst(quotas: &mut Quotas, device: &str, now_us: u64) -> (u32, Excess) {
        let mut taken = 0;
        loop {
            match quotas.take(device, 100, now_us) {
                Ok(()) => taken += 1,
                Err(excess) => return (taken, excess),
            }
        }
    }

    #[test]
    fn a_device_that_sends_too_much_is_held_back_and_no_other() {
        let mut quotas = quotas(100, 0, 0);
        assert_eq!(burst(&mut quotas, "a", 5), (1_000, Excess::Readings), "ten seconds at once");
        assert_eq!(burst(&mut quotas, "b", 5).0, 1_000);
        assert_eq!(burst(&mut quotas, "a", 1_000_005).0, 100, "and then its rate");
        assert_eq!(burst(&mut quotas, "a", 60_000_000).0, 1_000);
    }

    #[test]
    fn bytes_have_a_bucket_of_their_own_and_no_limit_is_none() {
        assert_eq!(burst(&mut quotas(0, 1_000, 0), "a", 5), (100, Excess::Bytes));
        assert_eq!(quotas(0, 10, 0).take("a", 1_000, 5), Ok(()), "larger than a whole bucket");
        let mut none = quotas(0, 0, 0);
        for _ in 0..100_000 {
            assert_eq!(none.take("a", 1_000, 5), Ok(()));
        }
        assert!(none.devices.is_empty());
    }

    #[test]
    fn what_is_left_of_a_scarce_spool_is_shared() {
        let mut quotas = quotas(0, 0, 1);
        quotas.take("a", 1 << 30, 5).unwrap();
        quotas.allowed.scarce.store(true, Ordering::Relaxed);
        let (taken, excess) = burst(&mut quotas, "a", 5);
        assert_eq!((taken, excess), (104, Excess::Share), "a hundredth of 1 MiB");
        assert_eq!(burst(&mut quotas, "b", 5).0, 104);
        quotas.allowed.scarce.store(false, Ordering::Relaxed);
        assert_eq!(quotas.take("a", 1 << 30, 5), Ok(()));
    }

    #[test]
    fn another_allowance_holds_from_the_next_reading_on() {
        let mut quotas = quotas(100, 0, 0);
        burst(&mut quotas, "a", 5);
        quotas.allowed.change(&Quota { readings_per_s: 0, bytes_per_s: 0, share_percent: 0 });
        assert_eq!(quotas.take("a", 100, 5), Ok(()));
        quotas.allowed.change(&Quota { readings_per_s: 10, bytes_per_s: 0, share_percent: 0 });
        assert_eq!(quotas.take("a", 100, 5), Err(Excess::Readings), "its bucket is still empty");
        assert_eq!(burst(&mut quotas, "b", 5).0, 100);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_whoever_used_least() {
        let mut quotas = quotas(10, 0, 0);
        burst(&mut quotas, "heavy", 5);
        for device in 0..2 * DEVICES_MAX {
            quotas.take(&device.to_string(), 100, 5).unwrap();
        }
        assert!(quotas.devices.len() <= DEVICES_MAX);
        assert!(quotas.take("heavy", 100, 5).is_err());
    }
}
