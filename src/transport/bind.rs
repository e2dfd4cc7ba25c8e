//! From settings to shards ready to run: sockets bound in shard order, steering attached, drivers made.
//!
//! Owns the order of those steps and the ends of the mailboxes. Must not receive anything.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::drivers::make_drivers;
use super::settings::Settings;
use super::{socket, steering};
use crate::driver::{Driver, DriverError, DriverKind, EventFd};
use crate::mailbox::{Receiver, Sender, mailbox};

/// A socket held by a ring of a killed process stays bound for some milliseconds.
const BIND_PATIENCE: Duration = Duration::from_millis(200);

/// How often to look for a port that is free for UDP and TCP alike.
const PORT_TRIES: usize = 64;

/// Connections the kernel may hold before they are accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;

/// The transport could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The settings contradict themselves.
    #[error("{0}")]
    Settings(&'static str),
    /// A socket could not be set up.
    #[error("cannot {step} {address}: {source}{}", remedy(source))]
    Socket {
        /// What was being done.
        step: &'static str,
        /// The address it was done for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No eventfd left.
    #[error("cannot make a shard's mailbox: {0}")]
    Mailbox(#[source] io::Error),
    /// No thread for the making of drivers.
    #[error(
        "cannot start a thread: {0}; raise the limit of processes (ulimit -u, LimitNPROC=, TasksMax=) or of memory"
    )]
    Thread(#[source] io::Error),
    /// The kernel refused `io_uring` or `epoll`.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// What to do about an address that cannot be had.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program listens there: end it, or choose another address (listen)"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; no interface of this machine has this address (listen)"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

/// Something works less well than asked, but works.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    /// The kernel caps the receive buffer.
    #[error(
        "UDP receive buffer is {effective} bytes instead of {asked}: raise net.core.rmem_max to keep bursts"
    )]
    ReceiveBuffer {
        /// The setting.
        asked: usize,
        /// What the kernel gives.
        effective: usize,
    },
    /// The kernel does not steer; shards do it themselves.
    #[error(
        "the kernel refuses the steering program ({0}): shards forward datagrams to each other"
    )]
    Steering(#[source] io::Error),
    /// `io_uring` is refused, and the shards use `epoll`.
    #[error("shards use epoll, which costs more processor time: {0}")]
    Fallback(#[source] DriverError),
    /// The rings accept any operation.
    #[error("the kernel refuses io_uring restrictions: the rings run without an allow-list")]
    Unrestricted,
    /// A thread runs on any core.
    #[error("shard {shard} cannot be pinned to core {core}: {source}")]
    NotPinned {
        /// The shard.
        shard: usize,
        /// The core asked for.
        core: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What travels through a shard's mailbox.
#[derive(Debug)]
pub(super) enum Parcel<M> {
    /// For the handler.
    Mail(M),
    /// A datagram that reached a shard that does not own it.
    Datagram { from: SocketAddr, bytes: Box<[u8]> },
    /// A stream accepted by a shard that does not own it.
    Stream(Moved),
}

/// A stream on its way to its owner, with what was read from it. No operation is in flight on it.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) fd: OwnedFd,
    pub(super) bytes: Vec<u8>,
    /// When the connection was accepted, µs.
    pub(super) since_us: u64,
}

/// Sends mail to one shard's handler, from any thread.
#[derive(Debug)]
pub struct MailSender<M>(Sender<Parcel<M>>);

impl<M> Clone for MailSender<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> MailSender<M> {
    /// Enqueues `mail` and wakes the shard if it sleeps.
    ///
    /// # Errors
    /// Returns the mail if the shard's mailbox is full.
    pub fn try_send(&self, mail: M) -> Result<(), M> {
        self.0.try_send(Parcel::Mail(mail)).map_err(|parcel| match parcel {
            Parcel::Mail(mail) => mail,
            _ => unreachable!("a mailbox returns what it was given"),
        })
    }
}

/// Ends the loops of all shards at once, whatever they are doing.
#[derive(Clone, Debug)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    events: Arc<[Arc<EventFd>]>,
}

impl Stop {
    /// Asks every shard to leave its loop now. For an orderly end let the handlers finish instead.
    pub fn stop(&self) {
        self.flag.store(true, Ordering::Release);
        for event in &*self.events {
            event.wake();
        }
    }
}

/// One shard's sockets.
#[derive(Debug)]
pub(super) struct ShardSockets {
    pub(super) datagrams: Socket,
    pub(super) hellos: Socket,
    pub(super) listener: Socket,
}

/// One shard, ready to be moved to its thread and given to [`run_shard`](super::run_shard).
#[derive(Debug)]
pub struct ShardIo<M> {
    pub(super) shard: usize,
    pub(super) driver: Driver,
    pub(super) mailbox: Receiver<Parcel<M>>,
    pub(super) shards: Arc<[Sender<Parcel<M>>]>,
    pub(super) settings: Arc<Settings>,
    pub(super) local: SocketAddr,
    pub(super) stop: Arc<AtomicBool>,
    /// The sockets of all shards: closing one alone would renumber the others under the steering program.
    _sockets: Arc<[ShardSockets]>,
}

impl<M> ShardIo<M> {
    /// The shard's index.
    pub fn index(&self) -> usize {
        self.shard
    }
}

/// All shards, bound and not yet running.
#[derive(Debug)]
pub struct Bound<M> {
    /// Where they listen, with the actual port.
    pub local: SocketAddr,
    /// The shards, by index.
    pub shards: Vec<ShardIo<M>>,
    /// A sender to each shard's handler, by index.
    pub mail: Vec<MailSender<M>>,
    /// Ends all loops.
    pub stop: Stop,
    /// How the shards do I/O.
    pub driver: DriverKind,
    /// What works less well than asked.
    pub warnings: Vec<Warning>,
}

#[cfg(test)]
impl<M> Bound<M> {
    /// Replaces the steering program.
    pub(super) fn steer(&self, program: &[steering::Instruction]) -> io::Result<()> {
        socket::steer(&self.shards[0]._sockets[0].datagrams.as_fd(), program)
    }
}

/// Binds the sockets and makes the drivers of all shards. From here on the kernel queues what arrives.
///
/// # Errors
/// When the settings are wrong, an address is taken, or the kernel refuses a driver.
pub fn bind<M: Send>(settings: Settings) -> Result<Bound<M>, TransportError> {
    if let Some(fault) = settings.fault() {
        return Err(TransportError::Settings(fault));
    }
    let mut warnings = Vec::new();
    let (sockets, local) = bind_all(&settings, &mut warnings)?;

    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for _ in 0..settings.shards {
        let (sender, receiver) = mailbox(settings.mailbox).map_err(TransportError::Mailbox)?;
        senders.push(sender);
        receivers.push(receiver);
    }
    let stop = Stop {
        flag: Arc::new(AtomicBool::new(false)),
        events: receivers.iter().map(|receiver| Arc::clone(receiver.event())).collect(),
    };
    let sockets: Arc<[ShardSockets]> = sockets.into();
    let senders: Arc<[_]> = senders.into();
    let settings = Arc::new(settings);
    let mut shards = Vec::with_capacity(settings.shards);
    let events: Vec<_> = receivers.iter().map(|receiver| &**receiver.event()).collect();
    let drivers = make_drivers(&settings, &sockets, &events, &mut warnings)?;
    let driver = drivers[0].kind();
    for (shard, (mailbox, driver)) in receivers.into_iter().zip(drivers).enumerate() {
        shards.push(ShardIo {
            shard,
            driver,
            mailbox,
            shards: Arc::clone(&senders),
            settings: Arc::clone(&settings),
            local,
            stop: Arc::clone(&stop.flag),
            _sockets: Arc::clone(&sockets),
        });
    }
    let mail = senders.iter().cloned().map(MailSender).collect();
    Ok(Bound { local, shards, mail, stop, driver, warnings })
}

fn bind_all(
    settings: &Settings,
    warnings: &mut Vec<Warning>,
) -> Result<(Vec<ShardSockets>, SocketAddr), TransportError> {
    let (first, local) = match settings.listen.port() {
        0 => bind_free_port(settings.listen)?,
        _ => (bind_alone(settings.listen, BIND_PATIENCE)?, settings.listen),
    };
    let failed = |step| move |source| TransportError::Socket { step, address: local, source };
    let join = |kind, step| open(local, kind, true).map_err(failed(step));
    let mut pairs = vec![first];
    for _ in 1..settings.shards {
        let datagrams = join(Type::DGRAM, "bind UDP to")?;
        pairs.push((datagrams, join(Type::STREAM, "bind TCP to")?));
    }
    // The steering program counts sockets in the order of binding: those for hellos come after all others.
    let mut sockets = Vec::with_capacity(pairs.len());
    for (datagrams, listener) in pairs {
        sockets.push(ShardSockets {
            datagrams,
            hellos: join(Type::DGRAM, "bind UDP to")?,
            listener,
        });
    }
    for socket in sockets.iter().flat_map(|own| [&own.datagrams, &own.hellos]) {
        // Beyond net.core.rmem_max where the process may administer the network.
        let size = settings.receive_buffer;
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, size).is_err() {
            socket.set_recv_buffer_size(size).map_err(failed("size the receive buffer of"))?;
        }
    }
    // The kernel reports twice what it grants.
    let granted = sockets[0].datagrams.recv_buffer_size().map_err(failed("inspect"))? / 2;
    if granted < settings.receive_buffer {
        warnings
            .push(Warning::ReceiveBuffer { asked: settings.receive_buffer, effective: granted });
    }
    let program = steering::program(settings.shards, settings.hello);
    if let Err(error) = socket::steer(&sockets[0].datagrams.as_fd(), &program) {
        warnings.push(Warning::Steering(error));
    }
    for own in &sockets {
        own.listener.listen(BACKLOG).map_err(failed("listen on"))?;
    }
    Ok((sockets, local))
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

    #[test]
    fn a_second_gateway_does_not_join_the_first() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let first = bind::<()>(Settings { listen, shards: 2, ..Settings::default() }).unwrap();
        let again = Settings { listen: first.local, shards: 2, ..Settings::default() };
        let refused = bind::<()>(again.clone()).unwrap_err().to_string();
        assert!(refused.contains(&first.local.to_string()), "{refused}");
        drop(first);
        assert!(bind::<()>(again).is_ok());
    }

    #[test]
    fn all_shards_share_one_port_for_both_protocols() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let settings = Settings { listen, shards: 3, ..Settings::default() };
        let bound = bind::<()>(settings.clone()).unwrap();
        assert_ne!(bound.local.port(), 0);
        for own in &*bound.shards[0]._sockets {
            for socket in [&own.datagrams, &own.hellos, &own.listener] {
                assert_eq!(socket.local_addr().unwrap().as_socket(), Some(bound.local));
            }
        }
        // A socket outside the group keeps a group from forming.
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap();
        let error = bind::<()>(Settings { listen, ..settings }).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("cannot bind UDP to") && said.contains("another program"), "{said}");
    }

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
            std::thread::sleep(Duration::from_millis(50));
            drop(taken);
        });
        bind::<()>(Settings { listen, ..Settings::default() }).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn wrong_settings_bind_nothing() {
        let error = bind::<()>(Settings { shards: 0, ..Settings::default() }).unwrap_err();
        assert!(matches!(error, TransportError::Settings(_)));
    }
}
