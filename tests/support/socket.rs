//! A device's socket, for tests that drive real devices.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use duet_protocol::profile::Transport;

pub(crate) enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Socket {
    /// Connects; a receive waits for at most `patience`.
    pub(crate) fn connect(to: SocketAddr, transport: Transport, patience: Duration) -> Self {
        match transport {
            Transport::Datagram => {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.connect(to).unwrap();
                socket.set_read_timeout(Some(patience)).unwrap();
                Self::Udp(socket)
            }
            Transport::Stream => {
                let stream = TcpStream::connect(to).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(patience)).unwrap();
                Self::Tcp(stream)
            }
        }
    }

    /// Sends one message.
    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).map(drop),
            Self::Tcp(stream) => {
                let length = u16::try_from(message.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length, message].concat())
            }
        }
    }

    /// Receives one message; its length.
    pub(crate) fn receive(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.recv(out),
            Self::Tcp(stream) => {
                let mut length = [0; 2];
                stream.read_exact(&mut length)?;
                let length = usize::from(u16::from_be_bytes(length));
                stream.read_exact(&mut out[..length])?;
                Ok(length)
            }
        }
    }
}
