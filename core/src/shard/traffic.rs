//! Records: opened as one batch a turn, then acted on in order of arrival.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use duet_protocol::message::{Down, RANGES_MAX, Range, Up};
use duet_protocol::reading::ReadingId;
use duet_protocol::reason::DropReason;
use duet_protocol::replay::Place;
use duet_protocol::schedule;
use duet_protocol::wire::{Reset, SessionId, TAG, UP_HEADER, UpHeader};

use super::{Commit, Gone, Reading, Shard, Sink};
use crate::askers::Asker;
use crate::early::{InFlight, Token};
use crate::engine::Engine;
use crate::records::{Opened, Opener};
use crate::rules::{Rule, in_force};
use crate::session::ACK_LEN;
use crate::sessions::Known;
use crate::streams::source;
use crate::{Now, Path};
use subtle::ConstantTimeEq as _;

/// What a record costs beside its text.
const OVERHEAD: usize = UP_HEADER + TAG;
/// How long a question to an address is asked in the same words, µs; the answer is good for as long again (R109).
const PATH_EPOCH_US: u64 = 30_000_000;

/// The question that shows whether a device receives at an address (R109); `ago` epochs ago.
fn path_challenge(
    node_key: &[u8; 32],
    now: Now,
    ago: u64,
    session: SessionId,
    address: SocketAddr,
) -> [u8; 4] {
    let epoch = (now.mono_us / PATH_EPOCH_US).wrapping_sub(ago);
    let epoch = if in_force(Rule::AskedLately) { epoch } else { 0 };
    let epoch = u32::try_from(epoch & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut place = [0; 18];
    if in_force(Rule::AskedThere) {
        place[..16].copy_from_slice(&ip.octets());
        place[16..].copy_from_slice(&address.port().to_be_bytes());
    }
    schedule::path_challenge(node_key, epoch, session, &place)
}

/// Whether this is what the gateway asked, in this epoch or the one before (R110).
fn is_path_challenge(
    node_key: &[u8; 32],
    now: Now,
    session: SessionId,
    path: Path,
    answer: [u8; 4],
) -> bool {
    let Path::Datagram(address) = path else { return false };
    [0, 1].iter().fold(false, |found, ago| {
        let asked = path_challenge(node_key, now, *ago, session, address.address());
        found | bool::from(asked.ct_eq(&answer))
    })
}

/// When a record that came again, or late, is acknowledged where it came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ack {
    /// It asks for none.
    Never,
    /// It is durable.
    Now(u32),
    /// Once it is durable.
    Later,
}

fn waits_for_ack(up: Option<&Up<'_>>) -> bool {
    matches!(up, Some(Up::Reading { confirm: true, .. } | Up::Result { .. }))
}

impl<E: Engine, S: Sink> Shard<E, S> {
    /// Takes a record for this turn's batch.
    pub(super) fn queue_record(&mut self, path: Path, bytes: &[u8]) -> Result<(), DropReason> {
        let header = UpHeader::decode(bytes)?;
        let Some(session) = self.sessions.find(header.session) else {
            return Err(self.reset(path, header.session, bytes));
        };
        if session.window.place(header.sequence) == Place::TooOld {
            return Err(DropReason::Replay);
        }
        self.records.push(path, header, bytes);
        Ok(())
    }

    /// Opens the records of the turn as one batch, then acts on each in order of arrival.
    pub(super) fn open_records(&mut self, now: Now) {
        if self.records.is_empty() {
            return;
        }
        let mut records = std::mem::take(&mut self.records);
        let sessions = &self.sessions;
        records.open(self.settings.gcm, &mut self.expanded, |id| {
            let session = sessions.find(id)?;
            Some(Opener { key: &session.keys.up, revoked: session.device.is_revoked() })
        });
        for Opened { path, header, text, revoked } in records.iter() {
            let handled = match text {
                // The registry is ahead of its mail, which says so too.
                Some(_) if revoked => {
                    self.close_session(header.session, Gone::Revoked);
                    Err(DropReason::Proof)
                }
                Some(text) => self.handle_record(now, path, header, text),
                None => Err(DropReason::RecordOpen),
            };
            if let Err(reason) = handled {
                self.discard(now.mono_us, path, reason);
            }
        }
        records.clear();
        self.records = records;
    }

    fn handle_record(
        &mut self,
        now: Now,
        path: Path,
        header: UpHeader,
        text: &[u8],
    ) -> Result<(), DropReason> {
        let id = header.session;
        // A record before this one in the batch may have ended the session, or been this one.
        let session = self.sessions.find_mut(id).ok_or(DropReason::UnknownSessionQuiet)?;
        let up = Up::decode(text);
        let len = text.len() + OVERHEAD;
        let device = session.device.credential.id;
        let here = matches!(up, Ok(Up::Here { challenge }) if is_path_challenge(
            &self.settings.node_key, now, id, path, challenge,
        ));
        match session.window.place(header.sequence) {
            // R70.
            Place::Newest => {
                let confirmed = session.pending.is_none();
                let moved = session.arrive(&path, len);
                if here {
                    session.proved(path);
                }
                let stream = match path {
                    Path::Stream(stream) => Some(stream),
                    Path::Datagram(_) => None,
                };
                if session.stream != stream {
                    let left = std::mem::replace(&mut session.stream, stream);
                    let owed = session.unanswered > 0;
                    if let Some(left) = left {
                        self.streams.leave(now.mono_us, left);
                        owed.then(|| self.streams.settle(left));
                    }
                    if let Some(joined) = stream {
                        self.streams.join(joined);
                        owed.then(|| self.streams.owe(now.mono_us, joined));
                    }
                }
                self.commands.wake(now, &device, here || moved || !confirmed);
            }
            Place::Late => {}
            Place::TooOld => return Err(DropReason::Replay),
            // R110: a copy of this record may have been faster.
            Place::Repeated
                if here
                    && session.window.place(header.sequence + 1) == Place::Newest
                    && in_force(Rule::CopyProves) =>
            {
                session.proved(path);
                self.commands.wake(now, &device, true);
                return Ok(());
            }
            Place::Repeated => {
                // Its acknowledgement may have been lost: it is given again, the reading is not (R75).
                let durable = session.stored.place(header.sequence) == Place::Repeated;
                let ack = match waits_for_ack(up.as_ref().ok()) {
                    true if durable => Ack::Now(header.sequence),
                    true => Ack::Later,
                    false => Ack::Never,
                };
                let asker = self.answer_there(now, id, path, len, ack);
                if ack == Ack::Later {
                    self.answer_later((id, header.sequence), asker);
                }
                return Err(DropReason::Replay);
            }
        }
        let newest = session.window.place(header.sequence) == Place::Newest;
        session.window.take(header.sequence);
        session.last_record_us = now.mono_us;
        if session.pending.is_some() {
            self.confirm(id);
        }
        let asker = if newest {
            None
        } else {
            let waits = waits_for_ack(up.as_ref().ok());
            let ack = if waits { Ack::Later } else { Ack::Never };
            self.answer_there(now, id, path, len, ack)
        };
        let Some(session) = self.sessions.find_mut(id) else { return Err(DropReason::Proof) };
        if newest
            && let Path::Datagram(address) = path
            && self.commands.record_len(&device).is_some_and(|len| session.holds_back(len))
        {
            // R111: once for each record, from the bytes that came.
            let challenge = path_challenge(&self.settings.node_key, now, 0, id, address.address());
            session.prepare(id, Down::Prove { challenge }, &mut self.unsealed);
        }
        match up? {
            Up::Reading { confirm, channel, age_ms, again, payload } => {
                let (session, commit) = if let Some(first) = again {
                    // R100: a newer one was stored meanwhile.
                    if session.fresh < session.device.mark() && in_force(Rule::OlderSession) {
                        // Storage never hears of it: whoever sends it again must not wait for that.
                        session.window.give_back(header.sequence);
                        return Err(DropReason::Stale);
                    }
                    let owner = Arc::clone(&session.device);
                    let known = owner.last() == Some(first) && in_force(Rule::KnownInRecord);
                    let known =
                        if known { Known::Stored } else { self.sessions.known(&device, first) };
                    if known == Known::Stored {
                        self.counts.readings_known += 1;
                        let token = (id, header.sequence);
                        if self.sessions.settle(id, header.sequence, true) {
                            self.acking.push(token);
                            self.acking_there.extend(asker.map(|asker| (token, asker)));
                        }
                        return Ok(());
                    }
                    if known == Known::OnItsWay || self.early.of(&device).is_some() {
                        // It counts as not come: the device repeats it.
                        if let Some(session) = self.sessions.find_mut(id) {
                            session.window.give_back(header.sequence);
                        }
                        return Err(DropReason::Replay);
                    }
                    let (token, mark) = ((id, header.sequence), owner.mark());
                    let commit = Commit::of(&owner, mark);
                    self.early.begin(InFlight { token, device: owner, id: first, mark });
                    let Some(session) = self.sessions.find_mut(id) else { return Ok(()) };
                    (session, Some(commit))
                } else {
                    (session, None)
                };
                self.counts.readings += 1;
                self.sink.take(&Reading {
                    device: &session.device.name,
                    device_id: device,
                    session: id,
                    sequence: header.sequence,
                    id: again
                        .unwrap_or(ReadingId { hello: session.hello, sequence: header.sequence }),
                    again: again.is_some(),
                    commit,
                    channel,
                    received_ms: now.unix_ms,
                    measured_ms: now.unix_ms.saturating_sub(age_ms.unwrap_or(0).into()),
                    payload,
                    confirm,
                });
                if confirm {
                    session.owe(self.now_us, &mut self.streams);
                    self.answer_later((id, header.sequence), asker);
                }
            }
            // R77.
            Up::Ping => {
                let idle = self.commands.nothing_waits(&device);
                let nothing_waits = idle.then_some(header.sequence);
                session.prepare(id, Down::Pong { nothing_waits }, &mut self.unsealed);
            }
            Up::Result { command, status, payload } => {
                session.owe(self.now_us, &mut self.streams);
                self.answer_later((id, header.sequence), asker);
                self.handle_result(device, command, status, payload, (id, header.sequence));
            }
            // What it proves is done above.
            Up::Here { .. } => {}
            Up::Close => self.end(id, Gone::Left),
        }
        Ok(())
    }

    /// Answers a record that came again, or late, where it came from and out of the bytes that it brought: with its
    /// acknowledgement, for which the bytes are kept if it goes later, and with the question whether the device receives
    /// there, if a command has to wait for that (R111). What may still be answered there, where that is not the session's
    /// path.
    fn answer_there(
        &mut self,
        now: Now,
        id: SessionId,
        path: Path,
        len: usize,
        ack: Ack,
    ) -> Option<Asker> {
        let session = self.sessions.find(id)?;
        let device = session.device.credential.id;
        let is_path = session.path == path;
        if session.is_proven(path) && is_path {
            if let Ack::Now(sequence) = ack {
                self.acking.push((id, sequence));
            }
            return None;
        }
        let free = matches!(path, Path::Stream(_)) || !in_force(Rule::OwnBytes);
        let mut asker = Asker { path, budget: if free { usize::MAX } else { len } };
        if let Ack::Now(sequence) = ack {
            self.ack_there((id, sequence), &mut asker);
        }
        let kept = if ack == Ack::Later && !is_path { ACK_LEN } else { 0 };
        let session = self.sessions.find_mut(id)?;
        let to = if in_force(Rule::AnsweredThere) { path } else { session.path };
        if let Path::Datagram(address) = to
            && self.commands.record_len(&device).is_some()
            && let Some(mut rest) = asker.budget.checked_sub(kept)
        {
            let challenge = path_challenge(&self.settings.node_key, now, 0, id, address.address());
            let prove = Down::Prove { challenge };
            session.prepare_there(id, to, &mut rest, prove, &mut self.unsealed);
            asker.budget = rest + kept;
        }
        (!is_path).then_some(asker)
    }

    /// Acknowledges a record where it came again, or late, if the bytes that it brought suffice.
    pub(super) fn ack_there(&mut self, (id, first): Token, asker: &mut Asker) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        let nothing_waits = self.commands.nothing_waits(&session.device.credential.id);
        let (ranges, mut encoded) = ([Range { first, count: 1 }], [0; RANGES_MAX * 6]);
        let ack = Down::ack(&ranges, nothing_waits, &mut encoded);
        let to = if in_force(Rule::AnsweredThere) { asker.path } else { session.path };
        session.prepare_there(id, to, &mut asker.budget, ack, &mut self.unsealed);
    }

    /// What this reading or result is answered goes there, too.
    fn answer_later(&mut self, token: Token, asker: Option<Asker>) {
        if let Some(asker) = asker {
            let path = asker.path;
            self.askers.add(token, asker).then(|| self.owe_at(path));
        }
    }

    fn reset(&mut self, path: Path, id: SessionId, record: &[u8]) -> DropReason {
        let from = match path {
            Path::Datagram(from) => Some(source(from.address().ip())),
            Path::Stream(stream) => self.streams.source(stream),
        };
        if !from.is_some_and(|from| self.resets.take(from)) {
            return DropReason::UnknownSessionQuiet;
        }
        self.counts.resets += 1;
        // R62: for a record of an unknown session, and for nothing else.
        let token = schedule::reset_token(&self.settings.node_key, id);
        let reset = Reset { session: id, mac: schedule::reset_mac(&token, record) };
        self.out.push(path, &reset.encode());
        DropReason::UnknownSession
    }

    /// The first valid record of a session: only now does the device's mark move, and only now
    /// does the older session end (R41, R49).
    fn confirm(&mut self, id: SessionId) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        if session.pending.is_none() {
            return;
        }
        let device = Arc::clone(&session.device);
        if device.is_revoked() {
            return self.end(id, Gone::Revoked);
        }
        let Some(confirmed) = self.sessions.confirm(id) else { return };
        let replaced = confirmed.had_live;
        self.leave(confirmed.replaced);
        if let Some(session) = self.sessions.find_mut(id) {
            // Whoever sent this record has ACCEPT.
            session.prove_path(confirmed.pending.sent_to);
        }
        self.tell_online(id, replaced);
        self.counts.confirmed += 1;
        // R44: as far as an unchallenged HELLO could, and no further.
        if device.raise_mark(device.freshness().raised(confirmed.pending.fresh).get()) {
            self.directory.save_later(&device);
        }
    }
}
