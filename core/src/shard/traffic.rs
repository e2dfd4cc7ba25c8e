//! Records: opened as one batch a turn, then acted on in order of arrival.

use std::sync::Arc;

use duet_protocol::message::{Down, Up};
use duet_protocol::reason::DropReason;
use duet_protocol::replay::Place;
use duet_protocol::schedule;
use duet_protocol::wire::{Reset, SessionId, TAG, UP_HEADER, UpHeader};

use super::{CommandFailure, FIRST_FRESH_MAX, FRESH_JUMP_MAX, Reading, Shard, Sink};
use crate::engine::Engine;
use crate::{Now, Path};

/// What a record costs beside its text.
const OVERHEAD: usize = UP_HEADER + TAG;

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
        records.open(self.settings.gcm, &mut self.expanded, |id| Some(&sessions.find(id)?.keys.up));
        for (path, header, opened) in records.iter() {
            let handled = match opened {
                Some(text) => self.handle_record(now, path, header, text),
                None => Err(DropReason::RecordOpen),
            };
            if let Err(reason) = handled {
                self.discard(now, path, reason);
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
        // The registry is ahead of its mail, which says so too.
        if session.device.is_revoked() {
            self.close_session(id);
            return Err(DropReason::Proof);
        }
        let up = Up::decode(text);
        match session.window.place(header.sequence) {
            // R70.
            Place::Newest => {
                session.arrive(path, text.len() + OVERHEAD);
                let stream = match path {
                    Path::Stream(stream) => Some(stream),
                    Path::Datagram(_) => None,
                };
                if session.stream != stream {
                    let left = std::mem::replace(&mut session.stream, stream);
                    left.into_iter().for_each(|left| self.streams.leave(left));
                    stream.into_iter().for_each(|joined| self.streams.join(joined));
                }
            }
            Place::Late => {}
            Place::TooOld => return Err(DropReason::Replay),
            Place::Repeated => {
                // Its acknowledgement may have been lost: it is given again, the reading is not (R75).
                let durable = session.stored.place(header.sequence) == Place::Repeated;
                if durable && let Ok(Up::Reading { confirm: true, .. }) = up {
                    self.acking.push((id, header.sequence));
                }
                return Err(DropReason::Replay);
            }
        }
        session.window.take(header.sequence);
        session.last_record_us = now.mono_us;
        self.confirm(id);
        let Some(session) = self.sessions.find_mut(id) else { return Err(DropReason::Proof) };
        match up? {
            Up::Reading { confirm, channel, age_ms, again: _, payload } => {
                self.counts.readings += 1;
                self.sink.take(&Reading {
                    device: &session.device.name,
                    session: id,
                    sequence: header.sequence,
                    channel,
                    time_ms: now.unix_ms.saturating_sub(age_ms.unwrap_or(0).into()),
                    payload,
                    confirm,
                });
            }
            // R77.
            Up::Ping => {
                session.prepare(id, Down::Pong { nothing_waits: None }, &mut self.unsealed);
            }
            Up::Result { command, status, payload } => {
                let device = session.device.credential.id;
                if let Some(open) = self.commands.take(command, device) {
                    session.prove_path(open.sent_to);
                    let result = match status {
                        0 => Ok(payload.to_vec()),
                        status => Err(CommandFailure::Reported(status)),
                    };
                    self.end_command(open.command.token, result);
                }
            }
            Up::Here { .. } => {}
            Up::Close => self.end(id),
        }
        Ok(())
    }

    fn reset(&mut self, path: Path, id: SessionId, record: &[u8]) -> DropReason {
        if self.resets_left == 0 {
            return DropReason::UnknownSessionQuiet;
        }
        self.resets_left -= 1;
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
            return self.end(id);
        }
        let Some(confirmed) = self.sessions.confirm(id) else { return };
        let stream = confirmed.replaced.stream;
        stream.into_iter().for_each(|left| self.streams.leave(left));
        // Its keys, and those of the handshake that made the new ones, are gone.
        self.scrub = true;
        if let Some(session) = self.sessions.find_mut(id) {
            // Whoever sent this record has ACCEPT.
            session.prove_path(confirmed.pending.sent_to);
        }
        self.counts.confirmed += 1;
        // R44: as far as an unchallenged HELLO could, and no further.
        let mark = device.mark();
        let reach = if mark == 0 { FIRST_FRESH_MAX } else { mark.saturating_add(FRESH_JUMP_MAX) };
        if device.raise_mark(confirmed.pending.fresh.min(reach)) {
            self.directory.save_later(&device);
        }
    }
}
