//! What carries the messages of one thread's devices, known by their places: one UDP socket for all, or a TCP connection
//! for each.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use duet_protocol::profile::Transport;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::streams::Streams;
use crate::hosts::Hosts;

pub(super) enum Road {
    Datagrams { hosts: Hosts, gateway: SocketAddr },
    Streams(Streams),
}

impl Road {
    /// A road for so many devices, the first of which has the number `first` among all.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub(super) fn new(
        transport: Transport,
        gateway: SocketAddr,
        first: usize,
        devices: usize,
    ) -> Result<Self> {
        Ok(match transport {
            Transport::Datagram => {
                let hosts = Hosts::bind().context("no UDP socket for the devices")?;
                Self::Datagrams { hosts, gateway }
            }
            Transport::Stream => Self::Streams(Streams::new(gateway, first, devices)?),
        })
    }

    /// Sends a message of a device. What a network would lose is lost: a full buffer, a connection that broke.
    ///
    /// # Errors
    /// When this machine has no connection to give.
    pub(super) fn send(&mut self, device: usize, message: &[u8]) -> Result<()> {
        match self {
            Self::Datagrams { hosts, gateway } => {
                let host = u32::try_from(device).unwrap_or(u32::MAX);
                let _ = hosts.send(host, *gateway, message);
                Ok(())
            }
            Self::Streams(streams) => streams.send(device, message),
        }
    }

    /// Waits until something comes, at most so long.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn wait(&mut self, time: Duration) -> Result<()> {
        match self {
            Self::Datagrams { hosts, .. } => {
                let time = Timespec::try_from(time).unwrap_or_default();
                match poll(&mut [PollFd::new(&*hosts, PollFlags::IN)], Some(&time)) {
                    Err(rustix::io::Errno::INTR) | Ok(_) => Ok(()),
                    Err(error) => Err(error).context("cannot wait for the crowd's socket"),
                }
            }
            Self::Streams(streams) => streams.wait(time),
        }
    }

    /// The next message that has come: for which device, and its length.
    pub(super) fn recv(&mut self, bytes: &mut [u8]) -> Option<(usize, usize)> {
        match self {
            Self::Datagrams { hosts, .. } => {
                hosts.recv(bytes).ok().map(|(host, len)| (host as usize, len))
            }
            Self::Streams(streams) => streams.recv(bytes),
        }
    }

    /// How many messages were lost so far because this program's socket was full: a stream loses nothing.
    pub(super) fn overflowed(&self) -> u32 {
        match self {
            Self::Datagrams { hosts, .. } => hosts.overflowed(),
            Self::Streams(_) => 0,
        }
    }

    /// Ends all connections: who connects anew does so with a new one.
    pub(super) fn hang_up(&mut self) {
        if let Self::Streams(streams) = self {
            streams.hang_up();
        }
    }
}
