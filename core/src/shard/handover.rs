//! Sessions on their way to the process that takes this one's place (R72).
//!
//! A shard that is told to [hand over](super::Mail::HandOver) wants nothing more, settles what has come, and keeps its
//! sessions. Each becomes [`HANDED_LEN`] bytes, in which everything is that the next record needs, in both directions. What
//! carries these bytes to the other process, in memory alone and once, is the business of whoever drives the shard.
//!
//! Not handed over are sessions that no record has confirmed, challenges, and what is known of sessions that had ended:
//! their devices are met as after any other restart.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use duet_protocol::identity::DeviceId;
use duet_protocol::profile::{Offer, Transport};
use duet_protocol::record::scrub_stack;
use duet_protocol::replay::ReplayWindow;
use duet_protocol::schedule::SessionKeys;
use duet_protocol::wire::{HELLO_NAME, SessionId};
use zeroize::Zeroizing;

use super::{Gone, Shard, Sink};
use crate::engine::Engine;
use crate::session::Session;
use crate::{Now, Path, Peer, StreamId, Via, shard_of};

/// How many bytes a session is handed over in.
pub const HANDED_LEN: usize = 232;
/// How many sequences of its own direction a gateway skips when it takes a session over (R72).
const SKIPPED: u32 = 65_536;
/// The path of a session whose stream has ended with the process before: no stream has this number.
const NO_STREAM: StreamId = StreamId(u64::MAX);

/// One of this machine's addresses: its IPv6 or mapped IPv4 address, and the interface where it matters.
pub type Local = (Ipv6Addr, u32);

/// What became of the sessions that were handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// They go on.
    pub taken: usize,
    /// They are over: their devices may not connect any more, they had lasted too long, or there is no room. Their devices
    /// begin new ones.
    pub left: usize,
}

/// Fixed-length fields, one after the other.
struct Fields<'a>(&'a mut [u8]);

impl Fields<'_> {
    fn put<const N: usize>(&mut self, bytes: &[u8; N]) {
        self.place::<N>().copy_from_slice(bytes);
    }

    fn place<const N: usize>(&mut self) -> &mut [u8; N] {
        let Some((place, rest)) = std::mem::take(&mut self.0).split_first_chunk_mut() else {
            unreachable!("a session has fields of fixed lengths")
        };
        self.0 = rest;
        place
    }
}

/// The same, to be read.
struct Read<'a>(&'a [u8]);

impl<'a> Read<'a> {
    fn next<const N: usize>(&mut self) -> &'a [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            unreachable!("a session has fields of fixed lengths")
        };
        self.0 = rest;
        field
    }
}

fn write(id: SessionId, session: &Session, local: Option<Local>, out: &mut [u8; HANDED_LEN]) {
    let mut fields = Fields(out);
    fields.put(&id.0.to_be_bytes());
    fields.put(&session.device.credential.id.0);
    fields.put(&session.device.credential.fingerprint.0);
    fields.put(&[Offer::new(session.profile(), Transport::Datagram).encode()]);
    session.keys.hand_over(fields.place());
    fields.put(&session.hello);
    fields.put(&session.fresh.to_be_bytes());
    fields.put(&session.next_down.to_be_bytes());
    fields.put(&session.window.to_bytes());
    fields.put(&session.stored.to_bytes());
    fields.put(&[u8::from(session.credit.is_some())]);
    fields.put(&session.credit.unwrap_or(0).to_be_bytes());
    fields.put(&session.lifetime_min.to_be_bytes());
    fields.put(&session.created_us.to_be_bytes());
    fields.put(&session.last_record_us.to_be_bytes());
    let peer = match session.path {
        Path::Datagram(peer) => Some(peer.address()),
        Path::Stream(_) => None,
    };
    fields.put(&[u8::from(peer.is_some())]);
    let (ip, scope) = match peer {
        Some(SocketAddr::V6(v6)) => (*v6.ip(), v6.scope_id()),
        Some(SocketAddr::V4(v4)) => (v4.ip().to_ipv6_mapped(), 0),
        None => (Ipv6Addr::UNSPECIFIED, 0),
    };
    fields.put(&ip.octets());
    fields.put(&scope.to_be_bytes());
    fields.put(&peer.map_or(0, |peer| peer.port()).to_be_bytes());
    fields.put(&[u8::from(local.is_some())]);
    let (ip, interface) = local.unwrap_or((Ipv6Addr::UNSPECIFIED, 0));
    fields.put(&ip.octets());
    fields.put(&interface.to_be_bytes());
    assert!(fields.0.is_empty(), "a session is handed over in all of its bytes");
}

/// Which session these bytes are of.
fn id_of(bytes: &[u8; HANDED_LEN]) -> SessionId {
    SessionId(u32::from_be_bytes(*Read(bytes).next()))
}

impl<E: Engine, S: Sink> Shard<E, S> {
    /// Ends what is not handed over. Once it is `late`, those that still lack an answer are told so: a reading that
    /// storage has not answered for must not be taken for one that came.
    pub(super) fn settle_all(&mut self, late: bool) {
        let lacks = |session: &Session| session.pending.is_some() || session.unanswered > 0;
        let lacking = self.sessions.iter().filter(|(_, session)| lacks(session));
        let lacking: Vec<_> =
            lacking.map(|(id, session)| (id, session.pending.is_some())).collect();
        self.is_settled = self.acking.is_empty();
        for (id, pending) in lacking {
            if pending {
                self.end(id, Gone::Stopped);
            } else if late {
                self.close_session(id, Gone::Stopped);
            } else {
                self.is_settled = false;
            }
        }
    }

    /// What a shard that has finished hands over: [`HANDED_LEN`] bytes for each session, which it forgets. `local` says
    /// which of this machine's addresses a number stands for.
    pub fn hand_over(&mut self, local: impl Fn(Via) -> Option<Local>) -> Zeroizing<Vec<u8>> {
        let sessions = std::mem::take(&mut self.sessions);
        if !self.hands_over || !self.is_settled {
            return Zeroizing::default();
        }
        // At once, since a list that grows leaves copies of its keys behind.
        let mut bytes = Zeroizing::new(vec![0; sessions.len() * HANDED_LEN]);
        let (places, _) = bytes.as_chunks_mut();
        for ((id, session), place) in sessions.iter().zip(places) {
            let local = match session.path {
                Path::Datagram(peer) => local(peer.via()),
                Path::Stream(_) => None,
            };
            write(id, session, local, place);
        }
        drop(sessions);
        scrub_stack();
        bytes
    }

    /// Takes over the sessions among these that are its own by their slots; the others are those of other shards. `via`
    /// gives one of this machine's addresses a number. To be called before the shard's first turn.
    pub fn take_over(
        &mut self,
        now: Now,
        bytes: &[u8],
        mut via: impl FnMut(Local) -> Via,
    ) -> TakenOver {
        let (index, shards) = (self.settings.index, self.settings.shards);
        let mut counts = TakenOver::default();
        let (all, _) = bytes.as_chunks::<HANDED_LEN>();
        for handed in all {
            // A record's slot is its session's first byte.
            let [slot, ..] = id_of(handed).0.to_be_bytes();
            if shard_of(&[0, slot], shards) != Some(index) {
                continue;
            }
            let room = self.sessions.len() < self.settings.sessions_max;
            let taken = room && self.take(now, handed, &mut via).is_some();
            counts.taken += usize::from(taken);
            counts.left += usize::from(!taken);
        }
        scrub_stack();
        counts
    }

    fn take(
        &mut self,
        now: Now,
        handed: &[u8; HANDED_LEN],
        via: &mut impl FnMut(Local) -> Via,
    ) -> Option<()> {
        let mut fields = Read(handed);
        let id = SessionId(u32::from_be_bytes(*fields.next()));
        let device = self.directory.look_up(&DeviceId(*fields.next()))?;
        let now_s = i64::try_from(now.unix_ms / 1_000).unwrap_or(i64::MAX);
        // Another credential under the same id is another device.
        if device.credential.fingerprint.0 != *fields.next::<32>() || !device.may_connect(now_s) {
            return None;
        }
        let [offer] = *fields.next();
        let profile = Offer::decode(offer).ok()?.profile;
        let keys = SessionKeys::taken_over(fields.next());
        let hello: [u8; HELLO_NAME] = *fields.next();
        let fresh = u64::from_be_bytes(*fields.next());
        let next_down = u32::from_be_bytes(*fields.next()).checked_add(SKIPPED)?;
        let window = ReplayWindow::from_bytes(fields.next());
        let stored = ReplayWindow::from_bytes(fields.next());
        let [limited] = *fields.next();
        let credit = u32::from_be_bytes(*fields.next());
        let lifetime_min = u16::from_be_bytes(*fields.next());
        let created_us = u64::from_be_bytes(*fields.next());
        let last_record_us = u64::from_be_bytes(*fields.next());
        let [is_datagram] = *fields.next();
        let (ip, scope) = (Ipv6Addr::from(*fields.next()), u32::from_be_bytes(*fields.next()));
        let port = u16::from_be_bytes(*fields.next());
        let [has_local] = *fields.next();
        let local = (Ipv6Addr::from(*fields.next()), u32::from_be_bytes(*fields.next()));
        let path = if is_datagram == 1 {
            let via = if has_local == 1 { via(local) } else { Via::default() };
            let address = match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
                None => SocketAddrV6::new(ip, port, 0, scope).into(),
            };
            Path::Datagram(Peer::new(address, via))
        } else {
            Path::Stream(NO_STREAM)
        };
        let silent_us = now.mono_us.checked_sub(last_record_us)?;
        now.mono_us.checked_sub(created_us)?;
        let lifetime_us = u64::from(self.settings.lifetime_s) * 1_000_000;
        let session = Box::new(Session {
            device,
            profile: Session::place_of(profile),
            lifetime_min,
            keys,
            hello,
            fresh,
            next_down,
            window,
            stored,
            unanswered: 0,
            path,
            stream: None,
            credit: (limited == 1).then_some(credit),
            pending: None,
            created_us,
            last_record_us,
        });
        let over = silent_us >= self.settings.idle_us || session.is_over(now.mono_us, lifetime_us);
        (!over && self.sessions.take_over(id, session)).then_some(())
    }
}
