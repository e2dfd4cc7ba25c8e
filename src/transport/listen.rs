//! The sockets that a gateway listens on: which port, which family, in which order, with which options.
//!
//! Owns what must be true of the group of sockets before any shard runs. Must not receive anything.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::error::{TransportError, Warning};
use super::kept::KeptSockets;
use super::settings::Settings;
use super::{socket, steering};

/// How long to wait for a port that is taken. The sockets of a killed gateway stay bound until the kernel has taken its
/// rings apart: milliseconds, or a second and more on a machine that is busy.
const BIND_PATIENCE: Duration = Duration::from_secs(3);

/// How often to look for a port that is free for UDP and TCP alike.
const PORT_TRIES: usize = 64;

/// Connections the kernel may hold before they are accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;

/// One shard's sockets.
#[derive(Debug)]
pub(super) struct ShardSockets {
    pub(super) datagrams: Socket,
    pub(super) hellos: Socket,
    pub(super) listener: Socket,
}

/// The sockets of all shards, in shard order, and where they listen: those that were `kept`, or new ones.
pub(super) fn open_all(
    settings: &Settings,
    kept: Option<KeptSockets>,
    warnings: &mut Vec<Warning>,
) -> Result<(Vec<ShardSockets>, SocketAddr), TransportError> {
    let listen = usable(settings.listen, warnings);
    let (sockets, local) = match kept {
        Some(KeptSockets { shards, local }) => (shards, local),
        None => bind_all(listen, settings.shards)?,
    };
    let failed = |step| move |source| TransportError::Socket { step, address: local, source };
    let mut granted = usize::MAX;
    for own in &sockets {
        for socket in [&own.datagrams, &own.hellos] {
            let got = receive_buffer(socket, settings.receive_buffer);
            granted = granted.min(got.map_err(failed("size the receive buffer of"))?);
        }
    }
    if granted < settings.receive_buffer {
        let asked = settings.receive_buffer;
        warnings.push(Warning::ReceiveBuffer { asked, effective: granted });
    }
    let program = steering::program(settings.shards, settings.hello);
    if let Err(error) = socket::steer(&sockets[0].datagrams, &program) {
        warnings.push(Warning::Steering(error));
    }
    if local.ip().is_unspecified() {
        let mut all = sockets.iter().flat_map(|own| [&own.datagrams, &own.hellos]);
        let told = all.try_for_each(|socket| tell_local_address(socket, local));
        warnings.extend(told.err().map(Warning::LocalAddress));
    }
    for own in &sockets {
        own.listener.listen(BACKLOG).map_err(failed("listen on"))?;
    }
    Ok((sockets, local))
}

/// Binds new sockets for so many shards, in the order that the steering program counts.
fn bind_all(
    listen: SocketAddr,
    shards: usize,
) -> Result<(Vec<ShardSockets>, SocketAddr), TransportError> {
    let (first, local) = match listen.port() {
        0 => bind_free_port(listen)?,
        _ => (bind_alone(listen, BIND_PATIENCE)?, listen),
    };
    let failed = |step| move |source| TransportError::Socket { step, address: local, source };
    let join = |kind, step| open(local, kind, true).map_err(failed(step));
    let mut pairs = vec![first];
    for _ in 1..shards {
        let datagrams = join(Type::DGRAM, "bind UDP to")?;
        pairs.push((datagrams, join(Type::STREAM, "bind TCP to")?));
    }
    // The steering program counts sockets in the order of binding: those for hellos come after all others.
    let mut sockets = Vec::with_capacity(pairs.len());
    for (datagrams, listener) in pairs {
        let hellos = join(Type::DGRAM, "bind UDP to")?;
        sockets.push(ShardSockets { datagrams, hellos, listener });
    }
    Ok((sockets, local))
}

/// Where to listen: `[::]` serves both families, and without IPv6 the one that is left.
pub(super) fn usable(listen: SocketAddr, warnings: &mut Vec<Warning>) -> SocketAddr {
    if !listen.is_ipv6() || !listen.ip().is_unspecified() {
        return listen;
    }
    match Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)) {
        Err(source) if source.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let instead = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port());
            warnings.push(Warning::NoIpv6 { asked: listen, instead, source });
            instead
        }
        _ => listen,
    }
}

/// Asks for a receive buffer of `size` bytes; what the kernel grants.
fn receive_buffer(socket: &Socket, size: usize) -> io::Result<usize> {
    // Beyond net.core.rmem_max where the process may administer the network.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, size).is_err() {
        socket.set_recv_buffer_size(size)?;
    }
    // The kernel reports twice what it grants.
    Ok(socket.recv_buffer_size()? / 2)
}

/// Has each datagram say to which of this machine's addresses it was sent, and lets answers leave from there.
fn tell_local_address(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    if local.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    // On an IPv6 socket, too: of a broadcast it names the address that may answer.
    setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
    if local.is_ipv6() {
        // Of IPv6, unlike IPv4, the kernel takes no source else that stands on no interface: one of a network that is routed to
        // this machine as a whole, or an anycast address.
        socket.set_freebind_v6(true)?;
    }
    Ok(())
}

/// A UDP socket and a TCP socket on one port.
type Pair = (Socket, Socket);

/// Finds a port that is free for both. TCP chooses: an automatic TCP port is never one that others share, while an
/// automatic UDP port may be another group's.
fn bind_free_port(listen: SocketAddr) -> Result<(Pair, SocketAddr), TransportError> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        let failed = |source| TransportError::Socket { step: "bind", address: listen, source };
        let listener = open(listen, Type::STREAM, true).map_err(failed)?;
        let chosen = listener.local_addr().map_err(failed)?.as_socket().unwrap_or(listen);
        let alone = open(chosen, Type::DGRAM, false);
        let pair = alone.map(drop).and_then(|()| open(chosen, Type::DGRAM, true));
        match pair {
            Ok(datagrams) => return Ok(((datagrams, listener), chosen)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(failed(error)),
        }
    }
    Err(TransportError::Socket { step: "find a free port for", address: listen, source: last })
}

/// The first sockets on a port that is to be ours alone.
fn bind_alone(address: SocketAddr, patience: Duration) -> Result<Pair, TransportError> {
    let bind = |kind, step| {
        let end = Instant::now() + patience;
        loop {
            // Alone first: sharing is for our own shards, and the kernel would let another gateway of
            // the same user join them and take half of the devices.
            match open(address, kind, false).map(drop).and_then(|()| open(address, kind, true)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => {
                    return result.map_err(|source| TransportError::Socket {
                        step,
                        address,
                        source,
                    });
                }
            }
        }
    };
    Ok((bind(Type::DGRAM, "bind UDP to")?, bind(Type::STREAM, "bind TCP to")?))
}

/// A bound socket; `shared` with the other shards' sockets on the same port.
fn open(address: SocketAddr, kind: Type, shared: bool) -> io::Result<Socket> {
    let stream = kind == Type::STREAM;
    let protocol = if stream { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if stream {
        socket.set_reuse_address(true)?; // connections of an earlier run may linger
        socket.set_tcp_nodelay(true)?; // inherited by what is accepted
    }
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the sockets of a gateway that was killed on a busy machine.
    #[test]
    fn a_port_that_becomes_free_is_taken() {
        // A port that only UDP is in the way of: old TCP connections may linger on an arbitrary one.
        let (taken, listen) = std::iter::repeat_with(|| {
            let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let listen = taken.local_addr().unwrap();
            (taken, listen)
        })
        .find(|(_, listen)| open(*listen, Type::STREAM, true).is_ok())
        .unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            drop(taken);
        });
        let settings = Settings { listen, ..Settings::default() };
        open_all(&settings, None, &mut Vec::new()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn the_smallest_buffer_is_reported() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let asked = usize::try_from(i32::MAX).unwrap();
        let settings = Settings { listen, receive_buffer: asked, ..Settings::default() };
        let mut warnings = Vec::new();
        let (sockets, _) = open_all(&settings, None, &mut warnings).unwrap();
        let granted = sockets[0].hellos.recv_buffer_size().unwrap() / 2;
        let said = warnings.iter().any(|warning| {
            matches!(warning, Warning::ReceiveBuffer { effective, .. } if *effective == granted)
        });
        assert_eq!(said, granted < asked, "{warnings:?}");
    }
}
