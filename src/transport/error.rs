//! Why the transport cannot start or go on, and what works less well than asked: the cause and what to do about it.

use std::io;
use std::net::SocketAddr;

use crate::driver::{DriverError, shortage};

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
    #[error("cannot make a shard's mailbox: {source}{}", shortage(source))]
    Mailbox {
        /// What the kernel said.
        source: io::Error,
    },
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
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            "; another program listens there: end it, or choose another address (listen)"
        }
        Some(libc::EADDRNOTAVAIL) => "; no interface of this machine has this address (listen)",
        Some(libc::EACCES | libc::EPERM) => {
            "; ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
        }
        Some(libc::EAFNOSUPPORT) => {
            "; this machine has no addresses of that kind, perhaps by ipv6.disable=1 or RestrictAddressFamilies=: listen \
             on an IPv4 address, such as 0.0.0.0 with the same port (listen)"
        }
        _ => shortage(error),
    }
}

/// Something works less well than asked, but works.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    /// The kernel has no IPv6, and `[::]` was to serve both.
    #[error(
        "this machine has no IPv6 ({source}): listening on {instead} instead of {asked}; listen = \"{instead}\" says the \
         same without this warning"
    )]
    NoIpv6 {
        /// The setting.
        asked: SocketAddr,
        /// Where the gateway listens.
        instead: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel caps the receive buffers.
    #[error(
        "a UDP receive buffer is {effective} bytes instead of {asked}: a storm of devices larger than that is answered \
         late; raise net.core.rmem_max to {asked}"
    )]
    ReceiveBuffer {
        /// The setting.
        asked: usize,
        /// What the kernel gives.
        effective: usize,
    },
    /// The kernel does not say to which of its addresses a datagram was sent.
    #[error(
        "the kernel does not tell to which of its addresses a datagram came ({0}): answers leave from the address that \
         it prefers, which devices behind a firewall may not hear if the machine has several (listen on one of them)"
    )]
    LocalAddress(#[source] io::Error),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        let said = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            let address = "[::]:5684".parse().unwrap();
            TransportError::Socket { step: "bind UDP to", address, source }.to_string()
        };
        for (errno, remedy) in [
            (libc::EADDRINUSE, "another program listens there"),
            (libc::EADDRNOTAVAIL, "no interface"),
            (libc::EACCES, "CAP_NET_BIND_SERVICE"),
            (libc::EAFNOSUPPORT, "0.0.0.0"),
            (libc::EMFILE, "LimitNOFILE="),
            (libc::ENFILE, "fs.file-max"),
            (libc::ENOBUFS, "memory"),
        ] {
            assert!(said(errno).contains(remedy), "{}", said(errno));
        }
        let mailbox =
            TransportError::Mailbox { source: io::Error::from_raw_os_error(libc::EMFILE) };
        assert!(mailbox.to_string().contains("fewer shards"), "{mailbox}");
    }
}
