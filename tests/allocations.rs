//! A warm shard allocates for no record: counted on its own thread, with real devices over UDP and TCP.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use duet::transport::{self, MailSender, bind, run_shard};
use duet_core::testing::{self, Devices};
use duet_core::{Mail, Reading, Sink};
use duet_device::{Config, Device, Software};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::{Kind, MESSAGE_MAX, SessionId};

#[path = "support/socket.rs"]
mod socket;

use socket::Socket;

/// Devices over each transport.
const DEVICES: u8 = 32;
const WARM_UP: usize = 50;
const ROUNDS: usize = 600;

/// Counts what is allocated on threads that asked for it.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: hands everything to the system's allocator as it came; counting neither allocates nor unwinds.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.get() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on; `alloc` took it from there.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Says at once of every reading that it is durable. The spool's share is not counted here.
struct Durable {
    mail: MailSender<Mail>,
    stored: Vec<(SessionId, u32)>,
}

impl Sink for Durable {
    fn take(&mut self, reading: &Reading<'_>) {
        if reading.confirm {
            self.stored.push((reading.session, reading.sequence));
        }
    }

    fn flush(&mut self) {
        if !self.stored.is_empty() {
            COUNTED.set(false);
            assert!(self.mail.try_send(Mail::Durable(self.stored.clone())).is_ok());
            COUNTED.set(true);
            self.stored.clear();
        }
    }
}

struct Client {
    device: Device<Software>,
    socket: Socket,
}

impl Client {
    fn new(device: Device<Software>, to: SocketAddr, transport: Transport) -> Self {
        let socket = Socket::connect(to, transport, Duration::from_secs(10));
        Self { device, socket }
    }

    fn send(&mut self) {
        let mut out = [0; MESSAGE_MAX];
        while let Some(len) = self.device.poll_transmit(0, &mut out) {
            self.socket.send(&out[..len]).unwrap();
        }
    }

    fn receive(&mut self) {
        let mut bytes = [0; MESSAGE_MAX];
        let len = self.socket.receive(&mut bytes).unwrap();
        self.device.handle_message(0, &mut bytes[..len]).unwrap();
    }

    /// Two readings, of which the second is confirmed.
    fn read(&mut self) {
        self.device.send_reading(0, 1, b"nobody waits for this", false).unwrap();
        self.device.send_reading(0, 2, b"somebody waits for this", true).unwrap();
        self.send();
    }

    fn await_confirmation(&mut self) {
        while self.device.poll_confirmed().is_none() {
            self.receive();
        }
    }
}

/// A shard on a thread that is counted, and its devices.
fn world() -> (MailSender<Mail>, std::thread::JoinHandle<()>, Vec<Client>) {
    let devices = Arc::<Devices>::default();
    let gateway = testing::gateway_key().gateway;
    let profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
    let members: Vec<_> = (0..2 * DEVICES)
        .map(|seed| {
            let transport = if seed < DEVICES { Transport::Datagram } else { Transport::Stream };
            let identity = devices.enrol(&format!("device-{seed}"), DeviceId([seed; 8]), profile);
            let config = Config { identity, gateway, profile, transport, fresh: 1 };
            (Device::seeded(config, [seed; 32]).unwrap(), transport)
        })
        .collect();

    let mut bound = bind::<Mail>(transport::Settings {
        listen: "127.0.0.1:0".parse().unwrap(),
        hello: Kind::Hello.byte(),
        ..transport::Settings::default()
    })
    .unwrap();
    let settings = duet_core::Settings {
        sessions_max: 1_000,
        pending_max: 500,
        retry_from: 500,
        burst_us: 0,
        ..testing::settings()
    };
    let (io, mail) = (bound.shards.remove(0), bound.mail.remove(0));
    let own = mail.clone();
    let thread = std::thread::spawn(move || {
        COUNTED.set(true);
        let sink = Durable { mail: own, stored: Vec::with_capacity(1_024) };
        let shard = testing::shard(settings, &devices, sink);
        run_shard(io, shard).unwrap();
        COUNTED.set(false);
    });
    let to = bound.local;
    let client = |(device, transport)| Client::new(device, to, transport);
    (mail, thread, members.into_iter().map(client).collect())
}

#[test]
fn a_warm_shard_allocates_for_no_record() {
    let (mail, thread, mut clients) = world();
    for client in &mut clients {
        client.device.open(0);
        client.send();
        client.receive();
        assert!(client.device.is_open());
    }
    let mut rounds = |count| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..count {
            clients.iter_mut().for_each(Client::read);
            clients.iter_mut().for_each(Client::await_confirmation);
        }
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    assert!(rounds(WARM_UP) > 0, "the shard's thread is counted");
    let allocations = rounds(ROUNDS);
    let records = u64::from(DEVICES) * 2 * 2 * u64::try_from(ROUNDS).unwrap();
    println!("{allocations} allocations for {records} records and their confirmations");
    assert!(allocations < records / 100, "{allocations} allocations for {records} records");
    assert!(mail.try_send(Mail::Drain).is_ok());
    thread.join().unwrap();
}
