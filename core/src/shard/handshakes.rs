//! From HELLO to ACCEPT.
//!
//! ```text
//! handle_hello ─▶ HelloQueue ─▶ open_hellos ─▶ verify_proofs ─┬───────────────────────────▶ agree ─▶ sign ─▶ accept
//!                   Hello                        Claimed      │       Authorised            ▲  Answered
//!                                                             └─▶ Early (a reading) ─▶ go_on ┘
//! ```
//!
//! * *In* go HELLOs as they come, and what storage said of the readings inside them.
//! * *Out* comes one answer to each: ACCEPT, with a pending session for it; CHALLENGE, to a device whose HELLO may be played
//!   back; RETRY, to whoever is to come back ([`HelloQueue`](crate::hello_queue)); or nothing but a count under a reason. The
//!   oldest comes first, but one with a reading inside waits in [`Early`](crate::early) until the sink has stored that, or for
//!   half a second. The same bytes again get the same ACCEPT, as long as its session is pending.
//! * *Never* does the registry decide what somebody is answered who has not proven himself, or when (R36): that a known device
//!   was refused is left as an event, and another thread tells it. And never is a session granted but in `accept`.
//!   No step does arithmetic on the curve: each is one batch of the [`Engine`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use duet_curve::Teeth;
use duet_protocol::ec::{SecretScalar, Signature};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::reading::EARLY_SEQUENCE;
use duet_protocol::reason::DropReason;
use duet_protocol::responder::{Claim, Opened, Proven, Responding, Signing};
use duet_protocol::schedule::{self, Grant};
use duet_protocol::wire::{Hello, SessionId};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{BATCH_MAX, Commit, Event, GatewayKey, Reading, RefusedDevice, Settings, Shard, Sink};
use crate::destinations::Destinations;
use crate::early::{Arrival, Arrivals, InFlight, Waiting};
use crate::engine::Engine;
use crate::hello_queue::{Origin, Policy, Refusal, Taken};
use crate::rules::{Rule, in_force};
use crate::session::{Pending, Session};
use crate::sessions::{Challenge, Known};
use crate::streams::source;
use crate::{Device, Now, Path, Wiped};

/// How long a challenge may be answered, µs.
const CHALLENGE_US: u64 = 30_000_000;

/// Which of the gateway's keys a HELLO was sealed to, by its place in [`Settings::keys`](super::Settings::keys).
type KeyIndex = usize;
/// Where hellos of a batch came again while they waited, with their digests.
type CameAgain = Vec<([u8; 32], Origin)>;

/// Where in a batch lies what the engine keeps of a HELLO's point.
type TableIndex = usize;

/// What of a granted HELLO its session keeps.
struct Granted {
    session: SessionId,
    profile: Profile,
    lifetime_s: u32,
    hello: [u8; 32],
    fresh: u64,
    challenged: bool,
}

/// A HELLO that opened: it claims to be a device's. Made by `open_hellos`, taken by `verify_proofs`.
struct Claimed {
    origin: Origin,
    claim: Claim,
    device: Option<Arc<Device>>,
    key: KeyIndex,
    table: TableIndex,
}

impl Claimed {
    /// The teeth of the key that its proof is verified with.
    fn teeth<'a>(&'a self, keys: &'a [GatewayKey]) -> Option<&'a Teeth> {
        match &self.device {
            Some(device) if self.claim.is_known() => device.teeth(),
            _ => Some(&keys[self.key].teeth),
        }
    }
}

/// A HELLO that a device made, which may have a session. Made by `verify_proofs` or, where ACCEPT waited for a reading to
/// be stored, by `go_on`; taken by `agree`.
struct Authorised<T> {
    arrivals: Arrivals,
    responding: Responding,
    granted: Granted,
    device: Arc<Device>,
    key: KeyIndex,
    table: Option<T>,
}

/// A HELLO whose answer lacks nothing but its signature. Made by `agree`, signed by `sign`, taken by `accept`.
struct Answered {
    arrivals: Arrivals,
    signing: Signing,
    signature: Signature,
    granted: Granted,
    device: Arc<Device>,
    key: KeyIndex,
}

/// What becomes of a proven HELLO.
enum Verdict {
    /// It is granted: this device may have a session.
    Grant(Arc<Device>),
    /// It is met with a challenge: it proves who made it, but not when.
    Challenge(Arc<Device>),
}

/// What becomes of the reading in a granted HELLO.
enum EarlyVerdict {
    /// It is durable, from before.
    Stored,
    /// It goes to storage now, and ACCEPT waits for the answer.
    Store,
    /// There is none, or it is to come as a record.
    Leave,
}

fn policy(settings: &Settings) -> Policy<'_> {
    Policy {
        node_key: &settings.node_key,
        retry_from: settings.retry_from,
        burst_us: settings.burst_us,
        hello_us: settings.hello_us,
    }
}

impl<E: Engine, S: Sink> Shard<E, S> {
    pub(super) fn handle_hello(
        &mut self,
        now: Now,
        path: Path,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let (transport, sender) = match path {
            Path::Datagram(from) => (Transport::Datagram, source(from.address().ip())),
            Path::Stream(stream) => {
                let sender = self.streams.source(stream).ok_or(DropReason::StreamFailed)?;
                (Transport::Stream, sender)
            }
        };
        let hello = Hello::decode(bytes, transport)?;
        if self.accept_again(&hello.digest, path) {
            return Ok(());
        }
        let arrival = Arrival { path, at_us: now.mono_us };
        if let Some(is_to_be_answered) = self.wait_again(&hello.digest, arrival) {
            return if is_to_be_answered { Ok(()) } else { Err(DropReason::Repeated) };
        }
        let policy = policy(&self.settings);
        if let Err(Refusal { reason, retry }) =
            self.hellos.enqueue(now, path, sender, hello, policy)
        {
            retry.into_iter().for_each(|retry| self.out.push(path, &retry.encode()));
            return Err(reason);
        }
        self.owe_at(path);
        Ok(())
    }

    /// A HELLO that came over this path is owed its answer.
    pub(super) fn owe_at(&mut self, path: Path) {
        if let Path::Stream(stream) = path {
            self.streams.owe(self.now_us, stream);
        }
    }

    /// It has it, or gets none.
    pub(super) fn settle_at(&mut self, path: Path) {
        if let Path::Stream(stream) = path {
            self.streams.settle(stream);
        }
    }

    /// Answers the oldest hellos: decapsulate, open, look up, verify, agree, sign, each as one
    /// batch. What is left over has its turn after the records that came meanwhile. Those whose readings
    /// storage has answered join the second half.
    pub(super) fn answer_hellos(&mut self, now: Now) {
        let due = self.early.take_due(now.mono_us);
        if due.is_empty() && self.hellos.is_empty() {
            return;
        }
        let mut authorised = self.go_on(now, due);
        let mut came_again: CameAgain = Vec::new();
        if let Some(oldest_us) = self.hellos.oldest_us() {
            let waited_us = now.mono_us.saturating_sub(oldest_us);
            let Taken { batch: hellos, refused, again } =
                self.hellos.take(now, BATCH_MAX, policy(&self.settings));
            came_again = again;
            for (origin, Refusal { reason, retry }) in refused {
                self.settle_at(origin.path);
                retry.into_iter().for_each(|retry| self.out.push(origin.path, &retry.encode()));
                self.discard(origin.arrived_us, origin.path, reason);
            }
            let count = hellos.len();
            let owed: Vec<_> = hellos.iter().map(|(origin, _)| origin.path).collect();
            let (claims, tables) = self.open_hellos(now, hellos);
            self.verify_proofs(now, claims, tables, &mut came_again, &mut authorised);
            owed.into_iter().for_each(|path| self.settle_at(path));
            self.events.push_back(Event::HellosAnswered { count, waited_us });
        }
        let mut answered = self.agree(authorised);
        self.sign(&mut answered);
        self.accept(now, answered);
        came_again.into_iter().for_each(|(digest, origin)| self.answer_again(&digest, origin));
        self.scrub = true;
    }

    /// Answers a HELLO that came again from here while it waited, with the ACCEPT that it had or will have. One that was
    /// refused gets nothing here; its device sends it again.
    fn answer_again(&mut self, digest: &[u8; 32], origin: Origin) {
        let Origin { path, arrived_us, .. } = origin;
        let arrival = Arrival { path, at_us: arrived_us };
        let answered =
            self.accept_again(digest, path) || self.wait_again(digest, arrival) == Some(true);
        self.settle_at(path);
        if !answered {
            self.discard(arrived_us, path, DropReason::Repeated);
        }
    }

    /// R50: the same bytes get the same answer, if there is one.
    fn accept_again(&mut self, digest: &[u8; 32], path: Path) -> bool {
        let Some(pending) = self.sessions.find_by_hello(digest) else { return false };
        pending.sent_to.add(path);
        self.out.push(path, pending.accept.as_slice());
        true
    }

    /// R98: it is answered when its reading is, if that is on its way; and whether there, too.
    fn wait_again(&mut self, digest: &[u8; 32], arrival: Arrival) -> Option<bool> {
        let waits = self.early.came_again(digest, arrival);
        if waits == Some(true) {
            self.owe_at(arrival.path);
        }
        waits
    }

    /// The handshakes that have waited for their readings, and go on with what storage said, or without.
    fn go_on(
        &mut self,
        now: Now,
        due: Vec<Box<Waiting<E::PointTable>>>,
    ) -> Wiped<Authorised<E::PointTable>> {
        let mut authorised = Wiped::with_capacity(due.len() + BATCH_MAX);
        for mut waiting in due {
            let Some(proven) = waiting.take_proven() else { continue };
            let Waiting { arrivals, device, table, session, stored, .. } = *waiting;
            arrivals.iter().for_each(|arrival| self.settle_at(arrival.path));
            // What happened while it waited may have overtaken it, and the gateway's keys have changed.
            let keys = self.settings.keys.iter();
            let key =
                keys.map(|key| key.gateway.fingerprint).position(|one| one == *proven.gateway());
            if device.is_revoked() {
                self.discard_all(&arrivals, DropReason::Proof);
            } else if self.is_overtaken(&proven) {
                let paths = arrivals.iter().map(|arrival| arrival.path);
                self.challenge(now, paths, &proven, device.mark());
            } else if let Some(key) = key {
                let (responding, granted) = self.grant(now, proven, &device, session, stored);
                let one = Authorised { arrivals, responding, granted, device, key, table };
                authorised.push(one);
            } else {
                self.discard_all(&arrivals, DropReason::GatewayKey);
            }
        }
        authorised
    }

    /// Tells of a device that is known and was not let in.
    fn refused(
        &mut self,
        device: Option<&Arc<Device>>,
        proven: bool,
        reason: DropReason,
        origin: Origin,
    ) {
        if let Some(device) = device {
            let (name, device) = (Arc::clone(&device.name), device.credential.id);
            let from = origin.sender;
            let refused = RefusedDevice { device, name, proven, reason, from };
            self.events.push_back(Event::Refused(refused));
        }
    }

    /// One reason for each HELLO that proves nothing, as for everything that is discarded, and one more on its sender's
    /// account.
    fn discard_hello(&mut self, now: Now, origin: Origin, reason: DropReason) {
        self.hellos.count_worthless(now, origin);
        self.discard(origin.arrived_us, origin.path, reason);
    }

    /// One reason for each time that a HELLO came.
    fn discard_all(&mut self, arrivals: &Arrivals, reason: DropReason) {
        arrivals.iter().for_each(|arrival| self.discard(arrival.at_us, arrival.path, reason));
    }

    /// Decapsulates and opens, and looks up who each one claims to be.
    fn open_hellos(
        &mut self,
        now: Now,
        hellos: Vec<(Origin, Hello)>,
    ) -> (Wiped<Claimed>, Vec<E::PointTable>) {
        let mut claims = Wiped::with_capacity(hellos.len());
        let mut tables = Vec::with_capacity(hellos.len());
        let mut by_key: Vec<Vec<(Origin, Hello)>> =
            self.settings.keys.iter().map(|_| Vec::new()).collect();
        for (origin, hello) in hellos {
            let id = hello.gateway_key_id();
            match self.settings.keys.iter().position(|key| key.gateway.key_id == id) {
                Some(key) => by_key[key].push((origin, hello)),
                None => self.discard_hello(now, origin, DropReason::GatewayKey),
            }
        }
        for (key, hellos) in by_key.into_iter().enumerate().filter(|(_, hellos)| !hellos.is_empty())
        {
            let GatewayKey { gateway, secret, .. } = &self.settings.keys[key];
            let gateway = *gateway;
            let xs: Vec<_> = hellos.iter().map(|(_, hello)| *hello.ephemeral_x()).collect();
            let answers = self.engine.decapsulate(secret, &xs);
            for ((origin, hello), answer) in hellos.into_iter().zip(answers) {
                let opened = answer.ok_or(DropReason::Point).and_then(|(agreed, table)| {
                    let opened = Opened::new(hello, &gateway, agreed.point, &agreed.shared)?;
                    Ok((opened, table))
                });
                match opened {
                    Ok((opened, table)) => {
                        let device = self.directory.look_up(&opened.id());
                        let credential = device.as_ref().map(|device| &device.credential);
                        let claim = opened.claim(&gateway, credential);
                        claims.push(Claimed { origin, claim, device, key, table: tables.len() });
                        tables.push(table);
                    }
                    Err(reason) => self.discard_hello(now, origin, reason),
                }
            }
        }
        (claims, tables)
    }

    /// Verifies every proof, and authorises who may enter. Before, a HELLO changes nothing (R40).
    fn verify_proofs(
        &mut self,
        now: Now,
        claims: Wiped<Claimed>,
        tables: Vec<E::PointTable>,
        came_again: &mut CameAgain,
        authorised: &mut Wiped<Authorised<E::PointTable>>,
    ) {
        let mut tables: Vec<_> = tables.into_iter().map(Some).collect();
        let with_teeth = self.directory.all_have_teeth();
        let tasks: Vec<_> = claims
            .iter()
            .filter_map(|one| {
                let teeth = one.teeth(&self.settings.keys).filter(|_| with_teeth);
                Some((one.claim.verify_task()?, teeth))
            })
            .collect();
        let mut of_keys = self.engine.verify(&tasks).into_iter();
        let mut batch = Batch::of(authorised);
        for Claimed { origin, claim, device, key, table } in claims {
            let of_key = claim.verify_task().and_then(|_| of_keys.next().flatten());
            let proven = match claim.verified(of_key.is_some()) {
                Ok(proven) => proven,
                Err(reason) => {
                    self.refused(device.as_ref(), false, reason, origin);
                    self.discard_hello(now, origin, reason);
                    continue;
                }
            };
            // From here on whoever proved himself was worth the work, whatever he is answered.
            self.counts.proven += 1;
            let known = device.clone();
            let device = match self.authorise(now, &proven, device, &batch) {
                Ok(Verdict::Grant(device)) => device,
                Ok(Verdict::Challenge(device)) => {
                    let digest = proven.hello().digest;
                    let again: Vec<_> = came_again
                        .extract_if(.., |one| one.0 == digest)
                        .map(|(_, again)| again.path)
                        .collect();
                    again.iter().for_each(|path| self.settle_at(*path));
                    let paths = [origin.path].into_iter().chain(again);
                    self.challenge(now, paths, &proven, device.mark());
                    continue;
                }
                Err(reason) => {
                    self.refused(known.as_ref(), true, reason, origin);
                    self.discard(origin.arrived_us, origin.path, reason);
                    continue;
                }
            };
            let taken = |id| batch.sessions.contains(&id) || self.early.names(id);
            let slot = proven.hello().slot();
            let Some(session) = self.sessions.vacant_id(slot, &mut self.random, taken) else {
                self.refused(known.as_ref(), true, DropReason::SessionsFull, origin);
                self.discard(origin.arrived_us, origin.path, DropReason::SessionsFull);
                continue;
            };
            let first = Arrival { path: origin.path, at_us: origin.arrived_us };
            let arrivals = Arrivals::from_iter([first]);
            let table = if proven.peer_is_hello() { tables[table].take() } else { of_key };
            let stored = match self.early_verdict(&proven, &device) {
                EarlyVerdict::Store => {
                    self.store_early(now, &proven, &device, session);
                    self.owe_at(origin.path);
                    let (proven, stored) = (Wiped::from_iter([proven]), false);
                    self.early.wait(
                        now.mono_us,
                        Waiting { arrivals, proven, device, table, session, stored },
                    );
                    continue;
                }
                EarlyVerdict::Stored => true,
                EarlyVerdict::Leave => false,
            };
            batch.sessions.insert(session);
            batch.granted.insert(proven.id(), (proven.fresh(), proven.challenge().is_some()));
            let (responding, granted) = self.grant(now, proven, &device, session, stored);
            authorised.push(Authorised { arrivals, responding, granted, device, key, table });
        }
    }

    /// What becomes of the reading in a HELLO that is granted.
    fn early_verdict(&mut self, proven: &Proven, device: &Device) -> EarlyVerdict {
        let Some(reading) = proven.reading() else { return EarlyVerdict::Leave };
        let id = device.credential.id;
        let known = reading.again && self.sessions.known(&id, reading.id) == Known::Stored;
        // R99.
        let known = known || device.last() == Some(reading.id);
        if known && in_force(Rule::KnownInHello) {
            self.counts.readings_known += 1;
            return EarlyVerdict::Stored;
        }
        // R97, R98.
        let answered = proven.challenge().is_some() || !in_force(Rule::FirstContact);
        let taken = device.freshness().takes_reading(proven.fresh(), answered)
            || !in_force(Rule::WithinReach);
        let room = self.sessions.pending() + self.early.waiting() < self.settings.pending_max;
        let alone = self.early.of(&id).is_none() || !in_force(Rule::OneOnItsWay);
        if taken && room && alone { EarlyVerdict::Store } else { EarlyVerdict::Leave }
    }

    /// Hands the reading of a HELLO to storage, with what it commits to (R95, R101).
    fn store_early(&mut self, now: Now, proven: &Proven, device: &Arc<Device>, session: SessionId) {
        let Some(reading) = proven.reading() else { return };
        let mark = device.freshness().raised(proven.fresh()).get();
        self.counts.readings += 1;
        self.counts.readings_early += 1;
        self.sink.take(&Reading {
            device: &device.name,
            device_id: device.credential.id,
            session,
            sequence: EARLY_SEQUENCE,
            id: reading.id,
            again: reading.again,
            commit: Some(Commit::of(device, mark)),
            channel: reading.channel,
            received_ms: now.unix_ms,
            measured_ms: now.unix_ms.saturating_sub(reading.age_ms.unwrap_or(0).into()),
            payload: reading.payload,
            confirm: true,
        });
        let (token, device) = ((session, EARLY_SEQUENCE), Arc::clone(device));
        self.early.begin(InFlight { token, device, id: reading.id, mark });
    }

    /// Draws each answer's ephemeral key, where its profile has one, and derives the session's keys.
    fn agree(&mut self, authorised: Wiped<Authorised<E::PointTable>>) -> Wiped<Answered> {
        let tasks: Vec<_> = authorised
            .iter()
            .filter_map(|one| one.responding.task().zip(one.table.as_ref()))
            .collect();
        let mut answers = self.engine.encapsulate(&tasks).into_iter();
        let mut answered = Wiped::with_capacity(authorised.len());
        for one in authorised {
            let Authorised { arrivals, responding, granted, device, key, table } = one;
            let answer = responding.task().zip(table).and_then(|_| answers.next().flatten());
            if responding.task().is_some() && answer.is_none() {
                self.discard_all(&arrivals, DropReason::Point);
                continue;
            }
            let signing = responding.agreed(answer);
            answered.push(Answered { arrivals, signing, signature: [0; 64], granted, device, key });
        }
        answered
    }

    /// Signs the answers whose profile demands it, with the key that each device knows.
    fn sign(&mut self, answered: &mut [Answered]) {
        for (key, GatewayKey { secret, .. }) in self.settings.keys.iter().enumerate() {
            let (places, digests): (Vec<_>, Vec<_>) = answered
                .iter()
                .enumerate()
                .filter(|(_, one)| one.key == key)
                .filter_map(|(place, one)| Some((place, one.signing.digest()?)))
                .unzip();
            if digests.is_empty() {
                continue;
            }
            let signatures = self.engine.sign(secret, &digests, &mut self.random);
            for (place, signature) in places.into_iter().zip(signatures) {
                // A zero r or s has probability 2⁻²⁵⁶; the device would ask again.
                answered[place].signature = signature.unwrap_or([0; 64]);
            }
        }
    }

    /// Makes the sessions and sends their ACCEPTs: the answer to a granted HELLO alone (R32).
    fn accept(&mut self, now: Now, answered: Wiped<Answered>) {
        for Answered { arrivals, signing, signature, granted, device, key } in answered {
            let (accept, keys) = signing.signed(&signature);
            let Some(Arrival { path: first, .. }) = arrivals.first().copied() else { continue };
            self.counts.accepts += 1;
            self.counts.accepts_retiring += u64::from(key > 0);
            let Granted { session: id, profile, lifetime_s, hello, fresh, challenged } = granted;
            let mut sent_to = Destinations::default();
            for Arrival { path, .. } in arrivals {
                self.out.push(path, accept.as_slice());
                sent_to.add(path);
            }
            let pending = Pending { hello, accept, fresh, challenged, sent_to };
            // Two hellos of one device in one batch: the later one stands.
            let session = Box::new(Session::new(
                device,
                profile,
                lifetime_s,
                keys,
                pending,
                first,
                now.mono_us,
            ));
            self.sessions.grant(id, session);
        }
    }

    /// Profile, validity and freshness of a proven HELLO; `batch` holds what was authorised in this
    /// batch before it.
    fn authorise(
        &mut self,
        now: Now,
        proven: &Proven,
        device: Option<Arc<Device>>,
        batch: &Batch,
    ) -> Result<Verdict, DropReason> {
        let device = device.ok_or(DropReason::Proof)?;
        let now_s = i64::try_from(now.unix_ms / 1_000).unwrap_or(i64::MAX);
        if device.is_revoked() {
            return Err(DropReason::Proof);
        }
        if !device.is_valid(now_s) {
            return Err(DropReason::Expired);
        }
        // R6.
        if !device.sources.contains(proven.hello().offer.profile.source) {
            return Err(DropReason::NotAllowed);
        }
        let id = device.credential.id;
        // R42, R43: a HELLO that answers the challenge passes whatever its `fresh` is.
        let passes = if let Some(answer) = proven.challenge() {
            let expected = self.sessions.challenge(now, &id);
            expected.is_some_and(|expected| bool::from(expected.value.ct_eq(answer)))
        } else {
            device.freshness().passes(proven.fresh()) || !in_force(Rule::Freshness)
        };
        let in_batch = batch.granted.get(&id);
        let overtaken = in_batch.is_some_and(|earlier| !replaces(proven, *earlier));
        // R102: whoever has proved himself never meets silence for his counter.
        if !passes || overtaken || self.is_overtaken(proven) {
            if !in_force(Rule::NoSilence) {
                return Err(DropReason::Stale);
            }
            return Ok(Verdict::Challenge(device));
        }
        let coming = batch.granted.len() + self.early.waiting();
        if self.sessions.len() + coming >= self.settings.sessions_max {
            return Err(DropReason::SessionsFull);
        }
        let replaced = self.sessions.pending_of(&id).is_some();
        if self.sessions.pending() + coming >= self.settings.pending_max && !replaced {
            return Err(DropReason::PendingFull);
        }
        Ok(Verdict::Grant(device))
    }

    /// R46: whether the device's pending session stands in the way of this HELLO.
    fn is_overtaken(&self, proven: &Proven) -> bool {
        let pending = self.sessions.pending_of(&proven.id());
        pending.is_some_and(|pending| !replaces(proven, (pending.fresh, pending.challenged)))
    }

    /// Meets a HELLO with a challenge, which is given once and repeated (R57): whatever a stranger plays back, the device
    /// can answer it.
    fn challenge(
        &mut self,
        now: Now,
        paths: impl Iterator<Item = Path>,
        proven: &Proven,
        mark: u64,
    ) {
        let node_key = &self.settings.node_key;
        let (id, digest) = (proven.id(), &proven.hello().digest);
        let challenge = self.sessions.challenge_or(now, id, || Challenge {
            value: schedule::challenge(node_key, id.0, proven.fingerprint(), digest, now.mono_us),
            until_us: now.mono_us + CHALLENGE_US,
        });
        let message = proven.challenge_message(&challenge.value, mark, &self.random.bytes());
        paths.for_each(|path| {
            self.counts.challenges += 1;
            self.out.push(path, &message);
        });
    }

    /// Draws the secrets of an ACCEPT that opens this session.
    fn grant(
        &mut self,
        now: Now,
        proven: Proven,
        device: &Device,
        session: SessionId,
        stored: bool,
    ) -> (Responding, Granted) {
        let lifetime_s = device.lifetime_s(now, self.settings.lifetime_s);
        let granted = Granted {
            session,
            profile: proven.hello().offer.profile,
            lifetime_s,
            hello: proven.hello().digest,
            fresh: proven.fresh(),
            challenged: proven.challenge().is_some(),
        };
        let grant = Grant {
            session,
            lifetime_s,
            stored,
            nothing_waits: self.commands.nothing_waits(&device.credential.id),
            reset_token: schedule::reset_token(&self.settings.node_key, session),
        };
        // R30: fresh for each ACCEPT. Of all 32-byte strings, one in 2³² is no scalar.
        let scalar = loop {
            if let Some(scalar) = SecretScalar::from_bytes(&Zeroizing::new(self.random.bytes())) {
                break scalar;
            }
        };
        (proven.respond(grant, scalar, self.random.bytes()), granted)
    }
}

/// What was granted in a batch so far: these sessions do not exist yet.
struct Batch {
    sessions: HashSet<SessionId>,
    /// For each device `fresh`, and whether it answered a challenge.
    granted: HashMap<DeviceId, (u64, bool)>,
}

impl Batch {
    /// Begins with the handshakes that go on in it, after they waited for their readings.
    fn of<T>(authorised: &[Authorised<T>]) -> Self {
        let place = |one: &Authorised<T>| {
            (one.device.credential.id, (one.granted.fresh, one.granted.challenged))
        };
        Self {
            sessions: authorised.iter().map(|one| one.granted.session).collect(),
            granted: authorised.iter().map(place).collect(),
        }
    }
}

/// R46: whether a HELLO replaces a pending session with this `fresh`, which answered a challenge or not.
fn replaces(proven: &Proven, (fresh, challenged): (u64, bool)) -> bool {
    let stands = challenged && in_force(Rule::AnswerStands);
    proven.challenge().is_some() || (!stands && proven.fresh() > fresh)
}
