//! The transport over loopback: two shards with a handler that echoes, against plain sockets.
//!
//! A message is a kind, a slot and a body. The echo is the message with the number of the shard that handled it.
//! `DUET_IO=epoll` runs the same tests on the driver for where io_uring is refused.
#![allow(clippy::unwrap_used, reason = "a failing step fails the test")]

use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::{RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use duet::transport::{
    Bound, Counters, Finished, Handler, MESSAGE_MAX, MailSender, Now, Path, Settings, Stop,
    StreamId, Transmit, bind, run_shard,
};

const ECHO: u8 = 0;
/// Delivered and not answered.
const SINK: u8 = 1;
/// Answered by a megabyte.
const FLOOD: u8 = 2;
/// Answered, and then the stream is closed.
const BYE: u8 = 3;

const SHARDS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(10);

/// Tests that count the descriptors of the process exclude the others.
static DESCRIPTORS: RwLock<()> = RwLock::new(());

#[derive(Debug)]
enum Mail {
    Finish,
    Reply(std::sync::mpsc::Sender<usize>),
}

#[derive(Debug, Default)]
struct Echo {
    shard: usize,
    output: VecDeque<(Path, Vec<u8>)>,
    closing: VecDeque<StreamId>,
    open: HashSet<StreamId>,
    delivered: usize,
    closed: usize,
    finishing: bool,
}

impl Echo {
    fn answer(&mut self, to: Path, bytes: &[u8]) {
        self.delivered += 1;
        let mut reply = bytes.to_vec();
        reply.push(u8::try_from(self.shard).unwrap());
        reply.truncate(MESSAGE_MAX);
        match (bytes[0], to) {
            (SINK, _) => (),
            (FLOOD, _) => {
                self.output.extend((0..700).map(|_| (to, vec![FLOOD; MESSAGE_MAX])));
            }
            (BYE, Path::Stream(stream)) => {
                self.output.push_back((to, reply));
                self.closing.push_back(stream);
            }
            _ => self.output.push_back((to, reply)),
        }
    }
}

impl Handler for Echo {
    type Mail = Mail;

    fn handle_datagram(&mut self, _: Now, from: SocketAddr, bytes: &[u8]) {
        self.answer(Path::Datagram(from), bytes);
    }

    fn handle_message(&mut self, _: Now, stream: StreamId, bytes: &[u8]) {
        self.open.insert(stream);
        self.answer(Path::Stream(stream), bytes);
    }

    fn handle_stream_closed(&mut self, _: Now, stream: StreamId) {
        assert!(self.open.remove(&stream), "closed once, after a message");
        self.closed += 1;
    }

    fn handle_mail(&mut self, _: Now, mail: Mail) {
        match mail {
            Mail::Finish => self.finishing = true,
            Mail::Reply(to) => to.send(self.shard).unwrap(),
        }
    }

    fn handle_turn(&mut self, _: Now) {}

    fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let (to, bytes) = self.output.pop_front()?;
        out[..bytes.len()].copy_from_slice(&bytes);
        Some(Transmit { to, len: bytes.len() })
    }

    fn poll_close(&mut self) -> Option<StreamId> {
        self.closing.pop_front()
    }

    fn poll_timeout(&self) -> Option<u64> {
        None
    }

    fn is_finished(&self) -> bool {
        self.finishing && self.output.is_empty()
    }
}

/// A running gateway of echoing shards.
struct Gateway {
    local: SocketAddr,
    mail: Vec<MailSender<Mail>>,
    stop: Stop,
    threads: Vec<JoinHandle<Finished<Echo>>>,
    _descriptors: Option<RwLockReadGuard<'static, ()>>,
}

fn loopback() -> Settings {
    let listen = "127.0.0.1:0".parse().unwrap();
    Settings { listen, shards: SHARDS, ..Settings::default() }
}

impl Gateway {
    fn start(settings: Settings) -> Self {
        let guard = DESCRIPTORS.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self { _descriptors: Some(guard), ..Self::start_alone(settings) }
    }

    fn start_alone(settings: Settings) -> Self {
        let Bound { local, shards, mail, stop, driver, .. } = bind(settings).unwrap();
        if let Ok(forced) = std::env::var("DUET_IO") {
            assert_eq!(driver.name(), forced);
        }
        let threads = shards
            .into_iter()
            .map(|io| {
                std::thread::spawn(move || {
                    let echo = Echo { shard: io.index(), ..Echo::default() };
                    run_shard(io, echo).unwrap()
                })
            })
            .collect();
        Self { local, mail, stop, threads, _descriptors: None }
    }

    /// Lets the handlers finish, and checks that every stream that came is accounted for.
    fn finish(self) -> Vec<Finished<Echo>> {
        for mail in &self.mail {
            mail.try_send(Mail::Finish).unwrap();
        }
        let shards: Vec<_> = self.threads.into_iter().map(|it| it.join().unwrap()).collect();
        for shard in &shards {
            let counters = &shard.counters;
            assert_eq!(
                counters.streams_accepted + counters.streams_adopted,
                counters.streams_handed_over + closed(counters),
                "{counters:#?}"
            );
            assert!(shard.handler.open.is_empty(), "every known stream was reported closed");
        }
        shards
    }

    fn udp(&self) -> UdpSocket {
        let any = if self.local.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(self.local).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn tcp(&self) -> Client {
        let stream = TcpStream::connect(self.local).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(stream)
    }
}

fn closed(counters: &Counters) -> u64 {
    counters.closed_peer
        + counters.closed_handler
        + counters.closed_short
        + counters.closed_long
        + counters.closed_first_message
        + counters.closed_queue_full
        + counters.closed_flush
        + counters.closed_refused
        + counters.closed_hand_over
        + counters.closed_error
        + counters.closed_stop
}

fn sum(shards: &[Finished<Echo>], field: impl Fn(&Counters) -> u64) -> u64 {
    shards.iter().map(|shard| field(&shard.counters)).sum()
}

fn delivered(shards: &[Finished<Echo>]) -> usize {
    shards.iter().map(|shard| shard.handler.delivered).sum()
}

fn shard_of(slot: u8) -> u8 {
    slot % u8::try_from(SHARDS).unwrap()
}

fn frame(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

struct Client(TcpStream);

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn message(&mut self) -> Vec<u8> {
        let mut length = [0; 2];
        self.0.read_exact(&mut length).unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        self.0.read_exact(&mut message).unwrap();
        message
    }

    fn echo(&mut self, message: &[u8]) {
        self.send(&frame(message));
        self.expect_echo(message);
    }

    fn expect_echo(&mut self, message: &[u8]) {
        let expected = [message, &[shard_of(message[1])]].concat();
        assert_eq!(self.message(), expected);
    }

    /// Reads until the gateway closes.
    fn expect_closed(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => (),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("not closed: {error}"),
            }
        }
    }
}

fn ping(socket: &UdpSocket, message: &[u8]) {
    socket.send(message).unwrap();
    let mut bytes = [0; 2048];
    let len = socket.recv(&mut bytes).unwrap();
    assert_eq!(bytes[..len], [message, &[shard_of(message[1])]].concat());
}

// ---- datagrams

#[test]
fn every_slot_reaches_its_shard() {
    let gateway = Gateway::start(loopback());
    let socket = gateway.udp();
    for slot in 0..=255 {
        ping(&socket, &[ECHO, slot, 1, 2, 3]);
    }
    let shards = gateway.finish();
    for shard in &shards {
        assert_eq!(shard.counters.datagrams_in, 128, "the kernel steered, nobody forwarded");
        assert_eq!(shard.counters.datagrams_out, 128);
        assert_eq!(shard.counters.datagrams_forwarded, 0);
    }
}

#[test]
fn unusable_datagrams_are_dropped_and_counted_once() {
    let gateway = Gateway::start(loopback());
    let socket = gateway.udp();
    for _ in 0..10 {
        socket.send(&[]).unwrap();
        socket.send(&[1]).unwrap();
        socket.send(&[ECHO; MESSAGE_MAX + 1]).unwrap();
        socket.send(&[ECHO; 9_000]).unwrap();
        ping(&socket, &[ECHO, 0]);
        ping(&socket, &[ECHO, 1]);
    }
    // The longest that is allowed, echoed without room for the shard's number.
    socket.send(&[ECHO; MESSAGE_MAX]).unwrap();
    assert_eq!(socket.recv(&mut [0; 2048]).unwrap(), MESSAGE_MAX);
    let shards = gateway.finish();
    assert_eq!(sum(&shards, |counters| counters.drop_short), 20);
    assert_eq!(sum(&shards, |counters| counters.drop_oversize), 20);
    assert_eq!(sum(&shards, |counters| counters.datagrams_in), 61);
    assert_eq!(delivered(&shards), 21);
}

/// Sends `count` datagrams to alternating shards and waits until both answer after them.
fn burst(gateway: &Gateway, count: usize) {
    let socket = gateway.udp();
    for number in 0..count {
        let slot = u8::try_from(number % 256).unwrap();
        socket.send(&[SINK, slot, 0, 0]).unwrap();
    }
    ping(&socket, &[ECHO, 0]);
    ping(&socket, &[ECHO, 1]);
}

#[test]
fn a_burst_arrives_whole() {
    let gateway = Gateway::start(loopback());
    burst(&gateway, 10_000);
    let shards = gateway.finish();
    assert_eq!(delivered(&shards), 10_002);
}

#[test]
fn four_buffers_run_out_and_recover() {
    let tiny = Settings { datagram_buffers: 4, stream_buffers: 4, ..loopback() };
    let gateway = Gateway::start(tiny);
    burst(&gateway, 1_000);
    burst(&gateway, 1_000);
    let shards = gateway.finish();
    assert_eq!(delivered(&shards), 2_004);
    assert!(sum(&shards, |counters| counters.enobufs) > 0);
}

#[test]
fn tiny_queues_lose_nothing() {
    let settings = Settings {
        submissions: 2,
        completions: 8,
        datagram_buffers: 16,
        stream_buffers: 4,
        send_slots: 2,
        ..loopback()
    };
    let gateway = Gateway::start(settings);
    burst(&gateway, 2_000);
    let socket = gateway.udp();
    for slot in 0..200 {
        socket.send(&[ECHO, slot]).unwrap();
    }
    for _ in 0..200 {
        socket.recv(&mut [0; 16]).unwrap();
    }
    let mut clients: Vec<_> = (0..50).map(|_| gateway.tcp()).collect();
    for round in 0..3 {
        for (slot, client) in (0..).zip(&mut clients) {
            client.send(&frame(&[ECHO, slot, round]));
        }
        for (slot, client) in (0..).zip(&mut clients) {
            client.expect_echo(&[ECHO, slot, round]);
        }
    }
    drop(clients);
    let shards = gateway.finish();
    assert_eq!(delivered(&shards), 2_002 + 200 + 150);
}

#[test]
fn waiting_for_batches_loses_nothing() {
    let gateway = Gateway::start(Settings { min_wait_us: 300, ..loopback() });
    burst(&gateway, 5_000);
    gateway.tcp().echo(&[ECHO, 1]);
    assert_eq!(delivered(&gateway.finish()), 5_003);
}

#[test]
fn ipv6_and_ipv4_reach_one_socket() {
    let listen = "[::]:0".parse().unwrap();
    let mut gateway = Gateway::start(Settings { listen, ..loopback() });
    let port = gateway.local.port();
    for host in ["[::1]", "127.0.0.1"] {
        gateway.local = format!("{host}:{port}").parse().unwrap();
        ping(&gateway.udp(), &[ECHO, 3, 9]);
        gateway.tcp().echo(&[ECHO, 2, 9]);
    }
    assert_eq!(delivered(&gateway.finish()), 4);
}

// ---- streams

#[test]
fn messages_survive_any_cutting() {
    let gateway = Gateway::start(loopback());
    for slot in 0..4 {
        let mut client = gateway.tcp();
        for byte in frame(&[ECHO, slot, 1, 2, 3, 4]).iter().chain(&frame(&[ECHO, 9, 8])) {
            client.send(&[*byte]);
            std::thread::sleep(Duration::from_millis(1));
        }
        let shard = shard_of(slot);
        assert_eq!(client.message(), [ECHO, slot, 1, 2, 3, 4, shard]);
        assert_eq!(client.message(), [ECHO, 9, 8, shard], "the first message decides");
    }
    gateway.finish();
}

#[test]
fn pipelined_messages_move_with_their_stream() {
    let gateway = Gateway::start(loopback());
    for slot in 0..16 {
        let mut client = gateway.tcp();
        let messages: Vec<Vec<u8>> =
            (0..200u8).map(|number| [&[ECHO, slot][..], &[number; 100]].concat()).collect();
        let all: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
        client.send(&all);
        for message in &messages {
            client.expect_echo(message);
        }
    }
    let shards = gateway.finish();
    assert_eq!(delivered(&shards), 16 * 200);
    let moved = sum(&shards, |counters| counters.streams_handed_over);
    assert_eq!(moved, sum(&shards, |counters| counters.streams_adopted));
}

#[test]
fn some_streams_are_handed_over() {
    let gateway = Gateway::start(loopback());
    for number in 0..64 {
        gateway.tcp().echo(&[ECHO, number]);
    }
    assert!(sum(&gateway.finish(), |counters| counters.streams_handed_over) > 0);
}

#[test]
fn bad_lengths_close() {
    let gateway = Gateway::start(loopback());
    let long = u16::try_from(MESSAGE_MAX + 1).unwrap().to_be_bytes();
    for (bad, first) in [(&long[..], true), (&[0, 0], true), (&[0, 1, 5], true), (&long, false)] {
        let mut client = gateway.tcp();
        if !first {
            client.echo(&[ECHO, 7]);
        }
        client.send(bad);
        client.expect_closed();
    }
    let mut client = gateway.tcp();
    let longest = vec![ECHO; MESSAGE_MAX];
    client.send(&frame(&longest));
    assert_eq!(client.message(), longest);
    let shards = gateway.finish();
    assert_eq!(sum(&shards, |counters| counters.closed_long), 2);
    assert_eq!(sum(&shards, |counters| counters.closed_short), 2);
}

#[test]
fn a_slow_first_message_is_closed_at_the_deadline() {
    let gateway = Gateway::start(Settings { first_message_us: 400_000, ..loopback() });
    let mut silent = gateway.tcp();
    let mut sorting = gateway.tcp();
    sorting.send(&[0, 9, ECHO]);
    let mut first = [gateway.tcp(), gateway.tcp()];
    for (slot, client) in (0..).zip(&mut first) {
        client.send(&[0, 9, ECHO, slot, 1]);
    }
    let mut prompt = gateway.tcp();
    prompt.echo(&[ECHO, 4]);
    let start = Instant::now();
    for client in [&mut silent, &mut sorting].into_iter().chain(&mut first) {
        client.expect_closed();
    }
    let waited = start.elapsed();
    assert!(waited > Duration::from_millis(50) && waited < Duration::from_secs(3), "{waited:?}");
    prompt.echo(&[ECHO, 4]);
    assert_eq!(sum(&gateway.finish(), |counters| counters.closed_first_message), 4);
}

#[test]
fn a_peer_that_never_reads_is_closed() {
    let gateway = Gateway::start(loopback());
    let mut client = gateway.tcp();
    let start = Instant::now();
    while client.0.write_all(&frame(&[FLOOD, 1])).is_ok() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.tcp().echo(&[ECHO, 1]);
    let shards = gateway.finish();
    assert_eq!(sum(&shards, |counters| counters.closed_queue_full), 1);
    assert_eq!(shards[1].handler.closed, 2);
}

#[test]
fn a_handler_closes_after_its_output() {
    let gateway = Gateway::start(loopback());
    for slot in 0..4 {
        let mut client = gateway.tcp();
        client.send(&frame(&[BYE, slot]));
        client.expect_echo(&[BYE, slot]);
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "an orderly end");
    }
    let shards = gateway.finish();
    assert_eq!(sum(&shards, |counters| counters.closed_handler), 4);
}

#[test]
fn two_thousand_streams_at_once() {
    let gateway = Gateway::start(loopback());
    let mut clients: Vec<_> = (0..2_000).map(|_| gateway.tcp()).collect();
    for round in 0..2 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(&frame(&[ECHO, u8::try_from(number % 256).unwrap(), round]));
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.expect_echo(&[ECHO, u8::try_from(number % 256).unwrap(), round]);
        }
    }
    drop(clients);
    let shards = gateway.finish();
    assert_eq!(delivered(&shards), 4_000);
    assert_eq!(sum(&shards, |counters| counters.streams_accepted), 2_000);
}

#[test]
fn streams_above_the_cap_are_refused() {
    let gateway = Gateway::start(Settings { shards: 1, streams_max: 10, ..loopback() });
    let mut clients: Vec<_> = (0..10).map(|_| gateway.tcp()).collect();
    for client in &mut clients {
        client.send(&frame(&[SINK, 0]));
    }
    gateway.tcp().expect_closed();
    drop(clients.pop());
    let start = Instant::now();
    loop {
        let mut client = gateway.tcp();
        let _ = client.0.write_all(&frame(&[ECHO, 0]));
        match client.0.read(&mut [0; 16]) {
            Ok(5) => break,
            _ => assert!(start.elapsed() < PATIENCE, "the freed place is not given again"),
        }
    }
    assert!(sum(&gateway.finish(), |counters| counters.closed_refused) >= 1);
}

/// Peers that leave at every point of a stream's life, in a fixed pseudo-random order.
#[test]
fn streams_end_at_any_point() {
    let gateway = Gateway::start(Settings { first_message_us: 50_000, ..loopback() });
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..1_500 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let [choice, slot, abrupt, pause, ..] = random.to_le_bytes();
        let mut client = gateway.tcp();
        let bytes = match choice % 9 {
            0 => vec![],
            1 => vec![0],
            2 => vec![0, 4, ECHO],
            3 => vec![0, 4, ECHO, slot],
            4 => frame(&[ECHO, slot]),
            5 => [frame(&[ECHO, slot]), vec![0]].concat(),
            6 => frame(&[FLOOD, slot]),
            7 => [frame(&[FLOOD, slot]), frame(&[BYE, slot])].concat(),
            _ => vec![255, 255, 1, 2],
        };
        let _ = client.0.write_all(&bytes);
        if pause < 40 {
            std::thread::sleep(Duration::from_micros(u64::from(pause) * 10));
        }
        match abrupt % 3 {
            0 => {
                let _ = socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO));
            }
            1 => {
                let _ = client.0.shutdown(Shutdown::Write);
            }
            _ => (),
        }
    }
    for slot in 0..8 {
        let mut client = gateway.tcp();
        client.echo(&[ECHO, slot]);
    }
    let shards = gateway.finish();
    assert_eq!(sum(&shards, |counters| counters.streams_accepted), 1_508);
}

// ---- mail, descriptors, the end

#[test]
fn mail_wakes_a_sleeping_shard() {
    let gateway = Gateway::start(loopback());
    let (sender, receiver) = std::sync::mpsc::channel();
    for round in 0..200 {
        for (shard, mail) in gateway.mail.iter().enumerate() {
            mail.try_send(Mail::Reply(sender.clone())).unwrap();
            assert_eq!(receiver.recv_timeout(Duration::from_millis(700)), Ok(shard), "{round}");
        }
        if round % 20 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    gateway.finish();
}

/// Open descriptors, once tests that are just ending have closed theirs.
fn descriptors() -> usize {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut last = count();
    let mut steady = 0;
    while steady < 20 {
        std::thread::sleep(Duration::from_millis(10));
        let now = count();
        steady = if now == last { steady + 1 } else { 0 };
        last = now;
    }
    last
}

#[test]
fn nothing_leaks_when_a_gateway_ends() {
    let _alone = DESCRIPTORS.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = descriptors();
    for orderly in [true, false] {
        let gateway = Gateway::start_alone(loopback());
        let mut clients: Vec<_> = (0..40).map(|_| gateway.tcp()).collect();
        for (slot, client) in (0..).zip(&mut clients[..30]) {
            client.echo(&[ECHO, slot]);
        }
        clients[30].send(&[0, 5]);
        ping(&gateway.udp(), &[ECHO, 1]);
        if orderly {
            gateway.finish();
        } else {
            gateway.stop.stop();
            for thread in gateway.threads {
                thread.join().unwrap();
            }
        }
        drop(clients);
    }
    assert_eq!(descriptors(), before);
}

#[test]
fn a_port_is_free_as_soon_as_a_gateway_has_ended() {
    let mut settings = loopback();
    for _ in 0..20 {
        let gateway = Gateway::start(settings.clone());
        settings.listen = gateway.local;
        ping(&gateway.udp(), &[ECHO, 1]);
        gateway.tcp().echo(&[ECHO, 0]);
        gateway.finish();
        UdpSocket::bind(settings.listen).unwrap();
    }
}

#[test]
fn accepting_resumes_when_descriptors_are_back() {
    let _alone = DESCRIPTORS.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    let gateway = Gateway::start_alone(loopback());
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        hoard.push(file);
        if hoard.len() > 100_000 {
            return; // this machine has too many to exhaust
        }
    }
    client.connect(&gateway.local.into()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    drop(hoard);
    let mut client = Client(client.into());
    client.0.set_read_timeout(Some(PATIENCE)).unwrap();
    client.echo(&[ECHO, 1]);
    drop(client);
    let failures = sum(&gateway.finish(), |counters| counters.accept_failed);
    assert!((1..10).contains(&failures), "paused between tries: {failures}");
}
