//! From HELLO to ACCEPT: admission, the batch, freshness. Changes the sessions only at its end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use duet_protocol::ec::{SecretScalar, Signature};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::Transport;
use duet_protocol::reason::DropReason;
use duet_protocol::responder::{Claim, Opened, Proven, Responding, Signing};
use duet_protocol::schedule::{self, Grant};
use duet_protocol::wire::{CHALLENGE_LEN, Hello, SessionId};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::admission::{Policy, Refusal};
use super::destinations::Destinations;
use super::engine::Engine;
use super::session::{Pending, Session};
use super::{
    BATCH_MAX, Challenge, Contact, FIRST_FRESH_MAX, FRESH_JUMP_MAX, GatewayKey, Shard, Sink, random,
};
use crate::registry::Device;
use crate::transport::{Now, Path};

/// How long a challenge may be answered, µs.
const CHALLENGE_US: u64 = 30_000_000;

struct About {
    session: SessionId,
    hello: [u8; 32],
    fresh: u64,
    challenged: bool,
}

struct Claimed {
    path: Path,
    claim: Claim,
    device: Option<Arc<Device>>,
    key: usize,
    /// Where in the batch the engine's part of it is kept.
    kept: usize,
}

struct Admitted {
    path: Path,
    responding: Responding,
    about: About,
    device: Arc<Device>,
    key: usize,
    kept: usize,
}

struct Signed {
    path: Path,
    signing: Signing,
    signature: Signature,
    about: About,
    device: Arc<Device>,
    key: usize,
}

/// One challenge a device at a time (R57): whatever a stranger plays back, the device can answer it.
fn challenge(
    now: Now,
    contact: &mut Contact,
    node_key: &[u8; 32],
    proven: &Proven,
    mark: u64,
) -> [u8; CHALLENGE_LEN] {
    let challenge = contact.challenge.get_or_insert_with(|| {
        let value = schedule::challenge(
            node_key,
            proven.id().0,
            proven.fingerprint(),
            &proven.hello().digest,
            now.mono_us,
        );
        Box::new(Challenge { value, until_us: now.mono_us + CHALLENGE_US })
    });
    proven.challenge_message(&challenge.value, mark, &random())
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
        if let Some(session) = self.cached.get(&hello.digest) {
            if let Some(pending) = self.sessions.get_mut(session).and_then(|s| s.pending.as_mut()) {
                pending.sent_to.add(path);
                self.out.push(path, pending.accept.as_slice());
            }
            return Ok(());
        }
        let policy = Policy {
            node_key: &self.settings.node_key,
            retry_from: self.settings.retry_from,
            hello_us: self.settings.hello_us,
        };
        self.hellos.admit(now, path, hello, policy).map_err(|Refusal { reason, retry }| {
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
        let waited = Duration::from_micros(now.mono_us.saturating_sub(oldest_us));
        let began = Instant::now();
        let hellos = self.hellos.take(now, BATCH_MAX);
        let batch = hellos.len();
        let unproven = |(path, hello): &&(Path, Hello)| {
            matches!(path, Path::Datagram(_)) && hello.cookie().is_none()
        };
        let unproven = hellos.iter().filter(unproven).count() as u64;
        let before = self.counts.accepts;
        let (claims, kept) = self.open_hellos(now, hellos);
        let proven = self.prove(now, claims);
        let signing = self.agree(now, proven, &kept);
        self.accept(now, signing);
        let accepted = self.counts.accepts - before;
        self.hellos.wasted(now, unproven.min(batch as u64 - accepted));
        self.scrub = true;
        #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
        metrics::histogram!("duet_hello_batch").record(batch as f64);
        metrics::histogram!("duet_hello_wait_seconds").record(waited.as_secs_f64());
        metrics::histogram!("duet_hello_batch_seconds").record(began.elapsed().as_secs_f64());
    }

    /// Decapsulates and opens, and looks up who each one claims to be.
    fn open_hellos(
        &mut self,
        now: Now,
        hellos: Vec<(Path, Hello)>,
    ) -> (Vec<Claimed>, Vec<E::Kept>) {
        let mut claims = Vec::with_capacity(hellos.len());
        let mut all_kept = Vec::with_capacity(hellos.len());
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
                let opened = answer.ok_or(DropReason::Point).and_then(|(agreed, kept)| {
                    let opened = Opened::new(hello, &gateway, agreed.point, &agreed.shared)?;
                    Ok((opened, kept))
                });
                match opened {
                    Ok((opened, kept)) => {
                        let device = self.view.lookup(&opened.id());
                        let credential = device.as_ref().map(|device| &device.credential);
                        let claim = opened.claim(&gateway, credential);
                        claims.push(Claimed { path, claim, device, key, kept: all_kept.len() });
                        all_kept.push(kept);
                    }
                    Err(reason) => self.discard(now, path, reason),
                }
            }
        }
        (claims, all_kept)
    }

    /// Verifies every proof, and admits who may enter. Before, a HELLO changes nothing (R40).
    fn prove(&mut self, now: Now, claims: Vec<Claimed>) -> Vec<Admitted> {
        let tasks: Vec<_> = claims.iter().filter_map(|one| one.claim.verify_task()).collect();
        let mut verdicts = self.engine.verify(&tasks).into_iter();
        let mut admitted = Vec::with_capacity(claims.len());
        let mut met = Vec::new();
        let mut batch = HashMap::new();
        let mut taken = HashSet::new();
        for Claimed { path, claim, device, key, kept } in claims {
            let signer = claim.verify_task().map(|task| task.key);
            let verdict = signer.is_none() || verdicts.next().unwrap_or(false);
            let proven = claim.verified(verdict);
            match proven.and_then(|proven| self.admit(now, path, proven, device, &batch)) {
                Ok(Some((proven, device))) => {
                    met.extend(signer);
                    batch.insert(proven.id(), proven.fresh());
                    match self.begin(proven, &mut taken) {
                        Some((responding, about)) => {
                            admitted.push(Admitted { path, responding, about, device, key, kept });
                        }
                        None => self.discard(now, path, DropReason::SessionsFull),
                    }
                }
                Ok(None) => {}
                Err(reason) => self.discard(now, path, reason),
            }
        }
        self.engine.remember(&met);
        admitted
    }

    fn agree(&mut self, now: Now, admitted: Vec<Admitted>, kept: &[E::Kept]) -> Vec<Signed> {
        let tasks: Vec<_> = admitted
            .iter()
            .filter_map(|one| {
                let kept = one.responding.peer_is_hello().then(|| &kept[one.kept]);
                Some((one.responding.task()?, kept))
            })
            .collect();
        let mut answers = self.engine.encapsulate(&tasks).into_iter();
        let mut signing = Vec::with_capacity(admitted.len());
        for Admitted { path, responding, about, device, key, .. } in admitted {
            let answer = responding.task().and_then(|_| answers.next().flatten());
            if responding.task().is_some() && answer.is_none() {
                self.discard(now, path, DropReason::Point);
                continue;
            }
            let made = responding.agreed(answer);
            signing.push(Signed { path, signing: made, signature: [0; 64], about, device, key });
        }
        for (key, GatewayKey { secret, .. }) in self.settings.keys.iter().enumerate() {
            let (places, digests): (Vec<_>, Vec<_>) = signing
                .iter()
                .enumerate()
                .filter(|(_, one)| one.key == key)
                .filter_map(|(place, one)| Some((place, one.signing.digest()?)))
                .unzip();
            if digests.is_empty() {
                continue;
            }
            let signatures = self.engine.sign(secret, &digests);
            for (place, signature) in places.into_iter().zip(signatures) {
                // A zero r or s has probability 2⁻²⁵⁶; the device would ask again.
                signing[place].signature = signature.unwrap_or([0; 64]);
            }
        }
        signing
    }

    /// Makes the sessions and sends their ACCEPTs: the answer to a granted HELLO alone (R32).
    fn accept(&mut self, now: Now, signing: Vec<Signed>) {
        for Signed { path, signing, signature, about, device, key } in signing {
            let (accept, keys) = signing.signed(&signature);
            self.out.push(path, accept.as_slice());
            self.counts.accepts += 1;
            self.counts.accepts_retiring += u64::from(key > 0);
            let About { session: id, hello, fresh, challenged } = about;
            // Two hellos of one device in one batch: the later one stands.
            let contact = self.contacts.entry(device.credential.id).or_default();
            if let Some(old) = contact.pending.take() {
                self.end(old);
            }
            self.contacts.entry(device.credential.id).or_default().pending = Some(id);
            self.cached.insert(hello, id);
            self.pending += 1;
            let mut sent_to = Destinations::default();
            sent_to.add(path);
            let pending = Pending { hello, accept, fresh, challenged, sent_to };
            let session = Box::new(Session::new(device, keys, pending, path, now.mono_us));
            self.sessions.insert(id, session);
        }
    }

    /// Profile, validity and freshness of a proven HELLO; `batch` holds what was admitted in this
    /// batch before it. `None` when it was met with a challenge.
    fn admit(
        &mut self,
        now: Now,
        path: Path,
        proven: Proven,
        device: Option<Arc<Device>>,
        batch: &HashMap<DeviceId, u64>,
    ) -> Result<Option<(Proven, Arc<Device>)>, DropReason> {
        let device = device.ok_or(DropReason::Proof)?;
        let now_s = i64::try_from(now.unix_ms / 1_000).unwrap_or(i64::MAX);
        // R39.
        if device.is_revoked() || device.validity.is_some_and(|v| !v.contains(now_s)) {
            return Err(DropReason::Proof);
        }
        // R6.
        if !device.sources.contains(proven.hello().offer.profile.source) {
            return Err(DropReason::NotAllowed);
        }
        let known = self.contacts.entry(device.credential.id).or_default();
        known.challenge.take_if(|challenge| challenge.until_us <= now.mono_us);
        // R43: a challenged HELLO passes whatever its `fresh` is.
        if let Some(answer) = proven.challenge() {
            let expected = known.challenge.as_ref().ok_or(DropReason::Challenge)?;
            if !bool::from(expected.value.ct_eq(answer)) {
                return Err(DropReason::Challenge);
            }
        } else {
            // R42; the mark is the credential's (R45).
            let (fresh, mark) = (proven.fresh(), device.mark());
            let reach =
                if mark == 0 { FIRST_FRESH_MAX } else { mark.saturating_add(FRESH_JUMP_MAX) };
            if fresh <= mark || fresh > reach {
                let message = challenge(now, known, &self.settings.node_key, &proven, mark);
                self.out.push(path, &message);
                return Ok(None);
            }
            // R46: only a greater `fresh` replaces a pending session.
            let older = known
                .pending
                .and_then(|id| self.sessions.get(&id)?.pending.as_ref())
                .is_some_and(|pending| pending.fresh >= fresh);
            if older || batch.get(&proven.id()).is_some_and(|earlier| *earlier >= fresh) {
                return Err(DropReason::Stale);
            }
        }
        if self.sessions.len() + batch.len() >= self.settings.sessions_max {
            return Err(DropReason::SessionsFull);
        }
        let replaces =
            self.contacts.get(&device.credential.id).is_some_and(|c| c.pending.is_some());
        if self.pending + batch.len() >= self.settings.pending_max && !replaces {
            return Err(DropReason::PendingFull);
        }
        Ok(Some((proven, device)))
    }

    /// `taken` holds the ids that were given in this batch: their sessions do not exist yet.
    fn begin(
        &mut self,
        proven: Proven,
        taken: &mut HashSet<SessionId>,
    ) -> Option<(Responding, About)> {
        let session = self.vacant_id(proven.hello().slot(), taken)?;
        taken.insert(session);
        let about = About {
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
            if let Some(scalar) = SecretScalar::from_bytes(&Zeroizing::new(random())) {
                break scalar;
            }
        };
        Some((proven.respond(grant, scalar, random()), about))
    }

    /// A random id, unused here, whose slot this shard owns (R34).
    fn vacant_id(&self, slot: u8, taken: &HashSet<SessionId>) -> Option<SessionId> {
        (0..64).find_map(|_| {
            let [a, b, c] = random();
            let id = SessionId(u32::from_be_bytes([slot, a, b, c]));
            (!self.sessions.contains_key(&id) && !taken.contains(&id)).then_some(id)
        })
    }
}
