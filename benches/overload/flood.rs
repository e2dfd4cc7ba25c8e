//! Floods of hellos that no device made, and what honest devices notice of them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use duet_protocol::profile::Transport;
use duet_protocol::wire::{Kind, MESSAGE_MAX};
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use socket2::{Domain, Socket, Type};

use crate::crowd::{Begin, Crowd, PATIENCE, knock, quantile};
use crate::{LIMIT, Member, hellos, message, show_counters, start};

/// Devices that connect over UDP during each measurement, one after the other at this rate.
pub(crate) const HONEST: usize = 2_000;
pub(crate) const HONEST_PER_S: u32 = 500;
/// Devices that connect over TCP meanwhile.
pub(crate) const CALLERS: usize = 100;
const CALLERS_PER_S: u32 = 25;
/// Devices that are connected and send readings, one in turn at this rate.
pub(crate) const ESTABLISHED: usize = 200;
pub(crate) const READINGS_PER_S: u32 = 2_000;
/// Connections that a flood over TCP holds at a time.
const HELD: usize = 64;
/// Hellos that a flood sends between two looks at the clock.
const BURST: u32 = 32;

/// Where a flood comes from.
#[derive(Clone, Copy)]
pub(crate) enum Flood {
    None,
    /// Datagrams that seem to come from many addresses.
    Spoofed,
    /// Datagrams of one address.
    OneAddress,
    /// Streams of one address.
    Streams,
}

/// What honest devices noticed.
pub(crate) struct Measured {
    /// Those that connected over UDP.
    pub(crate) crowd: Crowd,
    /// When each of those over TCP that got in had its ACCEPT, after it first called.
    pub(crate) callers: Vec<Duration>,
    pub(crate) readings: usize,
    pub(crate) stored: usize,
    /// Hellos a second that the flood sent.
    pub(crate) per_s: f64,
}

impl Measured {
    pub(crate) fn caller_quantile(&mut self, percent: usize) -> Duration {
        quantile(&mut self.callers, percent)
    }
}

/// A HELLO like another, which opens to nothing: its slot and the key in it differ each time.
fn forge(hello: &mut [u8], number: u32) {
    hello[1] = number.to_le_bytes()[0];
    hello[4..8].copy_from_slice(&number.to_le_bytes());
}

/// Sends bursts at a rate until it is over, as fast as one thread can; how many hellos went out. Its thread shares a
/// core with honest devices, which in the field it would not: it yields to them.
fn pace(per_s: u32, stop: &AtomicBool, sent: &AtomicU64, mut burst: impl FnMut(u32) -> u32) {
    setpriority_process(Some(gettid()), 19).unwrap();
    let (began, mut count) = (Instant::now(), 0u32);
    while !stop.load(Ordering::Relaxed) {
        if began.elapsed().as_secs_f64() * f64::from(per_s) < f64::from(count) {
            std::thread::yield_now();
            continue;
        }
        sent.fetch_add(burst(count).into(), Ordering::Relaxed);
        count += BURST;
    }
}

fn flood_datagrams(
    to: SocketAddr,
    hosts: u8,
    like: &[u8],
    per_s: u32,
    stop: &AtomicBool,
    sent: &AtomicU64,
) {
    let sockets: Vec<_> = (0..hosts)
        .map(|host| {
            let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 1, host], 0))).unwrap();
            socket.connect(to).unwrap();
            socket
        })
        .collect();
    let mut bytes = like.to_vec();
    pace(per_s, stop, sent, |count| {
        let mut went = 0;
        for number in count..count + BURST {
            forge(&mut bytes, number);
            went += u32::from(sockets[number as usize % sockets.len()].send(&bytes).is_ok());
        }
        went
    });
}

/// A connection from an address of this machine.
fn call(from: Ipv4Addr, to: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), patience)?;
    Ok(socket.into())
}

fn flood_streams(to: SocketAddr, like: &[u8], per_s: u32, stop: &AtomicBool, sent: &AtomicU64) {
    let mut held: Vec<Option<TcpStream>> = (0..HELD).map(|_| None).collect();
    let mut turn = 0;
    let mut bytes = like.to_vec();
    pace(per_s, stop, sent, |count| {
        turn = (turn + 1) % held.len();
        let place = &mut held[turn];
        if place.is_none() {
            let stream = call([127, 0, 1, 1].into(), to, Duration::from_secs(1)).ok();
            stream.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
            *place = stream;
        }
        let Some(stream) = place else { return 0 };
        // All behind the first one's slot, since a stream belongs to one shard.
        let mut out = Vec::new();
        for number in count..count + BURST {
            forge(&mut bytes, number);
            bytes[1] = count.to_le_bytes()[0];
            out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
            out.extend(&bytes);
        }
        match stream.write(&out) {
            Ok(len) if len == out.len() => BURST,
            // Cut in the middle of a message, or closed by the gateway.
            Ok(_) => {
                *place = None;
                BURST / 2
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                *place = None;
                0
            }
        }
    });
}

/// Readings of connected devices at their rate until told to stop; how many.
fn readings(to: SocketAddr, records: &[Vec<u8>], stop: &AtomicBool) -> usize {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(to).unwrap();
    let (began, mut count) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) && count < records.len() {
        let due = Duration::from_secs(1) * u32::try_from(count).unwrap() / READINGS_PER_S;
        if began.elapsed() < due {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        socket.send(&records[count]).unwrap();
        count += 1;
    }
    count
}

/// One device over TCP: calls from its own address until it has its ACCEPT; how long that took.
fn get_through(number: usize, hello: &[u8], to: SocketAddr) -> Option<Duration> {
    let from = Ipv4Addr::from([127, 0, 2, u8::try_from(number + 1).unwrap()]);
    let (began, mut patience) = (Instant::now(), PATIENCE);
    while began.elapsed() < LIMIT {
        let attempt = Instant::now();
        let accepted = call(from, to, patience).is_ok_and(|mut stream| {
            let frame = [&u16::try_from(hello.len()).unwrap().to_be_bytes(), hello].concat();
            let mut head = [0; 3];
            stream.set_read_timeout(Some(patience)).unwrap();
            stream.write_all(&frame).is_ok()
                && stream.read_exact(&mut head).is_ok()
                && Kind::of(&head[2..]) == Ok(Kind::Accept)
        });
        if accepted {
            return Some(began.elapsed());
        }
        std::thread::sleep(patience.saturating_sub(attempt.elapsed()));
        patience *= 2;
    }
    None
}

/// The devices over TCP call at their rate; when each that got in did so.
fn callers(to: SocketAddr, hellos: &[Vec<u8>]) -> Vec<Duration> {
    std::thread::scope(|scope| {
        let began = Instant::now();
        let calls: Vec<_> = hellos
            .iter()
            .enumerate()
            .map(|(number, hello)| {
                let due = Duration::from_secs(1) * u32::try_from(number).unwrap() / CALLERS_PER_S;
                std::thread::sleep(due.saturating_sub(began.elapsed()));
                scope.spawn(move || get_through(number, hello, to))
            })
            .collect();
        calls.into_iter().filter_map(|call| call.join().unwrap()).collect()
    })
}

/// Honest devices connect, and others send readings, while it floods.
pub(crate) fn measure(dir: &Path, flood: Flood, per_s: u32) -> Measured {
    let wanted = [(HONEST + ESTABLISHED, Transport::Datagram), (CALLERS, Transport::Stream)];
    let (gateway, mut devices) = start(dir, 1, &wanted);
    let mut over_streams = devices.split_off(HONEST + ESTABLISHED);
    let mut established = devices.split_off(HONEST);
    let to = gateway.address;
    let records = connect(&mut established, to);
    let (hellos, calls) = (hellos(&mut devices), hellos(&mut over_streams));
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (crowd, callers, readings, per_s) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| readings(to, &records, &stop));
        let calling = scope.spawn(|| callers(to, &calls));
        let began = Instant::now();
        match flood {
            Flood::None => {}
            Flood::Spoofed | Flood::OneAddress => {
                let hosts = if matches!(flood, Flood::Spoofed) { 64 } else { 1 };
                scope.spawn({
                    let (hellos, stop, sent) = (&hellos, &stop, &sent);
                    move || flood_datagrams(to, hosts, &hellos[0], per_s, stop, sent)
                });
            }
            Flood::Streams => {
                scope.spawn(|| flood_streams(to, &calls[0], per_s, &stop, &sent));
            }
        }
        let crowd = knock(to, &hellos, Begin::AtRate(HONEST_PER_S));
        let callers = calling.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let per_s = sent.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
        (crowd, callers, sender.join().unwrap(), per_s)
    });
    std::thread::sleep(Duration::from_millis(1_200));
    show_counters(&gateway);
    let state = gateway.state.clone();
    gateway.stop().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_duet"))
        .arg("--state")
        .arg(&state)
        .args(["spool", "cat"])
        .output()
        .unwrap();
    let stored = memchr::memchr_iter(b'\n', &output.stdout).count();
    Measured { crowd, callers, readings: readings + ESTABLISHED, stored, per_s }
}

/// Connects the devices that send readings; all that they will send.
fn connect(established: &mut [Member], to: SocketAddr) -> Vec<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut out = [0; MESSAGE_MAX];
    for device in &mut *established {
        device.open(0);
        socket.send_to(&message(device), to).unwrap();
        let len = socket.recv(&mut out).unwrap();
        device.handle_message(0, &mut out[..len]).unwrap();
        // A session whose first record is late does not last.
        device.send_reading(0, 1, &[0x42; 64], false).unwrap();
        socket.send_to(&message(device), to).unwrap();
    }
    let span = Duration::from_secs(1) * u32::try_from(HONEST).unwrap() / HONEST_PER_S + LIMIT;
    let count = usize::try_from(span.as_secs()).unwrap() * READINGS_PER_S as usize / 4;
    let reading = |number: usize| {
        let device = &mut established[number % ESTABLISHED];
        device.send_reading(0, 1, &[0x42; 64], false).unwrap();
        message(device)
    };
    (0..count).map(reading).collect()
}
