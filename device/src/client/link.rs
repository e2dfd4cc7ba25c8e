//! A socket to the gateway. A stream that ends is connected anew, after a pause that grows.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket},
    string::String,
    time::Duration,
    vec::Vec,
};

use duet_protocol::{profile::Transport, wire::MESSAGE_MAX};

use super::ClientError;

/// The first and the longest pause before a stream is connected anew, µs (R118).
const PAUSE_US: u64 = 1_000_000;
const PAUSE_MAX_US: u64 = 30_000_000;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// What came.
pub(super) enum Heard {
    Message(usize),
    Nothing,
    /// The stream has ended.
    Ended,
}

enum Socket {
    Datagrams(UdpSocket),
    Stream { stream: Option<TcpStream>, kept: Vec<u8>, connected_once: bool },
}

pub(super) struct Link {
    address: String,
    socket: Socket,
    /// The stream was connected anew, and the device does not know it yet.
    renewed: bool,
    ready_at: u64,
    pause_us: u64,
}

fn resolve(address: &str) -> std::io::Result<Vec<SocketAddr>> {
    let found: Vec<_> = address.to_socket_addrs()?.collect();
    if found.is_empty() {
        return Err(ErrorKind::AddrNotAvailable.into());
    }
    Ok(found)
}

impl Link {
    pub(super) fn new(transport: Transport, address: String) -> Result<Self, ClientError> {
        let open = || match transport {
            Transport::Datagram => {
                let to = resolve(&address)?;
                let any = if to[0].is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(&to[..])?;
                Ok(Socket::Datagrams(socket))
            }
            Transport::Stream => {
                Ok(Socket::Stream { stream: None, kept: Vec::new(), connected_once: false })
            }
        };
        match open() {
            Ok(socket) => {
                Ok(Self { address, socket, renewed: false, ready_at: 0, pause_us: PAUSE_US })
            }
            Err(source) => Err(ClientError::Network { address, source }),
        }
    }

    pub(super) const fn address(&self) -> &String {
        &self.address
    }

    /// When a message can be sent, µs.
    pub(super) const fn ready_at(&self) -> u64 {
        self.ready_at
    }

    /// Whether there was a stream, and is none.
    pub(super) const fn has_ended(&self) -> bool {
        matches!(self.socket, Socket::Stream { stream: None, connected_once: true, .. })
    }

    /// Whether a message can be sent now; connects where that is needed.
    pub(super) fn is_ready(&mut self, now_us: u64) -> bool {
        let Socket::Stream { stream, kept, connected_once } = &mut self.socket else { return true };
        if stream.is_some() {
            return true;
        }
        if now_us < self.ready_at {
            return false;
        }
        let connect = |to: SocketAddr| TcpStream::connect_timeout(&to, CONNECT);
        let made = resolve(&self.address).ok().and_then(|all| {
            let made = all.into_iter().find_map(|to| connect(to).ok())?;
            made.set_nodelay(true).ok()?;
            Some(made)
        });
        kept.clear();
        match made {
            Some(made) => {
                *stream = Some(made);
                self.renewed = *connected_once;
                *connected_once = true;
                true
            }
            None => {
                self.wait(now_us);
                false
            }
        }
    }

    /// A pause from the half of it to the whole, and twice as long the next time.
    fn wait(&mut self, now_us: u64) {
        let mut random = [0; 4];
        // Without chance the pause is merely the same for all.
        let _ = getrandom::fill(&mut random);
        let half = self.pause_us / 2;
        let chance = u64::from(u32::from_ne_bytes(random)) % half.max(1);
        self.ready_at = now_us.saturating_add(half + chance);
        self.pause_us = (2 * self.pause_us).min(PAUSE_MAX_US);
    }

    /// Whether the stream is another one than the device thinks; told once.
    pub(super) const fn was_renewed(&mut self) -> bool {
        core::mem::replace(&mut self.renewed, false)
    }

    /// The stream has ended. A device that waits connects again after a pause.
    pub(super) fn note_end(&mut self, now_us: u64, waits: bool) {
        if waits {
            self.wait(now_us);
        }
    }

    /// Gives the stream up for another one.
    pub(super) fn renew(&mut self) {
        if let Socket::Stream { stream, .. } = &mut self.socket {
            *stream = None;
            self.ready_at = 0;
        }
    }

    /// Sends a message; what is lost on the way is sent again.
    pub(super) fn send(&mut self, message: &[u8]) {
        match &mut self.socket {
            Socket::Datagrams(socket) => {
                let _ = socket.send(message);
            }
            Socket::Stream { stream, .. } => {
                let Ok(len) = u16::try_from(message.len()) else { return };
                let mut framed = Vec::with_capacity(2 + message.len());
                framed.extend_from_slice(&len.to_be_bytes());
                framed.extend_from_slice(message);
                if let Some(open) = stream
                    && open.write_all(&framed).is_err()
                {
                    // The end is noticed where it is read.
                    let _ = open.shutdown(std::net::Shutdown::Both);
                }
            }
        }
    }

    /// The next message, or nothing within the time.
    pub(super) fn hear(&mut self, wait: Duration, out: &mut [u8; MESSAGE_MAX]) -> Heard {
        // A wait of zero would be one without end.
        let wait = wait.clamp(Duration::from_micros(100), Duration::from_secs(3_600));
        match &mut self.socket {
            Socket::Datagrams(socket) => {
                if socket.set_read_timeout(Some(wait)).is_err() {
                    return Heard::Nothing;
                }
                match socket.recv(out) {
                    Ok(len) => Heard::Message(len),
                    Err(error) => {
                        // Nobody listens there at the moment; that must not become a busy loop.
                        if error.kind() == ErrorKind::ConnectionRefused {
                            std::thread::sleep(wait.min(Duration::from_millis(20)));
                        }
                        Heard::Nothing
                    }
                }
            }
            Socket::Stream { stream: place, kept, .. } => {
                let Some(stream) = place else {
                    std::thread::sleep(wait);
                    return Heard::Nothing;
                };
                if let Some(heard) = take(kept, out) {
                    return heard;
                }
                let mut bytes = [0; 2 * MESSAGE_MAX];
                let read =
                    stream.set_read_timeout(Some(wait)).and_then(|()| stream.read(&mut bytes));
                match read {
                    Ok(len) if len > 0 => {
                        kept.extend_from_slice(&bytes[..len]);
                        // What came is authentic or not; that the gateway is there is enough.
                        self.pause_us = PAUSE_US;
                        take(kept, out).unwrap_or(Heard::Nothing)
                    }
                    // A signal that the program catches ends no stream.
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                        ) =>
                    {
                        Heard::Nothing
                    }
                    Ok(_) | Err(_) => {
                        *place = None;
                        Heard::Ended
                    }
                }
            }
        }
    }
}

/// The first whole message of what was kept.
fn take(kept: &mut Vec<u8>, out: &mut [u8; MESSAGE_MAX]) -> Option<Heard> {
    let (&len, rest) = kept.split_first_chunk()?;
    let len = usize::from(u16::from_be_bytes(len));
    let message = rest.get(..len)?;
    // A gateway sends nothing longer; what does is no gateway, and means nothing to the device.
    let fits = out.get_mut(..len).map(|out| out.copy_from_slice(message));
    kept.drain(..len + 2);
    Some(fits.map_or(Heard::Nothing, |()| Heard::Message(len)))
}
