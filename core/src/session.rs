//! One session of one device, as its shard keeps it.

use std::sync::Arc;

use arrayvec::ArrayVec;
use duet_protocol::message::{Down, RANGES_MAX, Range, TEXT_MAX};
use duet_protocol::replay::ReplayWindow;
use duet_protocol::responder::Accept;
use duet_protocol::schedule::SessionKeys;
use duet_protocol::wire::{DOWN_HEADER, DownHeader, SessionId, TAG};
use zeroize::Zeroizing;

use crate::destinations::Destinations;
use crate::unsealed::Unsealed;
use crate::{Device, Path, StreamId};

/// What a session keeps until its first valid record.
pub(crate) struct Pending {
    pub(crate) hello: [u8; 32],
    pub(crate) accept: Accept,
    pub(crate) fresh: u64,
    pub(crate) challenged: bool,
    /// Where ACCEPT went.
    pub(crate) sent_to: Destinations,
}

/// A session. It lies in a box: what moves leaves a copy behind, and a table moves what it holds when
/// it grows. A million of them may rest, so their size counts.
pub(crate) struct Session {
    pub(crate) device: Arc<Device>,
    pub(crate) keys: SessionKeys,
    next_down: u32,
    pub(crate) window: ReplayWindow,
    /// Which of the readings that want confirmation are durable.
    pub(crate) stored: ReplayWindow,
    pub(crate) path: Path,
    /// The stream that its newest record came over.
    pub(crate) stream: Option<StreamId>,
    /// How many bytes may go to `path`; `None` once it has shown that it receives what is sent
    /// there.
    credit: Option<u32>,
    pub(crate) pending: Option<Box<Pending>>,
    pub(crate) created_us: u64,
    pub(crate) last_record_us: u64,
}

impl Session {
    pub(crate) fn new(
        device: Arc<Device>,
        keys: SessionKeys,
        pending: Pending,
        path: Path,
        now_us: u64,
    ) -> Self {
        Self {
            device,
            keys,
            next_down: 0,
            window: ReplayWindow::new(),
            stored: ReplayWindow::new(),
            path,
            stream: None,
            credit: Some(0),
            pending: Some(Box::new(pending)),
            created_us: now_us,
            last_record_us: now_us,
        }
    }

    /// A record newer than all before came over this path: answers go there from now on, but no
    /// more bytes than came from there, until it has shown that it receives them (R71).
    pub(crate) fn arrive(&mut self, path: Path, bytes: usize) {
        if self.path != path {
            self.path = path;
            self.credit = matches!(path, Path::Datagram(_)).then_some(0);
        }
        if let Some(credit) = &mut self.credit {
            *credit = credit.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }

    /// Something that only its receiver could know came back from where it was sent.
    pub(crate) fn prove_path(&mut self, sent_to: Destinations) {
        if sent_to.reached_only(self.path) {
            self.credit = None;
        }
    }

    /// Adds a message for the session's path to those of this turn; false when the path may get no more bytes or the
    /// sequence numbers are used up.
    pub(crate) fn prepare(
        &mut self,
        id: SessionId,
        message: Down<'_>,
        unsealed: &mut Unsealed,
    ) -> bool {
        let mut text = Zeroizing::new([0; TEXT_MAX]);
        let len = message.encode(text.as_mut_slice());
        let header = self.next_header(DOWN_HEADER + len + TAG);
        header.into_iter().for_each(|header| unsealed.push(id, self.path, header, &text[..len]));
        header.is_some()
    }

    /// The header of the next message, if that may have `len` bytes.
    fn next_header(&mut self, len: usize) -> Option<DownHeader> {
        if let Some(credit) = &mut self.credit {
            *credit = credit.checked_sub(u32::try_from(len).ok()?)?;
        }
        let sequence = self.next_down;
        self.next_down = sequence.checked_add(1)?;
        Some(DownHeader { sequence })
    }

    /// Acknowledges `numbers`, which rise, in as few messages as possible.
    pub(crate) fn prepare_acks(
        &mut self,
        id: SessionId,
        numbers: impl Iterator<Item = u32>,
        unsealed: &mut Unsealed,
    ) {
        let mut ranges: ArrayVec<Range, RANGES_MAX> = ArrayVec::new();
        let mut encoded = [0; RANGES_MAX * 6];
        for number in numbers {
            match ranges.last_mut() {
                Some(last)
                    if last.first + u32::from(last.count) == number && last.count < u16::MAX =>
                {
                    last.count += 1;
                }
                _ => {
                    if ranges.is_full() {
                        self.prepare(id, Down::ack(&ranges, false, &mut encoded), unsealed);
                        ranges.clear();
                    }
                    ranges.push(Range { first: number, count: 1 });
                }
            }
        }
        self.prepare(id, Down::ack(&ranges, false, &mut encoded), unsealed);
    }
}

const _: () = assert!(size_of::<Session>() <= 192, "a session at rest is to be small");
