//! One session of one device, as its shard keeps it.

use std::sync::Arc;

use duet_aead::{Gcm, Key, Record};
use duet_protocol::message::{Down, RANGES_MAX, Range, TEXT_MAX};
use duet_protocol::record::nonce;
use duet_protocol::replay::ReplayWindow;
use duet_protocol::responder::Accept;
use duet_protocol::schedule::{KeyIv, SessionKeys};
use duet_protocol::wire::{DOWN_HEADER, DownHeader, SessionId, TAG};
use rustc_hash::FxHashMap;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::registry::Device;
use crate::transport::{Path, StreamId};

/// What a session keeps until its first valid record.
pub(super) struct Pending {
    pub(super) hello: [u8; 32],
    pub(super) accept: Accept,
    pub(super) fresh: u64,
    pub(super) challenged: bool,
    /// Where ACCEPT went.
    pub(super) path: Path,
}

/// One direction's key and IV, in a box and filled there: what moves leaves a copy behind, and
/// sessions move when their table grows.
pub(super) struct DirectionKey(Box<Secrets>);

struct Secrets {
    key: Key,
    iv: Iv,
}

#[derive(Zeroize, ZeroizeOnDrop)]
struct Iv([u8; 12]);

impl DirectionKey {
    fn new(gcm: Gcm, keys: &KeyIv) -> Self {
        let mut secrets = Box::new(Secrets { key: Key::vacant(), iv: Iv([0; 12]) });
        secrets.key.init(gcm, keys.key());
        secrets.iv.0 = *keys.iv();
        Self(secrets)
    }

    pub(super) const fn key(&self) -> &Key {
        &self.0.key
    }

    pub(super) const fn iv(&self) -> &[u8; 12] {
        &self.0.iv.0
    }
}

/// A message of a session before it is sealed: header, text, room for the tag.
pub(super) struct Unsealed {
    session: SessionId,
    path: Path,
    header: DownHeader,
    bytes: Vec<u8>,
}

/// Seals messages as one batch; those whose sessions have ended meanwhile are left out.
pub(super) fn seal(
    gcm: Gcm,
    sessions: &FxHashMap<SessionId, Session>,
    mut unsealed: Vec<Unsealed>,
) -> impl Iterator<Item = (Path, Vec<u8>)> {
    unsealed.retain(|one| sessions.contains_key(&one.session));
    let associated: Vec<_> =
        unsealed.iter().map(|one| one.header.associated_data(one.session)).collect();
    let mut records = Vec::with_capacity(unsealed.len());
    for (Unsealed { session, header, bytes, .. }, aad) in unsealed.iter_mut().zip(&associated) {
        let Some((payload, tag)) = bytes[DOWN_HEADER..].split_last_chunk_mut::<TAG>() else {
            unreachable!("a message is prepared with room for its tag")
        };
        let down = &sessions[session].down;
        let nonce = nonce(down.iv(), header.sequence);
        records.push(Record { key: down.key(), nonce, aad, payload, tag });
    }
    gcm.seal_batch(&mut records);
    // The first nonce is the IV itself.
    records.iter_mut().for_each(|record| record.nonce.zeroize());
    unsealed.into_iter().map(|one| (one.path, one.bytes))
}

pub(super) struct Session {
    pub(super) device: Arc<Device>,
    pub(super) up: DirectionKey,
    down: DirectionKey,
    next_down: u32,
    pub(super) window: ReplayWindow,
    /// Which of the readings that want confirmation are durable.
    pub(super) stored: ReplayWindow,
    pub(super) path: Path,
    /// The stream that its newest record came over.
    pub(super) stream: Option<StreamId>,
    /// How many bytes may go to `path`; `None` once it has shown that it receives what is sent
    /// there.
    credit: Option<usize>,
    pub(super) pending: Option<Box<Pending>>,
    pub(super) since_us: u64,
    pub(super) heard_us: u64,
    /// Sequence numbers that are durable and not yet acknowledged.
    pub(super) acks: Vec<u32>,
}

impl Session {
    pub(super) fn new(
        gcm: Gcm,
        device: Arc<Device>,
        keys: &SessionKeys,
        pending: Pending,
        now_us: u64,
    ) -> Self {
        Self {
            device,
            up: DirectionKey::new(gcm, &keys.up),
            down: DirectionKey::new(gcm, &keys.down),
            next_down: 0,
            window: ReplayWindow::new(),
            stored: ReplayWindow::new(),
            path: pending.path,
            stream: None,
            credit: Some(0),
            pending: Some(Box::new(pending)),
            since_us: now_us,
            heard_us: now_us,
            acks: Vec::new(),
        }
    }

    /// A record newer than all before came over this path: answers go there from now on, but no
    /// more bytes than came from there, until it has shown that it receives them (R71).
    pub(super) fn arrive(&mut self, path: Path, bytes: usize) {
        if self.path != path {
            self.path = path;
            self.credit = matches!(path, Path::Datagram(_)).then_some(0);
        }
        if let Some(credit) = &mut self.credit {
            *credit += bytes;
        }
    }

    /// Something that only its receiver could know came back from where it was sent.
    pub(super) fn validate(&mut self, sent_to: Path) {
        if self.path == sent_to {
            self.credit = None;
        }
    }

    /// A message for the session's path, to be sealed with the others of this turn; `None` when
    /// the path may get no more bytes or the sequence numbers are used up.
    pub(super) fn prepare(&mut self, id: SessionId, message: Down<'_>) -> Option<Unsealed> {
        let mut text = Zeroizing::new([0; TEXT_MAX]);
        let text = {
            let len = message.encode(text.as_mut_slice());
            &text[..len]
        };
        let len = DOWN_HEADER + text.len() + TAG;
        if let Some(credit) = &mut self.credit {
            *credit = credit.checked_sub(len)?;
        }
        let sequence = self.next_down;
        self.next_down = sequence.checked_add(1)?;
        let header = DownHeader { sequence };
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(text);
        bytes.resize(len, 0);
        Some(Unsealed { session: id, path: self.path, header, bytes })
    }

    /// The acknowledgements that are due, as few messages as possible.
    pub(super) fn prepare_acks(&mut self, id: SessionId) -> Vec<Unsealed> {
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
            .filter_map(|chunk| self.prepare(id, Down::ack(chunk, &mut encoded)))
            .collect()
    }
}
