//! Readings whose storing changes what the gateway knows of a device, until storage has answered: those that came inside a
//! HELLO, and those that came inside one first and are said again in a record.
//!
//! A device has at most one on its way (R98). For one inside a HELLO the handshake waits here, too, since its ACCEPT says
//! whether the reading is stored. It waits for [`PATIENCE_US`] at most: then ACCEPT goes out and says that nothing is
//! confirmed, and what storage answers later still counts.
//!
//! Storage decides, not this module: it stores nothing, moves no mark, and sends nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use arrayvec::ArrayVec;
use duet_protocol::identity::DeviceId;
use duet_protocol::reading::{EARLY_SEQUENCE, ReadingId};
use duet_protocol::responder::Proven;
use duet_protocol::wire::SessionId;

use crate::{Device, Path, Wiped};

/// How long an ACCEPT waits for storage, µs.
const PATIENCE_US: u64 = 500_000;
/// To how many paths one ACCEPT goes whose HELLO came over several while it waited.
const PATHS_MAX: usize = 4;

/// That a HELLO came, over which path and when, µs.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) path: Path,
    pub(crate) at_us: u64,
}

/// Where a HELLO came from first, and where it came again.
pub(crate) type Arrivals = ArrayVec<Arrival, PATHS_MAX>;

/// How storage knows a reading: the session that it came in, or would open, and its sequence there.
pub(crate) type Token = (SessionId, u32);

/// A reading on its way to storage.
pub(crate) struct InFlight {
    pub(crate) token: Token,
    pub(crate) device: Arc<Device>,
    pub(crate) id: ReadingId,
    /// The device's mark once the reading is durable.
    pub(crate) mark: u64,
}

/// A handshake whose ACCEPT waits for storage. `T` is what the engine keeps of the point that it agrees with.
pub(crate) struct Waiting<T> {
    pub(crate) arrivals: Arrivals,
    /// The state of the handshake, one. It holds secrets.
    pub(crate) proven: Wiped<Proven>,
    pub(crate) device: Arc<Device>,
    pub(crate) table: Option<T>,
    pub(crate) session: SessionId,
    /// What storage answered, if it did.
    pub(crate) stored: bool,
}

impl<T> Waiting<T> {
    /// The digest of its HELLO.
    fn digest(&self) -> [u8; 32] {
        self.proven.first().map_or([0; 32], |proven| proven.hello().digest)
    }

    /// Takes the state out.
    pub(crate) fn take_proven(&mut self) -> Option<Proven> {
        self.proven.take_first()
    }
}

/// The readings on their way, and the handshakes that wait for them.
pub(crate) struct Early<T> {
    commits: HashMap<DeviceId, InFlight>,
    tokens: HashMap<Token, DeviceId>,
    waiting: HashMap<SessionId, Box<Waiting<T>>>,
    by_hello: HashMap<[u8; 32], SessionId>,
    /// When the patience of each waiting handshake ends, the earliest first. One that has gone on before is still in it.
    deadlines: VecDeque<(u64, SessionId)>,
    /// Those that storage has answered.
    answered: Vec<SessionId>,
}

impl<T> Default for Early<T> {
    fn default() -> Self {
        Self {
            commits: HashMap::new(),
            tokens: HashMap::new(),
            waiting: HashMap::new(),
            by_hello: HashMap::new(),
            deadlines: VecDeque::new(),
            answered: Vec::new(),
        }
    }
}

impl<T> Early<T> {
    /// How many handshakes wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a handshake waits that will open this session, or storage has not answered for the reading of one that would have:
    /// what it answers must not be taken for another's.
    pub(crate) fn names(&self, id: SessionId) -> bool {
        self.waiting.contains_key(&id) || self.tokens.contains_key(&(id, EARLY_SEQUENCE))
    }

    /// The paths over which the handshakes that wait are to be answered.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn paths(&self) -> impl Iterator<Item = Path> {
        let arrivals = self.waiting.values().flat_map(|waiting| &waiting.arrivals);
        arrivals.map(|arrival| arrival.path)
    }

    /// The reading of this device that is on its way.
    pub(crate) fn of(&self, device: &DeviceId) -> Option<ReadingId> {
        self.commits.get(device).map(|commit| commit.id)
    }

    /// A reading was handed to storage. The device had none on its way.
    pub(crate) fn begin(&mut self, commit: InFlight) {
        let device = commit.device.credential.id;
        self.tokens.insert(commit.token, device);
        let before = self.commits.insert(device, commit);
        assert!(before.is_none(), "a device has one reading on its way at a time");
    }

    /// The handshake of a reading that was handed to storage waits.
    pub(crate) fn wait(&mut self, now_us: u64, waiting: Waiting<T>) {
        let id = waiting.session;
        self.by_hello.insert(waiting.digest(), id);
        self.deadlines.push_back((now_us + PATIENCE_US, id));
        self.waiting.insert(id, Box::new(waiting));
    }

    /// The same HELLO came again while it waits, and whether it is answered there, too, which it was not to be before.
    /// `None` if it does not wait.
    pub(crate) fn came_again(&mut self, digest: &[u8; 32], again: Arrival) -> Option<bool> {
        let found = self.by_hello.get(digest).and_then(|id| self.waiting.get_mut(id));
        let arrivals = &mut found?.arrivals;
        let is_new = arrivals.iter().all(|known| known.path != again.path);
        // Whoever plays it back from everywhere is not answered everywhere.
        Some(is_new && arrivals.try_push(again).is_ok())
    }

    /// Storage has answered. The commit, if the reading was one of those here.
    pub(crate) fn settle(&mut self, token: Token, stored: bool) -> Option<InFlight> {
        let device = self.tokens.remove(&token)?;
        if let Some(waiting) = self.waiting.get_mut(&token.0) {
            waiting.stored = stored;
            self.answered.push(token.0);
        }
        self.commits.remove(&device)
    }

    /// The handshakes that go on now: those that storage has answered, and those that have waited long enough.
    pub(crate) fn take_due(&mut self, now_us: u64) -> Vec<Box<Waiting<T>>> {
        let mut due: Vec<_> = std::mem::take(&mut self.answered);
        while let Some((until_us, id)) = self.deadlines.front().copied() {
            if until_us > now_us && self.waiting.contains_key(&id) {
                break;
            }
            self.deadlines.pop_front();
            if until_us <= now_us {
                due.push(id);
            }
        }
        let mut taken = Vec::with_capacity(due.len());
        for id in due {
            if let Some(waiting) = self.waiting.remove(&id) {
                self.by_hello.remove(&waiting.digest());
                taken.push(waiting);
            }
        }
        taken
    }

    /// When to ask [`take_due`](Self::take_due) next, µs; 0 for at once.
    pub(crate) fn next_us(&self) -> Option<u64> {
        if self.answered.is_empty() {
            self.deadlines.front().map(|(until_us, _)| *until_us)
        } else {
            Some(0)
        }
    }

    /// Tells states apart that behave differently.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn fingerprint(&self, now_us: u64, out: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        let mut commits: Vec<_> = self.commits.values().map(|one| (one.token, one.id)).collect();
        commits.sort_unstable();
        let mut waiting: Vec<_> = self.waiting.values().map(|one| one.digest()).collect();
        waiting.sort_unstable();
        let left = |(until_us, _): &(u64, _)| until_us.saturating_sub(now_us);
        let deadlines: Vec<_> = self.deadlines.iter().map(left).collect();
        (commits, waiting, deadlines).hash(out);
    }

    /// Asserts what holds between two calls.
    ///
    /// # Panics
    /// When it does not.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn check(&self) {
        assert_eq!(self.tokens.len(), self.commits.len(), "each reading is found both ways");
        for (token, device) in &self.tokens {
            assert_eq!(self.commits.get(device).map(|commit| commit.token), Some(*token));
        }
        assert_eq!(self.by_hello.len(), self.waiting.len(), "each handshake is found both ways");
        for (digest, id) in &self.by_hello {
            let waiting = self.waiting.get(id).expect("what a HELLO finds waits");
            assert_eq!(waiting.digest(), *digest);
        }
    }
}
