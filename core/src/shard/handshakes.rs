//! From HELLO to ACCEPT: admission, the batch, freshness. Changes the sessions only at its end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use duet_protocol::ec::{SecretScalar, Signature};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::Transport;
use duet_protocol::reason::DropReason;
use duet_protocol::responder::{Claim, Opened, Proven, Responding, Signing};
use duet_protocol::schedule::{self, Grant};
use duet_protocol::wire::{Hello, SessionId};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{BATCH_MAX, Event, FIRST_FRESH_MAX, FRESH_JUMP_MAX, GatewayKey, Shard, Sink};
use crate::destinations::Destinations;
use crate::engine::Engine;
use crate::hello_queue::{Policy, Refusal};
use crate::session::{Pending, Session};
use crate::sessions::Challenge;
use crate::{Device, Now, Path};

/// How long a challenge may be answered, µs.
const CHALLENGE_US: u64 = 30_000_000;

/// Which of the gateway's keys a HELLO was sealed to, by its place in [`Settings::keys`](super::Settings::keys).
type KeyIndex = usize;
/// Where in a batch the engine's table of a HELLO's point lies.
type TableIndex = usize;

/// What of a granted HELLO its session keeps.
struct Granted {
    session: SessionId,
    hello: [u8; 32],
    fresh: u64,
    challenged: bool,
}

/// A HELLO that opened: it claims to be a device's. Made by `open_hellos`, taken by `verify_proofs`.
struct Claimed {
    path: Path,
    claim: Claim,
    device: Option<Arc<Device>>,
    key: KeyIndex,
    table: TableIndex,
}

/// A HELLO that a device made, which may have a session. Made by `verify_proofs`, taken by `agree`.
struct Authorised {
    path: Path,
    responding: Responding,
    granted: Granted,
    device: Arc<Device>,
    key: KeyIndex,
    table: TableIndex,
}

/// A HELLO whose answer lacks nothing but its signature. Made by `agree`, signed by `sign`, taken by `accept`.
struct Answered {
    path: Path,
    signing: Signing,
    signature: Signature,
    granted: Granted,
    device: Arc<Device>,
    key: KeyIndex,
}

impl<E: Engine, S: Sink> Shard<E, S> {
    pub(super) fn handle_hello(
        &mut self,
        now: Now,
        path: Path,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let transport = match path {
            Path::Datagram(_) => Transport::Datagram,
            Path::Stream(_) => Transport::Stream,
        };
        let hello = Hello::decode(bytes, transport)?;
        // R50: the same bytes get the same answer.
        if let Some(pending) = self.sessions.find_by_hello(&hello.digest) {
            pending.sent_to.add(path);
            self.out.push(path, pending.accept.as_slice());
            return Ok(());
        }
        let policy = Policy {
            node_key: &self.settings.node_key,
            retry_from: self.settings.retry_from,
            hello_us: self.settings.hello_us,
        };
        self.hellos.enqueue(now, path, hello, policy).map_err(|Refusal { reason, retry }| {
            if let Some(retry) = retry {
                self.out.push(path, &retry.encode());
            }
            reason
        })
    }

    /// Answers the oldest hellos: decapsulate, open, look up, verify, agree, sign, each as one
    /// batch. What is left over has its turn after the records that came meanwhile.
    pub(super) fn answer_hellos(&mut self, now: Now) {
        let Some(oldest_us) = self.hellos.oldest_us() else { return };
        let waited_us = now.mono_us.saturating_sub(oldest_us);
        let hellos = self.hellos.take(now, BATCH_MAX);
        let count = hellos.len();
        let unproven = |(path, hello): &&(Path, Hello)| {
            matches!(path, Path::Datagram(_)) && hello.cookie().is_none()
        };
        let unproven = hellos.iter().filter(unproven).count() as u64;
        let before = self.counts.accepts;
        let (claims, tables) = self.open_hellos(now, hellos);
        let authorised = self.verify_proofs(now, claims);
        let mut answered = self.agree(now, authorised, &tables);
        self.sign(&mut answered);
        self.accept(now, answered);
        let accepted = self.counts.accepts - before;
        self.hellos.count_worthless(now, unproven.min(count as u64 - accepted));
        self.scrub = true;
        self.events.push_back(Event::HellosAnswered { count, waited_us });
    }

    /// Decapsulates and opens, and looks up who each one claims to be.
    fn open_hellos(
        &mut self,
        now: Now,
        hellos: Vec<(Path, Hello)>,
    ) -> (Vec<Claimed>, Vec<E::PointTable>) {
        let mut claims = Vec::with_capacity(hellos.len());
        let mut tables = Vec::with_capacity(hellos.len());
        let mut by_key: Vec<Vec<(Path, Hello)>> =
            self.settings.keys.iter().map(|_| Vec::new()).collect();
        for (path, hello) in hellos {
            let id = hello.gateway_key_id();
            match self.settings.keys.iter().position(|key| key.gateway.key_id == id) {
                Some(key) => by_key[key].push((path, hello)),
                None => self.discard(now, path, DropReason::GatewayKey),
            }
        }
        for (key, hellos) in by_key.into_iter().enumerate().filter(|(_, hellos)| !hellos.is_empty())
        {
            let GatewayKey { gateway, secret } = &self.settings.keys[key];
            let gateway = *gateway;
            let xs: Vec<_> = hellos.iter().map(|(_, hello)| *hello.ephemeral_x()).collect();
            let answers = self.engine.decapsulate(secret, &xs);
            for ((path, hello), answer) in hellos.into_iter().zip(answers) {
                let opened = answer.ok_or(DropReason::Point).and_then(|(agreed, table)| {
                    let opened = Opened::new(hello, &gateway, agreed.point, &agreed.shared)?;
                    Ok((opened, table))
                });
                match opened {
                    Ok((opened, table)) => {
                        let device = self.directory.look_up(&opened.id());
                        let credential = device.as_ref().map(|device| &device.credential);
                        let claim = opened.claim(&gateway, credential);
                        claims.push(Claimed { path, claim, device, key, table: tables.len() });
                        tables.push(table);
                    }
                    Err(reason) => self.discard(now, path, reason),
                }
            }
        }
        (claims, tables)
    }

    /// Verifies every proof, and authorises who may enter. Before, a HELLO changes nothing (R40).
    fn verify_proofs(&mut self, now: Now, claims: Vec<Claimed>) -> Vec<Authorised> {
        let tasks: Vec<_> = claims.iter().filter_map(|one| one.claim.verify_task()).collect();
        let mut verdicts = self.engine.verify(&tasks).into_iter();
        let mut authorised = Vec::with_capacity(claims.len());
        let mut met = Vec::new();
        let mut batch = HashMap::new();
        let mut taken = HashSet::new();
        for Claimed { path, claim, device, key, table } in claims {
            let signer = claim.verify_task().map(|task| task.key);
            let verdict = signer.is_none() || verdicts.next().unwrap_or(false);
            let proven = claim.verified(verdict);
            match proven.and_then(|proven| self.authorise(now, path, proven, device, &batch)) {
                Ok(Some((proven, device))) => {
                    met.extend(signer);
                    batch.insert(proven.id(), proven.fresh());
                    match self.grant(proven, &mut taken) {
                        Some((responding, granted)) => authorised.push(Authorised {
                            path,
                            responding,
                            granted,
                            device,
                            key,
                            table,
                        }),
                        None => self.discard(now, path, DropReason::SessionsFull),
                    }
                }
                Ok(None) => {}
                Err(reason) => self.discard(now, path, reason),
            }
        }
        self.engine.remember(&met);
        authorised
    }

    /// Draws each answer's ephemeral key, where its profile has one, and derives the session's keys.
    fn agree(
        &mut self,
        now: Now,
        authorised: Vec<Authorised>,
        tables: &[E::PointTable],
    ) -> Vec<Answered> {
        let tasks: Vec<_> = authorised
            .iter()
            .filter_map(|one| {
                let table = one.responding.peer_is_hello().then(|| &tables[one.table]);
                Some((one.responding.task()?, table))
            })
            .collect();
        let mut answers = self.engine.encapsulate(&tasks).into_iter();
        let mut answered = Vec::with_capacity(authorised.len());
        for Authorised { path, responding, granted, device, key, .. } in authorised {
            let answer = responding.task().and_then(|_| answers.next().flatten());
            if responding.task().is_some() && answer.is_none() {
                self.discard(now, path, DropReason::Point);
                continue;
            }
            let signing = responding.agreed(answer);
            answered.push(Answered { path, signing, signature: [0; 64], granted, device, key });
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
    fn accept(&mut self, now: Now, answered: Vec<Answered>) {
        for Answered { path, signing, signature, granted, device, key } in answered {
            let (accept, keys) = signing.signed(&signature);
            self.out.push(path, accept.as_slice());
            self.counts.accepts += 1;
            self.counts.accepts_retiring += u64::from(key > 0);
            let Granted { session: id, hello, fresh, challenged } = granted;
            let mut sent_to = Destinations::default();
            sent_to.add(path);
            let pending = Pending { hello, accept, fresh, challenged, sent_to };
            // Two hellos of one device in one batch: the later one stands.
            let session = Box::new(Session::new(device, keys, pending, path, now.mono_us));
            self.sessions.grant(id, session);
        }
    }

    /// Profile, validity and freshness of a proven HELLO; `batch` holds what was authorised in this
    /// batch before it. `None` when it was met with a challenge.
    fn authorise(
        &mut self,
        now: Now,
        path: Path,
        proven: Proven,
        device: Option<Arc<Device>>,
        batch: &HashMap<DeviceId, u64>,
    ) -> Result<Option<(Proven, Arc<Device>)>, DropReason> {
        let device = device.ok_or(DropReason::Proof)?;
        let now_s = i64::try_from(now.unix_ms / 1_000).unwrap_or(i64::MAX);
        if !device.may_connect(now_s) {
            return Err(DropReason::Proof);
        }
        // R6.
        if !device.sources.contains(proven.hello().offer.profile.source) {
            return Err(DropReason::NotAllowed);
        }
        let id = device.credential.id;
        // R43: a challenged HELLO passes whatever its `fresh` is.
        if let Some(answer) = proven.challenge() {
            let expected = self.sessions.challenge(now, &id).ok_or(DropReason::Challenge)?;
            if !bool::from(expected.value.ct_eq(answer)) {
                return Err(DropReason::Challenge);
            }
        } else {
            // R42; the mark is the credential's (R45).
            let (fresh, mark) = (proven.fresh(), device.mark());
            let reach =
                if mark == 0 { FIRST_FRESH_MAX } else { mark.saturating_add(FRESH_JUMP_MAX) };
            if fresh <= mark || fresh > reach {
                self.challenge(now, path, &proven, mark);
                return Ok(None);
            }
            // R46: only a greater `fresh` replaces a pending session.
            let older = self.sessions.pending_of(&id).is_some_and(|pending| pending.fresh >= fresh);
            if older || batch.get(&id).is_some_and(|earlier| *earlier >= fresh) {
                return Err(DropReason::Stale);
            }
        }
        if self.sessions.len() + batch.len() >= self.settings.sessions_max {
            return Err(DropReason::SessionsFull);
        }
        let replaces = self.sessions.pending_of(&id).is_some();
        if self.sessions.pending() + batch.len() >= self.settings.pending_max && !replaces {
            return Err(DropReason::PendingFull);
        }
        Ok(Some((proven, device)))
    }

    /// Meets a HELLO with a challenge, which is given once and repeated (R57): whatever a stranger plays back, the device
    /// can answer it.
    fn challenge(&mut self, now: Now, path: Path, proven: &Proven, mark: u64) {
        let node_key = &self.settings.node_key;
        let (id, digest) = (proven.id(), &proven.hello().digest);
        let challenge = self.sessions.challenge_or(now, id, || Challenge {
            value: schedule::challenge(node_key, id.0, proven.fingerprint(), digest, now.mono_us),
            until_us: now.mono_us + CHALLENGE_US,
        });
        let message = proven.challenge_message(&challenge.value, mark, &self.random.bytes());
        self.out.push(path, &message);
    }

    /// Chooses the session's id and draws the secrets of its ACCEPT. `taken` holds the ids that were given in this batch:
    /// their sessions do not exist yet.
    fn grant(
        &mut self,
        proven: Proven,
        taken: &mut HashSet<SessionId>,
    ) -> Option<(Responding, Granted)> {
        let slot = proven.hello().slot();
        let session = self.sessions.vacant_id(slot, &mut self.random, |id| taken.contains(&id))?;
        taken.insert(session);
        let granted = Granted {
            session,
            hello: proven.hello().digest,
            fresh: proven.fresh(),
            challenged: proven.challenge().is_some(),
        };
        let grant = Grant {
            session,
            lifetime_s: self.settings.lifetime_s,
            stored: false,
            nothing_waits: false,
            reset_token: schedule::reset_token(&self.settings.node_key, session),
        };
        // R30: fresh for each ACCEPT. Of all 32-byte strings, one in 2³² is no scalar.
        let scalar = loop {
            if let Some(scalar) = SecretScalar::from_bytes(&Zeroizing::new(self.random.bytes())) {
                break scalar;
            }
        };
        Some((proven.respond(grant, scalar, self.random.bytes()), granted))
    }
}
