//! The link as a whole: two namespaces, their TUN devices, and the thread that carries packets between them.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::exchange::Way;

use super::capture::{Capture, Crossing, Noted, Totals};
use super::namespace::Namespace;
use super::packet::Packet;
use super::queue::{Conditions, Queue};

/// The network that RFC 2544 sets apart for measurements.
const MASK: Ipv4Addr = Ipv4Addr::new(255, 254, 0, 0);
/// The server's address.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// The client's address on the first path; the others follow.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// How many paths there can be: each takes an address of one byte.
const PATHS_MAX: usize = 250;

/// How late the relay was: by how much it handed packets on after they were due, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Lateness {
    /// Half of the packets were not later than this.
    pub p50_us: u64,
    /// 99 of 100 packets were not later than this.
    pub p99_us: u64,
    /// No packet was later than this.
    pub max_us: u64,
}

/// A running link; ends when dropped, and its namespaces with it once nothing runs there.
#[derive(Debug)]
pub struct Emulator {
    /// Where the devices are. One address for each path.
    pub client: Namespace,
    /// Where the servers are.
    pub server: Namespace,
    shared: Arc<Shared>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    epoch: Instant,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    capture: Capture,
    /// Of packets due within each number of powers of two µs: 0, 1, 2–3, 4–7, …
    late: [u64; 32],
    late_max_us: u64,
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        // A panic elsewhere leaves counts that are true all the same.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Emulator {
    /// Makes both namespaces and starts the relay. The client has an address for each of the paths, and what
    /// it sends from there, and what is sent to there, meets that path's conditions.
    ///
    /// # Errors
    /// When the process may not make namespaces or devices; the message says what to do.
    pub fn start(paths: &[Conditions], seed: u64) -> Result<Self> {
        ensure!(!paths.is_empty(), "a link needs at least one path");
        ensure!(
            paths.len() <= PATHS_MAX,
            "a link has at most {PATHS_MAX} paths, not {}",
            paths.len()
        );
        let addresses: Vec<_> = (0..paths.len()).map(client_address).collect();
        let (client, client_device) = Namespace::new(&addresses, MASK)?;
        let (server, server_device) = Namespace::new(&[SERVER], MASK)?;
        let shared =
            Arc::new(Shared { epoch: Instant::now(), record: Mutex::new(Record::default()) });
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let relay = Relay {
            devices: [client_device, server_device],
            queue: Queue::new(paths, seed),
            shared: Arc::clone(&shared),
        };
        let asked = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("link".into()).spawn(move || {
            // Before the programs that it carries packets for, where the process may be.
            let _ = rustix::process::nice(-15);
            if let Err(error) = relay.run(&asked) {
                eprintln!("loadgen: the link has ended: {error}");
            }
        })?;
        Ok(Self { client, server, shared, stop, thread: Some(thread) })
    }

    /// The server's address, for all paths.
    #[must_use]
    pub const fn server_address(&self) -> Ipv4Addr {
        SERVER
    }

    /// The client's address on a path.
    #[must_use]
    pub fn client_address(&self, path: usize) -> Ipv4Addr {
        client_address(path)
    }

    /// An instant on the emulator's clock, µs.
    #[must_use]
    pub fn us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.shared.epoch).as_micros())
            .unwrap_or(u64::MAX)
    }

    /// The instant of a time on the emulator's clock.
    #[must_use]
    pub fn instant(&self, us: u64) -> Instant {
        self.shared.epoch + Duration::from_micros(us)
    }

    /// When the first packet of a client's watched socket was sent, if one was.
    #[must_use]
    pub fn first_us(&self, tcp: bool, client: SocketAddrV4) -> Option<u64> {
        self.shared.record().capture.first_us(tcp, client)
    }

    /// Records the packets of a client's socket from now on.
    pub fn watch(&self, tcp: bool, client: SocketAddrV4) {
        self.shared.record().capture.watch(tcp, client);
    }

    /// What was recorded of a client's socket; the recording ends.
    #[must_use]
    pub fn take(&self, tcp: bool, client: SocketAddrV4) -> Vec<Crossing> {
        self.shared.record().capture.take(tcp, client)
    }

    /// All packets so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.shared.record().capture.totals
    }

    /// How late packets were so far, each rounded up to a power of two.
    #[must_use]
    pub fn lateness(&self) -> Lateness {
        let record = self.shared.record();
        let all: u64 = record.late.iter().sum();
        let at = |percent: u64| {
            let mut left = (all * percent).div_ceil(100);
            for (power, count) in record.late.iter().enumerate() {
                if *count >= left {
                    return (1u64 << power).saturating_sub(1).min(record.late_max_us);
                }
                left -= count;
            }
            record.late_max_us
        };
        Lateness { p50_us: at(50), p99_us: at(99), max_us: record.late_max_us }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // The eventfd's counter is far from its end.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn client_address(path: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(CLIENT.to_bits() + u32::try_from(path).unwrap_or(0))
}

/// The thread's own part.
struct Relay {
    /// The client's and the server's.
    devices: [File; 2],
    queue: Queue<(Option<Noted>, Arc<[u8]>)>,
    shared: Arc<Shared>,
}

impl Relay {
    fn run(mut self, stop: &OwnedFd) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            for way in [Way::Up, Way::Down] {
                self.receive(way, &mut buffer)?;
            }
            self.deliver();
            let wait = self
                .queue
                .poll_timeout()
                .map(|due_us| Duration::from_micros(due_us.saturating_sub(self.shared.now_us())));
            let wait = wait.map(|wait| Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            });
            let mut waiting = [
                PollFd::new(&self.devices[0], PollFlags::IN),
                PollFd::new(&self.devices[1], PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            match poll(&mut waiting, wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !waiting[2].revents().is_empty() {
                return Ok(());
            }
        }
    }

    /// Takes all that waits in one side's device.
    fn receive(&mut self, way: Way, buffer: &mut [u8]) -> io::Result<()> {
        let device = usize::from(way == Way::Down);
        loop {
            let len = match self.devices[device].read(buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let packet = &buffer[..len];
            // Only IPv4 is carried.
            let Some((from, to)) = Packet::addresses(packet) else { continue };
            let client = if way == Way::Up { from } else { to };
            let path = client.to_bits().wrapping_sub(CLIENT.to_bits());
            let now_us = self.shared.now_us();
            let noted = self.shared.record().capture.note_entered(now_us, way, packet);
            let path = usize::try_from(path).unwrap_or(usize::MAX);
            self.queue.handle_packet(now_us, path, way, len, (noted, packet.into()));
        }
    }

    /// Hands on all that is due.
    fn deliver(&mut self) {
        loop {
            let now_us = self.shared.now_us();
            let Some(delivery) = self.queue.poll_delivery(now_us) else { return };
            let (noted, packet) = delivery.packet;
            {
                // Before the packet is out: its receiver may be quick.
                let mut record = self.shared.record();
                record.capture.note_delivered(now_us, delivery.way, packet.len(), noted);
                let late = now_us - delivery.due_us;
                record.late_max_us = record.late_max_us.max(late);
                let power = usize::try_from(u64::BITS - late.leading_zeros()).unwrap_or(0).min(31);
                record.late[power] += 1;
            }
            let to = usize::from(delivery.way == Way::Up);
            // What a kernel does not take is lost, as on any link.
            let _ = self.devices[to].write(&packet);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    use super::super::Speech;
    use super::super::judge::judge;
    use super::*;

    /// The link, or a loud reason why the test is not run.
    fn link(paths: &[Conditions]) -> Option<Emulator> {
        match Emulator::start(paths, 1) {
            Ok(link) => Some(link),
            Err(error) => {
                eprintln!("SKIPPED: {error:#}");
                None
            }
        }
    }

    #[test]
    fn datagrams_cross_late_and_are_counted() {
        let far = Conditions { one_way_us: 30_000, ..Conditions::default() };
        let dead = Conditions { loss: 1.0, ..Conditions::default() };
        let Some(link) = link(&[Conditions::default(), far, dead]) else { return };
        let server = link.server.run(|| Ok(UdpSocket::bind((link.server_address(), 0))?)).unwrap();
        let to = server.local_addr().unwrap();
        for (path, at_least_ms) in [(0, 0), (1, 60)] {
            let from = (link.client_address(path), 0);
            let device = link.client.run(|| Ok(UdpSocket::bind(from)?)).unwrap();
            let SocketAddr::V4(local) = device.local_addr().unwrap() else { panic!() };
            link.watch(false, local);
            let began = Instant::now();
            device.send_to(b"up", to).unwrap();
            let mut buffer = [0; 16];
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..len], from).unwrap();
            device.recv(&mut buffer).unwrap();
            assert!(began.elapsed() >= Duration::from_millis(at_least_ms));
            let crossings = link.take(false, local);
            assert_eq!(crossings.len(), 2, "{crossings:?}");
            let [up, down] = [&crossings[0], &crossings[1]].map(|one| {
                let crossed_us = one.delivered_us.unwrap() - one.entered_us;
                assert!(crossed_us >= at_least_ms * 500);
                one.way
            });
            assert_eq!((up, down), (Way::Up, Way::Down));
        }
        let device = link.client.run(|| Ok(UdpSocket::bind((link.client_address(2), 0))?)).unwrap();
        device.send_to(b"lost", to).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(server.recv_from(&mut [0; 16]).is_err());
        let totals = link.totals();
        assert_eq!((totals.entered.up, totals.delivered.up), (3, 2));
        assert_eq!(totals.entered_bytes.up, 30 + 30 + 32);
        assert_eq!((totals.entered.down, totals.delivered_bytes.down), (2, 60));
    }

    #[test]
    fn the_set_up_of_tcp_is_delayed_and_counted() {
        let far = Conditions { one_way_us: 25_000, ..Conditions::default() };
        let Some(link) = link(&[far]) else { return };
        let server =
            link.server.run(|| Ok(TcpListener::bind((link.server_address(), 0))?)).unwrap();
        let to = server.local_addr().unwrap();
        let echo = std::thread::spawn(move || {
            let (mut peer, _) = server.accept().unwrap();
            let mut byte = [0; 1];
            peer.read_exact(&mut byte).unwrap();
            peer.write_all(&byte).unwrap();
            peer
        });
        let local = SocketAddrV4::new(link.client_address(0), 40_000);
        link.watch(true, local);
        let began = Instant::now();
        let mut device = link
            .client
            .run(|| {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
                socket.bind(&SocketAddr::from(local).into())?;
                socket.connect(&to.into())?;
                Ok(TcpStream::from(socket))
            })
            .unwrap();
        assert!(began.elapsed() >= Duration::from_millis(50), "one round trip to connect");
        device.write_all(b"x").unwrap();
        device.read_exact(&mut [0; 1]).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(100));
        let until = link.us(Instant::now());
        let verdict = judge(&link.take(true, local), until, 50_000, Speech::Duet).unwrap();
        assert_eq!((verdict.flights.set_up, verdict.flights.all), (2, 4), "{:?}", verdict.steps);
        assert_eq!(verdict.round_trips, 2);
        drop((device, echo.join().unwrap()));
    }
}
