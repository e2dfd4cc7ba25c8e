//! The session table: every session of a shard, and every index by which one is found.
//!
//! A session is *granted* with its ACCEPT and pending until its first record *confirms* it; it *ends* when its device
//! leaves or opens another, when its time is over, or when whoever runs the gateway says so. A device has at most one
//! pending session and one live one beside it. Between two calls these things hold, and [`Sessions::check`] asserts them:
//!
//! - each session is its device's live one, and confirmed, or its device's pending one, and is found by its HELLO;
//! - nothing else is in the indexes by device and by HELLO;
//! - of the last confirmed session of a device that ended, what is needed when it sends a reading *again* is kept for the idle
//!   time, and its id not reused as long.
//!
//! Nothing outside this file adds, removes or confirms a session: four verbs do, `grant`, `confirm`, `end` and `take_over`,
//! the last for sessions of the process before. What a session says and hears is not its business.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use duet_protocol::identity::DeviceId;
use duet_protocol::reading::ReadingId;
use duet_protocol::replay::{Place, ReplayWindow};
use duet_protocol::wire::{HELLO_NAME, SessionId};
use rustc_hash::FxHashMap;

use crate::random::Random;
use crate::session::{Pending, Session};
use crate::{Now, StreamId};

/// A challenge that a device may answer.
pub(crate) struct Challenge {
    pub(crate) value: [u8; 16],
    pub(crate) until_us: u64,
}

/// What a shard knows of a device beside its sessions' contents.
#[derive(Default)]
struct Contact {
    live: Option<SessionId>,
    pending: Option<SessionId>,
    challenge: Option<Box<Challenge>>,
    /// The session that was live before.
    previous: Option<Box<Previous>>,
}

/// What is kept of a session that has ended: which of its readings came, in case the device sends one of them *again* in
/// its next session (R76).
pub(crate) struct Previous {
    session: SessionId,
    hello: [u8; HELLO_NAME],
    window: ReplayWindow,
    stored: ReplayWindow,
    ended_us: u64,
}

/// What is known of a reading that a device sends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is durable.
    Stored,
    /// It came, and storage has not answered yet.
    OnItsWay,
    /// It did not come, or so long ago that nobody remembers.
    No,
}

/// All sessions of a shard.
#[derive(Default)]
pub(crate) struct Sessions {
    /// Session ids are the gateway's own choice: nobody can make them collide.
    all: FxHashMap<SessionId, Box<Session>>,
    contacts: HashMap<DeviceId, Contact>,
    /// Pending sessions by their HELLO's digest and path kind, for repeated HELLOs (R50).
    by_hello: HashMap<[u8; 32], SessionId>,
    /// Whose session before the live one this was. Its id is not given to another one meanwhile: what storage answers late
    /// must not be taken for somebody else's.
    ended: FxHashMap<SessionId, DeviceId>,
}

/// What ended, and what it leaves to be done.
#[derive(Default)]
#[must_use = "a stream that its session has left is to be told"]
pub(crate) struct Ended {
    /// The stream over which the session spoke.
    pub(crate) stream: Option<StreamId>,
    /// How many of its readings wait for their answer, which they will not get now.
    pub(crate) unanswered: u32,
}

/// What the first record of a session made of it.
pub(crate) struct Confirmed {
    /// What was kept for this moment.
    pub(crate) pending: Box<Pending>,
    /// The device's session before this one, which has ended by this (R49).
    pub(crate) replaced: Ended,
    /// Whether there was one.
    pub(crate) had_live: bool,
}

impl Sessions {
    // ---- the four verbs

    /// Adds a pending session in place of an older pending one of its device.
    pub(crate) fn grant(&mut self, id: SessionId, session: Box<Session>) {
        let Some(pending) = &session.pending else { unreachable!("a granted session is pending") };
        let device = session.device.credential.id;
        if let Some(older) = self.contacts.entry(device).or_default().pending {
            // One that no record has confirmed speaks over no stream.
            let _ = self.end(older);
        }
        self.contacts.entry(device).or_default().pending = Some(id);
        self.by_hello.insert(pending.hello, id);
        let before = self.all.insert(id, session);
        assert!(before.is_none(), "a session id is given once");
    }

    /// The first valid record of a pending session came: it takes the place of the device's live one. `None` when it
    /// was confirmed before, or is not there.
    pub(crate) fn confirm(&mut self, id: SessionId) -> Option<Confirmed> {
        let session = self.all.get_mut(&id)?;
        let pending = session.pending.take()?;
        self.by_hello.remove(&pending.hello);
        let contact = self.contacts.entry(session.device.credential.id).or_default();
        contact.pending = None;
        // R58.
        if pending.challenged {
            contact.challenge = None;
        }
        let before = contact.live.replace(id);
        let replaced = before.map(|old| self.end(old)).unwrap_or_default();
        Some(Confirmed { pending, replaced, had_live: before.is_some() })
    }

    /// Ends a session and destroys its keys (R81).
    pub(crate) fn end(&mut self, id: SessionId) -> Ended {
        let Some(session) = self.all.remove(&id) else { return Ended::default() };
        if let Some(pending) = &session.pending {
            self.by_hello.remove(&pending.hello);
        }
        if let Entry::Occupied(mut contact) = self.contacts.entry(session.device.credential.id) {
            let Contact { live, pending, challenge, previous } = contact.get_mut();
            *live = live.filter(|live| *live != id);
            *pending = pending.filter(|pending| *pending != id);
            if session.pending.is_none() {
                let Session { hello, window, stored, last_record_us, .. } = *session;
                let ended =
                    Previous { session: id, hello, window, stored, ended_us: last_record_us };
                if let Some(before) = previous.replace(Box::new(ended)) {
                    self.ended.remove(&before.session);
                }
                self.ended.insert(id, session.device.credential.id);
            }
            if live.is_none() && pending.is_none() && challenge.is_none() && previous.is_none() {
                contact.remove();
            }
        }
        Ended { stream: session.stream, unanswered: session.unanswered }
    }

    /// Adds a confirmed session that another process has handed over, if neither its id nor its device has one here.
    pub(crate) fn take_over(&mut self, id: SessionId, session: Box<Session>) -> bool {
        debug_assert!(session.pending.is_none(), "what is handed over is confirmed");
        let device = session.device.credential.id;
        let taken = self.all.contains_key(&id) || self.ended.contains_key(&id);
        if taken || self.live_of(&device).is_some() {
            return false;
        }
        self.contacts.entry(device).or_default().live = Some(id);
        self.all.insert(id, session);
        true
    }

    /// All sessions with their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.all.iter().map(|(id, session)| (*id, &**session))
    }

    /// The session with this id.
    #[inline]
    pub(crate) fn find(&self, id: SessionId) -> Option<&Session> {
        self.all.get(&id).map(|session| &**session)
    }

    // ---- other ways to find one

    #[inline]
    pub(crate) fn find_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.all.get_mut(&id).map(|session| &mut **session)
    }

    /// The pending session that this HELLO was answered with.
    pub(crate) fn find_by_hello(&mut self, digest: &[u8; 32]) -> Option<&mut Pending> {
        let id = self.by_hello.get(digest)?;
        self.all.get_mut(id)?.pending.as_deref_mut()
    }

    /// The device's confirmed session.
    pub(crate) fn live_of(&self, device: &DeviceId) -> Option<SessionId> {
        self.contacts.get(device)?.live
    }

    /// The device's pending session.
    pub(crate) fn pending_of(&self, device: &DeviceId) -> Option<&Pending> {
        let id = self.contacts.get(device)?.pending?;
        self.all.get(&id)?.pending.as_deref()
    }

    /// The device's sessions, live and pending.
    pub(crate) fn of(&self, device: &DeviceId) -> impl Iterator<Item = SessionId> + use<> {
        let contact = self.contacts.get(device);
        let found = contact.map(|contact| [contact.live, contact.pending]);
        found.into_iter().flatten().flatten()
    }

    /// Every session's id.
    pub(crate) fn ids(&self) -> Vec<SessionId> {
        self.all.keys().copied().collect()
    }

    /// An id that no session has, with this slot (R34). There are none left when many draws in a row find none.
    pub(crate) fn vacant_id(
        &self,
        slot: u8,
        random: &mut Random,
        taken: impl Fn(SessionId) -> bool,
    ) -> Option<SessionId> {
        (0..64).find_map(|_| {
            let [a, b, c] = random.bytes();
            let id = SessionId(u32::from_be_bytes([slot, a, b, c]));
            let free = !self.all.contains_key(&id) && !self.ended.contains_key(&id) && !taken(id);
            free.then_some(id)
        })
    }

    // ---- readings that are sent again

    /// What the device's live session and the one before know of a reading.
    pub(crate) fn known(&self, device: &DeviceId, id: ReadingId) -> Known {
        let Some(contact) = self.contacts.get(device) else { return Known::No };
        let live = contact.live.and_then(|live| self.all.get(&live));
        let live = live.map(|live| (live.hello, live.window, live.stored));
        let before = contact.previous.as_ref();
        let before = before.map(|before| (before.hello, before.window, before.stored));
        let found = live.into_iter().chain(before).find(|(hello, ..)| *hello == id.hello);
        match found {
            Some((_, _, stored)) if stored.place(id.sequence) == Place::Repeated => Known::Stored,
            Some((_, window, _)) if window.place(id.sequence) == Place::Repeated => Known::OnItsWay,
            _ => Known::No,
        }
    }

    /// Storage has answered for a reading. Whether its session is to acknowledge it: it is there, and the reading durable.
    #[inline]
    pub(crate) fn settle(&mut self, id: SessionId, sequence: u32, durable: bool) -> bool {
        let (window, stored, there) = if let Some(session) = self.all.get_mut(&id) {
            (&mut session.window, &mut session.stored, true)
        } else if let Some(previous) = self.ended.get(&id).and_then(|device| {
            let previous = self.contacts.get_mut(device)?.previous.as_deref_mut();
            previous.filter(|previous| previous.session == id)
        }) {
            (&mut previous.window, &mut previous.stored, false)
        } else {
            return false;
        };
        if durable {
            stored.take(sequence);
        } else {
            window.give_back(sequence);
        }
        there && durable
    }

    // ---- challenges

    /// The challenge that the device may answer now.
    pub(crate) fn challenge(&mut self, now: Now, device: &DeviceId) -> Option<&Challenge> {
        let contact = self.contacts.get_mut(device)?;
        contact.challenge.take_if(|challenge| challenge.until_us <= now.mono_us);
        contact.challenge.as_deref()
    }

    /// One challenge a device at a time (R57): the one there is, or the one that `make` makes.
    pub(crate) fn challenge_or(
        &mut self,
        now: Now,
        device: DeviceId,
        make: impl FnOnce() -> Challenge,
    ) -> &Challenge {
        let contact = self.contacts.entry(device).or_default();
        contact.challenge.take_if(|challenge| challenge.until_us <= now.mono_us);
        contact.challenge.get_or_insert_with(|| Box::new(make()))
    }

    /// Forgets what is known of a device that has no session.
    pub(crate) fn forget(&mut self, device: &DeviceId) {
        if self.of(device).next().is_none()
            && let Some(contact) = self.contacts.remove(device)
            && let Some(previous) = contact.previous
        {
            self.ended.remove(&previous.session);
        }
    }

    // ---- time and numbers

    /// How many sessions there are, pending ones included.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many of them no record has confirmed.
    pub(crate) fn pending(&self) -> usize {
        self.by_hello.len()
    }

    /// The pending sessions that are over.
    pub(crate) fn pending_for(&self, now: Now, pending_us: u64) -> Vec<SessionId> {
        let old = |id: &&SessionId| {
            self.all
                .get(id)
                .is_some_and(|session| now.mono_us.saturating_sub(session.created_us) >= pending_us)
        };
        self.by_hello.values().filter(old).copied().collect()
    }

    /// Forgets what is kept of sessions that ended this long ago, and challenges that nobody has answered in time. Looks at every
    /// device.
    pub(crate) fn forget_previous(&mut self, now: Now, after_us: u64) {
        self.contacts.retain(|_, contact| {
            contact.challenge.take_if(|challenge| challenge.until_us <= now.mono_us);
            let old =
                |one: &mut Box<Previous>| now.mono_us.saturating_sub(one.ended_us) >= after_us;
            if let Some(old) = contact.previous.take_if(old) {
                self.ended.remove(&old.session);
            }
            contact.live.is_some()
                || contact.pending.is_some()
                || contact.challenge.is_some()
                || contact.previous.is_some()
        });
    }

    /// The confirmed sessions that are over: silent for too long (R82), or too old. Looks at all of them.
    pub(crate) fn idle_for(&self, now: Now, idle_us: u64, lifetime_us: u64) -> Vec<SessionId> {
        let over = |session: &Session| {
            let silence = now.mono_us.saturating_sub(session.last_record_us);
            session.pending.is_none()
                && (silence >= idle_us || session.is_over(now.mono_us, lifetime_us))
        };
        self.all.iter().filter(|(_, session)| over(session)).map(|(id, _)| *id).collect()
    }

    /// Tells states apart that behave differently.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn fingerprint(&self, now: Now, out: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        let mut contacts: Vec<_> = self.contacts.iter().collect();
        contacts.sort_by_key(|(device, _)| **device);
        for (device, Contact { live, pending, challenge, previous }) in contacts {
            device.0.hash(out);
            for id in live.iter().chain(pending) {
                let Some(session) = self.all.get(id) else { continue };
                (*id, now.mono_us - session.created_us).hash(out);
                session.fingerprint(out);
            }
            let left = |one: &Challenge| (one.value, one.until_us.saturating_sub(now.mono_us));
            let left = challenge.as_deref().map(left);
            left.hash(out);
            if let Some(Previous { hello, window, stored, .. }) = previous.as_deref() {
                (hello, format!("{window:?} {stored:?}")).hash(out);
            }
        }
    }

    /// Asserts what holds between two calls.
    ///
    /// # Panics
    /// When it does not.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn check(&self) {
        for (id, session) in &self.all {
            let contact = self.contacts.get(&session.device.credential.id);
            let contact = contact.expect("a session's device is known");
            match &session.pending {
                Some(pending) => {
                    assert_eq!(contact.pending, Some(*id), "a pending session is its device's");
                    assert_eq!(self.by_hello.get(&pending.hello), Some(id), "found by its HELLO");
                    assert_eq!(session.stream, None, "nothing came in a pending session");
                }
                None => assert_eq!(contact.live, Some(*id), "a confirmed session is its device's"),
            }
        }
        for id in self.by_hello.values() {
            let session = self.all.get(id).expect("what a HELLO finds is there");
            assert!(session.pending.is_some(), "what a HELLO finds is pending");
        }
        let mut listed = 0;
        for (device, contact) in &self.contacts {
            for id in contact.live.iter().chain(&contact.pending) {
                let session = self.all.get(id).expect("what a contact names is there");
                assert_eq!(session.device.credential.id, *device, "each contact names its own");
                listed += 1;
            }
        }
        assert_eq!(listed, self.all.len(), "each session is named once");
        let mut before = 0;
        for (device, contact) in &self.contacts {
            if let Some(previous) = &contact.previous {
                assert_eq!(self.ended.get(&previous.session), Some(device), "found by its id");
                assert!(!self.all.contains_key(&previous.session), "what has ended is not there");
                before += 1;
            }
        }
        assert_eq!(before, self.ended.len(), "each session before is named once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_that_nobody_answers_is_forgotten() {
        let (mut sessions, device) = (Sessions::default(), DeviceId([1; 8]));
        let now = |mono_us| Now { mono_us, unix_ms: 0 };
        sessions.challenge_or(now(0), device, || Challenge { value: [7; 16], until_us: 30 });
        sessions.forget_previous(now(29), 1_000);
        assert_eq!(sessions.challenge(now(29), &device).map(|one| one.value), Some([7; 16]));
        sessions.forget_previous(now(30), 1_000);
        assert!(sessions.contacts.is_empty());
    }
}
