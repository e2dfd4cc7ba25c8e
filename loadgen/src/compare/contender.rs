//! Who takes part, and how each of them does the job.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duet_protocol::profile::{KeySource, Mode, Profile, Transfer, Transport};

use crate::fleet::Member;
use crate::link::{Emulator, Speech};
use crate::local::LocalGateway;
use crate::tls::{Client, Host, Prepared, Server, Variant};

use super::{Job, Road, dtls, duet};

/// How a contender does the job.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Duet, in one profile.
    Duet(Profile, Transport, Way),
    /// TLS by rustls.
    Tls(Variant),
    /// DTLS 1.2 by OpenSSL.
    Dtls,
}

/// How Duet's device goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The reading is a record; portable code.
    Plain,
    /// The same with the curve and the cipher of the gateway.
    Fast,
    /// The reading is inside HELLO. The gateway has met the device before: that is not counted.
    Early,
}

/// One who can take part.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name on command lines and in files.
    pub key: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// How it does the job.
    pub kind: Kind,
}

const EPHEMERAL: Profile = Profile { mode: Mode::Certificate, source: KeySource::Ephemeral };
const XOR: Profile = Profile { mode: Mode::Certificate, source: KeySource::Xor(Transfer::Key) };
const CLIENT: Profile =
    Profile { mode: Mode::Certificate, source: KeySource::Client(Transfer::Key) };
const REGISTERED: Profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };

const fn entry(key: &'static str, name: &'static str, kind: Kind) -> Entry {
    Entry { key, name, kind }
}

const UDP: Transport = Transport::Datagram;
const TCP: Transport = Transport::Stream;

/// All who can take part.
pub const CATALOGUE: [Entry; 18] = [
    entry("ephemeral-udp", "Duet ephemeral, UDP", Kind::Duet(EPHEMERAL, UDP, Way::Plain)),
    entry("xor-udp", "Duet xor, UDP", Kind::Duet(XOR, UDP, Way::Plain)),
    entry("client-udp", "Duet client, UDP", Kind::Duet(CLIENT, UDP, Way::Plain)),
    entry("registered-id-udp", "Duet registered-id, UDP", Kind::Duet(REGISTERED, UDP, Way::Plain)),
    entry("ephemeral-tcp", "Duet ephemeral, TCP", Kind::Duet(EPHEMERAL, TCP, Way::Plain)),
    entry("xor-tcp", "Duet xor, TCP", Kind::Duet(XOR, TCP, Way::Plain)),
    entry("client-tcp", "Duet client, TCP", Kind::Duet(CLIENT, TCP, Way::Plain)),
    entry("registered-id-tcp", "Duet registered-id, TCP", Kind::Duet(REGISTERED, TCP, Way::Plain)),
    entry("early-udp", "Duet early reading, UDP", Kind::Duet(EPHEMERAL, UDP, Way::Early)),
    entry(
        "early-registered-id-udp",
        "Duet early reading, registered-id, UDP",
        Kind::Duet(REGISTERED, UDP, Way::Early),
    ),
    entry("early-tcp", "Duet early reading, TCP", Kind::Duet(EPHEMERAL, TCP, Way::Early)),
    entry(
        "fast-udp",
        "Duet ephemeral, UDP, the device with the gateway's curve",
        Kind::Duet(EPHEMERAL, UDP, Way::Fast),
    ),
    entry("tls12", "TLS 1.2 full, TCP", Kind::Tls(Variant::V12)),
    entry("tls13", "TLS 1.3 full, TCP", Kind::Tls(Variant::V13)),
    entry("tls13-raw-keys", "TLS 1.3 raw public keys, TCP", Kind::Tls(Variant::V13Raw)),
    entry("tls13-resumed", "TLS 1.3 resumed, TCP", Kind::Tls(Variant::V13Resumed)),
    entry("tls13-early-data", "TLS 1.3 resumed, 0-RTT, TCP", Kind::Tls(Variant::V13Early)),
    entry("dtls12", "DTLS 1.2 full, UDP", Kind::Dtls),
];

impl Entry {
    /// Whether it goes over TCP.
    #[must_use]
    pub const fn over_tcp(&self) -> bool {
        !matches!(self.kind, Kind::Dtls | Kind::Duet(_, Transport::Datagram, _))
    }

    /// Which protocol it is an example of.
    #[must_use]
    pub const fn family(&self) -> &'static str {
        match self.kind {
            Kind::Duet(..) => "duet",
            Kind::Tls(_) => "tls",
            Kind::Dtls => "dtls",
        }
    }
}

/// One who takes part.
pub(super) struct Contender {
    pub(super) entry: Entry,
    peer: Peer,
}

/// Devices, and how many of them, at the end, the gateway has met.
struct Members {
    all: Vec<Member>,
    strangers: usize,
}

enum Peer {
    Duet { transport: Transport, way: Way, members: Mutex<Members> },
    Tls { client: Box<Client>, server: Server },
    Dtls { keys: PathBuf },
}

impl Contender {
    /// Starts its server, except Duet's, which is the gateway, and DTLS's, of which each job has its own.
    pub(super) fn new(entry: Entry, members: Vec<Member>, host: &Host, dir: &Path) -> Result<Self> {
        let peer = match entry.kind {
            Kind::Duet(_, transport, way) => {
                ensure!(!members.is_empty(), "the devices are not those that were wanted");
                let strangers = if way == Way::Early { members.len() } else { 0 };
                let members = Mutex::new(Members { all: members, strangers });
                Peer::Duet { transport, way, members }
            }
            Kind::Tls(variant) => {
                let server = Server::start(dir, variant, host)?;
                Peer::Tls { client: Box::new(Client::new(dir, variant)?), server }
            }
            Kind::Dtls => {
                dtls::version().context(
                    "openssl: no such program: install it, or leave dtls12 out with --contenders",
                )?;
                Peer::Dtls { keys: dir.to_owned() }
            }
        };
        Ok(Self { entry, peer })
    }

    pub(super) const fn speech(&self) -> Speech {
        match self.entry.kind {
            Kind::Duet(..) => Speech::Duet,
            Kind::Tls(variant) => variant.speech(),
            Kind::Dtls => Speech::Dtls,
        }
    }

    /// Where its server listens; OpenSSL's has a new port for each job.
    pub(super) fn address(&self, gateway: &LocalGateway) -> SocketAddr {
        match &self.peer {
            Peer::Tls { server, .. } => server.address,
            Peer::Duet { .. } | Peer::Dtls { .. } => gateway.address,
        }
    }

    /// What has to be there before a job and is not counted, had over this road.
    pub(super) fn prepare(&self, before: &Road<'_>) -> Result<Option<Prepared>> {
        match &self.peer {
            Peer::Tls { client, .. } => client.prepare(before).map(Some),
            Peer::Duet { transport, members, .. } => {
                let lock = || members.lock().unwrap_or_else(PoisonError::into_inner);
                let stranger = {
                    let mut members = lock();
                    let Some(last) = members.strangers.checked_sub(1) else { return Ok(None) };
                    members.strangers = last;
                    members.all.remove(last)
                };
                let mut member = stranger;
                let met = duet::job(&mut member, *transport, Way::Plain, before);
                lock().all.push(member);
                met.map(|_| None)
            }
            Peer::Dtls { .. } => Ok(None),
        }
    }

    /// One job, and the server's processor time where the job alone knows it.
    pub(super) fn job(
        &self,
        link: Option<&Emulator>,
        prepared: Option<Prepared>,
        road: &Road<'_>,
    ) -> Result<(Job, Option<Duration>)> {
        match &self.peer {
            Peer::Duet { transport, way, members } => {
                let lock = || members.lock().unwrap_or_else(PoisonError::into_inner);
                let mut member = lock().all.pop().context("too few devices are registered")?;
                let job = duet::job(&mut member, *transport, *way, road);
                // A session that stays is its device's only one: to the end of the queue, behind those that the
                // gateway has not met.
                let mut members = lock();
                let place = members.strangers;
                members.all.insert(place, member);
                drop(members);
                job.map(|job| (job, None))
            }
            Peer::Tls { client, .. } => {
                let prepared = prepared.context("a device of TLS that is not prepared")?;
                client.job(&prepared, road).map(|job| (job, None))
            }
            Peer::Dtls { keys } => {
                let link = link.context("DTLS is compared over an emulated link only")?;
                dtls::job(keys, link, road).map(|(job, cpu)| (job, Some(cpu)))
            }
        }
    }

    /// The processor time that its server has used so far.
    pub(super) fn cpu(&self, gateway: &LocalGateway) -> Result<Duration> {
        match &self.peer {
            Peer::Tls { server, .. } => Ok(server.cpu()),
            Peer::Duet { .. } | Peer::Dtls { .. } => gateway.cpu(),
        }
    }

    /// The memory that its server occupies, if one server holds all sessions in a process of its own.
    pub(super) fn memory(&self, gateway: &LocalGateway) -> Option<u64> {
        match &self.peer {
            Peer::Tls { server, .. } => server.memory(),
            Peer::Duet { .. } => gateway.memory().ok(),
            Peer::Dtls { .. } => None,
        }
    }
}
