//! A node: the production shard, what it has handed to storage, what is durable, and what its registry has on disk.

use std::cell::RefCell;
use std::hash::{Hash as _, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use duet_core::testing;
use duet_core::{
    Device, Directory, Handler as _, Mail, Now, Path, Reading, Settings, Shard, Sink, SourceSet,
};
use duet_protocol::identity::DeviceId;
use duet_protocol::reading::ReadingId;
use duet_protocol::wire::{MESSAGE_MAX, SessionId};

use crate::curve::{self, Remembered};
use crate::machine::{ID, PROFILE};

/// A reading on its way to the disk, or there.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Entry {
    pub(crate) token: (SessionId, u32),
    pub(crate) id: ReadingId,
    /// The mark that it stands for.
    pub(crate) mark: Option<u64>,
    pub(crate) payload: Vec<u8>,
}

#[derive(Clone, Default)]
pub(crate) struct Taken(Rc<RefCell<Vec<Entry>>>);

impl Sink for Taken {
    fn take(&mut self, reading: &Reading<'_>) {
        self.0.borrow_mut().push(Entry {
            token: (reading.session, reading.sequence),
            id: reading.id,
            mark: reading.commit.map(|commit| commit.mark),
            payload: reading.payload.to_vec(),
        });
    }

    fn flush(&mut self) {}
}

/// A directory of one device.
struct One(Arc<Device>);

impl Directory for One {
    fn look_up(&self, id: &DeviceId) -> Option<Arc<Device>> {
        (*id == ID).then(|| Arc::clone(&self.0))
    }

    fn save_later(&self, _: &Arc<Device>) {}

    fn all_have_teeth(&self) -> bool {
        false
    }
}

/// What a registry keeps of a device.
pub(crate) type Kept = (u64, Option<ReadingId>);

pub(crate) struct Gateway {
    pub(crate) shard: Shard<Remembered, Taken>,
    pub(crate) device: Arc<Device>,
    taken: Taken,
    /// On the way to the disk, in order; whether it is there, and the shard not told yet.
    pub(crate) flight: Vec<(Entry, bool)>,
    pub(crate) spool: Vec<Entry>,
    /// Those before were on a disk that is lost.
    pub(crate) lost: usize,
    pub(crate) saved: Kept,
    /// Up to where the registry has read the spool.
    pub(crate) cursor: usize,
}

fn parts(kept: Kept, node_key: [u8; 32]) -> (Shard<Remembered, Taken>, Arc<Device>, Taken) {
    let (_, credential) = testing::identity(ID, PROFILE.mode);
    let sources = SourceSet::of([PROFILE.source]);
    let device = Device::new("device".into(), credential, sources, None);
    let device = Arc::new(device.with_mark(kept.0).with_last(kept.1));
    let (directory, taken) = (Arc::new(One(Arc::clone(&device))), Taken::default());
    let settings = Settings { idle_us: 120_000_000, node_key, ..testing::settings() };
    let shard = Shard::new(settings, directory, Remembered, taken.clone(), curve::random());
    (shard, device, taken)
}

impl Gateway {
    pub(crate) fn new(mark: u64) -> Self {
        Self::with_node_key(mark, [0x77; 32])
    }

    /// One that signs its RESETs and questions with a key of its own.
    pub(crate) fn with_node_key(mark: u64, node_key: [u8; 32]) -> Self {
        let saved = (mark, None);
        let (shard, device, taken) = parts(saved, node_key);
        let (flight, spool) = (Vec::new(), Vec::new());
        Self { shard, device, taken, flight, spool, lost: 0, saved, cursor: 0 }
    }

    /// Dies, and starts again with what its registry has and what `rebuild` makes of the rest of the spool.
    pub(crate) fn crash(&mut self, rebuild: impl Fn(&mut Kept, &Entry)) {
        let mut kept = self.saved;
        self.spool[self.cursor..].iter().for_each(|entry| rebuild(&mut kept, entry));
        self.flight.clear();
        let node_key = self.shard.settings().node_key;
        (self.shard, self.device, self.taken) = parts(kept, node_key);
    }

    /// Loses its disk; its registry is entered anew.
    pub(crate) fn wipe(&mut self) {
        (self.lost, self.cursor, self.saved) = (self.spool.len(), self.spool.len(), (0, None));
        self.crash(|_, _| ());
    }

    /// The next one that is not on the disk yet gets there.
    pub(crate) fn commit(&mut self) {
        if let Some((entry, on_disk)) = self.flight.iter_mut().find(|(_, on_disk)| !on_disk) {
            self.spool.push(entry.clone());
            *on_disk = true;
        }
    }

    /// Storage answers for the oldest one.
    pub(crate) fn answer(&mut self, now: Now) {
        if self.flight.is_empty() {
            return;
        }
        let (entry, on_disk) = self.flight.remove(0);
        let token = vec![entry.token];
        let mail = if on_disk { Mail::Durable(token) } else { Mail::NotStored(token) };
        self.shard.handle_mail(now, mail);
    }

    pub(crate) fn arrive(&mut self, now: Now, from: SocketAddr, message: &[u8]) {
        self.shard.handle_datagram(now, from, message);
    }

    /// Works; what it sends, to whom.
    pub(crate) fn turn(&mut self, now: Now) -> Vec<(SocketAddr, Vec<u8>)> {
        self.shard.handle_turn(now);
        self.shard.check();
        let taken = std::mem::take(&mut *self.taken.0.borrow_mut());
        self.flight.extend(taken.into_iter().map(|entry| (entry, false)));
        let (mut out, mut sent) = ([0; MESSAGE_MAX], Vec::new());
        while let Some(one) = self.shard.poll_transmit(&mut out) {
            let Path::Datagram(to) = one.to else { panic!("no streams here") };
            sent.push((to.address(), out[..one.len].to_vec()));
        }
        sent
    }

    /// The state of all of it.
    pub(crate) fn hash(&self, now: Now, out: &mut impl Hasher) {
        self.shard.fingerprint(now, out);
        (self.device.mark(), self.device.last(), &self.flight, &self.spool).hash(out);
        (self.lost, self.saved, self.cursor).hash(out);
    }
}
