//! A TCP connection for each device, made when it first has something to say and again when it broke. Each comes from an
//! address of its own, so the ports of one address are no limit.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use duet_protocol::wire::MESSAGE_MAX;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

use crate::hosts::host_address;

/// Bytes of the length in front of a message.
const LENGTH: usize = 2;
/// What one read takes.
const READ: usize = 4_096;

struct Stream {
    tcp: TcpStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Whether it is in the queue of those that may have something to read.
    queued: bool,
}

pub(super) struct Streams {
    poll: Poll,
    events: Events,
    gateway: SocketAddr,
    first: usize,
    streams: Vec<Option<Stream>>,
    readable: VecDeque<usize>,
}

impl Streams {
    pub(super) fn new(gateway: SocketAddr, first: usize, devices: usize) -> Result<Self> {
        let poll = Poll::new().context("cannot make an epoll instance")?;
        let mut streams = Vec::new();
        streams.resize_with(devices, || None);
        let (events, readable) = (Events::with_capacity(1_024), VecDeque::new());
        Ok(Self { poll, events, gateway, first, streams, readable })
    }

    fn connect(&self, device: usize) -> Result<Stream> {
        let context = || {
            format!(
                "no TCP connection for device {}: too few descriptors (`ulimit -n`) or ports",
                self.first + device
            )
        };
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.set_tcp_nodelay(true)?;
            let host = u32::try_from(self.first + device).unwrap_or(u32::MAX);
            socket.bind(&SocketAddr::from((host_address(host), 0)).into())?;
            match socket.connect(&self.gateway.into()) {
                // EINPROGRESS has no portable name.
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
                other => other?,
            }
            let mut tcp = TcpStream::from_std(socket.into());
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut tcp, Token(device), interest)?;
            Ok::<_, std::io::Error>(tcp)
        };
        let tcp = connect().with_context(context)?;
        Ok(Stream { tcp, incoming: Vec::new(), outgoing: Vec::new(), queued: false })
    }

    pub(super) fn send(&mut self, device: usize, message: &[u8]) -> Result<()> {
        let Ok(length) = u16::try_from(message.len()) else { return Ok(()) };
        if self.streams[device].is_none() {
            self.streams[device] = Some(self.connect(device)?);
        }
        let Some(stream) = &mut self.streams[device] else { return Ok(()) };
        stream.outgoing.extend_from_slice(&length.to_be_bytes());
        stream.outgoing.extend_from_slice(message);
        self.flush(device);
        Ok(())
    }

    /// Writes what the kernel takes; the rest goes when it has room. A broken connection is dropped with what it held.
    fn flush(&mut self, device: usize) {
        let Some(stream) = &mut self.streams[device] else { return };
        while !stream.outgoing.is_empty() {
            match stream.tcp.write(&stream.outgoing) {
                Ok(len) => drop(stream.outgoing.drain(..len)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) =>
                {
                    return;
                }
                Err(_) => {
                    self.streams[device] = None;
                    return;
                }
            }
        }
        // A hundred thousand empty buffers of one message each would be worth having back.
        stream.outgoing = Vec::new();
    }

    pub(super) fn wait(&mut self, time: Duration) -> Result<()> {
        let time = if self.readable.is_empty() { time } else { Duration::ZERO };
        match self.poll.poll(&mut self.events, Some(time)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other.context("cannot wait for the crowd's connections")?,
        }
        let mut writable = Vec::new();
        for event in &self.events {
            let device = event.token().0;
            let Some(stream) = &mut self.streams[device] else { continue };
            if event.is_writable() && !stream.outgoing.is_empty() {
                writable.push(device);
            }
            if (event.is_readable() || event.is_error()) && !stream.queued {
                stream.queued = true;
                self.readable.push_back(device);
            }
        }
        writable.into_iter().for_each(|device| self.flush(device));
        Ok(())
    }

    pub(super) fn recv(&mut self, bytes: &mut [u8]) -> Option<(usize, usize)> {
        while let Some(&device) = self.readable.front() {
            if let Some(stream) = &mut self.streams[device] {
                match stream.next_message(bytes) {
                    Next::Message(len) => return Some((device, len)),
                    Next::Nothing => stream.queued = false,
                    Next::Ended => self.streams[device] = None,
                }
            }
            self.readable.pop_front();
        }
        None
    }

    pub(super) fn hang_up(&mut self) {
        self.readable.clear();
        self.streams.iter_mut().for_each(|stream| *stream = None);
    }
}

enum Next {
    Message(usize),
    Nothing,
    Ended,
}

impl Stream {
    fn next_message(&mut self, bytes: &mut [u8]) -> Next {
        loop {
            if let Some((length, rest)) = self.incoming.split_first_chunk::<LENGTH>() {
                let len = usize::from(u16::from_be_bytes(*length));
                if len == 0 || len > MESSAGE_MAX.min(bytes.len()) {
                    return Next::Ended;
                }
                if let Some(message) = rest.get(..len) {
                    bytes[..len].copy_from_slice(message);
                    self.incoming.drain(..LENGTH + len);
                    return Next::Message(len);
                }
            }
            let mut more = [0; READ];
            match self.tcp.read(&mut more) {
                Ok(0) => return Next::Ended,
                Ok(len) => self.incoming.extend_from_slice(&more[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) =>
                {
                    if self.incoming.is_empty() {
                        self.incoming = Vec::new();
                    }
                    return Next::Nothing;
                }
                Err(_) => return Next::Ended,
            }
        }
    }
}
