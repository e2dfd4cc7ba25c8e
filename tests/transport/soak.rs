//! Streams that end at random in every state, datagrams beside them, queues that are far too small, gateways that stop in
//! the middle of it. `scripts/soak` makes it a campaign under AddressSanitizer.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use duet::transport::{Counters, Settings};
use duet_core::StreamLimits;

use super::world::{BYE, ECHO, FLOOD, Gateway, PATIENCE, SINK, frame, loopback};

/// How many connections gateways accept in all.
const VARIABLE: &str = "DUET_SOAK_CONNECTIONS";
const CONNECTIONS: u64 = 2_000;
/// How many are tried with one gateway, and from how many threads.
const A_LIFE: usize = 1_000;
const THREADS: usize = 4;
/// How many connections a thread keeps open.
const OPEN: usize = 16;

fn tiny() -> Settings {
    Settings {
        submissions: 2,
        completions: 8,
        datagram_buffers: 4,
        stream_buffers: 4,
        send_slots: 2,
        streams_max: 26,
        mailbox: 16,
        ..loopback()
    }
}

struct Random(u64);

impl Random {
    /// Below `end`.
    fn next(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.next(256)).unwrap()
    }
}

/// What a peer may send: whole messages, parts of them, too much, nonsense.
fn bytes(random: &mut Random) -> Vec<u8> {
    let slot = random.byte();
    match random.next(10) {
        0 => vec![0],
        1 => vec![0, 40, ECHO],
        2 => vec![0, 40, ECHO, slot, 1, 2, 3],
        3 => frame(&[FLOOD, slot]),
        4 => frame(&[BYE, slot, 1]),
        5 => [frame(&[FLOOD, slot]), frame(&[BYE, slot])].concat(),
        6 => vec![255, 255, 1, 2],
        7 => (0..20).flat_map(|_| frame(&[ECHO, slot, 7])).collect(),
        8 => [frame(&[ECHO, slot]), vec![5]].concat(),
        _ => frame(&[ECHO, slot]),
    }
}

/// Ends a connection in one of the ways there are.
fn end(stream: TcpStream, random: &mut Random) {
    match random.next(3) {
        0 => drop(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))),
        1 => drop(stream.shutdown(Shutdown::Write)),
        _ => (),
    }
}

/// Opens `count` connections and does something at random with those that are open. The gateway may go meanwhile.
fn peers(to: SocketAddr, count: usize, done: &AtomicUsize, mut random: Random) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut open: Vec<TcpStream> = Vec::new();
    let mut left = count;
    while left > 0 {
        match random.next(6) {
            0 => {
                left -= 1;
                done.fetch_add(1, Ordering::Relaxed);
                if let Ok(stream) = TcpStream::connect_timeout(&to, PATIENCE) {
                    stream.set_nonblocking(true).unwrap();
                    open.push(stream);
                }
            }
            1 | 2 if !open.is_empty() => {
                let index = random.next(open.len());
                let _ = open[index].write(&bytes(&mut random));
            }
            3 if !open.is_empty() => {
                let index = random.next(open.len());
                let _ = open[index].read(&mut [0; 3_000]);
            }
            4 => {
                let message = [[ECHO, SINK][random.next(2)], random.byte(), 3, 4];
                for _ in 0..random.next(12) {
                    let _ = socket.send_to(&message[..random.next(5)], to);
                }
                while socket.recv(&mut [0; 2_000]).is_ok() {}
            }
            _ if random.next(2) == 0 => {
                std::thread::sleep(Duration::from_micros(4 * u64::from(random.byte())));
            }
            _ => (),
        }
        while open.len() > OPEN || !open.is_empty() && random.next(24) == 0 {
            let index = random.next(open.len());
            end(open.swap_remove(index), &mut random);
        }
    }
    open.into_iter().for_each(|stream| end(stream, &mut random));
}

/// Counts of all shards of all lives that show what was exercised.
#[derive(Debug, Default)]
struct Seen {
    accepted: u64,
    handed_over: u64,
    messages: u64,
    datagrams: u64,
    no_buffer: u64,
    send_stalls: u64,
    closed_by_peer: u64,
    closed_by_handler: u64,
    closed_bad_frame: u64,
    closed_first_message: u64,
    closed_queue_full: u64,
    closed_flush: u64,
    closed_too_many: u64,
    closed_error: u64,
    closed_stop: u64,
}

impl Seen {
    fn add(&mut self, counters: &Counters) {
        self.accepted += counters.streams_accepted;
        self.handed_over += counters.streams_handed_over;
        self.messages += counters.messages_in;
        self.datagrams += counters.datagrams_in;
        self.no_buffer += counters.enobufs;
        self.send_stalls += counters.send_stalls;
        self.closed_by_peer += counters.closed_peer;
        self.closed_by_handler += counters.closed_handler;
        self.closed_bad_frame += counters.closed_short + counters.closed_long;
        self.closed_first_message += counters.closed_first_message;
        self.closed_queue_full += counters.closed_queue_full;
        self.closed_flush += counters.closed_flush;
        self.closed_too_many += counters.closed_refused;
        self.closed_error += counters.closed_error;
        self.closed_stop += counters.closed_stop;
    }
}

#[test]
fn everything_may_end_at_any_point() {
    let wanted = std::env::var(VARIABLE).map_or(CONNECTIONS, |text| text.parse().unwrap());
    let mut seen = Seen::default();
    let mut life = 0;
    while seen.accepted < wanted {
        life += 1;
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::try_from(life).unwrap());
        let limits =
            StreamLimits { first_message_us: 5_000, flush_us: 2_000, ..StreamLimits::default() };
        let gateway = Gateway::start_limited(tiny(), limits);
        let (to, done) = (gateway.local, Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let seed = u64::try_from(random.next(usize::MAX >> 1)).unwrap() | 1;
                let done = Arc::clone(&done);
                let peers = move || peers(to, A_LIFE / THREADS, &done, Random(seed));
                std::thread::spawn(peers)
            })
            .collect();
        // Three lives of four end in the middle, at different points.
        let until = [A_LIFE / 4, A_LIFE / 2, 3 * A_LIFE / 4, A_LIFE][life % 4];
        while done.load(Ordering::Relaxed) < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let shards = if life % 2 == 0 { gateway.stop() } else { gateway.finish() };
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        shards.iter().for_each(|shard| seen.add(&shard.counters));
    }
    println!("{life} gateways: {seen:#?}");
    assert!(seen.accepted > 0 && seen.no_buffer > 0 && seen.handed_over > 0, "{seen:#?}");
}
