//! From settings to shards ready to run: sockets bound in shard order, steering attached, drivers made.
//!
//! Owns the order of those steps and the ends of the mailboxes. Must not receive anything.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Via;
use super::drivers::make_drivers;
use super::error::{TransportError, Warning};
use super::kept::{self, KeptSockets};
use super::listen::{self, ShardSockets};
use super::locals::Locals;
use super::settings::Settings;
use crate::driver::{Driver, DriverKind, EventFd, LocalAddress};
use crate::mailbox::{Receiver, Sender, mailbox};

/// What travels through a shard's mailbox.
#[derive(Debug)]
pub(super) enum Parcel<M> {
    /// For the handler.
    Mail(M),
    /// A datagram that reached a shard that does not own it.
    Datagram { peer: SocketAddr, local: Option<LocalAddress>, bytes: Box<[u8]> },
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

/// One shard, ready to be moved to its thread and given to [`run_shard`](super::run_shard).
#[derive(Debug)]
pub struct ShardIo<M> {
    pub(super) shard: usize,
    pub(super) driver: Box<dyn Driver>,
    pub(super) mailbox: Receiver<Parcel<M>>,
    pub(super) shards: Arc<[Sender<Parcel<M>>]>,
    pub(super) settings: Arc<Settings>,
    pub(super) local: SocketAddr,
    pub(super) locals: Locals,
    pub(super) stop: Arc<AtomicBool>,
    /// The sockets of all shards: closing one alone would renumber the others under the steering program.
    _sockets: Arc<[ShardSockets]>,
}

impl<M> ShardIo<M> {
    /// The shard's index.
    pub fn index(&self) -> usize {
        self.shard
    }

    /// The number of one of this machine's addresses; the default one if it cannot answer.
    pub fn via(&mut self, local: Option<LocalAddress>) -> Via {
        self.locals.via(local)
    }

    #[cfg(test)]
    pub(super) fn kept_for_test(&self) -> &[ShardSockets] {
        &self._sockets
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
    sockets: Arc<[ShardSockets]>,
}

impl<M> Bound<M> {
    /// The sockets of all shards, with names that tell them apart: whoever keeps them can give them to the next process
    /// ([`KeptSockets`]).
    pub fn sockets(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        kept::named(&self.sockets)
    }
}

#[cfg(test)]
impl<M> Bound<M> {
    /// Replaces the steering program.
    pub(super) fn steer(&self, program: &[super::steering::Instruction]) -> std::io::Result<()> {
        super::socket::steer(&self.shards[0]._sockets[0].datagrams, program)
    }
}

/// Binds the sockets and makes the drivers of all shards. From here on the kernel queues what arrives.
///
/// # Errors
/// When the settings are wrong, an address is taken, or the kernel refuses a driver.
pub fn bind<M: Send>(settings: Settings) -> Result<Bound<M>, TransportError> {
    bind_kept(settings, None)
}

/// The same on sockets that the process before has bound, if there are some.
///
/// # Errors
/// Like [`bind`].
pub fn bind_kept<M: Send>(
    settings: Settings,
    kept: Option<KeptSockets>,
) -> Result<Bound<M>, TransportError> {
    if let Some(fault) = settings.fault() {
        return Err(TransportError::Settings(fault));
    }
    let mut warnings = Vec::new();
    let (sockets, local) = listen::open_all(&settings, kept, &mut warnings)?;

    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for _ in 0..settings.shards {
        let (sender, receiver) =
            mailbox(settings.mailbox).map_err(|source| TransportError::Mailbox { source })?;
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
            locals: Locals::default(),
            stop: Arc::clone(&stop.flag),
            _sockets: Arc::clone(&sockets),
        });
    }
    let mail = senders.iter().cloned().map(MailSender).collect();
    Ok(Bound { local, shards, mail, stop, driver, warnings, sockets })
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
    fn wrong_settings_bind_nothing() {
        let error = bind::<()>(Settings { shards: 0, ..Settings::default() }).unwrap_err();
        assert!(matches!(error, TransportError::Settings(_)));
    }
}
