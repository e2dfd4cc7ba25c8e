//! The book of all commands, in memory: what may follow on what. It knows neither the file nor the shards: it notes which
//! rows have changed, and whose oldest command may be another one now.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use duet_core::CommandAnswer;
use duet_protocol::identity::DeviceId;
use duet_protocol::message::PAYLOAD_MAX;
use rustc_hash::FxHashMap;

use super::entry::{Entry, How, Untold};
use super::store::{Change, Loaded};
use super::{CommandInfo, Limits, MAX_KEY, MAX_TTL_MS, Order, QueueError, Wanted};

/// The most rows that are removed at once, so that no transaction gets long.
const FORGOTTEN_AT_ONCE: usize = 1_000;

/// A device's commands.
#[derive(Default)]
struct Line {
    /// Those that are not over, the oldest first.
    open: VecDeque<u64>,
    /// All of them, by their numbers.
    numbers: BTreeMap<u32, u64>,
    /// The newest of each idempotency key.
    keys: HashMap<Box<str>, u64>,
}

/// All commands.
pub(super) struct Book {
    limits: Limits,
    all: FxHashMap<u64, Entry>,
    lines: HashMap<DeviceId, Line>,
    /// The last number that each device's commands were given.
    numbers: HashMap<DeviceId, u32>,
    floor: u32,
    next_id: u64,
    /// Those that are not over, by the end of their time.
    expiry: BTreeSet<(u64, u64)>,
    /// Those that are over, by when.
    over: BTreeSet<(u64, u64)>,
    open_bytes: usize,
    /// Rows to be written before anybody hears of them.
    rows: BTreeSet<u64>,
    /// Rows that may be written later.
    lazy: BTreeSet<u64>,
    /// How commands were, if they were, that have changed since the file was written.
    before: FxHashMap<u64, Option<Entry>>,
    changed_numbers: HashSet<DeviceId>,
    touched: HashSet<DeviceId>,
    ended: Vec<u64>,
    untold: Vec<(u64, bool)>,
}

impl Book {
    /// The book as it was kept.
    pub(super) fn new(loaded: Loaded, limits: Limits) -> Self {
        let Loaded { entries, numbers, next_id, floor, behind_since_ms: _ } = loaded;
        let mut book = Self {
            limits,
            all: FxHashMap::default(),
            lines: HashMap::new(),
            numbers: numbers.into_iter().collect(),
            floor,
            next_id,
            expiry: BTreeSet::new(),
            over: BTreeSet::new(),
            open_bytes: 0,
            rows: BTreeSet::new(),
            lazy: BTreeSet::new(),
            before: FxHashMap::default(),
            changed_numbers: HashSet::new(),
            touched: HashSet::new(),
            ended: Vec::new(),
            untold: Vec::new(),
        };
        // They come in the order of their ids, which is that of each device's numbers.
        for entry in entries {
            book.place(entry);
        }
        book
    }

    /// Puts a command into all indexes.
    fn place(&mut self, entry: Entry) {
        let line = self.lines.entry(entry.device).or_default();
        line.numbers.insert(entry.number, entry.id);
        if let Some(key) = &entry.key {
            line.keys.insert(key.clone(), entry.id);
        }
        match &entry.end {
            None => {
                line.open.push_back(entry.id);
                self.expiry.insert((entry.expires_ms, entry.id));
                self.open_bytes += entry.payload.len();
                self.touched.insert(entry.device);
            }
            Some((at_ms, _)) => {
                self.over.insert((*at_ms, entry.id));
                let Untold { end, late } = entry.untold;
                self.untold.extend(end.then_some((entry.id, false)));
                self.untold.extend(late.then_some((entry.id, true)));
            }
        }
        self.all.insert(entry.id, entry);
    }

    /// A command is about to change.
    fn keep(&mut self, id: u64) {
        self.before.entry(id).or_insert_with(|| self.all.get(&id).cloned());
    }

    /// All that has changed is written.
    pub(super) fn written(&mut self) {
        self.before.clear();
    }

    /// It could not be written: makes this the book as it was then, as far as it is asked.
    pub(super) fn undo(&mut self) {
        let mut all = std::mem::take(&mut self.all);
        for (id, before) in self.before.drain() {
            match before {
                Some(entry) => drop(all.insert(id, entry)),
                None => drop(all.remove(&id)),
            }
        }
        let mut entries: Vec<_> = all.into_values().collect();
        entries.sort_unstable_by_key(|entry| entry.id);
        let numbers = self.numbers.drain().collect();
        let (next_id, floor) = (self.next_id, self.floor);
        let loaded = Loaded { entries, numbers, next_id, floor, behind_since_ms: None };
        *self = Self::new(loaded, self.limits);
    }

    // ---- what is asked

    pub(super) fn find(&self, id: u64) -> Option<&Entry> {
        self.all.get(&id)
    }

    /// How many commands are not over.
    pub(super) fn open(&self) -> usize {
        self.expiry.len()
    }

    /// The devices that have commands which are not over.
    pub(super) fn devices(&self) -> Vec<DeviceId> {
        let waiting = self.lines.iter().filter(|(_, line)| !line.open.is_empty());
        waiting.map(|(device, _)| *device).collect()
    }

    /// The device's oldest command that is not over.
    pub(super) fn head(&self, device: &DeviceId) -> Option<&Entry> {
        self.all.get(self.lines.get(device)?.open.front()?)
    }

    /// Some commands in the order in which they were queued.
    pub(super) fn list(&self, wanted: &Wanted) -> Vec<CommandInfo> {
        let mut ids: Vec<u64> = match (&wanted.device, wanted.open) {
            (Some(device), _) => {
                let line = self.lines.get(device);
                line.map(|line| line.numbers.values().copied().collect()).unwrap_or_default()
            }
            (None, true) => self.expiry.iter().map(|(_, id)| *id).collect(),
            (None, false) => self.all.keys().copied().collect(),
        };
        ids.retain(|id| *id > wanted.after);
        ids.sort_unstable();
        let found = ids.iter().filter_map(|id| self.all.get(id));
        let found = found.filter(|entry| !wanted.open || entry.end.is_none());
        found.take(wanted.limit).map(CommandInfo::from).collect()
    }

    // ---- what is done

    /// Queues a command; its id, and whether it was there already under its idempotency key.
    pub(super) fn queue(&mut self, order: Order, now_ms: u64) -> Result<(u64, bool), QueueError> {
        let Order { device, registration, name, payload, ttl_ms, key, collapse, patient } = order;
        if payload.len() > PAYLOAD_MAX {
            return Err(QueueError::TooLong);
        }
        if [&key, &collapse].into_iter().flatten().any(|key| !(1..=MAX_KEY).contains(&key.len())) {
            return Err(QueueError::BadKey);
        }
        let ttl_ms = ttl_ms.unwrap_or(self.limits.ttl_ms);
        if !(1..=MAX_TTL_MS).contains(&ttl_ms) {
            return Err(QueueError::BadTtl);
        }
        let line = self.lines.get(&device);
        // What was said to an earlier registration says nothing to this one.
        let keyed = key.as_deref().and_then(|key| self.all.get(line?.keys.get(key)?));
        if let Some(entry) = keyed.filter(|entry| entry.registration == registration) {
            let same = entry.payload == payload;
            return if same { Ok((entry.id, true)) } else { Err(QueueError::KeyTaken) };
        }
        let collapses = |id: &u64| {
            let entry = self.all.get(id);
            collapse.is_some()
                && entry.is_some_and(|entry| entry.collapse.as_deref() == collapse.as_deref())
        };
        let open = line.map_or(0, |line| line.open.len());
        let waiting = line.into_iter().flat_map(|line| line.open.iter().copied());
        let superseded: Vec<u64> = waiting.filter(collapses).collect();
        if open - superseded.len() >= self.limits.per_device {
            return Err(QueueError::DeviceFull(open));
        }
        let gone = superseded.iter().filter_map(|id| self.all.get(id));
        let stay = self.open_bytes - gone.map(|entry| entry.payload.len()).sum::<usize>();
        if self.expiry.len() - superseded.len() >= self.limits.open
            || stay + payload.len() > self.limits.open_bytes
        {
            return Err(QueueError::Full);
        }
        let number = self.next_number(&device).ok_or(QueueError::Numbers)?;
        superseded.into_iter().for_each(|id| self.end(id, How::Superseded, now_ms));
        let id = self.next_id;
        self.next_id += 1;
        self.keep(id);
        self.rows.insert(id);
        self.place(Entry {
            id,
            device,
            registration,
            name: name.into(),
            number,
            payload,
            key: key.map(Into::into),
            collapse: collapse.map(Into::into),
            queued_ms: now_ms,
            expires_ms: now_ms.saturating_add(ttl_ms),
            patient,
            sent: 0,
            end: None,
            late: None,
            untold: Untold::default(),
        });
        Ok((id, false))
    }

    /// The device's next number (R116), if there is one left.
    fn next_number(&mut self, device: &DeviceId) -> Option<u32> {
        let last = self.numbers.get(device).copied().unwrap_or(0).max(self.floor);
        let number = last.checked_add(1)?;
        self.numbers.insert(*device, number);
        self.changed_numbers.insert(*device);
        Some(number)
    }

    /// A command comes to its end.
    pub(super) fn end(&mut self, id: u64, how: How, now_ms: u64) {
        self.keep(id);
        let Some(entry) = self.all.get_mut(&id).filter(|entry| entry.end.is_none()) else { return };
        entry.end = Some((now_ms, how));
        entry.untold.end = true;
        self.expiry.remove(&(entry.expires_ms, id));
        self.over.insert((now_ms, id));
        self.open_bytes = self.open_bytes.saturating_sub(entry.payload.len());
        if let Some(line) = self.lines.get_mut(&entry.device) {
            line.open.retain(|open| *open != id);
        }
        self.touched.insert(entry.device);
        self.rows.insert(id);
        self.ended.push(id);
        self.untold.push((id, false));
    }

    /// Ends a command that nobody wants any more.
    pub(super) fn cancel(&mut self, id: u64, now_ms: u64) -> Result<(), QueueError> {
        let entry = self.all.get(&id).ok_or(QueueError::Unknown(id))?;
        if entry.end.is_some() {
            return Err(QueueError::Over(id, entry.state()));
        }
        self.end(id, How::Cancelled, now_ms);
        Ok(())
    }

    /// Ends all commands of a device that were for another registration than this one.
    pub(super) fn cancel_unless(
        &mut self,
        device: &DeviceId,
        registration: Option<u64>,
        now_ms: u64,
    ) {
        let open = self.lines.get(device).map(|line| &line.open);
        let is_over = |id: &u64| {
            self.all.get(id).is_some_and(|entry| registration != Some(entry.registration))
        };
        let over: Vec<_> = open.into_iter().flatten().copied().filter(is_over).collect();
        over.into_iter().for_each(|id| self.end(id, How::Cancelled, now_ms));
    }

    /// A command was sent once more.
    pub(super) fn sent(&mut self, id: u64) {
        self.keep(id);
        if let Some(entry) = self.all.get_mut(&id).filter(|entry| entry.end.is_none()) {
            entry.sent = entry.sent.saturating_add(1);
            self.lazy.insert(id);
        }
    }

    /// A device has answered this command.
    pub(super) fn answered(&mut self, id: u64, answer: CommandAnswer, now_ms: u64) {
        self.keep(id);
        let Some(entry) = self.all.get_mut(&id) else { return };
        match &entry.end {
            None => self.end(id, How::Done(answer), now_ms),
            // The same result once more.
            Some((_, How::Done(_))) => {}
            Some(_) if entry.late.is_some() => {}
            // R119.
            Some(_) => {
                entry.late = Some((now_ms, answer));
                entry.untold.late = true;
                self.rows.insert(id);
                self.untold.push((id, true));
            }
        }
    }

    /// A device answers a number that its shard had not asked for.
    pub(super) fn answered_number(
        &mut self,
        device: DeviceId,
        number: u32,
        answer: CommandAnswer,
        now_ms: u64,
    ) {
        let known = self.lines.get(&device).and_then(|line| line.numbers.get(&number));
        if let Some(id) = known.copied() {
            return self.answered(id, answer, now_ms);
        }
        // R116: somebody gave it that number, and it takes none below.
        if number > self.numbers.get(&device).copied().unwrap_or(0).max(self.floor) {
            self.numbers.insert(device, number);
            self.changed_numbers.insert(device);
            self.renumber(&device);
        }
    }

    /// Gives all commands of a device that are not over new numbers, in their order.
    fn renumber(&mut self, device: &DeviceId) {
        let open: Vec<_> =
            self.lines.get(device).map_or(Vec::new(), |line| line.open.iter().copied().collect());
        for id in open {
            // Where no number is left, none of them can ever be carried out: their time ends.
            let Some(number) = self.next_number(device) else { return };
            self.keep(id);
            let (Some(entry), Some(line)) = (self.all.get_mut(&id), self.lines.get_mut(device))
            else {
                return;
            };
            line.numbers.remove(&entry.number);
            line.numbers.insert(number, id);
            entry.number = number;
            self.rows.insert(id);
            self.touched.insert(*device);
        }
    }

    /// Upstreams have been told of a command's end, or of its late result.
    pub(super) fn told(&mut self, id: u64, late: bool) {
        self.keep(id);
        let Some(entry) = self.all.get_mut(&id) else { return };
        let untold = if late { &mut entry.untold.late } else { &mut entry.untold.end };
        *untold = false;
        self.lazy.insert(id);
    }

    /// Ends what has had its time, and forgets what was over long ago.
    pub(super) fn pass(&mut self, now_ms: u64) {
        while let Some((expires_ms, id)) = self.expiry.first().copied()
            && expires_ms <= now_ms
        {
            self.end(id, How::Expired, now_ms);
        }
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some((at_ms, id)) = self.over.first().copied() else { return };
            let untold = self.all.get(&id).is_some_and(|entry| entry.untold != Untold::default());
            let old = at_ms.saturating_add(self.limits.keep_ms) <= now_ms && !untold;
            if !old && self.over.len() <= self.limits.ended {
                return;
            }
            self.forget(at_ms, id);
        }
    }

    fn forget(&mut self, at_ms: u64, id: u64) {
        self.keep(id);
        self.over.remove(&(at_ms, id));
        let Some(entry) = self.all.remove(&id) else { return };
        self.lazy.insert(id);
        if let Some(line) = self.lines.get_mut(&entry.device) {
            line.numbers.remove(&entry.number);
            if let Some(key) = &entry.key
                && line.keys.get(key) == Some(&id)
            {
                line.keys.remove(key);
            }
            if line.numbers.is_empty() {
                self.lines.remove(&entry.device);
            }
        }
    }

    /// When [`pass`](Self::pass) has something to do next, milliseconds since 1970.
    pub(super) fn next_ms(&self) -> Option<u64> {
        let expires = self.expiry.first().map(|(at_ms, _)| *at_ms);
        // What upstreams have not been told of stays, and those who tell it come by themselves.
        let old = self.over.first().filter(|(_, id)| {
            self.all.get(id).is_none_or(|entry| entry.untold == Untold::default())
        });
        let old = old.map(|(at_ms, _)| at_ms.saturating_add(self.limits.keep_ms));
        expires.into_iter().chain(old).min()
    }

    /// The latest time that stands in it, milliseconds since 1970; zero in one without commands.
    pub(super) fn newest_ms(&self) -> u64 {
        let stamps = |entry: &Entry| {
            let end = entry.end.as_ref().map_or(0, |(at_ms, _)| *at_ms);
            let late = entry.late.as_ref().map_or(0, |(at_ms, _)| *at_ms);
            entry.queued_ms.max(end).max(late)
        };
        self.all.values().map(stamps).max().unwrap_or(0)
    }

    /// The clock has gone on by so much at once, and those times from `since_ms` on were taken by it before.
    pub(super) fn shift(&mut self, since_ms: u64, by_ms: u64) {
        for (id, entry) in &mut self.all {
            let (was, mut moved) = (entry.clone(), false);
            let mut shift = |at_ms: &mut u64| {
                if *at_ms >= since_ms {
                    *at_ms = at_ms.saturating_add(by_ms);
                    moved = true;
                }
            };
            let (expires_ms, ended_ms) = (entry.expires_ms, entry.end.as_ref().map(|end| end.0));
            let before_ms = entry.queued_ms;
            shift(&mut entry.queued_ms);
            entry.end.iter_mut().for_each(|end| shift(&mut end.0));
            entry.late.iter_mut().for_each(|late| shift(&mut late.0));
            if !moved {
                continue;
            }
            self.before.entry(*id).or_insert(Some(was));
            entry.expires_ms = expires_ms.saturating_add(entry.queued_ms - before_ms);
            match (ended_ms, &entry.end) {
                (Some(ended_ms), Some((at_ms, _))) => {
                    self.over.remove(&(ended_ms, *id));
                    self.over.insert((*at_ms, *id));
                }
                _ => {
                    self.expiry.remove(&(expires_ms, *id));
                    self.expiry.insert((entry.expires_ms, *id));
                }
            }
            self.rows.insert(*id);
        }
    }

    // ---- what follows from it

    /// Whether something must be written before others hear of it.
    pub(super) fn is_urgent(&self) -> bool {
        !self.rows.is_empty() || !self.changed_numbers.is_empty()
    }

    /// Whether something is not written.
    pub(super) fn is_dirty(&self) -> bool {
        self.is_urgent() || !self.lazy.is_empty()
    }

    /// What has changed since the last time, and from when on its times are wrong, if they are.
    pub(super) fn take_change(&mut self, behind_since_ms: Option<u64>) -> Change {
        let mut ids = std::mem::take(&mut self.rows);
        ids.append(&mut self.lazy);
        let rows = ids.into_iter().map(|id| (id, self.all.get(&id).map(Entry::encode))).collect();
        let number = |device: DeviceId| Some((device, *self.numbers.get(&device)?));
        let numbers = self.changed_numbers.drain().filter_map(number).collect();
        Change { rows, numbers, next_id: self.next_id, behind_since_ms }
    }

    /// The devices whose oldest command may be another one than before.
    pub(super) fn take_touched(&mut self) -> HashSet<DeviceId> {
        std::mem::take(&mut self.touched)
    }

    /// Of these devices somebody may have another command than the oldest.
    pub(super) fn touch(&mut self, devices: Vec<DeviceId>) {
        self.touched.extend(devices);
    }

    /// The commands that have come to their ends.
    pub(super) fn take_ended(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.ended)
    }

    /// What upstreams are to be told: commands, and whether it is of their late result.
    pub(super) fn take_untold(&mut self) -> Vec<(u64, bool)> {
        std::mem::take(&mut self.untold)
    }

    /// Asserts what holds between two calls.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let open = self.all.values().filter(|entry| entry.end.is_none());
        assert_eq!(open.clone().count(), self.expiry.len());
        assert_eq!(open.map(|entry| entry.payload.len()).sum::<usize>(), self.open_bytes);
        assert_eq!(self.all.len(), self.expiry.len() + self.over.len());
        let (mut listed, mut named) = (0, 0);
        for (device, line) in &self.lines {
            assert!(!line.numbers.is_empty(), "a device without commands has no line");
            named += line.numbers.len();
            let mut before = 0;
            for id in &line.open {
                let entry = &self.all[id];
                assert!(entry.number > before, "numbers rise in the order of the queue");
                before = entry.number;
                assert!(before <= self.numbers[device].max(self.floor));
                listed += 1;
            }
            for (number, id) in &line.numbers {
                assert_eq!((self.all[id].number, &self.all[id].device), (*number, device));
            }
        }
        assert_eq!((listed, named), (self.expiry.len(), self.all.len()));
    }
}
