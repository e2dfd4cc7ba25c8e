//! The records of one turn, in one buffer, opened in batches. Its memory is kept from turn to turn.

use arrayvec::ArrayVec;
use duet_aead::{Gcm, Record, Verdict};
use duet_protocol::record::nonce;
use duet_protocol::schedule::KeyIv;
use duet_protocol::wire::{SessionId, TAG, UP_HEADER, UpHeader};

use zeroize::Zeroize as _;

use crate::keys::{Expanded, Needed};
use crate::{Path, RECORD_BATCH};

/// Records as they came, until the end of the turn; then their texts.
#[derive(Default)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    items: Vec<Item>,
}

struct Item {
    path: Path,
    header: UpHeader,
    len: usize,
    opened: bool,
    revoked: bool,
}

/// What a record is opened with.
pub(crate) struct Opener<'k> {
    pub(crate) key: &'k KeyIv,
    /// Whether its device was revoked meanwhile. It is asked together with the key: a device lies elsewhere in memory than
    /// its session, and so the way there overlaps for the records of a batch.
    pub(crate) revoked: bool,
}

/// A record of this turn.
pub(crate) struct Opened<'a> {
    pub(crate) path: Path,
    pub(crate) header: UpHeader,
    /// `None` where it did not open.
    pub(crate) text: Option<&'a [u8]>,
    pub(crate) revoked: bool,
}

impl Records {
    pub(crate) const fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    #[inline]
    pub(crate) fn push(&mut self, path: Path, header: UpHeader, message: &[u8]) {
        self.bytes.extend_from_slice(message);
        self.items.push(Item { path, header, len: message.len(), opened: false, revoked: false });
    }

    /// Opens all of them in place; a record without a key stays closed.
    pub(crate) fn open<'k>(
        &mut self,
        gcm: Gcm,
        expanded: &mut Expanded,
        opener: impl Fn(SessionId) -> Option<Opener<'k>>,
    ) {
        let mut rest = self.bytes.as_mut_slice();
        for items in self.items.chunks_mut(RECORD_BATCH) {
            let (chunk, after) = rest.split_at_mut(items.iter().map(|item| item.len).sum());
            rest = after;
            open_chunk(gcm, expanded, &opener, items, chunk);
        }
    }

    /// The records in order of arrival, with their texts where they opened.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Opened<'_>> {
        let mut start = 0;
        self.items.iter().map(move |item| {
            let message = &self.bytes[start..start + item.len];
            start += item.len;
            let text = message.get(UP_HEADER..item.len - TAG).filter(|_| item.opened);
            Opened { path: item.path, header: item.header, text, revoked: item.revoked }
        })
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.items.clear();
    }
}

fn open_chunk<'k>(
    gcm: Gcm,
    expanded: &mut Expanded,
    opener: &impl Fn(SessionId) -> Option<Opener<'k>>,
    items: &mut [Item],
    bytes: &mut [u8],
) {
    let mut needed = Needed::default();
    let found: ArrayVec<_, RECORD_BATCH> = items
        .iter_mut()
        .map(|item| {
            let Opener { key, revoked } =
                opener(item.header.session).filter(|_| item.header.sequence != u32::MAX)?;
            item.revoked = revoked;
            Some((needed.place(key), key.iv()))
        })
        .collect();
    expanded.lend(gcm, &needed, |keys| {
        let mut rest = bytes;
        let mut places: ArrayVec<usize, RECORD_BATCH> = ArrayVec::new();
        let mut records: ArrayVec<Record<'_>, RECORD_BATCH> = ArrayVec::new();
        for (place, (item, found)) in items.iter().zip(found).enumerate() {
            let (message, after) = rest.split_at_mut(item.len);
            rest = after;
            let (aad, sealed) = message.split_at_mut(UP_HEADER);
            if let (Some((key, iv)), Some((payload, tag))) =
                (found, sealed.split_last_chunk_mut::<TAG>())
            {
                let nonce = nonce(iv, item.header.sequence);
                records.push(Record { key: &keys[key], nonce, aad, payload, tag });
                places.push(place);
            }
        }
        let verdicts = &mut [Verdict::default(); RECORD_BATCH][..records.len()];
        gcm.open_batch(&mut records, verdicts);
        // The first nonce is the IV itself.
        records.iter_mut().for_each(|record| record.nonce.zeroize());
        for (place, verdict) in places.into_iter().zip(verdicts) {
            items[place].opened = verdict.is_authentic();
        }
    });
}
