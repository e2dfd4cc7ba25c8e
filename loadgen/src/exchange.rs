//! What crossed one connection: flights, bytes and packets, counted at the device's socket.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

/// Bytes of an IPv4 and a UDP header.
pub const UDP_OVERHEAD: u64 = 20 + 8;
/// Bytes of an IPv4 and a TCP header with the timestamp option that Linux sends.
pub const TCP_OVERHEAD: u64 = 20 + 20 + 12;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From the device.
    Up,
    /// To the device.
    Down,
}

/// A count for each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Both {
    /// From the device.
    pub up: u64,
    /// To the device.
    pub down: u64,
}

impl Both {
    /// Adds to one way.
    pub const fn add(&mut self, way: Way, count: u64) {
        match way {
            Way::Up => self.up += count,
            Way::Down => self.down += count,
        }
    }
}

/// What was seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    last: Option<Way>,
    /// Changes of direction, the first message included.
    pub flights: u32,
    /// Payload bytes of UDP or TCP.
    pub payload: Both,
    /// Writes and reads for TCP, datagrams for UDP.
    pub messages: Both,
}

impl Seen {
    /// Notes a message.
    pub fn note(&mut self, way: Way, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if self.last != Some(way) {
            self.flights += 1;
            self.last = Some(way);
        }
        self.payload.add(way, bytes as u64);
        self.messages.add(way, 1);
    }
}

/// A TCP connection that is watched.
pub struct Watched {
    /// The connection.
    pub stream: TcpStream,
    /// What crossed it.
    pub seen: Seen,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.stream.read(buffer)?;
        self.seen.note(Way::Down, len);
        Ok(len)
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.stream.write(bytes)?;
        self.seen.note(Way::Up, len);
        Ok(len)
    }

    // Left out, each of TLS's records would go in a segment of its own.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let len = self.stream.write_vectored(parts)?;
        self.seen.note(Way::Up, len);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Segments that the kernel sent and received on a connection, SYN and pure ACKs included.
#[must_use]
pub fn segments(stream: &TcpStream) -> Option<Both> {
    crate::tcp_info::segments(stream.as_fd())
}

/// Processor time of the calling thread.
#[must_use]
pub fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_at_once_is_one_message() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut watched = Watched { stream, seen: Seen::default() };
        let parts = [IoSlice::new(b"one"), IoSlice::new(b"two"), IoSlice::new(b"three")];
        assert_eq!(watched.write_vectored(&parts).unwrap(), 11);
        assert_eq!(watched.seen.messages, Both { up: 1, down: 0 });
        assert_eq!(watched.seen.payload, Both { up: 11, down: 0 });
    }

    #[test]
    fn a_flight_is_a_change_of_direction() {
        let mut seen = Seen::default();
        for (way, bytes) in
            [(Way::Up, 5), (Way::Up, 5), (Way::Down, 0), (Way::Down, 7), (Way::Up, 1)]
        {
            seen.note(way, bytes);
        }
        assert_eq!(seen.flights, 3);
        assert_eq!(seen.payload, Both { up: 11, down: 7 });
    }
}
