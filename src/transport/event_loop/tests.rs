//! The loop on real sockets, where the kernel steers wrongly or is flooded.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

use duet_core::Close;

use super::super::{MailSender, Settings, StreamId, bind, steering};
use super::*;
use crate::driver::Choice;

/// Counts datagrams, and does what its mail says.
#[derive(Debug, Default)]
struct Sink {
    datagrams: usize,
    hellos: usize,
    streams: usize,
    finished: bool,
    /// Takes nothing more; told of each turn since.
    full: Option<mpsc::Sender<()>>,
}

#[derive(Debug)]
enum Mail {
    Finish,
    Full(mpsc::Sender<()>),
}

impl Handler for Sink {
    type Mail = Mail;
    fn handle_datagram(&mut self, _: Now, _: impl Into<Peer>, bytes: &[u8]) {
        self.datagrams += 1;
        self.hellos += usize::from(bytes[0] == 0x11);
    }
    fn handle_stream_opened(&mut self, _: Now, _: StreamId, _: SocketAddr, _: u64) -> bool {
        self.streams += 1;
        true
    }
    fn handle_message(&mut self, _: Now, _: StreamId, _: &[u8]) {}
    fn handle_stream_ended(&mut self, _: Now, _: StreamId) {}
    fn handle_stream_closed(&mut self, _: Now, _: StreamId) {}
    fn handle_mail(&mut self, _: Now, mail: Mail) {
        match mail {
            Mail::Finish => self.finished = true,
            Mail::Full(turns) => self.full = Some(turns),
        }
    }
    fn handle_turn(&mut self, _: Now) {
        self.full.iter().for_each(|turns| turns.send(()).unwrap());
    }
    fn poll_transmit(&mut self, _: &mut [u8]) -> Option<Transmit> {
        None
    }
    fn poll_close(&mut self) -> Option<(StreamId, Close)> {
        None
    }
    fn poll_timeout(&self) -> Option<u64> {
        None
    }
    fn takes_input(&self) -> bool {
        self.full.is_none()
    }
    fn is_finished(&self) -> bool {
        self.finished
    }
}

/// The kernel steers everything to shard 0; shard 1 still gets what is its own.
#[test]
fn a_datagram_at_the_wrong_shard_is_forwarded() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let bound = bind::<Mail>(Settings { listen, shards: 2, ..Settings::default() }).unwrap();
    bound.steer(&steering::program(1, u8::MAX)).unwrap();
    let threads: Vec<_> = bound
        .shards
        .into_iter()
        .map(|io| std::thread::spawn(move || run_shard(io, Sink::default()).unwrap()))
        .collect();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for slot in 0..100u8 {
        socket.send_to(&[0, slot, 0], bound.local).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    bound.mail.iter().for_each(|mail: &MailSender<Mail>| mail.try_send(Mail::Finish).unwrap());
    let [first, second] = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    assert_eq!([first.handler.datagrams, second.handler.datagrams], [50, 50]);
    assert_eq!([first.counters.datagrams_in, second.counters.datagrams_in], [100, 0]);
    assert_eq!(first.counters.datagrams_forwarded, 50);
}

/// What anybody can make overflows its own socket's buffer and no other.
#[test]
fn a_flood_of_hellos_pushes_nothing_else_out() {
    const HELLO: u8 = 0x11;
    let listen = "127.0.0.1:0".parse().unwrap();
    let settings =
        Settings { listen, hello: HELLO, receive_buffer: 64 << 10, ..Settings::default() };
    let bound = bind::<Mail>(settings).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..2_000 {
        socket.send_to(&[HELLO; 200], bound.local).unwrap();
    }
    for slot in 0..50 {
        socket.send_to(&[0, slot, 0], bound.local).unwrap();
    }
    let [io] = <[_; 1]>::try_from(bound.shards).unwrap();
    let shard = std::thread::spawn(move || run_shard(io, Sink::default()).unwrap());
    std::thread::sleep(Duration::from_millis(200));
    bound.mail[0].try_send(Mail::Finish).unwrap();
    let sink = shard.join().unwrap().handler;
    assert!(sink.hellos < 2_000, "the flood must overflow for this to show anything");
    assert_eq!(sink.datagrams - sink.hellos, 50);
}

/// A process takes this one's place: what comes from now on is for it, whatever this one still waits for, and what came
/// before is delivered.
#[test]
fn what_comes_to_a_shard_that_takes_nothing_more_stays_in_its_sockets() {
    for io in [Choice::Auto, Choice::Epoll] {
        let listen = "127.0.0.1:0".parse().unwrap();
        let mut bound =
            bind::<Mail>(Settings { listen, io, hello: 0x11, ..Settings::default() }).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let send = |count: usize| {
            for _ in 0..count {
                socket.send_to(&[0; 3], bound.local).unwrap();
                socket.send_to(&[0x11; 3], bound.local).unwrap();
            }
        };
        let shards = std::mem::take(&mut bound.shards);
        send(40);
        let [io] = <[_; 1]>::try_from(shards).unwrap();
        let shard = std::thread::spawn(move || run_shard(io, Sink::default()).unwrap());
        send(40);
        let (full, turns) = mpsc::channel();
        bound.mail[0].try_send(Mail::Full(full)).unwrap();
        // In the second turn the kernel knows.
        turns.recv().unwrap();
        turns.recv().unwrap();
        send(7);
        let _streams = [(); 2].map(|()| TcpStream::connect(bound.local).unwrap());
        // It does not wake, and has not ended: it sleeps as long as it may.
        while turns.recv_timeout(Duration::from_millis(100)).is_ok() {}
        bound.mail[0].try_send(Mail::Finish).unwrap();
        let sink = shard.join().unwrap().handler;
        assert_eq!(sink.streams, 0);
        let (mut left, mut streams) = (0, 0);
        for (_, kept) in bound.sockets() {
            let kept = socket2::SockRef::from(&kept);
            kept.set_nonblocking(true).unwrap();
            while kept.r#type().unwrap() == socket2::Type::DGRAM
                && kept.recv(&mut [std::mem::MaybeUninit::uninit(); 8]).is_ok()
            {
                left += 1;
            }
            while kept.r#type().unwrap() == socket2::Type::STREAM && kept.accept().is_ok() {
                streams += 1;
            }
        }
        assert!(left >= 2 * 7, "{left}");
        assert_eq!((sink.datagrams + left, streams), (2 * 87, 2), "{sink:?}");
    }
}

/// What one turn takes when 32 come at every look.
fn taken(burst: &mut Burst) -> u64 {
    let mut taken = BURST;
    while burst.goes_on(BURST, taken) {
        taken += BURST;
    }
    taken
}

#[test]
fn a_first_knock_is_taken_whole_and_who_knocks_on_and_on_waits_for_his_turn() {
    let mut burst = Burst { credit: CREDIT };
    assert_eq!(taken(&mut burst), TAKEN_A_TURN + CREDIT);
    assert_eq!([taken(&mut burst), taken(&mut burst)], [TAKEN_A_TURN; 2]);
    // A turn that finds half a burst is no rest, one that finds next to nothing is.
    assert!(burst.goes_on(BURST, BURST) && !burst.goes_on(1, BURST + 1));
    assert_eq!(taken(&mut burst), TAKEN_A_TURN);
    assert!(!burst.goes_on(1, 1));
    assert_eq!(taken(&mut burst), TAKEN_A_TURN + CREDIT);
}
