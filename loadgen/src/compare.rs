//! Four against two: the same job by Duet and by TLS, in one interleaved run.
//!
//! The job: from power on to the first reading confirmed, with both sides' identity proven. Every
//! figure of the report says whether it was measured or derived.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use duet_protocol::device::Device;
use duet_protocol::ec::Software;
use duet_protocol::profile::{KeySource, Mode, Profile, Transfer, Transport};
use duet_protocol::wire::MESSAGE_MAX;
use serde::Serialize;

use crate::exchange::{Both, Seen, TCP_OVERHEAD, UDP_OVERHEAD, Watched, Way, segments, thread_cpu};
use crate::fleet::Member;
use crate::local::{LocalGateway, Wanted};
use crate::relay::Relay;
use crate::tls::{Parties, Server, Version};

/// The reading that every job sends.
const READING: &[u8] = &[0x42; 64];
/// What one job may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What was seen of one job.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// From power on to the confirmation.
    pub first_confirmed: Duration,
    /// Processor time of the device's thread.
    pub device_cpu: Duration,
    /// Until the device holds the session's keys.
    pub handshake: Seen,
    /// Until the confirmation.
    pub all: Seen,
    /// TCP segments, as the kernel counted them; `None` over UDP.
    pub packets: Option<Both>,
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Jobs of each contender without delay, for processor time.
    pub repetitions: usize,
    /// Jobs of each contender at each round-trip time.
    pub samples: usize,
    /// Round-trip times, milliseconds.
    pub round_trips_ms: Vec<u64>,
}

impl Settings {
    /// A few seconds.
    #[must_use]
    pub fn quick() -> Self {
        Self { repetitions: 30, samples: 1, round_trips_ms: vec![50, 200, 600] }
    }

    /// Up to a minute.
    #[must_use]
    pub fn full() -> Self {
        Self { repetitions: 300, samples: 9, round_trips_ms: vec![50, 200, 600] }
    }

    /// The devices that must be registered for this.
    #[must_use]
    pub fn wanted(&self) -> Vec<Wanted> {
        let each = 1 + self.samples * self.round_trips_ms.len();
        let mut wanted = Vec::new();
        for (place, (_, profile, transport)) in DUET.iter().enumerate() {
            for number in 0..each {
                let name = format!("compare-{place}-{number}");
                wanted.push(Wanted { name, profile: *profile, transport: *transport });
            }
        }
        wanted
    }
}

const CERTIFICATE: Mode = Mode::Certificate;
const DUET: [(&str, Profile, Transport); 5] = [
    (
        "Duet registered-id/ephemeral, UDP",
        Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral },
        Transport::Datagram,
    ),
    (
        "Duet certificate/ephemeral, UDP",
        Profile { mode: CERTIFICATE, source: KeySource::Ephemeral },
        Transport::Datagram,
    ),
    (
        "Duet certificate/xor-key, UDP",
        Profile { mode: CERTIFICATE, source: KeySource::Xor(Transfer::Key) },
        Transport::Datagram,
    ),
    (
        "Duet certificate/client-key, UDP",
        Profile { mode: CERTIFICATE, source: KeySource::Client(Transfer::Key) },
        Transport::Datagram,
    ),
    (
        "Duet certificate/ephemeral, TCP",
        Profile { mode: CERTIFICATE, source: KeySource::Ephemeral },
        Transport::Stream,
    ),
];

/// One contender's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Who.
    pub name: &'static str,
    /// Measured: changes of direction at the device's socket until it holds the keys.
    pub handshake_flights: u32,
    /// Derived: half of all changes of direction until the confirmation, and one for TCP's own
    /// handshake.
    pub round_trips: u32,
    /// Measured: TCP segments or datagrams until the confirmation.
    pub packets: Both,
    /// Measured: bytes inside UDP or TCP until the confirmation.
    pub payload_bytes: Both,
    /// Derived: the same with IPv4 and UDP or TCP headers (28 and 52 bytes a packet).
    pub ip_bytes: Both,
    /// Measured: median processor time of the device, µs.
    pub device_cpu_us: f64,
    /// Measured: mean processor time of the server's process or threads, µs.
    pub server_cpu_us: f64,
    /// Measured without delay, median, ms.
    pub first_confirmed_ms: f64,
    /// Time to the first confirmed reading at each round-trip time: median, ms. Measured through
    /// a link that delays; for TCP one round trip is added (derived), since the link cannot delay
    /// the kernel's own handshake.
    pub delayed_ms: Vec<Delayed>,
}

/// One round-trip time's figure.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Delayed {
    /// The link's round-trip time, ms.
    pub round_trip_ms: u64,
    /// Median time to the first confirmed reading, ms.
    pub first_confirmed_ms: f64,
}

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this structure.
    pub schema: u32,
    /// Jobs of each contender without delay.
    pub repetitions: usize,
    /// Jobs of each contender at each round-trip time.
    pub samples: usize,
    /// The contenders.
    pub rows: Vec<Row>,
}

enum Peer {
    Duet { transport: Transport, members: Vec<Member> },
    Tls { parties: Parties, server: Server },
}

struct Contender {
    name: &'static str,
    peer: Peer,
    jobs: Vec<Job>,
    server_cpu: Duration,
}

/// Runs everything. `members` are the devices of [`Settings::wanted`], in that order.
///
/// # Errors
/// When a job cannot be done.
pub fn run(gateway: &LocalGateway, members: Vec<Member>, settings: &Settings) -> Result<Report> {
    let each = 1 + settings.samples * settings.round_trips_ms.len();
    ensure!(members.len() == each * DUET.len(), "the devices are not those that were wanted");
    let mut members = members.into_iter();
    let mut contenders = Vec::new();
    for (name, _, transport) in DUET {
        let members = members.by_ref().take(each).collect();
        let peer = Peer::Duet { transport, members };
        contenders.push(Contender { name, peer, jobs: Vec::new(), server_cpu: Duration::ZERO });
    }
    for (name, version) in
        [("TLS 1.3 mutual, TCP", Version::V13), ("TLS 1.2 mutual, TCP", Version::V12)]
    {
        let parties = Parties::new(version)?;
        let server = Server::start(&parties)?;
        let peer = Peer::Tls { parties, server };
        contenders.push(Contender { name, peer, jobs: Vec::new(), server_cpu: Duration::ZERO });
    }
    // The first job of each is not counted: caches, tables and page faults of the start.
    for round in 0..=settings.repetitions {
        for contender in &mut contenders {
            contender.repeat(gateway)?;
            if round == 0 {
                contender.forget();
            }
        }
    }
    let mut rows = Vec::new();
    for contender in contenders {
        rows.push(contender.finish(gateway, settings)?);
    }
    let Settings { repetitions, samples, .. } = *settings;
    Ok(Report { schema: 1, repetitions, samples, rows })
}

impl Contender {
    /// One job without delay, and what it cost the server.
    fn repeat(&mut self, gateway: &LocalGateway) -> Result<()> {
        let before = gateway.cpu()?;
        match &mut self.peer {
            Peer::Duet { transport, members } => {
                let first = members.first_mut().context("no device")?;
                self.jobs.push(duet_job(first, gateway.address, *transport)?);
                self.server_cpu += gateway.cpu()?.saturating_sub(before);
            }
            Peer::Tls { parties, server } => {
                self.jobs.push(parties.job(server.address, READING)?);
                self.server_cpu = server.cpu();
            }
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.jobs.clear();
        self.server_cpu = Duration::ZERO;
        if let Peer::Tls { server, .. } = &self.peer {
            server.forget_cpu();
        }
    }

    fn finish(mut self, gateway: &LocalGateway, settings: &Settings) -> Result<Row> {
        let last = *self.jobs.last().context("no job was run")?;
        let over_tcp = last.packets.is_some();
        let delayed_ms = self.delayed(gateway, settings, over_tcp)?;
        let packets = last.packets.unwrap_or(last.all.messages);
        let overhead = if over_tcp { TCP_OVERHEAD } else { UDP_OVERHEAD };
        let payload = last.all.payload;
        let jobs = u32::try_from(self.jobs.len())?;
        Ok(Row {
            name: self.name,
            handshake_flights: last.handshake.flights,
            round_trips: last.all.flights.div_ceil(2) + u32::from(over_tcp),
            packets,
            payload_bytes: payload,
            ip_bytes: Both {
                up: payload.up + packets.up * overhead,
                down: payload.down + packets.down * overhead,
            },
            device_cpu_us: median(self.jobs.iter().map(|job| job.device_cpu)) * 1e3,
            server_cpu_us: self.server_cpu.as_secs_f64() * 1e6 / f64::from(jobs),
            first_confirmed_ms: median(self.jobs.iter().map(|job| job.first_confirmed)),
            delayed_ms,
        })
    }

    /// All round-trip times and samples at once: they wait, they do not compute.
    fn delayed(
        &mut self,
        gateway: &LocalGateway,
        settings: &Settings,
        over_tcp: bool,
    ) -> Result<Vec<Delayed>> {
        let to = match &self.peer {
            Peer::Duet { .. } => gateway.address,
            Peer::Tls { server, .. } => server.address,
        };
        let mut links = Vec::new();
        for round_trip_ms in &settings.round_trips_ms {
            let one_way = Duration::from_millis(*round_trip_ms) / 2;
            let link = if over_tcp {
                Relay::streams(to, one_way)?
            } else {
                Relay::datagrams(to, one_way)?
            };
            links.push((*round_trip_ms, link));
        }
        let times = std::thread::scope(|scope| {
            let mut running = Vec::new();
            match &mut self.peer {
                Peer::Duet { transport, members } => {
                    let transport = *transport;
                    let samples = members[1..].chunks_mut(settings.samples);
                    for ((_, link), members) in links.iter().zip(samples) {
                        let to = link.address;
                        let jobs = members
                            .iter_mut()
                            .map(|member| scope.spawn(move || duet_job(member, to, transport)));
                        running.push(jobs.collect::<Vec<_>>());
                    }
                }
                Peer::Tls { parties, .. } => {
                    let parties = &*parties;
                    for (_, link) in &links {
                        let to = link.address;
                        let jobs = (0..settings.samples)
                            .map(|_| scope.spawn(move || parties.job(to, READING)));
                        running.push(jobs.collect::<Vec<_>>());
                    }
                }
            }
            let mut times = Vec::new();
            for jobs in running {
                let mut done = Vec::new();
                for job in jobs {
                    let job = job.join().map_err(|_| anyhow::anyhow!("a job panicked"))??;
                    done.push(job.first_confirmed);
                }
                times.push(median(done.into_iter()));
            }
            anyhow::Ok(times)
        })?;
        let derived = |ms: u64| if over_tcp { Duration::from_millis(ms) } else { Duration::ZERO };
        Ok(links
            .iter()
            .zip(times)
            .map(|((round_trip_ms, _), time)| Delayed {
                round_trip_ms: *round_trip_ms,
                first_confirmed_ms: time + derived(*round_trip_ms).as_secs_f64() * 1e3,
            })
            .collect())
    }
}

/// In milliseconds.
fn median(times: impl Iterator<Item = Duration>) -> f64 {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

enum Socket {
    Udp(UdpSocket, Seen),
    Tcp(Watched),
}

impl Socket {
    fn open(to: SocketAddr, transport: Transport) -> Result<Self> {
        let timeout = Some(Duration::from_millis(5));
        Ok(match transport {
            Transport::Datagram => {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                socket.connect(to)?;
                socket.set_read_timeout(timeout)?;
                Self::Udp(socket, Seen::default())
            }
            Transport::Stream => {
                let stream = TcpStream::connect(to).context("cannot connect")?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(timeout)?;
                Self::Tcp(Watched { stream, seen: Seen::default() })
            }
        })
    }

    fn seen(&self) -> Seen {
        match self {
            Self::Udp(_, seen) => *seen,
            Self::Tcp(watched) => watched.seen,
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<()> {
        match self {
            Self::Udp(socket, seen) => {
                seen.note(Way::Up, message.len());
                socket.send(message)?;
            }
            Self::Tcp(watched) => {
                let len = u16::try_from(message.len())?.to_be_bytes();
                watched.write_all(&[&len, message].concat())?;
            }
        }
        Ok(())
    }

    /// The next message, or nothing for a while. `kept` holds what is left of a stream.
    fn receive(&mut self, kept: &mut Vec<u8>, out: &mut [u8]) -> Result<Option<usize>> {
        match self {
            Self::Udp(socket, seen) => match socket.recv(out) {
                Ok(len) => {
                    seen.note(Way::Down, len);
                    Ok(Some(len))
                }
                Err(_) => Ok(None),
            },
            Self::Tcp(watched) => {
                let mut buffer = [0; 2_048];
                if let Ok(len) = watched.read(&mut buffer) {
                    ensure!(len > 0, "the gateway closed the stream");
                    kept.extend_from_slice(&buffer[..len]);
                }
                let Some((&len, rest)) = kept.split_first_chunk() else { return Ok(None) };
                let len = usize::from(u16::from_be_bytes(len));
                let Some(message) = rest.get(..len) else { return Ok(None) };
                out[..len].copy_from_slice(message);
                kept.drain(..len + 2);
                Ok(Some(len))
            }
        }
    }
}

/// The device's job by Duet.
fn duet_job(member: &mut Member, to: SocketAddr, transport: Transport) -> Result<Job> {
    let mut device = Device::<Software>::new(Software, member.next_config(), member.next_seed());
    let (cpu, began) = (thread_cpu(), Instant::now());
    let now = || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut socket = Socket::open(to, transport)?;
    device.send_reading(0, 1, READING, true)?;
    device.open(0);
    let (mut out, mut kept) = ([0; MESSAGE_MAX], Vec::new());
    let mut handshake = None;
    while began.elapsed() < LIMIT {
        while let Some(len) = device.poll_transmit(now(), &mut out) {
            socket.send(&out[..len])?;
        }
        if let Some(len) = socket.receive(&mut kept, &mut out)? {
            // What is not for us is not answered.
            let _ = device.handle_message(now(), &mut out[..len]);
        }
        if device.is_open() && handshake.is_none() {
            handshake = Some(socket.seen());
        }
        if device.poll_confirmed().is_some() {
            let job = Job {
                first_confirmed: began.elapsed(),
                device_cpu: thread_cpu().saturating_sub(cpu),
                handshake: handshake.context("confirmed without a session")?,
                all: socket.seen(),
                packets: match &socket {
                    Socket::Udp(..) => None,
                    Socket::Tcp(watched) => segments(&watched.stream),
                },
            };
            device.close();
            if let Some(len) = device.poll_transmit(now(), &mut out) {
                socket.send(&out[..len])?;
            }
            return Ok(job);
        }
    }
    bail!("{}: no confirmation within {LIMIT:?}", member.name)
}
