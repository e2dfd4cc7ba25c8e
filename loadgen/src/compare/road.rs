//! How a job's sockets reach the server: over an emulated link, or straight over loopback.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::link::Emulator;

/// What a job may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The way of one job.
#[derive(Clone, Copy, Debug)]
pub struct Road<'a> {
    /// The server.
    pub to: SocketAddr,
    /// The device's address, which chooses the path of a link.
    pub from: Ipv4Addr,
    /// The link that watches.
    pub link: Option<&'a Emulator>,
    /// When the job must be done.
    pub until: Instant,
    /// Whether the session is to stay when the job is done.
    pub keep: bool,
}

impl Road<'_> {
    /// Over loopback.
    #[must_use]
    pub fn loopback(to: SocketAddr) -> Self {
        let from = Ipv4Addr::LOCALHOST;
        Self { to, from, link: None, until: Instant::now() + LIMIT, keep: false }
    }

    /// The time that is left.
    ///
    /// # Errors
    /// When there is none.
    pub fn left(&self) -> Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no confirmation within {} s", LIMIT.as_secs());
        Ok(left)
    }

    /// A socket for datagrams.
    pub(super) fn datagrams(&self) -> Result<(UdpSocket, SocketAddrV4)> {
        let (socket, local) = self.socket(Type::DGRAM, false)?;
        socket.connect(&self.to.into()).with_context(|| format!("cannot send to {}", self.to))?;
        Ok((socket.into(), local))
    }

    /// A connected stream.
    ///
    /// # Errors
    /// When there are too few ports or descriptors, or nobody listens.
    pub fn stream(&self) -> Result<(TcpStream, SocketAddrV4)> {
        let (socket, local) = self.socket(Type::STREAM, true)?;
        socket.connect_timeout(&self.to.into(), self.left()?).with_context(|| {
            format!(
                "cannot connect to {}: is the server running, and does it listen there?",
                self.to
            )
        })?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        Ok((stream, local))
    }

    /// A port of the device's that is free now, watched from now on, for a program that binds it itself.
    pub(super) fn port(&self) -> Result<SocketAddrV4> {
        self.socket(Type::DGRAM, false).map(|(_, local)| local)
    }

    fn socket(&self, kind: Type, tcp: bool) -> Result<(Socket, SocketAddrV4)> {
        let short = "no socket for a device: too few descriptors (raise `ulimit -n`) or ports \
            (net.ipv4.ip_local_port_range)";
        let socket = Socket::new(Domain::IPV4, kind, None).context(short)?;
        socket.bind(&SocketAddr::from((self.from, 0)).into()).context(short)?;
        let Some(SocketAddr::V4(local)) = socket.local_addr()?.as_socket() else {
            bail!("a socket of IPv4 without such an address");
        };
        if let Some(link) = self.link {
            link.watch(tcp, local);
        }
        Ok((socket, local))
    }
}
