//! Sockets that outlive the process: the names that they are kept under, and whether those of the process before are what
//! the settings ask for.
//!
//! Whoever keeps them (a service manager) is not known here.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use socket2::{Socket, Type};

use super::listen::{ShardSockets, usable};
use super::settings::Settings;

/// The sockets of a shard, by the first word of their names; its index is the second.
const KINDS: [&str; 3] = ["udp", "hello", "tcp"];

/// The sockets of all shards as the process before bound them: in one group, in the order that the steering program
/// counts.
#[derive(Debug)]
pub struct KeptSockets {
    pub(super) shards: Vec<ShardSockets>,
    pub(super) local: SocketAddr,
}

/// Whether this is the name of a socket of a gateway.
#[must_use]
pub fn is_socket_name(name: &str) -> bool {
    let parts = name.split_once('-');
    parts.is_some_and(|(kind, index)| KINDS.contains(&kind) && index.parse::<usize>().is_ok())
}

impl KeptSockets {
    /// Those with these names, if they are exactly the sockets that these settings ask for. A group with another number of
    /// shards, or another address, is of no use: the order in it is that of binding.
    #[must_use]
    pub fn fitting(settings: &Settings, named: Vec<(String, OwnedFd)>) -> Option<Self> {
        let mut named: Vec<_> =
            named.into_iter().map(|(name, fd)| (name, Some(Socket::from(fd)))).collect();
        if settings.shards == 0 || named.len() != KINDS.len() * settings.shards {
            return None;
        }
        let mut find = |kind: &str, index: usize| {
            let name = format!("{kind}-{index}");
            named.iter_mut().find(|(found, _)| *found == name)?.1.take()
        };
        let [datagrams, hellos, listener] = KINDS;
        let shards = (0..settings.shards)
            .map(|index| {
                Some(ShardSockets {
                    datagrams: find(datagrams, index)?,
                    hellos: find(hellos, index)?,
                    listener: find(listener, index)?,
                })
            })
            .collect::<Option<Vec<_>>>()?;
        let local = shards[0].datagrams.local_addr().ok()?.as_socket()?;
        let asked = usable(settings.listen, &mut Vec::new());
        let asked = SocketAddr::new(
            asked.ip(),
            if asked.port() == 0 { local.port() } else { asked.port() },
        );
        let fits = |socket: &Socket, kind: Type| {
            socket.local_addr().ok().and_then(|address| address.as_socket()) == Some(asked)
                && socket.r#type().ok() == Some(kind)
                && socket.reuse_port().unwrap_or(false)
        };
        let all = shards.iter().all(|own| {
            fits(&own.datagrams, Type::DGRAM)
                && fits(&own.hellos, Type::DGRAM)
                && fits(&own.listener, Type::STREAM)
        });
        all.then_some(Self { shards, local })
    }
}

/// All sockets with their names.
pub(super) fn named(shards: &[ShardSockets]) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
    shards.iter().enumerate().flat_map(|(index, own)| {
        let sockets = [&own.datagrams, &own.hellos, &own.listener];
        KINDS
            .iter()
            .zip(sockets)
            .map(move |(kind, socket)| (format!("{kind}-{index}"), socket.as_fd()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::bind::bind;
    use super::*;

    fn cloned(bound: &super::super::Bound<()>) -> Vec<(String, OwnedFd)> {
        bound.sockets().map(|(name, fd)| (name, fd.try_clone_to_owned().unwrap())).collect()
    }

    #[test]
    fn sockets_of_a_process_before_are_taken_if_they_are_what_is_asked_for() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let settings = Settings { listen, shards: 2, ..Settings::default() };
        let bound = bind::<()>(settings.clone()).unwrap();
        let mut named = cloned(&bound);
        assert!(named.iter().all(|(name, _)| is_socket_name(name)));
        named.reverse();
        let kept = KeptSockets::fitting(&settings, named).unwrap();
        assert_eq!((kept.local, kept.shards.len()), (bound.local, 2));
        let asked = Settings { listen: bound.local, ..settings.clone() };
        assert!(KeptSockets::fitting(&asked, cloned(&bound)).is_some());
        let more = Settings { shards: 3, ..settings.clone() };
        assert!(KeptSockets::fitting(&more, cloned(&bound)).is_none());
        let fewer = Settings { shards: 1, ..settings.clone() };
        assert!(KeptSockets::fitting(&fewer, cloned(&bound)).is_none());
        let elsewhere = Settings { listen: "127.0.0.2:0".parse().unwrap(), ..settings.clone() };
        assert!(KeptSockets::fitting(&elsewhere, cloned(&bound)).is_none());
        // A name twice, another kind of socket under a name, something that is no socket.
        let mut twice = cloned(&bound);
        twice[1].0 = twice[0].0.clone();
        assert!(KeptSockets::fitting(&settings, twice).is_none());
        let mut swapped = cloned(&bound);
        let name = std::mem::replace(&mut swapped[0].0, "tcp-0".into());
        swapped[2].0 = name;
        assert!(KeptSockets::fitting(&settings, swapped).is_none());
        let mut file = cloned(&bound);
        file[0].1 = std::fs::File::open("/dev/null").unwrap().into();
        assert!(KeptSockets::fitting(&settings, file).is_none());
        assert!(!is_socket_name("sessions") && !is_socket_name("udp-x") && !is_socket_name("udp"));
    }

    /// What came while no process ran waits in the kernel.
    #[test]
    fn what_arrives_between_two_processes_is_received() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let settings = Settings { listen, ..Settings::default() };
        let bound = bind::<()>(settings.clone()).unwrap();
        let (address, named) = (bound.local, cloned(&bound));
        drop(bound);
        let device = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        device.send_to(&[9, 0, 1], address).unwrap();
        let kept = KeptSockets::fitting(&settings, named).unwrap();
        let again = super::super::bind_kept::<()>(settings, Some(kept)).unwrap();
        assert_eq!(again.local, address);
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8];
        let socket = &again.shards[0].kept_for_test()[0].datagrams;
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap(), 3);
    }
}
