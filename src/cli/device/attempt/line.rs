//! A socket to the gateway. Unlike the library's it tells of every failure, and does not connect again.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::time::Duration;

use duet_protocol::profile::Transport;
use duet_protocol::wire::MESSAGE_MAX;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// What came.
pub(super) enum Heard {
    Message(usize),
    Nothing,
    /// The stream has ended.
    End,
}

pub(super) enum Line {
    Datagrams(UdpSocket),
    Stream { stream: TcpStream, kept: Vec<u8> },
}

impl Line {
    pub(super) fn connect(transport: Transport, address: &str) -> io::Result<Self> {
        let found: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
        let mut failure = ErrorKind::AddrNotAvailable.into();
        for to in found {
            let line = match transport {
                Transport::Datagram => {
                    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let connected = UdpSocket::bind(any).and_then(|socket| {
                        socket.connect(to)?;
                        Ok(socket)
                    });
                    connected.map(Self::Datagrams)
                }
                Transport::Stream => TcpStream::connect_timeout(&to, CONNECT).and_then(|stream| {
                    stream.set_nodelay(true)?;
                    Ok(Self::Stream { stream, kept: Vec::new() })
                }),
            };
            match line {
                Ok(line) => return Ok(line),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Sends a message. What is lost is sent again; that nobody listens is noticed where it is heard.
    pub(super) fn send(&mut self, message: &[u8]) {
        match self {
            Self::Datagrams(socket) => {
                let _ = socket.send(message);
            }
            Self::Stream { stream, .. } => {
                let Ok(len) = u16::try_from(message.len()) else { return };
                let _ = stream.write_all(&[&len.to_be_bytes(), message].concat());
            }
        }
    }

    /// The next message within this time.
    pub(super) fn hear(
        &mut self,
        wait: Duration,
        out: &mut [u8; MESSAGE_MAX],
    ) -> io::Result<Heard> {
        // A wait of zero would be one without end.
        let wait = Some(wait.max(Duration::from_micros(100)));
        let late = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
        match self {
            Self::Datagrams(socket) => {
                socket.set_read_timeout(wait)?;
                match socket.recv(out) {
                    Ok(len) => Ok(Heard::Message(len)),
                    Err(error) if late(error.kind()) => Ok(Heard::Nothing),
                    Err(error) => Err(error),
                }
            }
            Self::Stream { stream, kept } => {
                if let Some(len) = take(kept, out) {
                    return Ok(Heard::Message(len));
                }
                stream.set_read_timeout(wait)?;
                let mut bytes = [0; 2 * MESSAGE_MAX];
                match stream.read(&mut bytes) {
                    Ok(0) => Ok(Heard::End),
                    Ok(len) => {
                        kept.extend_from_slice(&bytes[..len]);
                        Ok(take(kept, out).map_or(Heard::Nothing, Heard::Message))
                    }
                    Err(error) if late(error.kind()) => Ok(Heard::Nothing),
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Heard::End),
                    Err(error) => Err(error),
                }
            }
        }
    }
}

/// The first whole message of what was kept; one that is too long is passed over.
fn take(kept: &mut Vec<u8>, out: &mut [u8; MESSAGE_MAX]) -> Option<usize> {
    loop {
        let (&len, rest) = kept.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes(len));
        let message = rest.get(..len)?;
        let fits = out.get_mut(..len).map(|out| out.copy_from_slice(message)).is_some();
        kept.drain(..len + 2);
        if fits {
            return Some(len);
        }
    }
}
