//! One UDP socket that speaks from many loopback addresses: `127.0.0.0/8` is one machine's, so each
//! device of a fleet can have an address of its own without a descriptor of its own.
//!
//! A datagram's source is chosen, and its destination learnt, by `IP_PKTINFO` (ip(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};

/// The address of host 0; the low addresses are left to whoever else uses them.
const FIRST: u32 = u32::from_be_bytes([127, 16, 0, 1]);
/// How many hosts there can be.
pub const HOSTS_MAX: u32 = u32::from_be_bytes([127, 255, 255, 254]) - FIRST;
/// What the socket should hold for a crowd, bytes.
const BUFFER: usize = 64 << 20;

/// The address of a host.
#[must_use]
pub fn host_address(host: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + host % HOSTS_MAX)
}

/// The hosts of one socket, by their numbers.
#[derive(Debug)]
pub struct Hosts {
    socket: UdpSocket,
    /// Datagrams that the kernel dropped for want of room, as of the last one received.
    overflowed: AtomicU32,
}

impl Hosts {
    /// Binds one port on all addresses, non-blocking.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bind() -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        // Beyond net.core.rmem_max only where the process may administer the network.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
        }
        Ok(Self { socket, overflowed: AtomicU32::new(0) })
    }

    /// Sends a datagram from a host.
    ///
    /// # Errors
    /// What the kernel says; [`io::ErrorKind::Unsupported`] for an IPv6 destination.
    pub fn send(&self, host: u32, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let SocketAddr::V4(to) = to else { return Err(io::ErrorKind::Unsupported.into()) };
        let source = host_address(host);
        let info = in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
            ipi_addr: in_addr { s_addr: 0 },
        };
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        let to = SockaddrIn::from(to);
        let fd = self.socket.as_raw_fd();
        sendmsg(fd, &[IoSlice::new(bytes)], &control, MsgFlags::empty(), Some(&to))?;
        Ok(())
    }

    /// The next datagram for any host: which one, and its length.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none, or what the kernel says.
    pub fn recv(&self, bytes: &mut [u8]) -> io::Result<(u32, usize)> {
        let mut space = nix::cmsg_space!(in_pktinfo, u32);
        let mut parts = [IoSliceMut::new(bytes)];
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrIn>(fd, &mut parts, Some(&mut space), MsgFlags::empty())?;
        let mut host = None;
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    host = Some(u32::from(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())));
                }
                ControlMessageOwned::RxqOvfl(count) => {
                    self.overflowed.store(count, Ordering::Relaxed);
                }
                _ => {}
            }
        }
        let host = host.ok_or(io::ErrorKind::InvalidData)?;
        Ok((host.wrapping_sub(FIRST), message.bytes))
    }

    /// How many datagrams the kernel dropped so far because this socket was full, as it said with the last one
    /// received; starts anew after 2³².
    #[must_use]
    pub fn overflowed(&self) -> u32 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Where a host's datagrams come from.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn address(&self, host: u32) -> io::Result<SocketAddr> {
        let port = self.socket.local_addr()?.port();
        Ok(SocketAddrV4::new(host_address(host), port).into())
    }
}

impl AsFd for Hosts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_its_own_address_and_gets_its_own_answers() {
        let hosts = Hosts::bind().unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = server.local_addr().unwrap();
        let mut bytes = [0; 16];
        for host in [0, 1, 255, 256, 70_000, HOSTS_MAX - 1] {
            hosts.send(host, to, &host.to_be_bytes()).unwrap();
            let (len, from) = server.recv_from(&mut bytes).unwrap();
            assert_eq!(
                (&bytes[..len], from),
                (&host.to_be_bytes()[..], hosts.address(host).unwrap())
            );
            server.send_to(b"answer", from).unwrap();
            assert_eq!(hosts.recv(&mut bytes).unwrap(), (host, 6));
        }
        let nothing = hosts.recv(&mut bytes).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_overflows_is_counted() {
        let hosts = Hosts::bind().unwrap();
        setsockopt(&hosts.socket, sockopt::RcvBuf, &4_096).unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (to, mut bytes) = (hosts.address(0).unwrap(), [0; 1_024]);
        let mut got = 0;
        for _ in 0..2 {
            for _ in 0..100 {
                server.send_to(&[0; 1_024], to).unwrap();
            }
            got += std::iter::from_fn(|| hosts.recv(&mut bytes).ok()).count();
        }
        server.send_to(&[0], to).unwrap();
        hosts.recv(&mut bytes).unwrap();
        assert!(got < 200);
        assert_eq!(got + hosts.overflowed() as usize, 200);
    }
}
