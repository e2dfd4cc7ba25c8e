//! The session table: every session of a shard, and every index by which one is found.
//!
//! A session is *granted* with its ACCEPT and pending until its first record *confirms* it; it *ends* when its device
//! leaves or is replaced, when its time is over, or when whoever runs the gateway says so. A device has at most one
//! pending session and one live one beside it. Between two calls these things hold, and [`Sessions::check`] asserts them:
//!
//! - each session is its device's live one, and confirmed, or its device's pending one, and is found by its HELLO;
//! - nothing else is in either index;
//! - the count of pending sessions is right.
//!
//! Nothing outside this file adds, removes or confirms a session. What a session says and hears is not its business.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use duet_protocol::identity::DeviceId;
use duet_protocol::wire::SessionId;
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
}

/// All sessions of a shard.
#[derive(Default)]
pub(crate) struct Sessions {
    /// Session ids are the gateway's own choice: nobody can make them collide.
    all: FxHashMap<SessionId, Box<Session>>,
    contacts: HashMap<DeviceId, Contact>,
    /// Pending sessions by their HELLO's digest and path kind, for repeated HELLOs (R50).
    by_hello: HashMap<[u8; 32], SessionId>,
}

/// What ended, and what it leaves to be done.
#[derive(Default)]
#[must_use = "a stream that its session has left is to be told"]
pub(crate) struct Ended {
    /// The stream over which the session spoke.
    pub(crate) stream: Option<StreamId>,
}

/// What the first record of a session made of it.
pub(crate) struct Confirmed {
    /// What was kept for this moment.
    pub(crate) pending: Box<Pending>,
    /// The device's session before this one, which has ended by this (R49).
    pub(crate) replaced: Ended,
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
        let replaced = contact.live.replace(id).map(|old| self.end(old)).unwrap_or_default();
        Some(Confirmed { pending, replaced })
    }

    /// Ends a session and destroys its keys (R81).
    pub(crate) fn end(&mut self, id: SessionId) -> Ended {
        let Some(session) = self.all.remove(&id) else { return Ended::default() };
        if let Some(pending) = &session.pending {
            self.by_hello.remove(&pending.hello);
        }
        if let Entry::Occupied(mut contact) = self.contacts.entry(session.device.credential.id) {
            let Contact { live, pending, challenge } = contact.get_mut();
            *live = live.filter(|live| *live != id);
            *pending = pending.filter(|pending| *pending != id);
            if live.is_none() && pending.is_none() && challenge.is_none() {
                contact.remove();
            }
        }
        Ended { stream: session.stream }
    }

    /// The session with this id.
    pub(crate) fn find(&self, id: SessionId) -> Option<&Session> {
        self.all.get(&id).map(|session| &**session)
    }

    // ---- other ways to find one

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
            (!self.all.contains_key(&id) && !taken(id)).then_some(id)
        })
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
        if self.of(device).next().is_none() {
            self.contacts.remove(device);
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

    /// The confirmed sessions that are over: silent for too long (R82), or too old. Looks at all of them.
    pub(crate) fn idle_for(&self, now: Now, idle_us: u64, lifetime_us: u64) -> Vec<SessionId> {
        let over = |session: &Session| {
            let age = now.mono_us.saturating_sub(session.created_us);
            let silence = now.mono_us.saturating_sub(session.last_record_us);
            session.pending.is_none() && (silence >= idle_us || age >= lifetime_us)
        };
        self.all.iter().filter(|(_, session)| over(session)).map(|(id, _)| *id).collect()
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
    }
}
