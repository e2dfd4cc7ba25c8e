//! Which refused devices the log tells of: each at most once a minute, and not more of them than a reader could bear,
//! since anybody who knows the ids of devices can have them refused.
//!
//! A shard only leaves a note, and a thread looks for notes by itself. To tell of a device takes time, and only known ones are
//! told of: if the shard did it, whoever names a device would see in the next answer of that shard whether it is known.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use duet_core::RefusedDevice;
use duet_protocol::identity::DeviceId;
use duet_protocol::reason::DropReason;

use crate::presence::Watch;

/// How often notes are looked for.
const EVERY: Duration = Duration::from_millis(100);
/// The most notes that wait; what is beyond is not told of.
const NOTES_MAX: usize = 1_024;
/// How long a device that was told of is not told of again, µs.
const QUIET_US: u64 = 60_000_000;
/// The most devices that are told of in that time.
const DEVICES_MAX: usize = 256;

/// A refused device, the shard that refused it, and when, milliseconds since 1970.
type Note = (usize, u64, RefusedDevice);

/// Where shards leave notes.
#[derive(Clone)]
pub(super) struct Notes(Arc<ArrayQueue<Note>>);

impl Notes {
    /// Leaves one.
    pub(super) fn leave(&self, shard: usize, at_ms: u64, refused: RefusedDevice) {
        let _ = self.0.push((shard, at_ms, refused));
    }
}

/// The thread that tells of what the notes say: to the log, and to whoever is asked how a device is.
pub(super) struct Telling {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Telling {
    /// Starts it. It ends when this is dropped, too.
    pub(super) fn begin(presence: Arc<Watch>) -> io::Result<(Notes, Self)> {
        let notes = Notes(Arc::new(ArrayQueue::new(NOTES_MAX)));
        let (stop, stopped) = mpsc::channel::<()>();
        let left = notes.clone();
        let thread = std::thread::Builder::new().name("refusals".into()).spawn(move || {
            let (began, mut refusals) = (Instant::now(), Refusals::default());
            loop {
                let ends = stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout);
                let now_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                while let Some((shard, at_ms, refused)) = left.0.pop() {
                    refusals.tell(now_us, &refused);
                    presence.refused(shard, at_ms, &refused);
                }
                if ends {
                    return;
                }
            }
        })?;
        Ok((notes, Self { stop, thread }))
    }

    /// Ends it once the notes that are there are told of.
    pub(super) fn end(self) {
        drop(self.stop);
        // Nobody depends on what it did.
        let _ = self.thread.join();
    }
}

/// What was told of.
#[derive(Default)]
struct Refusals {
    told_us: HashMap<DeviceId, u64>,
}

impl Refusals {
    /// Tells of a refused device, where that is due.
    fn tell(&mut self, now_us: u64, refused: &RefusedDevice) {
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    use super::*;

    struct Lines(Arc<AtomicUsize>);

    impl<S: tracing::Subscriber> Layer<S> for Lines {
        fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Otherwise the shard's next answers come later than those after an unknown device.
    #[test]
    fn a_shard_writes_nothing_of_a_refused_device_itself() {
        let (presence, lines) = (Arc::new(Watch::new(1)), Arc::<AtomicUsize>::default());
        let (notes, telling) = Telling::begin(Arc::clone(&presence)).unwrap();
        let from = std::net::IpAddr::from([192, 0, 2, 1]);
        let refused = |number| RefusedDevice {
            device: device(number),
            name: "d".into(),
            proven: false,
            reason: DropReason::Proof,
            from,
        };
        let kept = |number| presence.presence(device(number), None, 0).refusals.len();
        let here = tracing_subscriber::registry().with(Lines(Arc::clone(&lines)));
        tracing::subscriber::with_default(here, || {
            notes.leave(0, 7, refused(1));
            assert_eq!(lines.load(Ordering::Relaxed), 0);
            // The same, told of here: the count is no accident.
            Refusals::default().tell(0, &refused(1));
            assert_eq!(lines.load(Ordering::Relaxed), 1);
        });
        let began = Instant::now();
        while kept(1) == 0 {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        // Notes that are left at the end are told of, and a flood of them is not kept.
        for _ in 0..10 * NOTES_MAX {
            notes.leave(0, 8, refused(2));
        }
        telling.end();
        assert!(kept(2) > 0 && notes.0.is_empty());
    }

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
