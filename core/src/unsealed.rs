//! What a turn has to say in its sessions: written one after the other, sealed as one batch. Its memory is kept from turn
//! to turn.

use arrayvec::ArrayVec;
use duet_aead::{Gcm, Record};
use duet_protocol::record::nonce;
use duet_protocol::wire::{DOWN_HEADER, DownHeader, SessionId, TAG};
use zeroize::Zeroize as _;

use crate::keys::{Expanded, Needed};
use crate::sessions::Sessions;
use crate::{Path, RECORD_BATCH};

/// Messages of sessions before they are sealed.
#[derive(Default)]
pub(crate) struct Unsealed {
    /// Each message's header, text and room for its tag.
    bytes: Vec<u8>,
    items: Vec<Item>,
}

struct Item {
    session: SessionId,
    path: Path,
    header: DownHeader,
    len: usize,
}

impl Unsealed {
    /// Adds a message.
    pub(crate) fn push(&mut self, session: SessionId, path: Path, header: DownHeader, text: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(text);
        self.bytes.resize(self.bytes.len() + TAG, 0);
        self.items.push(Item { session, path, header, len: self.bytes.len() - start });
    }

    /// Seals all of them and hands each to `send`; those whose sessions have ended meanwhile are left out.
    pub(crate) fn seal(
        &mut self,
        gcm: Gcm,
        expanded: &mut Expanded,
        sessions: &Sessions,
        mut send: impl FnMut(Path, &[u8]),
    ) {
        let mut rest = self.bytes.as_mut_slice();
        for items in self.items.chunks(RECORD_BATCH) {
            let (chunk, after) = rest.split_at_mut(items.iter().map(|item| item.len).sum());
            rest = after;
            seal_chunk(gcm, expanded, sessions, items, chunk);
            let mut chunk = &*chunk;
            for item in items {
                let (message, after) = chunk.split_at(item.len);
                chunk = after;
                if sessions.find(item.session).is_some() {
                    send(item.path, message);
                }
            }
        }
        self.bytes.clear();
        self.items.clear();
    }
}

fn seal_chunk(
    gcm: Gcm,
    expanded: &mut Expanded,
    sessions: &Sessions,
    items: &[Item],
    bytes: &mut [u8],
) {
    let mut needed = Needed::default();
    let found: ArrayVec<_, RECORD_BATCH> = items
        .iter()
        .map(|item| {
            let key = &sessions.find(item.session)?.keys.down;
            Some((needed.place(key), key.iv()))
        })
        .collect();
    let associated: ArrayVec<_, RECORD_BATCH> =
        items.iter().map(|item| item.header.associated_data(item.session)).collect();
    expanded.lend(gcm, &needed, |keys| {
        let mut rest = bytes;
        let mut records: ArrayVec<Record<'_>, RECORD_BATCH> = ArrayVec::new();
        for ((item, aad), found) in items.iter().zip(&associated).zip(found) {
            let (message, after) = rest.split_at_mut(item.len);
            rest = after;
            let Some((key, iv)) = found else { continue };
            let Some((payload, tag)) = message[DOWN_HEADER..].split_last_chunk_mut::<TAG>() else {
                unreachable!("a message is written with room for its tag")
            };
            let nonce = nonce(iv, item.header.sequence);
            records.push(Record { key: &keys[key], nonce, aad, payload, tag });
        }
        gcm.seal_batch(&mut records);
        // The first nonce is the IV itself.
        records.iter_mut().for_each(|record| record.nonce.zeroize());
    });
}
