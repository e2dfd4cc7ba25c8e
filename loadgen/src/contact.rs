//! First contact: one device opens a channel and closes it, so that what is wrong with all of them is said at once.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use duet_device::fast::Fast;
use duet_device::{Device, Event, Volatile};
use duet_protocol::profile::Transport;
use duet_protocol::wire::MESSAGE_MAX;

use crate::fleet::Member;

/// How long a gateway may take: three transmissions of a HELLO.
const LIMIT: Duration = Duration::from_secs(5);
/// How long one wait for a message is at most.
const WAIT: Duration = Duration::from_millis(50);

enum Line {
    Datagrams(UdpSocket),
    Stream(TcpStream, Vec<u8>),
}

enum Heard {
    Message(usize),
    Nothing,
    Ended,
}

/// Has a device open a channel and close it. Its counter and its seed move on.
///
/// # Errors
/// When nobody listens, or nobody answers this device; the message says what to check.
pub fn check(member: &mut Member, gateway: SocketAddr) -> Result<()> {
    let config = member.next_config();
    member.config.fresh += 1_000;
    let name = member.name.clone();
    let transport = config.transport;
    let mut line = Line::open(transport, gateway)?;
    let mut device: Device<_> = Device::new(Fast::seeded(member.seed), Volatile, config)?;
    member.next_seed();
    let began = Instant::now();
    let now = || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    device.open(0);
    let mut bytes = [0; MESSAGE_MAX];
    while began.elapsed() < LIMIT {
        while let Some(len) = device.poll_transmit(now(), &mut bytes) {
            line.send(&bytes[..len]);
        }
        match line.hear(&mut bytes, gateway)? {
            Heard::Nothing => {}
            Heard::Ended => {
                bail!("{gateway} closed the connection of {name} without a word: {REFUSED}")
            }
            Heard::Message(len) => {
                if device.handle_message(now(), &mut bytes[..len]) == Ok(Event::Opened) {
                    device.close();
                    if let Some(len) = device.poll_transmit(now(), &mut bytes) {
                        line.send(&bytes[..len]);
                    }
                    return Ok(());
                }
            }
        }
    }
    bail!(
        "{gateway} did not answer {name} for {} s: {REFUSED}, or a firewall lets nothing through",
        LIMIT.as_secs()
    )
}

/// What a gateway does not tell, for anybody could be asking.
const REFUSED: &str = "the gateway's certificate here is not the one that it runs with, or the device is \
    not registered there with this credential (the gateway counts which in duet_drops_total)";

fn nobody(transport: &str, gateway: SocketAddr) -> String {
    format!(
        "nobody listens at {gateway} ({transport}): is the gateway running, and is this what it printed as `listening`?"
    )
}

impl Line {
    fn open(transport: Transport, gateway: SocketAddr) -> Result<Self> {
        Ok(match transport {
            Transport::Datagram => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
                    .context("no UDP socket for a device: too few descriptors or ports")?;
                socket.connect(gateway).with_context(|| format!("no way to {gateway}"))?;
                socket.set_read_timeout(Some(WAIT))?;
                Self::Datagrams(socket)
            }
            Transport::Stream => {
                let stream = TcpStream::connect_timeout(&gateway, LIMIT).map_err(|error| {
                    let advice = match error.kind() {
                        ErrorKind::ConnectionRefused => nobody("TCP", gateway),
                        _ => format!("no TCP connection to {gateway}"),
                    };
                    anyhow::Error::new(error).context(advice)
                })?;
                stream.set_read_timeout(Some(WAIT))?;
                Self::Stream(stream, Vec::new())
            }
        })
    }

    /// What cannot be sent shows when nothing is heard.
    fn send(&mut self, message: &[u8]) {
        match self {
            Self::Datagrams(socket) => drop(socket.send(message)),
            Self::Stream(stream, _) => {
                let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
                drop(stream.write_all(&[&length, message].concat()));
            }
        }
    }

    fn hear(&mut self, bytes: &mut [u8], gateway: SocketAddr) -> Result<Heard> {
        let quiet = [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted];
        match self {
            Self::Datagrams(socket) => match socket.recv(bytes) {
                Ok(len) => Ok(Heard::Message(len)),
                Err(error) if quiet.contains(&error.kind()) => Ok(Heard::Nothing),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    Err(anyhow::Error::new(error).context(nobody("UDP", gateway)))
                }
                Err(error) => Err(error).with_context(|| gateway.to_string()),
            },
            Self::Stream(stream, kept) => {
                let mut more = [0; MESSAGE_MAX];
                match stream.read(&mut more) {
                    Ok(0) => return Ok(Heard::Ended),
                    Ok(len) => kept.extend_from_slice(&more[..len]),
                    Err(error) if quiet.contains(&error.kind()) => return Ok(Heard::Nothing),
                    Err(_) => return Ok(Heard::Ended),
                }
                let Some((length, rest)) = kept.split_first_chunk::<2>() else {
                    return Ok(Heard::Nothing);
                };
                let len = usize::from(u16::from_be_bytes(*length));
                let (Some(message), Some(out)) = (rest.get(..len), bytes.get_mut(..len)) else {
                    return Ok(Heard::Nothing);
                };
                out.copy_from_slice(message);
                kept.drain(..2 + len);
                Ok(Heard::Message(len))
            }
        }
    }
}
