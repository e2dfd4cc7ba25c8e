//! A handler that echoes, a gateway of two shards with it, and clients.

use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use duet::transport::{
    Bound, Counters, Finished, MailSender, Settings, Stop, TransportError, Warning, bind, run_shard,
};
use duet_core::{
    Close, Handler, MESSAGE_MAX, Now, Path, Peer, StreamId, StreamLimits, Streams, Transmit,
};

pub(crate) const ECHO: u8 = 0;
/// Delivered and not answered.
pub(crate) const SINK: u8 = 1;
/// Answered by a megabyte.
pub(crate) const FLOOD: u8 = 2;
/// Answered, and then the stream is closed.
pub(crate) const BYE: u8 = 3;

pub(crate) const SHARDS: usize = 2;
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test that counts, exhausts or waits for the descriptors of its process in one of its own.
/// The caller is the test by that name, and `act` is what it does there.
pub(crate) fn in_own_process(test: &str, act: fn()) {
    const CHILD: &str = "DUET_TEST_ALONE";
    if std::env::var_os(CHILD).is_some() {
        return act();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:#?}");
}

#[derive(Debug)]
pub(crate) enum Mail {
    Finish,
    Reply(std::sync::mpsc::Sender<usize>),
}

#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) shard: usize,
    pub(crate) output: VecDeque<(Path, Vec<u8>)>,
    /// Those that closed after a message are counted.
    pub(crate) open: HashSet<StreamId>,
    pub(crate) streams: Streams,
    pub(crate) now_us: u64,
    pub(crate) delivered: usize,
    pub(crate) closed: usize,
    pub(crate) finishing: bool,
}

impl Echo {
    pub(crate) fn answer(&mut self, to: Path, bytes: &[u8]) {
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
                self.streams.finish(self.now_us, stream);
            }
            _ => self.output.push_back((to, reply)),
        }
    }
}

impl Handler for Echo {
    type Mail = Mail;

    fn handle_datagram(&mut self, _: Now, from: impl Into<Peer>, bytes: &[u8]) {
        self.answer(Path::Datagram(from.into()), bytes);
    }

    fn handle_stream_opened(
        &mut self,
        _: Now,
        stream: StreamId,
        peer: SocketAddr,
        since_us: u64,
    ) -> bool {
        self.streams.opened(stream, peer, since_us)
    }

    fn handle_message(&mut self, now: Now, stream: StreamId, bytes: &[u8]) {
        self.now_us = now.mono_us;
        if self.streams.arrived(now.mono_us, stream) {
            self.open.insert(stream);
            self.answer(Path::Stream(stream), bytes);
        }
    }

    fn handle_stream_ended(&mut self, now: Now, stream: StreamId) {
        self.streams.ended(now.mono_us, stream);
    }

    fn handle_stream_closed(&mut self, _: Now, stream: StreamId) {
        let before = self.streams.len();
        self.streams.closed(stream);
        assert_eq!(self.streams.len() + 1, before, "closed once, after it was opened");
        self.closed += usize::from(self.open.remove(&stream));
    }

    fn handle_mail(&mut self, _: Now, mail: Mail) {
        match mail {
            Mail::Finish => self.finishing = true,
            Mail::Reply(to) => to.send(self.shard).unwrap(),
        }
    }

    fn handle_turn(&mut self, now: Now) {
        self.now_us = now.mono_us;
    }

    fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let (to, bytes) = self.output.pop_front()?;
        out[..bytes.len()].copy_from_slice(&bytes);
        Some(Transmit { to, len: bytes.len() })
    }

    fn poll_close(&mut self) -> Option<(StreamId, Close)> {
        self.streams.poll(self.now_us)
    }

    fn poll_timeout(&self) -> Option<u64> {
        self.streams.next_us()
    }

    fn takes_input(&self) -> bool {
        true
    }

    fn is_finished(&self) -> bool {
        self.finishing && self.output.is_empty()
    }
}

/// A running gateway of echoing shards.
pub(crate) struct Gateway {
    pub(crate) local: SocketAddr,
    pub(crate) mail: Vec<MailSender<Mail>>,
    pub(crate) stop: Stop,
    pub(crate) threads: Vec<JoinHandle<Finished<Echo>>>,
}

pub(crate) fn loopback() -> Settings {
    let listen = "127.0.0.1:0".parse().unwrap();
    Settings { listen, shards: SHARDS, ..Settings::default() }
}

impl Gateway {
    pub(crate) fn start(settings: Settings) -> Self {
        Self::start_limited(settings, StreamLimits::default())
    }

    /// One whose streams have other times than usual.
    pub(crate) fn start_limited(settings: Settings, limits: StreamLimits) -> Self {
        Self::start_with(settings, limits).unwrap().0
    }

    /// One that may be refused, with its warnings.
    pub(crate) fn try_start(settings: Settings) -> Result<(Self, Vec<Warning>), TransportError> {
        Self::start_with(settings, StreamLimits::default())
    }

    fn start_with(
        settings: Settings,
        limits: StreamLimits,
    ) -> Result<(Self, Vec<Warning>), TransportError> {
        let Bound { local, shards, mail, stop, driver, warnings, .. } = bind(settings)?;
        if let Ok(forced) = std::env::var("DUET_IO") {
            assert_eq!(driver.name(), forced);
        }
        let threads = shards
            .into_iter()
            .map(|io| {
                std::thread::spawn(move || {
                    let streams = Streams::new(limits);
                    let echo = Echo { shard: io.index(), streams, ..Echo::default() };
                    run_shard(io, echo).unwrap()
                })
            })
            .collect();
        Ok((Self { local, mail, stop, threads }, warnings))
    }

    /// Lets the handlers finish, and checks that every stream that came is accounted for.
    pub(crate) fn finish(self) -> Vec<Finished<Echo>> {
        for mail in &self.mail {
            let mut waiting = Some(Mail::Finish);
            while let Some(mail_back) = waiting.take().and_then(|it| mail.try_send(it).err()) {
                waiting = Some(mail_back); // a full mailbox empties within a turn
                std::thread::yield_now();
            }
        }
        self.join()
    }

    /// Ends the loops at once, with the same check.
    pub(crate) fn stop(self) -> Vec<Finished<Echo>> {
        self.stop.stop();
        self.join()
    }

    fn join(self) -> Vec<Finished<Echo>> {
        let shards: Vec<_> = self.threads.into_iter().map(|it| it.join().unwrap()).collect();
        for shard in &shards {
            let counters = &shard.counters;
            assert_eq!(
                counters.streams_accepted + counters.streams_adopted,
                counters.streams_handed_over + closed(counters),
                "{counters:#?}"
            );
            assert!(shard.handler.streams.is_empty(), "every stream was reported closed");
        }
        shards
    }

    pub(crate) fn udp(&self) -> UdpSocket {
        let any = if self.local.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(self.local).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    pub(crate) fn tcp(&self) -> Client {
        let stream = TcpStream::connect(self.local).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(stream)
    }
}

pub(crate) fn closed(counters: &Counters) -> u64 {
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

pub(crate) fn sum(shards: &[Finished<Echo>], field: impl Fn(&Counters) -> u64) -> u64 {
    shards.iter().map(|shard| field(&shard.counters)).sum()
}

pub(crate) fn delivered(shards: &[Finished<Echo>]) -> usize {
    shards.iter().map(|shard| shard.handler.delivered).sum()
}

pub(crate) fn shard_of(slot: u8) -> u8 {
    slot % u8::try_from(SHARDS).unwrap()
}

pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn message(&mut self) -> Vec<u8> {
        let mut length = [0; 2];
        self.0.read_exact(&mut length).unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        self.0.read_exact(&mut message).unwrap();
        message
    }

    pub(crate) fn echo(&mut self, message: &[u8]) {
        self.send(&frame(message));
        self.expect_echo(message);
    }

    pub(crate) fn expect_echo(&mut self, message: &[u8]) {
        let expected = [message, &[shard_of(message[1])]].concat();
        assert_eq!(self.message(), expected);
    }

    /// Reads until the gateway closes.
    pub(crate) fn expect_closed(&mut self) {
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

pub(crate) fn ping(socket: &UdpSocket, message: &[u8]) {
    socket.send(message).unwrap();
    let mut bytes = [0; 2048];
    let len = socket.recv(&mut bytes).unwrap();
    assert_eq!(bytes[..len], [message, &[shard_of(message[1])]].concat());
}
