//! One session of one device, as its shard keeps it.

use std::sync::Arc;

use duet_protocol::message::{Down, RANGES_MAX, Range, TEXT_MAX};
use duet_protocol::record::Cipher;
use duet_protocol::replay::ReplayWindow;
use duet_protocol::responder::Accept;
use duet_protocol::wire::{DownHeader, SessionId};
use zeroize::Zeroizing;

use crate::registry::Device;
use crate::transport::Path;

/// What a session keeps until its first valid record.
pub(super) struct Pending {
    pub(super) hello: [u8; 32],
    pub(super) accept: Accept,
    pub(super) fresh: u64,
    pub(super) challenged: bool,
}

pub(super) struct Session {
    pub(super) device: Arc<Device>,
    pub(super) up: Cipher,
    pub(super) down: Cipher,
    pub(super) next_down: u32,
    pub(super) window: ReplayWindow,
    /// Which of the readings that want confirmation are durable.
    pub(super) stored: ReplayWindow,
    pub(super) path: Path,
    pub(super) pending: Option<Box<Pending>>,
    pub(super) since_us: u64,
    pub(super) heard_us: u64,
    /// Sequence numbers that are durable and not yet acknowledged.
    pub(super) acks: Vec<u32>,
}

impl Session {
    /// Seals a message; `None` once the sequence numbers are used up.
    pub(super) fn seal(&mut self, id: SessionId, message: Down<'_>) -> Option<Vec<u8>> {
        let sequence = self.next_down;
        self.next_down = sequence.checked_add(1)?;
        let mut text = Zeroizing::new([0; TEXT_MAX]);
        let len = message.encode(text.as_mut_slice());
        let mut out = vec![0; len + 21];
        let sealed = self.down.seal_down(DownHeader { sequence }, id, &text[..len], &mut out);
        debug_assert_eq!(sealed, out.len());
        Some(out)
    }

    /// The acknowledgements that are due, as few messages as possible.
    pub(super) fn seal_acks(&mut self, id: SessionId) -> Vec<Vec<u8>> {
        let mut numbers = std::mem::take(&mut self.acks);
        numbers.sort_unstable();
        numbers.dedup();
        let mut ranges: Vec<Range> = Vec::new();
        for number in numbers {
            match ranges.last_mut() {
                Some(last)
                    if last.first + u32::from(last.count) == number && last.count < u16::MAX =>
                {
                    last.count += 1;
                }
                _ => ranges.push(Range { first: number, count: 1 }),
            }
        }
        let mut encoded = [0; RANGES_MAX * 6];
        ranges
            .chunks(RANGES_MAX)
            .filter_map(|chunk| self.seal(id, Down::ack(chunk, &mut encoded)))
            .collect()
    }
}
