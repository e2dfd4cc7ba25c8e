//! The gateway's side of the comparison: the real program, and devices whose messages are made
//! before the clock runs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet_device::{Device, Software};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::MESSAGE_MAX;
use loadgen::fleet::Member;
use loadgen::local::{LocalGateway, Wanted};

/// Readings a second over either transport.
const RATE: u32 = 200_000;
/// Datagrams between looks at the clock.
const BURST: usize = 16;

/// A process of this program; killed when dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It has ended, or is ended here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A gateway and its devices.
pub(crate) struct Fleet {
    /// The gateway; or this program in its place.
    gateway: Result<LocalGateway, Peer>,
    pid: u32,
    address: SocketAddr,
    socket: UdpSocket,
    datagrams: Vec<Device<Software>>,
    /// Those that keep a connection.
    streams: Vec<Device<Software>>,
    open: Vec<TcpStream>,
    sent: usize,
}

fn device(member: Member) -> Device<Software> {
    Device::seeded(member.config, member.seed).unwrap()
}

/// The next message of a device.
fn message(device: &mut Device<Software>) -> Vec<u8> {
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(0, &mut out).unwrap();
    out[..len].to_vec()
}

fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&len, message].concat()
}

fn read_frame(mut stream: &TcpStream) -> Vec<u8> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut message = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut message).unwrap();
    message
}

/// What the devices say after their ACCEPTs: all at once, as many devices do that work alone.
fn first_records(devices: &mut [Device<Software>], accepts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let answer = |(device, mut accept): (&mut Device<Software>, Vec<u8>)| {
        device.handle_message(0, &mut accept).unwrap();
        device.send_reading(0, 0, &[0; 8], false).unwrap();
        message(device)
    };
    devices.iter_mut().zip(accepts).map(answer).collect()
}

fn hello(device: &mut Device<Software>) -> Vec<u8> {
    device.close();
    let mut out = [0; MESSAGE_MAX];
    // What an earlier session still had to say.
    while device.poll_transmit(0, &mut out).is_some() {}
    device.open(0);
    message(device)
}

impl Fleet {
    /// Registers devices and starts the gateway with one shard.
    pub(crate) fn start(dir: &Path, datagrams: usize, streams: usize) -> Self {
        let profile = Profile { mode: Mode::Certificate, source: KeySource::Ephemeral };
        let wanted =
            |number, transport| Wanted { name: format!("device-{number}"), profile, transport };
        let all: Vec<_> = (0..datagrams)
            .map(|number| wanted(number, Transport::Datagram))
            .chain((0..streams).map(|number| wanted(datagrams + number, Transport::Stream)))
            .collect();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_duet"));
        let (gateway, members) =
            super::on_the_servers_core(|| LocalGateway::start(&program, dir, 1, &all)).unwrap();
        let mut devices: Vec<_> = members.into_iter().map(device).collect();
        let streams = devices.split_off(datagrams);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (pid, address) = (gateway.pid(), gateway.address);
        let (gateway, open) = (Ok(gateway), Vec::new());
        Self { gateway, pid, address, socket, datagrams: devices, streams, open, sent: 0 }
    }

    /// The same devices, with the packet path of tokio-uring in the gateway's place.
    pub(crate) fn start_on_tokio_uring(dir: &Path, datagrams: usize) -> Self {
        let mut fleet = Self::start(dir, datagrams, 0);
        let Ok(gateway) = fleet.gateway else { unreachable!("it was started above") };
        let state = gateway.state.clone();
        gateway.stop().unwrap();
        let mut child = super::on_the_servers_core(|| {
            Command::new(std::env::current_exe().unwrap())
                .env("DUET_BENCH_TOKIO_URING", state)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (fleet.pid, fleet.address) = (child.id(), line.trim().parse().unwrap());
        fleet.gateway = Err(Peer(child));
        fleet
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }

    /// A new HELLO of every datagram device.
    pub(crate) fn datagram_hellos(&mut self) -> Vec<Vec<u8>> {
        self.datagrams.iter_mut().map(hello).collect()
    }

    /// HELLO out, ACCEPT back, and the first record, which confirms, of the devices from this one on. One socket serves all: the
    /// gateway answers in order, and a device accepts no ACCEPT but its own.
    pub(crate) fn datagram_handshakes(&mut self, from: usize, hellos: &[Vec<u8>], window: usize) {
        let mut accepts = Vec::with_capacity(hellos.len());
        let mut out = [0; MESSAGE_MAX];
        for hello in hellos.iter().take(window) {
            self.socket.send_to(hello, self.address).unwrap();
        }
        while accepts.len() < hellos.len() {
            let len = self.socket.recv(&mut out).unwrap();
            if let Some(hello) = hellos.get(window + accepts.len()) {
                self.socket.send_to(hello, self.address).unwrap();
            }
            accepts.push(out[..len].to_vec());
        }
        for record in first_records(&mut self.datagrams[from..], accepts) {
            self.socket.send_to(&record, self.address).unwrap();
            self.sent += 1;
        }
    }

    pub(crate) fn stream_hellos(&mut self, count: usize) -> Vec<Vec<u8>> {
        self.streams.iter_mut().take(count).map(hello).collect()
    }

    /// Connection, HELLO, ACCEPT, first record; the connections of the rounds before are closed.
    pub(crate) fn stream_handshakes(&mut self, hellos: Vec<Vec<u8>>, window: usize) {
        let mut from = 0;
        for hellos in hellos.chunks(window) {
            let streams: Vec<_> = hellos
                .iter()
                .map(|hello| {
                    let mut stream = TcpStream::connect(self.address).unwrap();
                    stream.set_nodelay(true).unwrap();
                    stream.write_all(&framed(hello)).unwrap();
                    stream
                })
                .collect();
            let accepts: Vec<_> = streams.iter().map(read_frame).collect();
            let records = first_records(&mut self.streams[from..], accepts);
            for (stream, record) in streams.into_iter().zip(records) {
                (&stream).write_all(&framed(&record)).unwrap();
                self.sent += 1;
                if from < self.open.len() {
                    self.open[from] = stream;
                } else {
                    self.open.push(stream);
                }
                from += 1;
            }
        }
    }

    /// Connects every stream device, to stay.
    pub(crate) fn connect_streams(&mut self) {
        let hellos = self.stream_hellos(self.streams.len());
        self.stream_handshakes(hellos, 64);
        let hellos = self.datagram_hellos();
        self.datagram_handshakes(0, &hellos, 64);
    }

    /// Sealed readings, each device in turn.
    pub(crate) fn datagram_records(&mut self, count: usize, size: usize) -> Vec<Vec<u8>> {
        records(&mut self.datagrams, count, size)
    }

    pub(crate) fn stream_records(&mut self, count: usize, size: usize) -> Vec<Vec<u8>> {
        let records = records(&mut self.streams, count, size);
        records.iter().map(|record| framed(record)).collect()
    }

    pub(crate) fn send_datagrams(&mut self, records: &[Vec<u8>]) {
        paced(records, |_, record| {
            self.socket.send_to(record, self.address).unwrap();
        });
        self.sent += records.len();
    }

    pub(crate) fn send_streams(&mut self, records: &[Vec<u8>]) {
        paced(records, |number, record| {
            let stream = &mut self.open[number % self.streams.len()];
            stream.write_all(record).unwrap();
        });
        self.sent += records.len();
    }

    /// Stops the gateway; readings sent, and readings in its spool.
    pub(crate) fn stop(self) -> (usize, usize) {
        let Ok(gateway) = self.gateway else { return (self.sent, 0) };
        let state = gateway.state.clone();
        gateway.stop().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_duet"))
            .arg("--state")
            .arg(&state)
            .args(["spool", "cat"])
            .output()
            .unwrap();
        (self.sent, memchr::memchr_iter(b'\n', &output.stdout).count())
    }
}

fn records(devices: &mut [Device<Software>], count: usize, size: usize) -> Vec<Vec<u8>> {
    let payload = vec![0x42; size];
    let len = devices.len();
    (0..count)
        .map(|number| {
            let device = &mut devices[number % len];
            device.send_reading(0, 1, &payload, false).unwrap();
            message(device)
        })
        .collect()
}

fn paced(records: &[Vec<u8>], mut send: impl FnMut(usize, &[u8])) {
    let began = Instant::now();
    for (number, record) in records.iter().enumerate() {
        if number.is_multiple_of(BURST) {
            let due = Duration::from_secs(1) * u32::try_from(number).unwrap() / RATE;
            while began.elapsed() < due {
                std::hint::spin_loop();
            }
        }
        send(number, record);
    }
}
