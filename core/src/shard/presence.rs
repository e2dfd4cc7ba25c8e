//! Who is there: what a shard says of its devices' sessions.
//!
//! A device is online from the first record of a session until that session ends and no newer one has taken its place. What is
//! asked of a device is answered from its session; nothing is kept here.

use std::net::SocketAddr;
use std::sync::Arc;

use duet_protocol::identity::DeviceId;
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::wire::SessionId;

use super::{Event, Shard, Sink};
use crate::engine::Engine;
use crate::{Device, Now, Path};

/// Why a device is not online any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It said that it leaves.
    Left,
    /// It was silent for too long (R82).
    Silent,
    /// Its session had lasted as long as one may.
    Lifetime,
    /// It may not connect any more.
    Revoked,
    /// The shard ends.
    Stopped,
}

/// A device's session, for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// How long ago its session began, µs.
    pub age_us: u64,
    /// How long ago its last record came, µs.
    pub silent_us: u64,
    /// Where that came from, as far as that is known.
    pub address: Option<SocketAddr>,
    /// What carried it.
    pub carrier: Transport,
    /// How the device proved itself, and where its key comes from.
    pub profile: Profile,
    /// How many records it has numbered in this session.
    pub records: u32,
}

impl<E: Engine, S: Sink> Shard<E, S> {
    /// The address behind a path.
    fn address(&self, path: Path) -> Option<SocketAddr> {
        match path {
            Path::Datagram(peer) => Some(peer.address()),
            Path::Stream(stream) => self.streams.peer(stream),
        }
    }

    /// A session of this device was confirmed.
    pub(super) fn tell_online(&mut self, id: SessionId, replaced: bool) {
        let Some(session) = self.sessions.find(id) else { return };
        let (device, name) = (session.device.credential.id, Arc::clone(&session.device.name));
        let (profile, path) = (session.profile(), session.path);
        let (carrier, address) = (carrier(path), self.address(path));
        self.events.push_back(Event::Online { device, name, carrier, address, profile, replaced });
    }

    /// A confirmed session has ended, and nothing took its place.
    pub(super) fn tell_offline(&mut self, device: &Device, gone: Gone, age_us: u64) {
        let (device, name) = (device.credential.id, Arc::clone(&device.name));
        self.events.push_back(Event::Offline { device, name, gone, age_us });
    }

    /// Tells of these devices' sessions.
    pub(super) fn look(&mut self, now: Now, token: u64, devices: &[DeviceId]) {
        let contact = |device: &DeviceId| {
            let session = self.sessions.find(self.sessions.live_of(device)?)?;
            Some(Contact {
                age_us: now.mono_us.saturating_sub(session.created_us),
                silent_us: now.mono_us.saturating_sub(session.last_record_us),
                address: self.address(session.path),
                carrier: carrier(session.path),
                profile: session.profile(),
                records: session.window.next(),
            })
        };
        let contacts = devices.iter().map(contact).collect();
        self.events.push_back(Event::Contacts { token, contacts });
    }
}

fn carrier(path: Path) -> Transport {
    match path {
        Path::Datagram(_) => Transport::Datagram,
        Path::Stream(_) => Transport::Stream,
    }
}
