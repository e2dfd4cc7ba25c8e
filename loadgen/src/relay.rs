//! A link with a delay: carries datagrams and byte streams between devices and a server, each
//! way half a round trip late. It works on sockets, so it cannot delay TCP's own handshake.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How long a socket waits before its thread looks whether the link has ended.
const POLL: Duration = Duration::from_millis(50);

/// A running link; ends when dropped.
pub struct Relay {
    /// Where devices send to.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    stream: bool,
}

impl Relay {
    /// A link for datagrams.
    ///
    /// # Errors
    /// When there is no socket or no thread.
    pub fn datagrams(to: SocketAddr, one_way: Duration) -> Result<Self> {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0")?);
        front.set_read_timeout(Some(POLL))?;
        let (address, stop) = (front.local_addr()?, Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || {
            // Without sockets there is no link, and the devices time out.
            let _ = carry_datagrams(&front, to, one_way, &flag);
        })?;
        Ok(Self { address, stop, thread: Some(thread), stream: false })
    }

    /// A link for streams.
    ///
    /// # Errors
    /// When there is no socket or no thread.
    pub fn streams(to: SocketAddr, one_way: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, stop) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || {
            let mut pumps = Vec::new();
            while let Ok((front, _)) = listener.accept() {
                if flag.load(Ordering::Relaxed) {
                    break;
                }
                // A refused connection shows at the device.
                if let Ok(back) = TcpStream::connect(to)
                    && let Ok(started) = pump_both(front, back, one_way)
                {
                    pumps.extend(started);
                }
            }
            for pump in pumps {
                let _ = pump.join();
            }
        })?;
        Ok(Self { address, stop, thread: Some(thread), stream: true })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.stream {
            // Wakes the accept.
            let _ = TcpStream::connect(self.address);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sleeps until each item is due, then hands it on, until the other end is gone.
fn late<T: Send + 'static>(
    mut deliver: impl FnMut(T) + Send + 'static,
) -> mpsc::Sender<(Instant, T)> {
    let (sender, late) = mpsc::channel::<(Instant, T)>();
    std::thread::spawn(move || {
        for (due, item) in late {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            deliver(item);
        }
    });
    sender
}

fn carry_datagrams(
    front: &Arc<UdpSocket>,
    to: SocketAddr,
    one_way: Duration,
    stop: &Arc<AtomicBool>,
) -> io::Result<()> {
    let mut devices: HashMap<SocketAddr, mpsc::Sender<(Instant, Vec<u8>)>> = HashMap::new();
    let mut buffer = [0; 2_048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = front.recv_from(&mut buffer) else { continue };
        let up = match devices.entry(from) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(connect_device(front, from, to, one_way, stop)?),
        };
        // Its thread lives as long as this sender.
        let _ = up.send((Instant::now() + one_way, buffer[..len].to_vec()));
    }
    Ok(())
}

/// A socket towards the server for one device, and the threads of both directions.
fn connect_device(
    front: &Arc<UdpSocket>,
    device: SocketAddr,
    to: SocketAddr,
    one_way: Duration,
    stop: &Arc<AtomicBool>,
) -> io::Result<mpsc::Sender<(Instant, Vec<u8>)>> {
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0")?);
    back.connect(to)?;
    back.set_read_timeout(Some(POLL))?;
    let (front, stop, receiver) = (Arc::clone(front), Arc::clone(stop), Arc::clone(&back));
    // What cannot be sent is lost, as on a link.
    let down = late(move |bytes: Vec<u8>| drop(front.send_to(&bytes, device)));
    std::thread::spawn(move || {
        let mut buffer = [0; 2_048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok(len) = receiver.recv(&mut buffer) {
                let _ = down.send((Instant::now() + one_way, buffer[..len].to_vec()));
            }
        }
    });
    Ok(late(move |bytes: Vec<u8>| drop(back.send(&bytes))))
}

fn pump_both(
    front: TcpStream,
    back: TcpStream,
    one_way: Duration,
) -> io::Result<Vec<JoinHandle<()>>> {
    front.set_nodelay(true)?;
    back.set_nodelay(true)?;
    let up = pump(front.try_clone()?, back.try_clone()?, one_way);
    let down = pump(back, front, one_way);
    Ok(up.into_iter().chain(down).collect())
}

/// One direction: a thread that reads and stamps, a thread that waits and writes.
fn pump(mut from: TcpStream, mut to: TcpStream, one_way: Duration) -> [JoinHandle<()>; 2] {
    let (sender, late) = mpsc::channel::<(Instant, Vec<u8>)>();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4_096];
        while let Ok(len) = from.read(&mut buffer) {
            if len == 0 || sender.send((Instant::now() + one_way, buffer[..len].to_vec())).is_err()
            {
                break;
            }
        }
    });
    let writer = std::thread::spawn(move || {
        for (due, bytes) in late {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        // The other side may be gone already.
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    [reader, writer]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_arrive_whole_and_late() {
        let one_way = Duration::from_millis(30);
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let relay = Relay::datagrams(server.local_addr().unwrap(), one_way).unwrap();
        let device = UdpSocket::bind("127.0.0.1:0").unwrap();
        let began = Instant::now();
        device.send_to(b"up", relay.address).unwrap();
        let mut buffer = [0; 16];
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..len], from).unwrap();
        let len = device.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"up");
        assert!(began.elapsed() >= 2 * one_way);

        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::streams(server.local_addr().unwrap(), one_way).unwrap();
        let mut device = TcpStream::connect(relay.address).unwrap();
        let (mut peer, _) = server.accept().unwrap();
        let began = Instant::now();
        device.write_all(b"hello").unwrap();
        let mut text = [0; 5];
        peer.read_exact(&mut text).unwrap();
        peer.write_all(&text).unwrap();
        device.read_exact(&mut text).unwrap();
        assert!(began.elapsed() >= 2 * one_way);
        drop((device, peer));
    }
}
