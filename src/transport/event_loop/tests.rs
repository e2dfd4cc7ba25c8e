//! The loop on real sockets, where the kernel steers wrongly or is flooded.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use duet_core::Close;

use super::super::{MailSender, Settings, StreamId, bind, steering};
use super::*;

/// Counts datagrams and finishes on mail.
#[derive(Debug, Default)]
struct Sink {
    datagrams: usize,
    hellos: usize,
    finished: bool,
}

impl Handler for Sink {
    type Mail = ();
    fn handle_datagram(&mut self, _: Now, _: impl Into<Peer>, bytes: &[u8]) {
        self.datagrams += 1;
        self.hellos += usize::from(bytes[0] == 0x11);
    }
    fn handle_stream_opened(&mut self, _: Now, _: StreamId, _: SocketAddr, _: u64) -> bool {
        true
    }
    fn handle_message(&mut self, _: Now, _: StreamId, _: &[u8]) {}
    fn handle_stream_ended(&mut self, _: Now, _: StreamId) {}
    fn handle_stream_closed(&mut self, _: Now, _: StreamId) {}
    fn handle_mail(&mut self, _: Now, (): ()) {
        self.finished = true;
    }
    fn handle_turn(&mut self, _: Now) {}
    fn poll_transmit(&mut self, _: &mut [u8]) -> Option<Transmit> {
        None
    }
    fn poll_close(&mut self) -> Option<(StreamId, Close)> {
        None
    }
    fn poll_timeout(&self) -> Option<u64> {
        None
    }
    fn is_finished(&self) -> bool {
        self.finished
    }
}

/// The kernel steers everything to shard 0; shard 1 still gets what is its own.
#[test]
fn a_datagram_at_the_wrong_shard_is_forwarded() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let bound = bind::<()>(Settings { listen, shards: 2, ..Settings::default() }).unwrap();
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
    bound.mail.iter().for_each(|mail: &MailSender<()>| mail.try_send(()).unwrap());
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
    let bound = bind::<()>(settings).unwrap();
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
    bound.mail[0].try_send(()).unwrap();
    let sink = shard.join().unwrap().handler;
    assert!(sink.hellos < 2_000, "the flood must overflow for this to show anything");
    assert_eq!(sink.datagrams - sink.hellos, 50);
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
