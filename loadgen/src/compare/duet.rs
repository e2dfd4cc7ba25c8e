//! The device's job by Duet, with the real device's state machine.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use duet_device::fast::Fast;
use duet_device::{Crypto, Device, Early, Software, Volatile};
use duet_protocol::profile::Transport;
use duet_protocol::wire::MESSAGE_MAX;

use crate::exchange::{Seen, Watched, Way, segments, thread_cpu};
use crate::fleet::Member;

use super::contender::Way as How;
use super::{Job, READING, Road};

enum Socket {
    Udp(UdpSocket, Seen),
    Tcp(Watched, Vec<u8>),
}

impl Socket {
    fn open(road: &Road<'_>, transport: Transport) -> Result<(Self, SocketAddrV4)> {
        Ok(match transport {
            Transport::Datagram => {
                let (socket, local) = road.datagrams()?;
                (Self::Udp(socket, Seen::default()), local)
            }
            Transport::Stream => {
                let (stream, local) = road.stream()?;
                (Self::Tcp(Watched { stream, seen: Seen::default() }, Vec::new()), local)
            }
        })
    }

    fn seen(&self) -> Seen {
        match self {
            Self::Udp(_, seen) => *seen,
            Self::Tcp(watched, _) => watched.seen,
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<()> {
        match self {
            Self::Udp(socket, seen) => {
                seen.note(Way::Up, message.len());
                socket.send(message)?;
            }
            Self::Tcp(watched, _) => {
                let len = u16::try_from(message.len())?.to_be_bytes();
                watched.write_all(&[&len, message].concat())?;
            }
        }
        Ok(())
    }

    /// The next message, or nothing within the time.
    fn receive(&mut self, wait: Duration, out: &mut [u8]) -> Result<Option<usize>> {
        let quiet = |kind: ErrorKind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
        // A wait of zero would be one without end.
        let wait = Some(wait.max(Duration::from_micros(100)));
        match self {
            Self::Udp(socket, seen) => {
                socket.set_read_timeout(wait)?;
                match socket.recv(out) {
                    Ok(len) => {
                        seen.note(Way::Down, len);
                        Ok(Some(len))
                    }
                    Err(error) if quiet(error.kind()) => Ok(None),
                    Err(error) => Err(error).context("nobody listens at the gateway's UDP port"),
                }
            }
            Self::Tcp(watched, kept) => loop {
                if let Some((&len, rest)) = kept.split_first_chunk()
                    && let len = usize::from(u16::from_be_bytes(len))
                    && let Some(message) = rest.get(..len)
                {
                    ensure!(len <= out.len(), "a message over the limit came");
                    out[..len].copy_from_slice(message);
                    kept.drain(..len + 2);
                    return Ok(Some(len));
                }
                watched.stream.set_read_timeout(wait)?;
                let mut buffer = [0; 2_048];
                match watched.read(&mut buffer) {
                    Ok(len) => {
                        ensure!(len > 0, "the gateway closed the stream");
                        kept.extend_from_slice(&buffer[..len]);
                    }
                    Err(error) if quiet(error.kind()) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
        }
    }

    fn into_stream(self) -> Option<TcpStream> {
        match self {
            Self::Udp(..) => None,
            Self::Tcp(watched, _) => Some(watched.stream),
        }
    }
}

/// One life of the device, from power on to its first confirmed reading.
///
/// # Errors
/// When that cannot be had within the road's time.
pub(super) fn job(
    member: &mut Member,
    transport: Transport,
    how: How,
    road: &Road<'_>,
) -> Result<Job> {
    let (config, seed) = (member.next_config(), member.next_seed());
    let name = &member.name;
    match how {
        How::Plain => live(Device::seeded(config, seed)?, name, transport, road),
        How::Fast => {
            let device: Device<_> = Device::new(Fast::seeded(seed), Volatile, config)?;
            live(device, name, transport, road)
        }
        How::Early => {
            let mut device: Device<Software> = Device::seeded(config, seed)?;
            device.set_early(if road.keep { Early::Stay } else { Early::Leave });
            live(device, name, transport, road)
        }
    }
}

fn live(
    mut device: Device<impl Crypto>,
    name: &str,
    transport: Transport,
    road: &Road<'_>,
) -> Result<Job> {
    let (cpu, began) = (thread_cpu(), Instant::now());
    let now = || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (mut socket, local) = Socket::open(road, transport)?;
    device.send_reading(0, 1, READING, true)?;
    device.open(0);
    let mut out = [0; MESSAGE_MAX];
    let mut handshake = None;
    loop {
        while let Some(len) = device.poll_transmit(now(), &mut out) {
            socket.send(&out[..len])?;
        }
        let left = road.left().with_context(|| name.to_owned())?;
        let due_us = device.poll_timeout().map_or(u64::MAX, |due| due.saturating_sub(now()));
        let wait = left.min(Duration::from_micros(due_us));
        if let Some(len) = socket.receive(wait, &mut out)? {
            // What is not for us is not answered.
            let _ = device.handle_message(now(), &mut out[..len]);
        }
        if device.is_open() && handshake.is_none() {
            handshake = Some(socket.seen());
        }
        if device.poll_confirmed().is_none() {
            continue;
        }
        let (confirmed, all) = (Instant::now(), socket.seen());
        // A reading inside HELLO is confirmed by ACCEPT: then the handshake is all there is.
        let handshake = handshake.unwrap_or(all);
        let device_cpu = thread_cpu().saturating_sub(cpu);
        let segments = match &socket {
            Socket::Udp(..) => None,
            Socket::Tcp(watched, _) => segments(&watched.stream),
        };
        if !road.keep {
            device.close();
            if let Some(len) = device.poll_transmit(now(), &mut out) {
                socket.send(&out[..len])?;
            }
        }
        return Ok(Job {
            began,
            confirmed,
            device_cpu,
            handshake,
            all,
            segments,
            local,
            stream: socket.into_stream(),
        });
    }
}
