//! One session of one device, as its shard keeps it.

use std::sync::Arc;

use arrayvec::ArrayVec;
use duet_protocol::message::{Down, RANGES_MAX, Range, TEXT_MAX};
use duet_protocol::profile::Profile;
use duet_protocol::reading::ReadingId;
use duet_protocol::replay::ReplayWindow;
use duet_protocol::responder::Accept;
use duet_protocol::schedule::SessionKeys;
use duet_protocol::wire::{DOWN_HEADER, DownHeader, HELLO_NAME, SessionId, TAG};
use zeroize::Zeroizing;

use crate::destinations::Destinations;
use crate::rules::{Rule, in_force};
use crate::streams::Streams;
use crate::unsealed::Unsealed;
use crate::{Device, Path, StreamId};

/// The length of an acknowledgement of one record, bytes.
pub(crate) const ACK_LEN: usize = DOWN_HEADER + 7 + TAG;

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
    /// Of the HELLO that it was granted for, by its place among all.
    pub(crate) profile: u8,
    /// What its ACCEPT granted, minutes, rounded up: there is no room for more, and it is looked at once a minute.
    pub(crate) lifetime_min: u16,
    pub(crate) keys: SessionKeys,
    /// What its readings are named by: the head of its HELLO's digest (R96).
    pub(crate) hello: [u8; HELLO_NAME],
    /// The counter of its HELLO.
    pub(crate) fresh: u64,
    pub(crate) next_down: u32,
    pub(crate) window: ReplayWindow,
    /// Which of the readings that want confirmation are durable.
    pub(crate) stored: ReplayWindow,
    /// How many readings that want confirmation are neither durable nor refused yet.
    pub(crate) unanswered: u32,
    pub(crate) path: Path,
    /// The stream that its newest record came over.
    pub(crate) stream: Option<StreamId>,
    /// How many bytes may go to `path`; `None` once it has shown that it receives what is sent
    /// there.
    pub(crate) credit: Option<u32>,
    pub(crate) pending: Option<Box<Pending>>,
    pub(crate) created_us: u64,
    pub(crate) last_record_us: u64,
}

impl Session {
    pub(crate) fn new(
        device: Arc<Device>,
        profile: Profile,
        lifetime_s: u32,
        keys: SessionKeys,
        pending: Pending,
        path: Path,
        now_us: u64,
    ) -> Self {
        Self {
            device,
            profile: Self::place_of(profile),
            lifetime_min: Self::minutes(lifetime_s),
            keys,
            hello: ReadingId::early(&pending.hello).hello,
            fresh: pending.fresh,
            next_down: 0,
            window: ReplayWindow::new(),
            stored: ReplayWindow::new(),
            unanswered: 0,
            path,
            stream: None,
            credit: Some(0),
            pending: Some(Box::new(pending)),
            created_us: now_us,
            last_record_us: now_us,
        }
    }

    /// Tells states apart that behave differently.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn fingerprint(&self, out: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        let Self { window, stored, unanswered, path, credit, .. } = self;
        let pending = self.pending.as_ref().map(|pending| pending.challenged);
        (self.hello, self.fresh, pending, unanswered, credit).hash(out);
        format!("{window:?} {stored:?} {path:?}").hash(out);
    }

    /// One of its readings or results was handed on, and is owed an answer.
    #[inline]
    pub(crate) fn owe(&mut self, now_us: u64, streams: &mut Streams) {
        self.unanswered += 1;
        if self.unanswered == 1 {
            self.stream.into_iter().for_each(|stream| streams.owe(now_us, stream));
        }
    }

    /// A profile as a session keeps it.
    pub(crate) fn place_of(profile: Profile) -> u8 {
        let place = Profile::ALL.iter().position(|one| *one == profile);
        place.and_then(|place| u8::try_from(place).ok()).unwrap_or(0)
    }

    /// The profile of the HELLO that it was granted for.
    pub(crate) fn profile(&self) -> Profile {
        Profile::ALL[usize::from(self.profile)]
    }

    /// A lifetime as a session keeps it.
    pub(crate) fn minutes(lifetime_s: u32) -> u16 {
        u16::try_from(lifetime_s.div_ceil(60)).unwrap_or(u16::MAX)
    }

    /// Whether its time is over (R82): what was granted, or what sessions may last at most by now.
    pub(crate) fn is_over(&self, now_us: u64, most_us: u64) -> bool {
        let granted_us = u64::from(self.lifetime_min) * 60_000_000;
        now_us.saturating_sub(self.created_us) >= granted_us.min(most_us)
    }

    /// A record newer than all before came over this path: answers go there from now on, but no
    /// more bytes than came from there, until it has shown that it receives them (R71); a stream has by being one. Whether it
    /// is another path than that of the record before.
    #[inline]
    pub(crate) fn arrive(&mut self, path: &Path, bytes: usize) -> bool {
        let moved = self.path != *path;
        if moved {
            if !self.path.reaches_the_same(*path) && in_force(Rule::MoveEndsProof) {
                self.credit = Some(0);
            }
            self.path = *path;
        }
        if matches!(path, Path::Stream(_)) {
            self.credit = None;
        } else if let Some(credit) = &mut self.credit {
            *credit = credit.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        moved
    }

    /// The first record of the session came, so that whoever sent it has ACCEPT (R71).
    pub(crate) fn prove_path(&mut self, sent_to: Destinations) {
        if sent_to.reached_only(self.path) {
            self.credit = None;
        }
    }

    /// Whoever sends from here has answered what was sent here (R110): this is the path now, for messages of any length.
    pub(crate) fn proved(&mut self, path: Path) {
        self.path = path;
        self.credit = None;
    }

    /// Whether a message of this length has to wait until the path is proven (R71). Room for an acknowledgement is always
    /// left: it is what the device waits for.
    #[inline]
    pub(crate) fn holds_back(&self, len: usize) -> bool {
        self.credit.is_some_and(|credit| (credit as usize) < len + ACK_LEN)
    }

    /// Whether the gateway may send any length there.
    pub(crate) fn is_proven(&self, path: Path) -> bool {
        matches!(path, Path::Stream(_))
            || (self.path.reaches_the_same(path) && self.credit.is_none())
    }

    /// Adds a message that goes where a record came from, out of the bytes that it brought (R111); false when they do not
    /// suffice or the sequence numbers are used up.
    pub(crate) fn prepare_there(
        &mut self,
        id: SessionId,
        path: Path,
        budget: &mut usize,
        message: Down<'_>,
        unsealed: &mut Unsealed,
    ) -> bool {
        let mut text = Zeroizing::new([0; TEXT_MAX]);
        let len = message.encode(text.as_mut_slice());
        let Some(rest) = budget.checked_sub(DOWN_HEADER + len + TAG) else { return false };
        let Some(header) = self.next_sequence() else { return false };
        *budget = rest;
        unsealed.push(id, path, header, &text[..len]);
        true
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
        self.next_sequence()
    }

    fn next_sequence(&mut self) -> Option<DownHeader> {
        let sequence = self.next_down;
        self.next_down = sequence.checked_add(1)?;
        Some(DownHeader { sequence })
    }

    /// Acknowledges `numbers`, which rise, in as few messages as possible.
    pub(crate) fn prepare_acks(
        &mut self,
        id: SessionId,
        numbers: impl Iterator<Item = u32>,
        nothing_waits: bool,
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
                        self.prepare(id, Down::ack(&ranges, nothing_waits, &mut encoded), unsealed);
                        ranges.clear();
                    }
                    ranges.push(Range { first: number, count: 1 });
                }
            }
        }
        self.prepare(id, Down::ack(&ranges, nothing_waits, &mut encoded), unsealed);
    }
}

const _: () = assert!(size_of::<Session>() <= 216, "a session at rest is to be small");
