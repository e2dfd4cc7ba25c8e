//! Both drivers against the same promises: what ends each wait, and whose handles they take.
//!
//! The datagram sockets are Unix ones: what was sent takes room until the peer has read it, so that a full one is easy
//! to come by.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::epoll::Epoll;
use super::uring::Ring;
use super::*;

/// What a wait may take whose event comes. Without the event it ends by this, and the test fails.
const PROMPT: Duration = Duration::from_secs(2);

/// Until the driver surely sleeps.
const A_MOMENT: Duration = Duration::from_millis(50);

struct World {
    driver: Box<dyn Driver>,
    /// The socket that it receives from and sends by.
    own: UnixDatagram,
    /// The other ends of the datagram sockets.
    peer: UnixDatagram,
    hellos_peer: UnixDatagram,
    listen: SocketAddr,
    wake: EventFd,
}

type Make = fn(&Sizes, &Sockets<'_>) -> Result<Box<dyn Driver>, DriverError>;

impl World {
    fn new(make: Make) -> Result<Self, DriverError> {
        let (datagrams, peer) = UnixDatagram::pair().unwrap();
        socket2::SockRef::from(&datagrams).set_send_buffer_size(8_192).unwrap();
        let (hellos, hellos_peer) = UnixDatagram::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wake = EventFd::new().unwrap();
        let sizes = Sizes {
            submissions: 8,
            completions: 64,
            datagram_buffers: 4,
            datagram_buffer_len: 2_048,
            stream_buffers: 4,
            stream_buffer_len: 2_048,
            send_slots: 1_024,
        };
        let sockets = Sockets {
            datagrams: datagrams.as_fd(),
            hellos: hellos.as_fd(),
            listener: listener.as_fd(),
            wake: wake.as_fd(),
        };
        let mut driver = make(&sizes, &sockets)?;
        driver.enable()?;
        Ok(Self {
            driver,
            own: datagrams,
            peer,
            hellos_peer,
            listen: listener.local_addr().unwrap(),
            wake,
        })
    }

    /// Waits until `count` completions are there.
    fn wait(&mut self, count: usize) -> Vec<Completion> {
        let (start, mut all) = (Instant::now(), Vec::new());
        loop {
            self.driver.reap(&mut all);
            let left = PROMPT.saturating_sub(start.elapsed());
            if all.len() >= count || left.is_zero() {
                assert_eq!(all.len(), count, "{all:#?}");
                return all;
            }
            self.driver.enter(1, Some(left), 0).unwrap();
        }
    }

    /// Enters without waiting; what is there then.
    fn poll(&mut self) -> Vec<Completion> {
        let mut all = Vec::new();
        self.driver.enter(0, Some(Duration::ZERO), 0).unwrap();
        self.driver.reap(&mut all);
        all
    }

    /// The bytes that a completion carries. Their buffer goes back.
    fn bytes_of(&mut self, completion: Completion) -> Vec<u8> {
        let Payload::Received(lease) = completion.payload else { panic!("{completion:?}") };
        let bytes = self.driver.read(&lease).to_vec();
        self.driver.give_back(lease);
        bytes
    }

    /// The bytes of the next completion.
    fn received(&mut self) -> Vec<u8> {
        let completion = self.wait(1).remove(0);
        self.bytes_of(completion)
    }

    /// Queues a datagram for whom the socket is connected to.
    fn send(&mut self, bytes: &[u8]) {
        let mut slot = self.driver.send_slot().unwrap();
        self.driver.slot_bytes(&mut slot)[..bytes.len()].copy_from_slice(bytes);
        self.driver.send_datagram(slot, bytes.len(), &Route::connected());
    }
}

fn both() -> Vec<World> {
    let makes: [Make; 2] = [
        |sizes, sockets| Ok(Box::new(Epoll::new(sizes, sockets)?)),
        |sizes, sockets| Ok(Box::new(Ring::new(sizes, sockets)?)),
    ];
    let worlds = makes.into_iter().filter_map(|make| match World::new(make) {
        Err(error) if error.is_refusal() => {
            eprintln!("SKIPPED: io_uring: {error}");
            None
        }
        world => Some(world.unwrap()),
    });
    worlds.collect()
}

/// A connection: the driver's end, and the peer's.
fn connection() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0.into(), peer)
}

/// Does something while the driver waits.
fn meanwhile<A, R>(act: impl FnOnce() -> A + Send, wait: impl FnOnce() -> R) -> R {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(A_MOMENT);
            act();
        });
        wait()
    })
}

// ---- what ends each wait

#[test]
fn datagrams_of_both_sockets_end_a_wait() {
    for mut world in both() {
        world.driver.receive_datagrams(Inbox::Datagrams, 1);
        world.driver.receive_datagrams(Inbox::Hellos, 2);
        for tag in [1, 2, 1] {
            let sender = if tag == 1 { &world.peer } else { &world.hellos_peer };
            let sender = sender.try_clone().unwrap();
            let arrived = meanwhile(|| sender.send(b"one").unwrap(), || world.wait(1));
            assert_eq!((arrived[0].tag, arrived[0].more), (tag, true));
            arrived.into_iter().for_each(|completion| drop(world.bytes_of(completion)));
        }
    }
}

#[test]
fn datagrams_that_find_no_buffer_come_when_there_is_one() {
    for mut world in both() {
        world.driver.receive_datagrams(Inbox::Datagrams, 1);
        for _ in 0..5 {
            world.peer.send(b"one").unwrap();
        }
        let mut arrived = world.wait(5);
        let last = arrived.pop().unwrap();
        assert_eq!((last.result, last.more), (-libc::ENOBUFS, false));
        arrived.into_iter().for_each(|completion| drop(world.bytes_of(completion)));
        world.driver.receive_datagrams(Inbox::Datagrams, 1);
        world.received();
    }
}

/// The socket's peer has no room, and reads only while the driver waits: then it is room that ends the wait.
#[test]
fn a_datagram_that_finds_no_room_leaves_when_there_is_some() {
    const COUNT: usize = 50;
    const LEN: usize = 1_000;
    for mut world in both() {
        (0..COUNT).for_each(|_| world.send(&[7; LEN]));
        let sent = world.poll().len() + world.poll().len();
        assert!(sent < COUNT, "the socket must be full for this to show anything");
        let peer = world.peer.try_clone().unwrap();
        let read = || (0..COUNT).for_each(|_| assert_eq!(peer.recv(&mut [0; LEN]).unwrap(), LEN));
        let rest = meanwhile(read, || world.wait(COUNT - sent));
        let result = i32::try_from(LEN).unwrap();
        assert!(rest.iter().all(|completion| completion.result == result), "{rest:#?}");
        // From then on that there is room ends no wait.
        let (start, mut waits) = (Instant::now(), 0);
        while start.elapsed() < A_MOMENT {
            world.driver.enter(1, Some(A_MOMENT), 0).unwrap();
            waits += 1;
        }
        assert!(waits < 10, "{waits} waits in a moment in which nothing happened");
    }
}

#[test]
fn connections_end_a_wait() {
    for mut world in both() {
        let listen = world.listen;
        // One that came before anybody wanted it, and one after.
        let _early = TcpStream::connect(listen).unwrap();
        world.poll();
        world.driver.accept_streams(1);
        let accepted = world.wait(1).remove(0);
        assert!(matches!(accepted.payload, Payload::Accepted(_)) && accepted.more);
        let accepted =
            meanwhile(|| drop(TcpStream::connect(listen).unwrap()), || world.wait(1).remove(0));
        assert!(matches!(accepted.payload, Payload::Accepted(_)));
    }
}

#[test]
fn the_eventfd_ends_a_wait() {
    for mut world in both() {
        // Written before anybody watches, in a turn of its own; and while the driver waits.
        world.wake.wake();
        world.poll();
        world.driver.watch_wake(1);
        world.wait(1);
        for _ in 0..3 {
            let wake = world.wake.as_fd().try_clone_to_owned().unwrap();
            let write = || rustix::io::write(&wake, &1u64.to_ne_bytes()).unwrap();
            let woken = meanwhile(write, || world.wait(1).remove(0));
            assert_eq!((woken.tag, woken.more), (1, true));
        }
    }
}

#[test]
fn bytes_and_the_end_of_a_stream_end_a_wait() {
    for mut world in both() {
        let (stream, mut peer) = connection();
        world.driver.receive_stream_once(stream.as_fd(), 1);
        meanwhile(|| peer.write_all(b"one").unwrap(), || assert_eq!(world.received(), b"one"));
        // Came while nobody received.
        peer.write_all(b"two").unwrap();
        std::thread::sleep(A_MOMENT);
        world.poll();
        world.driver.receive_stream(stream.as_fd(), 1);
        assert_eq!(world.received(), b"two");
        meanwhile(|| peer.write_all(b"three").unwrap(), || assert_eq!(world.received(), b"three"));
        let end = meanwhile(|| drop(peer), || world.wait(1).remove(0));
        assert_eq!((end.result, end.more), (0, false));
        world.driver.forget_stream(stream.as_fd());
    }
}

/// A read stops before an urgent byte: less came than there was room for, and more is there.
#[test]
fn what_follows_an_urgent_byte_is_read() {
    for mut world in both() {
        let (stream, mut peer) = connection();
        peer.write_all(b"before").unwrap();
        socket2::SockRef::from(&peer).send_out_of_band(b"!").unwrap();
        peer.write_all(b"after").unwrap();
        std::thread::sleep(A_MOMENT);
        world.driver.receive_stream(stream.as_fd(), 1);
        let (start, mut all) = (Instant::now(), Vec::new());
        while all != b"beforeafter" {
            assert!(start.elapsed() < PROMPT, "{all:?}");
            world.driver.enter(1, Some(PROMPT), 0).unwrap();
            let mut arrived = Vec::new();
            world.driver.reap(&mut arrived);
            arrived.into_iter().for_each(|completion| all.extend(world.bytes_of(completion)));
        }
        world.driver.cancel_receive(stream.as_fd(), 1, 2);
        world.wait(2);
        world.driver.forget_stream(stream.as_fd());
    }
}

#[test]
fn streams_that_find_no_buffer_are_read_when_there_is_one() {
    for mut world in both() {
        let (stream, mut peer) = connection();
        peer.write_all(&[7; 5 * 2_048]).unwrap();
        std::thread::sleep(A_MOMENT);
        world.driver.receive_stream(stream.as_fd(), 1);
        let mut arrived = world.wait(5);
        let last = arrived.pop().unwrap();
        assert_eq!((last.result, last.more), (-libc::ENOBUFS, false));
        arrived.into_iter().for_each(|completion| drop(world.bytes_of(completion)));
        world.driver.receive_stream(stream.as_fd(), 1);
        assert_eq!(world.received().len(), 2_048);
        world.driver.cancel_receive(stream.as_fd(), 1, 2);
        world.wait(2);
        world.driver.forget_stream(stream.as_fd());
    }
}

#[test]
fn a_stream_that_takes_no_more_goes_on_when_it_is_read() {
    const LEN: usize = 16 << 20;
    for mut world in both() {
        let (stream, mut peer) = connection();
        world.driver.send_stream(stream.as_fd(), vec![7; LEN], 0, 1);
        assert!(world.poll().is_empty(), "it must not fit for this to show anything");
        let read = || peer.read_exact(&mut vec![0; LEN]).unwrap();
        let sent = meanwhile(read, || world.wait(1).remove(0));
        assert_eq!(usize::try_from(sent.result).unwrap(), LEN);
        world.driver.forget_stream(stream.as_fd());
    }
}

#[test]
fn a_wait_that_gathers_ends_with_less_than_it_wants() {
    for mut world in both() {
        if !world.driver.can_wait_for_a_batch() {
            continue;
        }
        world.driver.receive_datagrams(Inbox::Datagrams, 1);
        world.peer.send(b"one").unwrap();
        let start = Instant::now();
        world.driver.enter(64, Some(2 * PROMPT), 1_000).unwrap();
        assert!(start.elapsed() < PROMPT);
        world.received();
    }
}

// ---- whose handles they are

fn refused<R>(call: impl FnOnce() -> R) -> bool {
    let Err(panic) = catch_unwind(AssertUnwindSafe(call)) else { return false };
    panic.downcast_ref::<&str>().is_some_and(|said| said.contains("another driver"))
}

#[test]
fn a_driver_takes_no_handle_of_another() {
    for (mut ours, mut theirs) in both().into_iter().zip(both()) {
        for world in [&mut ours, &mut theirs] {
            world.driver.receive_datagrams(Inbox::Datagrams, 1);
            world.peer.send(b"one").unwrap();
        }
        let [own, foreign] =
            [&mut ours, &mut theirs].map(|world| match world.wait(1).remove(0).payload {
                Payload::Received(lease) => lease,
                other => panic!("{other:?}"),
            });
        assert!(refused(|| ours.driver.read(&foreign).len()));
        assert!(refused(|| ours.driver.give_back(foreign)));
        ours.driver.give_back(own);

        let own = ours.driver.send_slot().unwrap();
        ours.driver.send_datagram(own, 1, &Route::connected());
        let mut foreign = theirs.driver.send_slot().unwrap();
        assert!(refused(|| ours.driver.slot_bytes(&mut foreign)[0]));
        assert!(refused(|| ours.driver.send_datagram(foreign, 1, &Route::connected())));
        let foreign = theirs.driver.send_slot().unwrap();
        assert!(refused(|| ours.driver.release_slot(foreign)));
    }
}

/// It is for whoever has the socket next: the process that takes this one's place.
#[test]
fn what_comes_when_a_driver_is_drained_stays_where_it_is() {
    for mut world in both() {
        world.driver.receive_datagrams(Inbox::Datagrams, 7);
        world.driver.receive_datagrams(Inbox::Hellos, 8);
        world.driver.accept_streams(9);
        assert!(world.poll().is_empty(), "armed");
        for number in 0..2 {
            world.peer.send(&[number]).unwrap();
            world.hellos_peer.send(&[number]).unwrap();
        }
        let _waiting = TcpStream::connect(world.listen).unwrap();
        let mut taken = 0;
        let drained = world.driver.drain(PROMPT, &mut |completion| {
            taken += i32::from(!matches!(completion.payload, Payload::None));
        });
        assert!(drained && taken == 0, "{:?}: {taken}", world.driver.kind());
        world.own.set_nonblocking(true).unwrap();
        let mut buffer = [0; 8];
        for number in 0..2 {
            assert_eq!(world.own.recv(&mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], number);
        }
    }
}
