//! A fleet of real devices in one process: the protocol crate's state machines, each with a
//! socket of its own, driven by a few threads.
//!
//! Every thread owns its devices alone. What a device learns is durable goes into the ledger, so
//! that whoever runs the fleet can look for it at the gateway.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use duet_device::{Config, Device, Early, Event, Software};
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::reading::ReadingId;
use duet_protocol::wire::{Kind, MESSAGE_MAX};
use mio::net::{TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Token};

/// One device of the fleet.
pub struct Member {
    /// Its registered name.
    pub name: String,
    /// What its state machine is built from.
    pub config: Config,
    /// The seed of its randomness.
    pub seed: [u8; 32],
}

impl Member {
    /// The configuration of another life of this device: its counter goes on.
    pub fn next_config(&mut self) -> Config {
        let Config { identity, gateway, profile, transport, fresh } = &mut self.config;
        *fresh += 1_000;
        let (identity, gateway) = (identity.clone(), *gateway);
        Config { identity, gateway, profile: *profile, transport: *transport, fresh: *fresh }
    }

    /// Another life's seed.
    pub fn next_seed(&mut self) -> [u8; 32] {
        for byte in &mut self.seed {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
        self.seed
    }
}

/// What the fleet does.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The gateway.
    pub gateway: SocketAddr,
    /// Readings a device sends and sees confirmed before it closes.
    pub readings: u16,
    /// Over which time the devices begin, evenly.
    pub ramp: Duration,
    /// How long the whole may take.
    pub limit: Duration,
    /// Threads.
    pub threads: usize,
}

/// A reading that the gateway confirmed.
#[derive(Clone, Debug)]
pub struct Confirmed {
    /// The device's name.
    pub device: String,
    /// What names it for ever among its device's readings.
    pub id: ReadingId,
    /// The reading's channel.
    pub channel: u16,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// How it went for one device.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name.
    pub device: String,
    /// Its profile.
    pub profile: Profile,
    /// Its transport.
    pub transport: Transport,
    /// From the first byte out to the first confirmed reading.
    pub first_confirmed: Option<Duration>,
    /// HELLO and ACCEPT messages that crossed its socket.
    pub handshake_messages: u32,
    /// Their bytes, without IP, UDP and TCP.
    pub handshake_bytes: u32,
    /// What was confirmed.
    pub confirmed: Vec<Confirmed>,
    /// Whether it did its whole job and closed.
    pub complete: bool,
}

/// Runs the whole fleet; one outcome a member, in their order.
///
/// # Errors
/// When sockets or threads cannot be had.
pub fn run(members: Vec<Member>, job: Job) -> Result<Vec<Outcome>> {
    let share = members.len().div_ceil(job.threads.max(1)).max(1);
    let mut members = members.into_iter();
    let mut threads = Vec::new();
    loop {
        let part: Vec<_> = members.by_ref().take(share).collect();
        if part.is_empty() {
            break;
        }
        threads.push(std::thread::spawn(move || run_part(part, job)));
    }
    let mut outcomes = Vec::new();
    for thread in threads {
        let part = thread.join().map_err(|_| anyhow::anyhow!("a fleet thread panicked"))?;
        outcomes.extend(part?);
    }
    Ok(outcomes)
}

enum Socket {
    Udp(UdpSocket),
    Tcp { stream: TcpStream, incoming: Vec<u8>, outgoing: Vec<u8>, connected: bool },
}

struct Active {
    device: Device<Software>,
    socket: Socket,
    outcome: Outcome,
    sent: u16,
    began: Option<u64>,
    /// Payloads by token, until they are confirmed.
    tokens: Vec<(u32, u16, Vec<u8>)>,
    closing: bool,
}

fn run_part(members: Vec<Member>, job: Job) -> Result<Vec<Outcome>> {
    let mut poll = Poll::new().context("cannot make an epoll instance")?;
    let mut active = Vec::new();
    let count = u32::try_from(members.len()).context("too many devices for one thread")?;
    let step = job.ramp / count.max(1);
    for (index, member) in members.into_iter().enumerate() {
        let begin = step * u32::try_from(index)?;
        active.push(Active::start(member, index, begin, &poll, job)?);
    }
    let clock = Instant::now();
    let mut events = Events::with_capacity(1_024);
    let mut left = active.len();
    while left > 0 && clock.elapsed() < job.limit {
        let now = micros(clock);
        let next = active
            .iter()
            .filter(|one| !one.outcome.complete)
            .filter_map(|one| one.device.poll_timeout())
            .min();
        let wait = next.map_or(50_000, |due| due.saturating_sub(now)).min(50_000);
        match poll.poll(&mut events, Some(Duration::from_micros(wait))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other.context("cannot wait for the fleet's sockets")?,
        }
        let now = micros(clock);
        for event in &events {
            active[event.token().0].receive(now)?;
        }
        left = 0;
        for one in &mut active {
            one.advance(now, job)?;
            left += usize::from(!one.outcome.complete);
        }
    }
    Ok(active.into_iter().map(|one| one.outcome).collect())
}

fn micros(clock: Instant) -> u64 {
    u64::try_from(clock.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Active {
    fn start(member: Member, index: usize, begin: Duration, poll: &Poll, job: Job) -> Result<Self> {
        let Member { name, config, seed } = member;
        let (profile, transport) = (config.profile, config.transport);
        let socket = match transport {
            Transport::Datagram => {
                let any = if job.gateway.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let mut socket = UdpSocket::bind(any.parse()?)
                    .context("no UDP socket for a device: too few descriptors or ports")?;
                socket.connect(job.gateway)?;
                poll.registry().register(&mut socket, Token(index), Interest::READABLE)?;
                Socket::Udp(socket)
            }
            Transport::Stream => {
                let mut stream = TcpStream::connect(job.gateway)
                    .context("no TCP connection for a device: too few descriptors or ports")?;
                let interest = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut stream, Token(index), interest)?;
                let (incoming, outgoing) = (Vec::new(), Vec::new());
                Socket::Tcp { stream, incoming, outgoing, connected: false }
            }
        };
        let mut device = Device::seeded(config, seed)?;
        device.set_early(Early::Stay);
        device.open(u64::try_from(begin.as_micros())?);
        let outcome = Outcome {
            device: name,
            profile,
            transport,
            first_confirmed: None,
            handshake_messages: 0,
            handshake_bytes: 0,
            confirmed: Vec::new(),
            complete: false,
        };
        let tokens = Vec::new();
        Ok(Self { device, socket, outcome, sent: 0, began: None, tokens, closing: false })
    }

    fn count(&mut self, message: &[u8]) {
        if matches!(Kind::of(message), Ok(Kind::Hello | Kind::Accept)) {
            self.outcome.handshake_messages += 1;
            self.outcome.handshake_bytes += u32::try_from(message.len()).unwrap_or(u32::MAX);
        }
    }

    fn receive(&mut self, now: u64) -> Result<()> {
        let mut buffer = [0; MESSAGE_MAX];
        loop {
            let len = match &mut self.socket {
                Socket::Udp(socket) => match socket.recv(&mut buffer) {
                    Ok(len) => len,
                    Err(_) => return Ok(()),
                },
                Socket::Tcp { stream, incoming, connected, .. } => {
                    *connected = true;
                    if let Some((&length, rest)) = incoming.split_first_chunk() {
                        let length = usize::from(u16::from_be_bytes(length));
                        anyhow::ensure!(length <= MESSAGE_MAX, "a message over the limit came");
                        if let Some(message) = rest.get(..length) {
                            buffer[..length].copy_from_slice(message);
                            incoming.drain(..length + 2);
                            length
                        } else if !read_more(stream, incoming) {
                            return Ok(());
                        } else {
                            continue;
                        }
                    } else if !read_more(stream, incoming) {
                        return Ok(());
                    } else {
                        continue;
                    }
                }
            };
            self.count(&buffer[..len]);
            let message = &mut buffer[..len];
            if let Ok(Event::Command { command, .. }) = self.device.handle_message(now, message) {
                self.device.send_result(command, 0, b"done");
            }
        }
    }

    /// Moves this device's job on: readings, transmissions, the close at the end.
    fn advance(&mut self, now: u64, job: Job) -> Result<()> {
        if self.outcome.complete {
            return Ok(());
        }
        while let Some(done) = self.device.poll_confirmed() {
            let Some(place) = self.tokens.iter().position(|kept| kept.0 == done.token) else {
                continue;
            };
            let (_, channel, payload) = self.tokens.swap_remove(place);
            let began = self.began.unwrap_or(now);
            self.outcome.first_confirmed.get_or_insert(Duration::from_micros(now - began));
            self.outcome.confirmed.push(Confirmed {
                device: self.outcome.device.clone(),
                id: done.id,
                channel,
                payload,
            });
        }
        // The first one waits for the HELLO that carries it.
        while self.sent < job.readings && (self.sent == 0 || self.began.is_some()) {
            let channel = self.sent;
            let payload = format!("{} {channel}", self.outcome.device).into_bytes();
            match self.device.send_reading(now, channel, &payload, true) {
                Ok(token) => self.tokens.push((token, channel, payload)),
                Err(_) => break,
            }
            self.sent += 1;
        }
        if !self.closing && self.outcome.confirmed.len() == usize::from(job.readings) {
            self.closing = true;
            self.device.close();
        }
        let mut buffer = [0; MESSAGE_MAX];
        while !matches!(self.socket, Socket::Tcp { connected: false, .. })
            && let Some(len) = self.device.poll_transmit(now, &mut buffer)
        {
            self.began.get_or_insert(now);
            self.count(&buffer[..len]);
            match &mut self.socket {
                // A full send buffer loses the datagram, as a network would.
                Socket::Udp(socket) => drop(socket.send(&buffer[..len])),
                Socket::Tcp { outgoing, .. } => {
                    let length = u16::try_from(len)?.to_be_bytes();
                    outgoing.extend_from_slice(&length);
                    outgoing.extend_from_slice(&buffer[..len]);
                }
            }
        }
        let flushed = match &mut self.socket {
            Socket::Tcp { stream, outgoing, .. } => {
                if let Ok(len) = stream.write(outgoing) {
                    outgoing.drain(..len);
                }
                outgoing.is_empty()
            }
            Socket::Udp(_) => true,
        };
        self.outcome.complete = self.closing && !self.device.is_open() && flushed;
        Ok(())
    }
}

/// Whether anything came.
fn read_more(stream: &mut TcpStream, incoming: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4_096];
    match stream.read(&mut buffer) {
        Ok(len) => {
            incoming.extend_from_slice(&buffer[..len]);
            len > 0
        }
        Err(_) => false,
    }
}
