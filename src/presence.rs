//! Who is there, and who was turned away: what people and programs can ask about a device.
//!
//! A shard knows its devices' sessions and is asked for them, so that nothing is counted twice and a million devices take no
//! memory here. Kept here is what outlives a session: when and why a device left, and the last times that it, or
//! somebody who named it, was turned away. Both are bounded, and forgotten when the gateway ends. The latest readings stand
//! in `values`.

mod values;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use duet_core::{Contact, Gone, Mail, RefusedDevice};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::Transport;
use duet_protocol::reason::DropReason;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::ToSchema;

pub use self::values::{LastValue, Taken, Values};

/// The most devices that something is kept of, for each shard; whoever came first is forgotten first.
const DEVICES_MAX: usize = 65_536;
/// How many refusals of a device are kept.
const REFUSALS: usize = 3;
/// How many refusals of those who only name a device a shard keeps in a second.
const UNPROVEN_PER_S: u32 = 16;
/// How long a shard may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A time when a device, or somebody who named it, was turned away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Why, as in `duet_drops_total`.
    pub reason: String,
    /// Why, for people.
    pub text: String,
    /// Where it came from: an IPv4 address, or a network of IPv6.
    pub address: String,
    /// Whether it was the device; otherwise somebody else may have named it.
    pub proven: bool,
}

/// When and why a device left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Left {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// `left`, `silent`, `lifetime`, `revoked` or `stopped`.
    pub reason: String,
}

/// How a device is at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Presence {
    /// Whether it has a session.
    pub online: bool,
    /// Since when its session lasts, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// When its last record came, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_ms: Option<u64>,
    /// Where that came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What carried it: `udp` or `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// How the device proved itself, and where the session's key comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// How many records it has sent in this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<u32>,
    /// When and why its last session ended, where none has taken its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Left>,
    /// The last times that it was turned away, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// The latest reading of each of its channels, as it was taken, as far as they are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<LastValue>,
}

/// What is kept of a device beyond its sessions.
#[derive(Clone, Default)]
struct Trace {
    left: Option<(u64, Gone)>,
    refusals: VecDeque<(u64, DropReason, IpAddr, bool)>,
}

/// What is kept of a shard's devices.
#[derive(Default)]
struct Traces {
    devices: HashMap<DeviceId, Trace>,
    /// In the order in which they came.
    order: VecDeque<DeviceId>,
    /// The second since 1970 in which somebody named a device without proof last, and how often he did.
    named: (u64, u32),
}

impl Traces {
    /// Whether one more who names a device without proof is kept.
    fn may_name(&mut self, at_ms: u64) -> bool {
        let (second, count) = &mut self.named;
        if *second != at_ms / 1_000 {
            (*second, *count) = (at_ms / 1_000, 0);
        }
        *count += 1;
        *count <= UNPROVEN_PER_S
    }

    fn of(&mut self, device: DeviceId) -> &mut Trace {
        if !self.devices.contains_key(&device) {
            if self.order.len() >= DEVICES_MAX
                && let Some(first) = self.order.pop_front()
            {
                self.devices.remove(&first);
            }
            self.order.push_back(device);
        }
        self.devices.entry(device).or_default()
    }
}

/// Who waits for shards' answers.
type Waiting = HashMap<u64, oneshot::Sender<Vec<Option<Contact>>>>;

/// What shards tell of their devices. They and whoever asks share it.
pub struct Watch {
    traces: Vec<Mutex<Traces>>,
    values: Vec<Arc<Values>>,
    waiting: Mutex<Waiting>,
    next_token: AtomicU64,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they protect is sound after each statement.
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a session ended, in a word.
#[must_use]
pub const fn reason_name(gone: Gone) -> &'static str {
    match gone {
        Gone::Left => "left",
        Gone::Silent => "silent",
        Gone::Lifetime => "lifetime",
        Gone::Revoked => "revoked",
        Gone::Stopped => "stopped",
    }
}

/// Why somebody was turned away, for people.
const fn refusal_text(reason: DropReason, proven: bool) -> &'static str {
    match (reason, proven) {
        (DropReason::Proof, true) => "it was revoked",
        (DropReason::Expired, _) => {
            "its certificate is not valid at this time, or its registration has ended"
        }
        (DropReason::Proof, false) => {
            "somebody named this device and did not prove to be it: it has another key than is registered, or it was a stranger"
        }
        (DropReason::NotAllowed, _) => {
            "the key source that it asked for is not among those that it is registered for"
        }
        (DropReason::SessionsFull, _) => "limits.max_sessions is reached",
        (DropReason::PendingFull, _) => "limits.max_pending is reached",
        _ => "its HELLO cannot be used",
    }
}

impl Watch {
    /// For so many shards, which have told nothing.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self {
            traces: (0..shards).map(|_| Mutex::default()).collect(),
            values: (0..shards).map(|_| Arc::default()).collect(),
            waiting: Mutex::default(),
            next_token: AtomicU64::new(0),
        }
    }

    // ---- what shards tell

    /// A device's session has ended.
    pub fn left(&self, shard: usize, device: DeviceId, at_ms: u64, gone: Gone) {
        if let Some(traces) = self.traces.get(shard) {
            lock(traces).of(device).left = Some((at_ms, gone));
        }
    }

    /// A device, or somebody who named it, was turned away.
    pub fn refused(&self, shard: usize, at_ms: u64, refused: &RefusedDevice) {
        let RefusedDevice { device, proven, reason, from, .. } = *refused;
        let Some(traces) = self.traces.get(shard) else { return };
        let mut traces = lock(traces);
        // Anybody can name a device, as often as he likes.
        if !proven && !traces.may_name(at_ms) {
            return;
        }
        let refusals = &mut traces.of(device).refusals;
        // Strangers who name a device must not push out what it was itself refused for.
        if refusals.len() >= REFUSALS {
            let unproven = refusals.iter().rposition(|(.., proven)| !proven);
            match unproven {
                Some(place) => drop(refusals.remove(place)),
                None if !proven => return,
                None => drop(refusals.pop_back()),
            }
        }
        refusals.push_front((at_ms, reason, from, proven));
    }

    /// What a shard found.
    pub fn found(&self, token: u64, contacts: Vec<Option<Contact>>) {
        let waiting = lock(&self.waiting).remove(&token);
        // Whoever asked may be gone.
        waiting.into_iter().for_each(|one| drop(one.send(contacts.clone())));
    }

    /// A shard's memory of latest readings, for it to write to.
    #[must_use]
    pub fn values(&self, shard: usize) -> Arc<Values> {
        self.values.get(shard).cloned().unwrap_or_default()
    }

    // ---- what is asked

    /// The latest readings of a device.
    #[must_use]
    pub fn latest(&self, device: DeviceId) -> Vec<LastValue> {
        let shard = usize::from(device.slot()) % self.values.len().max(1);
        self.values.get(shard).map(|values| values.of(device)).unwrap_or_default()
    }

    /// Asks the shards for these devices; `mail` hands a shard its question, and says whether that had room.
    pub fn look(
        self: &Arc<Self>,
        devices: &[DeviceId],
        mail: impl Fn(usize, Mail) -> bool,
    ) -> Looking {
        let shards = self.traces.len().max(1);
        let mut places: Vec<Vec<usize>> = vec![Vec::new(); shards];
        for (place, device) in devices.iter().enumerate() {
            places[usize::from(device.slot()) % shards].push(place);
        }
        let mut parts = Vec::new();
        for (shard, places) in places.into_iter().enumerate().filter(|(_, all)| !all.is_empty()) {
            let token = self.next_token.fetch_add(1, Ordering::Relaxed);
            let (sender, answer) = oneshot::channel();
            lock(&self.waiting).insert(token, sender);
            let asked = places.iter().map(|place| devices[*place]).collect();
            if mail(shard, Mail::Look(token, asked)) {
                parts.push(Part { token, places, answer });
            } else {
                lock(&self.waiting).remove(&token);
            }
        }
        Looking { watch: Arc::clone(self), devices: devices.to_vec(), parts }
    }
}

/// Questions that are on their way to shards.
pub struct Looking {
    watch: Arc<Watch>,
    devices: Vec<DeviceId>,
    parts: Vec<Part>,
}

/// What one shard was asked.
struct Part {
    token: u64,
    /// Which of the devices, by their places.
    places: Vec<usize>,
    answer: oneshot::Receiver<Vec<Option<Contact>>>,
}

impl Looking {
    /// How each of the devices is, in their order, at this time in milliseconds since 1970. `None` where the device's shard
    /// does not answer in time.
    pub async fn found(self, now_ms: u64) -> Vec<Option<Presence>> {
        let Self { watch, devices, parts } = self;
        let mut found: Vec<Option<Presence>> = vec![None; devices.len()];
        for Part { token, places, answer } in parts {
            let Ok(Ok(contacts)) = tokio::time::timeout(PATIENCE, answer).await else {
                lock(&watch.waiting).remove(&token);
                continue;
            };
            for (place, contact) in places.into_iter().zip(contacts) {
                found[place] = Some(watch.presence(devices[place], contact, now_ms));
            }
        }
        found
    }
}

impl Watch {
    pub(crate) fn presence(
        &self,
        device: DeviceId,
        contact: Option<Contact>,
        now_ms: u64,
    ) -> Presence {
        let ago = |us: u64| now_ms.saturating_sub(us / 1_000);
        let shard = usize::from(device.slot()) % self.traces.len().max(1);
        let trace = self.traces.get(shard).and_then(|all| lock(all).devices.get(&device).cloned());
        let Trace { left, refusals } = trace.unwrap_or_default();
        let refusal = |(at_ms, reason, from, proven): (u64, DropReason, IpAddr, bool)| Refusal {
            at_ms,
            reason: reason.label().to_owned(),
            text: refusal_text(reason, proven).to_owned(),
            address: from.to_string(),
            proven,
        };
        let carrier = |carrier| match carrier {
            Transport::Datagram => "udp",
            Transport::Stream => "tcp",
        };
        Presence {
            online: contact.is_some(),
            since_ms: contact.map(|contact| ago(contact.age_us)),
            seen_ms: contact.map(|contact| ago(contact.silent_us)),
            address: contact.and_then(|contact| contact.address).map(|address| address.to_string()),
            carrier: contact.map(|contact| carrier(contact.carrier).to_owned()),
            profile: contact.map(|contact| contact.profile.name().to_owned()),
            records: contact.map(|contact| contact.records),
            left: left
                .filter(|_| contact.is_none())
                .map(|(at_ms, gone)| Left { at_ms, reason: reason_name(gone).to_owned() }),
            refusals: refusals.into_iter().map(refusal).collect(),
            values: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::profile::Profile;

    use super::*;

    fn device(n: u64) -> DeviceId {
        DeviceId(n.to_be_bytes())
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn contact() -> Contact {
        Contact {
            age_us: 5_000_000,
            silent_us: 1_000_000,
            address: "192.0.2.1:7".parse().ok(),
            carrier: Transport::Datagram,
            profile: Profile::ALL[0],
            records: 3,
        }
    }

    #[test]
    fn each_device_is_asked_for_where_it_lives_and_answered_in_its_place() {
        let watch = Arc::new(Watch::new(2));
        let of = |shard: u8| (0..).map(device).filter(move |one| one.slot() % 2 == shard);
        let (mut odd, mut even) = (of(1), of(0));
        let all = [odd.next().unwrap(), even.next().unwrap(), odd.next().unwrap()];
        let asked = Mutex::new(Vec::new());
        let looking = watch.look(&all, |shard, mail| {
            let Mail::Look(token, devices) = mail else { panic!("a question") };
            asked.lock().unwrap().push((shard, token, devices));
            true
        });
        for (shard, token, devices) in asked.into_inner().unwrap() {
            assert!(devices.iter().all(|one| usize::from(one.slot()) % 2 == shard));
            watch.found(token, devices.iter().map(|one| (*one == all[2]).then(contact)).collect());
        }
        let found = run(looking.found(10_000));
        let online: Vec<_> = found.iter().map(|one| one.as_ref().unwrap().online).collect();
        assert_eq!(online, [false, false, true]);
        let there = found[2].as_ref().unwrap();
        assert_eq!(
            (there.since_ms, there.seen_ms, there.records),
            (Some(5_000), Some(9_000), Some(3))
        );
        assert_eq!(there.address.as_deref(), Some("192.0.2.1:7"));
        // A shard that takes no mail says nothing of its devices.
        assert_eq!(run(watch.look(&all[1..2], |_, _| false).found(0)), [None]);
        assert!(lock(&watch.waiting).is_empty());
    }

    fn refused(watch: &Watch, device: DeviceId, at_ms: u64, reason: DropReason, proven: bool) {
        let from = IpAddr::from([192, 0, 2, 1]);
        let refused = RefusedDevice { device, name: "d".into(), proven, reason, from };
        watch.refused(0, at_ms, &refused);
    }

    #[test]
    fn what_is_kept_is_bounded_and_strangers_push_out_nothing_that_was_proven() {
        let watch = Arc::new(Watch::new(1));
        for n in 0..DEVICES_MAX as u64 + 5 {
            watch.left(0, device(n), n, Gone::Silent);
        }
        assert_eq!(lock(&watch.traces[0]).devices.len(), DEVICES_MAX);
        let one = device(DEVICES_MAX as u64);
        for at_ms in 0..4 {
            refused(&watch, one, at_ms, DropReason::NotAllowed, true);
        }
        refused(&watch, one, 9, DropReason::Proof, false);
        let presence = watch.presence(one, None, 0);
        assert_eq!(presence.refusals.iter().map(|one| one.at_ms).collect::<Vec<_>>(), [3, 2, 1]);
        assert_eq!(presence.left.unwrap().reason, "silent");
        let two = device(DEVICES_MAX as u64 + 1);
        for at_ms in 0..5 {
            refused(&watch, two, at_ms, DropReason::Proof, false);
        }
        refused(&watch, two, 7, DropReason::SessionsFull, true);
        let presence = watch.presence(two, Some(contact()), 0);
        assert_eq!(presence.left, None, "it is there");
        let told: Vec<_> = presence.refusals.iter().map(|one| (one.at_ms, one.proven)).collect();
        assert_eq!(told, [(7, true), (4, false), (3, false)]);
        // Whoever names many devices is not kept with each of them.
        for n in 0..100 {
            refused(&watch, device(1 << 40 | n), 5_000, DropReason::Proof, false);
        }
        let kept =
            (0..100).filter(|n| !watch.presence(device(1 << 40 | n), None, 0).refusals.is_empty());
        assert_eq!(kept.count(), UNPROVEN_PER_S as usize);
    }
}
