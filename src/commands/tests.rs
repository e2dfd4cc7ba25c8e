//! The queue against devices that carry commands out, with a store that fails, and with ends of the process anywhere.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use duet_core::Command;
use duet_upstream::testing::Rng;

use super::store::{Change, Loaded, Store};
use super::*;
use crate::identity::now_ms;

/// What survives the end of the process.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    rows: BTreeMap<u64, Vec<u8>>,
    numbers: HashMap<DeviceId, u32>,
    next_id: u64,
    behind_since_ms: Option<u64>,
    /// How many of the next writes succeed; none fails while there is nothing.
    fails_after: Option<u32>,
    /// Whether the write that fails has reached the disk all the same.
    reaches: bool,
}

impl Store for Shelf {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let kept = self.0.lock().unwrap();
        let entries = kept.rows.iter().map(|(id, row)| entry::Entry::decode(*id, row).unwrap());
        let entries = entries.collect();
        let numbers = kept.numbers.iter().map(|(device, number)| (*device, *number)).collect();
        let (next_id, behind_since_ms) = (kept.next_id.max(1), kept.behind_since_ms);
        Ok(Loaded { entries, numbers, next_id, floor: 0, behind_since_ms })
    }

    fn save(&mut self, change: &Change) -> Result<(), StoreError> {
        let mut kept = self.0.lock().unwrap();
        let fails = kept.fails_after.is_some_and(|left| left == 0);
        kept.fails_after = kept.fails_after.map(|left| left.saturating_sub(1));
        if !fails || kept.reaches {
            for (id, row) in &change.rows {
                match row {
                    Some(row) => drop(kept.rows.insert(*id, row.clone())),
                    None => drop(kept.rows.remove(id)),
                }
            }
            kept.numbers.extend(change.numbers.iter().copied());
            kept.next_id = change.next_id;
            kept.behind_since_ms = change.behind_since_ms;
        }
        if fails {
            kept.fails_after = None;
            let error = std::io::Error::other("the disk is gone");
            return Err(StoreError::Io { path: "commands".into(), error });
        }
        Ok(())
    }
}

/// What shards and the spool were told.
#[derive(Clone, Default)]
struct Ears {
    mail: Arc<Mutex<VecDeque<(usize, Mail)>>>,
    ends: Arc<Mutex<Vec<Told>>>,
    /// Whether mailboxes are full, and the spool.
    full: Arc<AtomicBool>,
}

impl Ways for Ears {
    fn shards(&self) -> usize {
        2
    }

    fn mail(&mut self, shard: usize, mail: Mail) -> Result<(), Box<Mail>> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Box::new(mail));
        }
        self.mail.lock().unwrap().push_back((shard, mail));
        Ok(())
    }

    fn tell(&mut self, ends: &[Told]) -> bool {
        let room = !self.full.load(Ordering::Relaxed);
        if room {
            self.ends.lock().unwrap().extend(ends.iter().cloned());
        }
        room
    }
}

/// A device as it is beyond the process: what it did, and the result that nobody has acknowledged.
#[derive(Default)]
struct Device {
    last: u32,
    done: Vec<(u32, Vec<u8>)>,
    unanswered: Option<(u32, CommandAnswer)>,
}

/// A gateway of which only the queue is real.
struct World {
    shelf: Shelf,
    told: Ears,
    worker: Worker<Shelf>,
    /// The registrations of devices, where they are not 0.
    registered: Arc<Mutex<HashMap<DeviceId, Option<u64>>>>,
    /// What shards hold: token, number and payload for each device.
    open: HashMap<DeviceId, (u64, u32, Vec<u8>)>,
    devices: HashMap<DeviceId, Device>,
    records: u32,
    /// Whose record brought a result that is not acknowledged.
    waiting: HashMap<u32, (DeviceId, u32)>,
    inputs: Vec<Input>,
}

fn worker(shelf: &Shelf, limits: Limits) -> Worker<Shelf> {
    worker_with(shelf, limits, |_| Some(0))
}

fn worker_with(
    shelf: &Shelf,
    limits: Limits,
    registration: impl Fn(&DeviceId) -> Option<u64> + Send + 'static,
) -> Worker<Shelf> {
    let (_, inbox) = sync_channel(1);
    let registrations = Box::new(registration);
    let waiting = (inbox, SaidOnce::default());
    Worker::open(shelf.clone(), limits, registrations, waiting, Arc::default()).unwrap()
}

fn device(n: u64) -> DeviceId {
    DeviceId([u8::try_from(n).unwrap(); 8])
}

fn order(n: u64, payload: &[u8]) -> Order {
    Order {
        device: device(n),
        registration: 0,
        name: format!("d{n}"),
        payload: payload.to_vec(),
        ttl_ms: None,
        key: None,
        collapse: None,
        patient: true,
    }
}

impl World {
    fn new() -> Self {
        let (shelf, told) = (Shelf::default(), Ears::default());
        let mut world = Self {
            worker: worker(&shelf, Limits::default()),
            registered: Arc::default(),
            shelf,
            told,
            open: HashMap::new(),
            devices: HashMap::new(),
            records: 0,
            waiting: HashMap::new(),
            inputs: Vec::new(),
        };
        world.worker = world.worker();
        world.worker.begin(&mut world.told.clone());
        world
    }

    fn worker(&self) -> Worker<Shelf> {
        let registered = Arc::clone(&self.registered);
        let registration = move |device: &DeviceId| {
            registered.lock().unwrap().get(device).copied().unwrap_or(Some(0))
        };
        worker_with(&self.shelf, Limits::default(), registration)
    }

    /// A device is registered anew, or not any more.
    fn register(&self, device: DeviceId, registration: Option<u64>) {
        self.registered.lock().unwrap().insert(device, registration);
    }

    fn revoke(&mut self, device: DeviceId) {
        self.register(device, None);
        self.inputs.push(Input::Revoked(device));
    }

    /// The process ends, and another one begins.
    fn restart(&mut self) {
        self.told = Ears::default();
        self.open.clear();
        self.waiting.clear();
        self.inputs.clear();
        self.worker = self.worker();
        self.worker.begin(&mut self.told.clone());
    }

    fn turn(&mut self) {
        let inputs = std::mem::take(&mut self.inputs);
        self.worker.turn(&mut self.told.clone(), inputs, now_ms());
        self.worker.check();
    }

    fn queue(&mut self, order: Order) -> oneshot::Receiver<Result<Queued, QueueError>> {
        let (reply, answer) = oneshot::channel();
        self.inputs.push(Input::Request(Request::Queue(order, reply)));
        answer
    }

    fn withdraw(&mut self, device: DeviceId, token: u64) {
        if self.open.get(&device).is_some_and(|open| open.0 == token) {
            self.open.remove(&device);
        }
    }

    fn give(&mut self, shard: usize, command: Command) {
        assert_eq!(usize::from(command.device.slot()) % 2, shard, "its device's shard");
        let Command { token, device, number, payload, .. } = command;
        let before = self.open.insert(device, (token, number, payload));
        assert!(before.is_none_or(|before| before.0 == token), "one at a time (R80)");
    }

    /// The shards look into their mailboxes, as far as the first `most` items.
    fn read_mail(&mut self, most: usize) {
        for _ in 0..most {
            let Some((shard, mail)) = self.told.mail.lock().unwrap().pop_front() else { return };
            match mail {
                Mail::Command(command) => self.give(shard, command),
                Mail::ReplaceCommand { over, by } => {
                    self.withdraw(by.device, over);
                    self.give(shard, by);
                }
                Mail::WithdrawCommand(device, token) => self.withdraw(device, token),
                Mail::Durable(records) => {
                    for (_, record) in records {
                        let Some((device, number)) = self.waiting.remove(&record) else { continue };
                        let device = self.devices.get_mut(&device).unwrap();
                        device.unanswered.take_if(|(unanswered, _)| *unanswered == number);
                    }
                }
                _ => {}
            }
        }
    }

    /// A device is awake: it gets its command, does what is new to it, and says what nobody has acknowledged.
    fn wake(&mut self, id: DeviceId, heard: bool) {
        let one = self.devices.entry(id).or_default();
        if let Some((token, number, payload)) = self.open.get(&id)
            && heard
        {
            self.inputs.push(Input::Sent(*token));
            if *number > one.last {
                one.last = *number;
                one.done.push((*number, payload.clone()));
                let output = payload.iter().rev().copied().collect();
                one.unanswered = Some((*number, CommandAnswer { status: 0, output }));
            }
        }
        let Some((number, answer)) = one.unanswered.clone() else { return };
        self.records += 1;
        self.waiting.insert(self.records, (id, number));
        let (shard, record) = (usize::from(id.slot()) % 2, (SessionId(1), self.records));
        if self.open.get(&id).is_some_and(|open| open.1 == number)
            && let Some((id, ..)) = self.open.remove(&id)
        {
            let record = Some(record);
            self.inputs.push(Input::Ended { shard, id, result: Ok(answer), record });
        } else {
            let device = id;
            self.inputs.push(Input::Unexpected { shard, device, number, answer, record });
        }
    }

    /// Everything works, until nothing more happens.
    fn settle(&mut self) {
        self.told.full.store(false, Ordering::Relaxed);
        self.shelf.0.lock().unwrap().fails_after = None;
        for _ in 0..200 {
            self.turn();
            self.read_mail(usize::MAX);
            let ids: Vec<_> = self.devices.keys().copied().collect();
            ids.into_iter().for_each(|id| self.wake(id, true));
        }
        self.turn();
    }

    fn all(&mut self) -> Vec<CommandInfo> {
        let (reply, mut answer) = oneshot::channel();
        let wanted = Wanted { limit: usize::MAX, ..Wanted::default() };
        self.inputs.push(Input::Request(Request::Ask(Question::List(wanted, reply))));
        self.turn();
        answer.try_recv().unwrap().unwrap()
    }
}

/// Whatever fails or ends, and whenever: what was queued is carried out once, in its order, and its result is recorded.
#[test]
fn what_is_queued_is_done_once_whatever_ends() {
    let (mut restarts, mut failures) = (0, 0);
    for seed in 0..150 {
        let mut rng = Rng::new(seed);
        let mut world = World::new();
        (1..4).for_each(|n| drop(world.devices.insert(device(n), Device::default())));
        let (mut promised, mut answers) = (Vec::<Vec<u8>>::new(), Vec::new());
        for step in 0..60_u32 {
            match rng.below(12) {
                0..3 => {
                    let payload = step.to_be_bytes();
                    let order = order(1 + rng.below(3), &payload);
                    let answer = world.queue(order);
                    answers.push((payload.to_vec(), answer));
                }
                3..5 => world.turn(),
                5..7 => world.read_mail(usize::try_from(1 + rng.below(4)).unwrap()),
                7..9 => world.wake(device(1 + rng.below(3)), rng.below(3) > 0),
                9 => {
                    let mut kept = world.shelf.0.lock().unwrap();
                    kept.fails_after = Some(u32::try_from(rng.below(2)).unwrap());
                    kept.reaches = rng.below(2) == 0;
                    failures += 1;
                }
                10 => world.told.full.store(rng.below(2) == 0, Ordering::Relaxed),
                _ => {
                    restarts += 1;
                    world.restart();
                }
            }
            answers.retain_mut(|(payload, answer)| match answer.try_recv() {
                Ok(queued) => {
                    promised.extend(queued.is_ok().then(|| payload.clone()));
                    false
                }
                Err(oneshot::error::TryRecvError::Empty) => true,
                Err(oneshot::error::TryRecvError::Closed) => false,
            });
        }
        world.restart();
        world.settle();
        let all = world.all();
        for payload in &promised {
            let payload = crate::hex::Hex(payload).to_string();
            assert!(
                all.iter().any(|info| info.payload == payload),
                "seed {seed}: promised and gone"
            );
        }
        let ends = world.told.ends.lock().unwrap().clone();
        for info in &all {
            assert_eq!(info.state, CommandState::Done, "seed {seed}: {info:?}");
            let payload = crate::hex::decode(&info.payload).unwrap();
            let times: usize = world
                .devices
                .values()
                .map(|one| one.done.iter().filter(|(_, done)| *done == payload).count())
                .sum();
            assert_eq!(times, 1, "seed {seed}: {info:?}");
            let reversed: Vec<_> = payload.iter().rev().copied().collect();
            assert_eq!(info.output, Some(crate::hex::Hex(&reversed).to_string()));
            // The process that ends last has told upstreams of all that the ones before did not know to be stored.
            assert!(ends.iter().any(|end| end.id == info.id), "seed {seed}: {info:?}");
        }
        for (id, one) in &world.devices {
            assert!(one.unanswered.is_none(), "seed {seed}: a result without acknowledgement");
            let order: Vec<_> = one.done.iter().map(|(_, payload)| payload.clone()).collect();
            assert!(order.is_sorted(), "seed {seed}: {id} did {order:?}");
        }
    }
    assert!(restarts > 300 && failures > 300, "{restarts} restarts, {failures} failures");
}

impl<S: Store> Worker<S> {
    fn check(&self) {
        self.book().check();
    }

    fn shift(&mut self, since_ms: u64, by_ms: u64) {
        self.book_mut().shift(since_ms, by_ms);
    }
}

fn queued(world: &mut World, order: Order) -> Result<Queued, QueueError> {
    let mut answer = world.queue(order);
    world.turn();
    answer.try_recv().unwrap()
}

#[test]
fn keys_collapse_and_limits_mean_what_they_say() {
    let mut world = World::new();
    let keyed = |payload: &[u8]| Order { key: Some("k".into()), ..order(1, payload) };
    let first = queued(&mut world, keyed(b"a")).unwrap();
    let again = queued(&mut world, keyed(b"a")).unwrap();
    assert_eq!((first.known, again.known, again.info.id), (false, true, first.info.id));
    assert_eq!(queued(&mut world, keyed(b"b")).unwrap_err(), QueueError::KeyTaken);
    let other = Order { device: device(2), ..keyed(b"b") };
    assert!(!queued(&mut world, other).unwrap().known, "a key is the device's");

    let collapsing = |payload: &[u8]| Order { collapse: Some("c".into()), ..order(3, payload) };
    let mut old = queued(&mut world, collapsing(b"old")).unwrap();
    let new = queued(&mut world, collapsing(b"new")).unwrap();
    assert_eq!(old.outcome.try_recv().unwrap(), Outcome::Over(CommandState::Superseded));
    assert!(new.info.number > old.info.number);
    world.read_mail(usize::MAX);
    assert_eq!(world.open[&device(3)].2, b"new");

    for _ in 0..50 {
        queued(&mut world, order(4, b"x")).unwrap();
    }
    assert_eq!(queued(&mut world, order(4, b"x")).unwrap_err(), QueueError::DeviceFull(50));
    let long = order(5, &[0; PAYLOAD_MAX + 1]);
    assert_eq!(queued(&mut world, long).unwrap_err(), QueueError::TooLong);
    let key = Order { key: Some(String::new()), ..order(5, b"") };
    assert_eq!(queued(&mut world, key).unwrap_err(), QueueError::BadKey);
    for ttl_ms in [0, MAX_TTL_MS + 1] {
        let order = Order { ttl_ms: Some(ttl_ms), ..order(5, b"") };
        assert_eq!(queued(&mut world, order).unwrap_err(), QueueError::BadTtl);
    }
}

#[test]
fn a_command_that_takes_anothers_place_takes_its_room_too() {
    let shelf = Shelf::default();
    let limits = Limits { open_bytes: 10, ..Limits::default() };
    let mut worker = worker(&shelf, limits);
    let mut queue = |order| {
        let (reply, mut answer) = oneshot::channel();
        worker.turn(
            &mut Ears::default(),
            vec![Input::Request(Request::Queue(order, reply))],
            now_ms(),
        );
        worker.check();
        answer.try_recv().unwrap().map(drop)
    };
    let collapsing = |payload: &[u8]| Order { collapse: Some("c".into()), ..order(1, payload) };
    queue(collapsing(&[1; 8])).unwrap();
    queue(collapsing(&[2; 9])).unwrap();
    assert_eq!(queue(order(2, &[3; 2])), Err(QueueError::Full));
    assert_eq!(queue(collapsing(&[4; 11])), Err(QueueError::Full));
    queue(order(2, &[5; 1])).unwrap();
}

#[test]
fn a_result_that_comes_late_is_recorded_and_acknowledged() {
    let mut world = World::new();
    world.devices.insert(device(1), Device::default());
    let mut one = queued(&mut world, Order { ttl_ms: Some(1_000), ..order(1, b"ab") }).unwrap();
    world.read_mail(usize::MAX);
    // The device does it, and its result does not come through in time.
    world.wake(device(1), true);
    world.inputs.clear();
    world.worker.turn(&mut world.told.clone(), Vec::new(), now_ms() + 2_000);
    assert_eq!(one.outcome.try_recv().unwrap(), Outcome::Over(CommandState::Expired));
    world.read_mail(usize::MAX);
    world.wake(device(1), false);
    world.turn();
    world.read_mail(usize::MAX);
    assert!(world.devices[&device(1)].unanswered.is_none());
    let info = world.all().remove(0);
    assert_eq!((info.state, info.late.unwrap().output), (CommandState::Expired, "6261".into()));
    let ends = world.told.ends.lock().unwrap();
    assert_eq!(
        ends.iter().map(|end| (end.late, end.state)).collect::<Vec<_>>(),
        [(false, CommandState::Expired), (true, CommandState::Expired)]
    );
}

/// A device repeats its result in the same record, which its shard takes again only if it is told that the first one was not
/// kept. Otherwise the device would be silent for half a minute and shake hands anew.
#[test]
fn a_result_that_is_not_recorded_is_given_back_to_its_shard() {
    let refused = |world: &mut World| {
        let mail = std::mem::take(&mut *world.told.mail.lock().unwrap());
        mail.into_iter().filter_map(|(shard, mail)| match mail {
            Mail::NotStored(records) => Some((shard, records)),
            Mail::Durable(_) => panic!("it is not on disk"),
            _ => None,
        })
    };
    let shard = usize::from(device(1).slot()) % 2;
    // In the turn whose write fails, and while the file is tried again; also where nobody asked.
    for late in [false, true] {
        let mut world = World::new();
        world.devices.insert(device(1), Device::default());
        queued(&mut world, order(1, b"ab")).unwrap();
        world.read_mail(usize::MAX);
        world.shelf.0.lock().unwrap().fails_after = Some(0);
        if late {
            drop(world.queue(order(2, b"c")));
            world.turn();
        }
        world.wake(device(1), true);
        world.turn();
        let given: Vec<_> = refused(&mut world).collect();
        assert_eq!(given, [(shard, vec![(SessionId(1), 1)])]);
        assert!(!world.worker.is_well());
        world.wake(device(1), false);
        world.turn();
        assert_eq!(refused(&mut world).collect::<Vec<_>>(), [(shard, vec![(SessionId(1), 2)])]);
    }
    // What found the inbox full.
    let (inbox, _waiting) = sync_channel(1);
    let teller = Teller { inbox, said_once: SaidOnce::default() };
    let answer = || CommandAnswer { status: 0, output: Vec::new() };
    let record = (SessionId(1), 3);
    assert!(teller.ended(0, 1, Ok(answer()), Some(record)));
    assert!(!teller.ended(0, 1, Ok(answer()), Some(record)));
    assert!(!teller.unexpected(0, device(1), 1, answer(), record));
}

/// Whoever looks while the file cannot be written sees what is in it, and not what was refused.
#[test]
fn what_is_asked_is_answered_while_the_file_cannot_be_written() {
    let mut world = World::new();
    world.devices.insert(device(1), Device::default());
    let kept = queued(&mut world, order(1, b"ab")).unwrap().info.id;
    let other = queued(&mut world, order(2, b"c")).unwrap().info.id;
    world.read_mail(usize::MAX);
    let expected = [(kept, CommandState::Queued), (other, CommandState::Queued)];
    world.shelf.0.lock().unwrap().fails_after = Some(0);
    // A new one, an end and a result, all lost with the write that fails; and once more while the file is tried again.
    for well in [true, false] {
        assert_eq!(world.worker.is_well(), well);
        let mut new = world.queue(order(2, b"d"));
        let (reply, mut cancelled) = oneshot::channel();
        world.inputs.push(Input::Request(Request::Cancel(other, reply)));
        world.wake(device(1), well);
        let (reply, mut one) = oneshot::channel();
        world.inputs.push(Input::Request(Request::Ask(Question::Show(kept, reply))));
        let all: Vec<_> = world.all().iter().map(|info| (info.id, info.state)).collect();
        assert_eq!(all, expected);
        assert_eq!(one.try_recv().unwrap().unwrap().state, CommandState::Queued);
        assert!(matches!(new.try_recv().unwrap(), Err(QueueError::Unwritten)));
        assert!(matches!(cancelled.try_recv().unwrap(), Err(QueueError::Unwritten)));
    }
}

/// That an end could not be stored for upstreams, and that a device is not connected, is said once.
#[test]
fn what_is_said_once_is_not_lost_in_a_full_inbox() {
    let (inbox, waiting) = sync_channel(1);
    let said_once = SaidOnce::default();
    let teller = Teller { inbox, said_once: Arc::clone(&said_once) };
    let (shelf, mut told) = (Shelf::default(), Ears::default());
    let registrations: Registrations = Box::new(|_| Some(0));
    let waiting = (waiting, said_once);
    let mut worker =
        Worker::open(shelf, Limits::default(), registrations, waiting, Arc::default()).unwrap();
    worker.begin(&mut told);
    let now = now_ms();
    let (reply, _answer) = oneshot::channel();
    let short = Order { ttl_ms: Some(1), ..order(1, b"a") };
    worker.turn(&mut told, vec![Input::Request(Request::Queue(short, reply))], now);
    worker.turn(&mut told, Vec::new(), now + 5);
    let ends = |told: &Ears| {
        let ends = std::mem::take(&mut *told.ends.lock().unwrap());
        ends.into_iter().map(|end| (end.id, end.late)).collect::<Vec<_>>()
    };
    let first = ends(&told);
    assert_eq!(first.len(), 1);
    teller.sent(1);
    teller.told(first.clone(), false);
    let said = worker.take_said_once();
    worker.turn(&mut told, said, now + 6);
    std::thread::sleep(Duration::from_millis(1_100));
    worker.turn(&mut told, Vec::new(), now + 7);
    assert_eq!(ends(&told), first, "it is handed on again");
    let (reply, mut queued) = oneshot::channel();
    let impatient = Order { patient: false, ..order(2, b"b") };
    worker.turn(&mut told, vec![Input::Request(Request::Queue(impatient, reply))], now + 8);
    let Queued { info, mut outcome, .. } = queued.try_recv().unwrap().unwrap();
    assert!(teller.ended(0, info.id, Err(CommandFailure::NotConnected), None));
    let said = worker.take_said_once();
    worker.turn(&mut told, said, now + 9);
    assert_eq!(outcome.try_recv().unwrap(), Outcome::NotConnected);
}

/// The shard has done with a command whose result was lost, and the device need not have kept that either.
#[test]
fn a_command_whose_result_was_lost_is_sent_again() {
    // In the turn whose write fails, and while the file is tried again.
    for late in [false, true] {
        let mut world = World::new();
        world.devices.insert(device(1), Device::default());
        let queued = queued(&mut world, order(1, b"ab")).unwrap().info;
        world.read_mail(usize::MAX);
        world.shelf.0.lock().unwrap().fails_after = Some(0);
        if late {
            drop(world.queue(order(2, b"c")));
            world.turn();
        }
        world.wake(device(1), true);
        world.turn();
        world.devices.get_mut(&device(1)).unwrap().unanswered = None;
        let began = std::time::Instant::now();
        while !world.worker.is_well() {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(20));
            world.turn();
        }
        world.read_mail(usize::MAX);
        let given = world.open.get(&device(1)).map(|(token, number, _)| (*token, *number));
        assert_eq!(given, Some((queued.id, queued.number)));
    }
}

/// R116: a device that has had a higher number would take none of ours.
#[test]
fn a_number_above_ours_renumbers_what_waits() {
    let mut world = World::new();
    let done = Device { last: 40, ..Device::default() };
    world.devices.insert(device(1), done);
    for payload in [b"a", b"b"] {
        queued(&mut world, order(1, payload)).unwrap();
    }
    let answer = CommandAnswer { status: 0, output: Vec::new() };
    world.devices.get_mut(&device(1)).unwrap().unanswered = Some((40, answer));
    world.settle();
    let numbers: Vec<_> =
        world.devices[&device(1)].done.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [41, 42]);
    assert!(world.all().iter().all(|info| info.state == CommandState::Done));
}

#[test]
fn what_is_cancelled_is_withdrawn_and_a_removed_device_has_no_commands() {
    let mut world = World::new();
    let ids: Vec<_> =
        (0..3_u8).map(|n| queued(&mut world, order(1, &[n])).unwrap().info.id).collect();
    world.read_mail(usize::MAX);
    let cancel = |world: &mut World, id| {
        let (reply, mut answer) = oneshot::channel();
        world.inputs.push(Input::Request(Request::Cancel(id, reply)));
        world.turn();
        world.read_mail(usize::MAX);
        answer.try_recv().unwrap()
    };
    assert_eq!(cancel(&mut world, ids[0]).unwrap().state, CommandState::Cancelled);
    assert_eq!(world.open[&device(1)].0, ids[1], "the next one has its turn");
    let over = QueueError::Over(ids[0], CommandState::Cancelled);
    assert_eq!(cancel(&mut world, ids[0]).unwrap_err(), over);
    assert_eq!(cancel(&mut world, 99).unwrap_err(), QueueError::Unknown(99));
    world.revoke(device(1));
    world.turn();
    world.read_mail(usize::MAX);
    assert!(world.open.is_empty());
    assert!(world.all().iter().all(|info| info.state == CommandState::Cancelled));
}

/// A device that may not connect any more has no commands, whatever the disk does meanwhile.
#[test]
fn a_revocation_outlives_a_file_that_cannot_be_written_and_an_end_of_the_process() {
    let states = |world: &mut World| world.all().iter().map(|info| info.state).collect::<Vec<_>>();
    // In the very turn whose write fails, and while the file is tried again.
    for refused in [false, true] {
        let mut world = World::new();
        queued(&mut world, order(1, b"a")).unwrap();
        queued(&mut world, order(2, b"b")).unwrap();
        world.shelf.0.lock().unwrap().fails_after = Some(0);
        if refused {
            drop(world.queue(order(2, b"c")));
            world.turn();
        }
        world.revoke(device(1));
        world.turn();
        let began = std::time::Instant::now();
        while !world.worker.is_well() {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(20));
            world.turn();
        }
        assert_eq!(states(&mut world), [CommandState::Cancelled, CommandState::Queued]);
    }
    // Revoked by a command while no gateway ran.
    let mut world = World::new();
    queued(&mut world, order(1, b"a")).unwrap();
    queued(&mut world, order(2, b"b")).unwrap();
    world.worker =
        worker_with(&world.shelf, Limits::default(), |one| (*one != device(1)).then_some(0));
    world.worker.begin(&mut world.told.clone());
    assert_eq!(states(&mut world), [CommandState::Cancelled, CommandState::Queued]);
    world.restart();
    assert_eq!(states(&mut world), [CommandState::Cancelled, CommandState::Queued], "on disk");
    // Removed by a command, and registered again under the same id.
    world.worker = worker_with(&world.shelf, Limits::default(), |_| Some(7));
    queued(&mut world, Order { registration: 7, ..order(2, b"c") }).unwrap();
    world.worker.begin(&mut world.told.clone());
    let expected = [CommandState::Cancelled, CommandState::Cancelled, CommandState::Queued];
    assert_eq!(states(&mut world), expected);
}

/// A device that is registered anew is another one, whatever its id: it gets neither the commands of the one before nor the
/// answers to them, in whatever order the queue hears of it.
#[test]
fn a_command_and_its_key_are_for_one_registration() {
    let mut world = World::new();
    let keyed = |registration| {
        let key = Some("job-1".to_owned());
        Order { registration, key, ..order(1, b"open") }
    };
    let first = queued(&mut world, keyed(0)).unwrap();
    world.read_mail(usize::MAX);
    assert_eq!(world.open[&device(1)].0, first.info.id);
    // Asked before the device was removed, and heard after that.
    let mut late = world.queue(order(1, b"close"));
    world.register(device(1), None);
    world.inputs.insert(0, Input::Revoked(device(1)));
    world.turn();
    let unregistered = QueueError::Unregistered("d1".into());
    assert_eq!(late.try_recv().unwrap().unwrap_err(), unregistered);
    world.read_mail(usize::MAX);
    assert!(world.open.is_empty());
    // Registered anew, with the removal still on its way from another one who asks.
    world.register(device(1), Some(7));
    let mut old = world.queue(keyed(0));
    let mut new = world.queue(keyed(7));
    world.inputs.push(Input::Revoked(device(1)));
    world.turn();
    assert_eq!(old.try_recv().unwrap().unwrap_err(), unregistered);
    let new = new.try_recv().unwrap().unwrap();
    assert!(!new.known && new.info.id != first.info.id, "its key has not been used");
    assert_eq!(queued(&mut world, keyed(7)).unwrap().info.id, new.info.id, "now it has");
    let states = |world: &mut World| world.all().iter().map(|info| info.state).collect::<Vec<_>>();
    assert_eq!(states(&mut world), [CommandState::Cancelled, CommandState::Queued]);
    world.restart();
    assert!(queued(&mut world, keyed(7)).unwrap().known, "from disk, too");
    // A removal of which nobody told the queue.
    world.register(device(1), Some(8));
    assert!(!queued(&mut world, keyed(8)).unwrap().known);
    let expected = [CommandState::Cancelled, CommandState::Cancelled, CommandState::Queued];
    assert_eq!(states(&mut world), expected);
    world.read_mail(usize::MAX);
    let newest = world.all()[2].id;
    assert_eq!(world.open[&device(1)].0, newest);
}

#[test]
fn what_is_queued_before_the_clock_is_set_lives_as_long_as_it_may() {
    let mut world = World::new();
    let (mut told, hour) = (world.told.clone(), 3_600_000);
    let mut queue = |world: &mut World, payload: &[u8], at_ms| {
        let (reply, mut answer) = oneshot::channel();
        let order = Order { ttl_ms: Some(hour), ..order(1, payload) };
        world.worker.turn(&mut told, vec![Input::Request(Request::Queue(order, reply))], at_ms);
        answer.try_recv().unwrap().unwrap().info.id
    };
    let today = now_ms();
    let old = queue(&mut world, b"old", today - 25 * hour);
    let new = queue(&mut world, b"new", today - 24 * hour);
    // The clock that said so is set.
    world.worker.shift(today - 24 * hour, 24 * hour);
    world.worker.turn(&mut world.told.clone(), Vec::new(), today + hour / 2);
    world.worker.check();
    let state = |world: &World, id| world.worker.book().find(id).unwrap().state();
    assert_eq!(state(&world, old), CommandState::Expired);
    assert_eq!(state(&world, new), CommandState::Queued);
    world.worker.turn(&mut world.told.clone(), Vec::new(), today + hour);
    assert_eq!(state(&world, new), CommandState::Expired);
    // A start with a clock that is behind goes on where the file has come to.
    world.restart();
    assert!(world.worker.now_ms() >= today + hour);
}

/// The process is killed before anybody has set the clock, and the next one begins with a clock that is set.
#[test]
fn what_is_queued_before_the_clock_is_set_outlives_the_process() {
    let mut world = World::new();
    let (mut told, hour) = (world.told.clone(), 3_600_000);
    world.worker.set_clock(clock::Clock::begin(5_000, 0, 0, None));
    let (reply, mut answer) = oneshot::channel();
    let order = Order { ttl_ms: Some(hour), ..order(1, b"x") };
    world.worker.turn(&mut told, vec![Input::Request(Request::Queue(order, reply))], 9_000);
    let id = answer.try_recv().unwrap().unwrap().info.id;
    for _ in 0..2 {
        world.restart();
        let now_ms = world.worker.tick();
        assert!(
            now_ms.abs_diff(crate::identity::now_ms()) < 60_000,
            "its own clock is the wall clock again"
        );
        world.worker.turn(&mut world.told.clone(), Vec::new(), now_ms);
        let book = world.worker.book();
        let (entry, queued) = (book.find(id).unwrap(), CommandState::Queued);
        assert_eq!(entry.state(), queued);
        assert!(
            entry.queued_ms.abs_diff(now_ms) < 60_000 && entry.expires_ms - entry.queued_ms == hour
        );
        assert_eq!(world.shelf.0.lock().unwrap().behind_since_ms, None);
    }
    world.worker.turn(&mut world.told.clone(), Vec::new(), now_ms() + hour);
    assert_eq!(world.worker.book().find(id).unwrap().state(), CommandState::Expired);
}

/// A machine without a clock of its own was off for two days, and is told the time later.
#[test]
fn the_newest_command_does_not_live_twice_when_the_clock_comes_up() {
    let mut world = World::new();
    let (hour, day) = (3_600_000, 86_400_000);
    let queued_ms = now_ms() - 2 * day;
    let (reply, mut answer) = oneshot::channel();
    let order = Order { ttl_ms: Some(hour), ..order(1, b"old") };
    let input = Input::Request(Request::Queue(order, reply));
    world.worker.turn(&mut world.told.clone(), vec![input], queued_ms);
    let id = answer.try_recv().unwrap().unwrap().info.id;
    let newest_ms = world.worker.book().newest_ms();
    assert_eq!(newest_ms, queued_ms);
    let mut clock = clock::Clock::begin(5_000, 100, newest_ms, None);
    let (since_ms, by_ms) = clock.come_up(queued_ms + 2 * day, 200).unwrap();
    world.worker.shift(since_ms, by_ms);
    world.worker.turn(&mut world.told.clone(), Vec::new(), queued_ms + 2 * day);
    assert_eq!(world.worker.book().find(id).unwrap().state(), CommandState::Expired);
}

/// Otherwise a spool that keeps readings for so long would keep what a wrong clock once said.
#[test]
fn upstreams_are_told_by_the_wall_clock_whatever_time_the_queue_has_come_to() {
    let mut world = World::new();
    let ahead_ms = now_ms() + 365 * 86_400_000;
    let (reply, _answer) = oneshot::channel();
    let input = Input::Request(Request::Queue(order(1, b"x"), reply));
    world.worker.turn(&mut world.told.clone(), vec![input], ahead_ms);
    world.restart();
    world.read_mail(usize::MAX);
    world.wake(device(1), true);
    let (inputs, at_ms) = (std::mem::take(&mut world.inputs), world.worker.now_ms());
    world.worker.turn(&mut world.told.clone(), inputs, at_ms);
    let ended_ms = world.all()[0].ended_ms.unwrap();
    assert!(ended_ms >= ahead_ms);
    let told = world.told.ends.lock().unwrap().clone();
    assert!(told[0].at_ms.abs_diff(now_ms()) < 60_000, "{told:?}");
}

#[test]
fn what_is_over_is_forgotten_in_time_and_number() {
    let shelf = Shelf::default();
    let limits = Limits { ended: 3, keep_ms: 1_000, ..Limits::default() };
    let mut worker = worker(&shelf, limits);
    let mut told = Ears::default();
    worker.begin(&mut told);
    let now = now_ms();
    for n in 0..10 {
        let (reply, _answer) = oneshot::channel();
        let short = Order { ttl_ms: Some(1), ..order(1, &[n]) };
        worker.turn(&mut told, vec![Input::Request(Request::Queue(short, reply))], now);
    }
    worker.turn(&mut told, Vec::new(), now + 5);
    worker.turn(&mut told, Vec::new(), now + 6);
    let ends: Vec<_> = told.ends.lock().unwrap().iter().map(|end| (end.id, end.late)).collect();
    assert_eq!(ends.len(), 3, "those that were still there to be told of");
    let all = |worker: &mut Worker<Shelf>, at| {
        let (reply, mut answer) = oneshot::channel();
        let wanted = Wanted { limit: 100, ..Wanted::default() };
        worker.turn(
            &mut Ears::default(),
            vec![Input::Request(Request::Ask(Question::List(wanted, reply)))],
            at,
        );
        answer.try_recv().unwrap().unwrap().len()
    };
    assert_eq!(all(&mut worker, now + 7), 3);
    worker.turn(&mut told, vec![Input::Told { ends, stored: true }], now + 8);
    worker.turn(&mut told, Vec::new(), now + 2_000);
    assert_eq!(all(&mut worker, now + 2_001), 0);
    worker.check();
}

#[test]
fn a_hundred_thousand_commands_are_open_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let (devices, each) = (10_000_u64, 10);
    let row = |id: u64| {
        let device = DeviceId((id % devices).to_be_bytes());
        let number = u32::try_from(id / devices).unwrap() + 1;
        entry::Entry {
            id,
            device,
            registration: 0,
            name: format!("device-{:06}", id % devices).into(),
            number,
            payload: vec![7; 64],
            key: None,
            collapse: None,
            queued_ms: 1,
            expires_ms: u64::MAX,
            patient: true,
            sent: 0,
            end: None,
            late: None,
            untold: entry::Untold::default(),
        }
    };
    let mut disk = Disk::open(path.clone()).unwrap();
    let rows = (0..devices * each).map(|id| (id, Some(row(id).encode()))).collect();
    disk.save(&Change { rows, next_id: devices * each, ..Change::default() }).unwrap();
    drop(disk);
    let began = std::time::Instant::now();
    let opened = Opened::open(path, Limits::default(), Box::new(|_| Some(0))).unwrap();
    let mut told = Ears::default();
    let mut worker = opened.worker;
    worker.begin(&mut told);
    let took = began.elapsed();
    println!("100,000 queued commands were open again in {} ms", took.as_millis());
    let mail = told.mail.lock().unwrap();
    let given: HashSet<_> = mail
        .iter()
        .filter_map(|(_, mail)| match mail {
            Mail::Command(command) => Some(command.device),
            _ => None,
        })
        .collect();
    assert_eq!(given.len(), usize::try_from(devices).unwrap(), "the oldest of each device");
    for shard in 0..2 {
        let last = mail.iter().rev().find(|(to, _)| *to == shard).map(|(_, mail)| mail);
        assert!(matches!(last, Some(Mail::CommandsBehind(false))), "those are all");
    }
}

#[test]
fn a_file_that_is_none_is_refused_with_what_to_do_and_a_mode_that_lets_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let open = |path: &std::path::Path| {
        Opened::open(path.to_owned(), Limits::default(), Box::new(|_| Some(0)))
    };
    let text = |path: &std::path::Path| match open(path) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    };
    // Whoever only looks finds the same, and changes nothing.
    let looked = |path: &std::path::Path| match look(path) {
        Ok(said) => said,
        Err(error) => format!("refused: {error}"),
    };
    assert!(looked(&path).contains("not there yet") && !path.exists());
    drop(open(&path).unwrap());
    assert!(looked(&path).ends_with("0 commands wait, 0 are over"), "{}", looked(&path));
    let held = open(&path).unwrap();
    assert!(text(&path).contains("in use"), "{}", text(&path));
    assert!(looked(&path).contains("in use"), "{}", looked(&path));
    // As a gateway that is killed leaves it.
    let killed = dir.path().join("killed");
    std::fs::copy(&path, &killed).unwrap();
    let before = std::fs::read(&killed).unwrap();
    assert!(looked(&killed).contains("a start puts it in order"), "{}", looked(&killed));
    assert!(std::fs::read(&killed).unwrap() == before);
    drop(held);
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(text(&path).contains("chmod 600"));
    assert!(looked(&path).contains("chmod 600"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, b"not a queue").unwrap();
    assert!(text(&path).contains("move it away"), "{}", text(&path));
    assert!(looked(&path).contains("move it away"), "{}", looked(&path));
}

/// Whoever asks a gateway that is ending is not told to try again.
#[test]
fn a_queue_that_has_ended_gives_no_answer_and_a_full_one_says_so() {
    let (inbox, waiting) = sync_channel(1);
    let commands = Commands { inbox, failed: Arc::default(), thread: Mutex::new(None) };
    let _first = commands.show(1);
    let full = commands.show(2).blocking_recv();
    assert!(matches!(full, Ok(Err(QueueError::Busy))), "{full:?}");
    drop(waiting);
    assert!(commands.show(3).blocking_recv().is_err());
}
