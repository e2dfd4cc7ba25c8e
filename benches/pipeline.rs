//! The gateway's work without sockets, beside rustls doing the same job, in one interleaved run on
//! one pinned core: `cargo bench --bench pipeline`.
//!
//! Measured is the server's side only: for Duet everything a shard does from HELLO to ACCEPT
//! (queue, batch, registry, freshness, session table); for TLS the calls into `ServerConnection`.
//! The anchor, one ECDSA verification by aws-lc-rs, tells how fast the machine was.
#![allow(clippy::unwrap_used, reason = "a benchmark may end at once")]

mod support;

use std::cell::Cell;
use std::io::Cursor;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use duet_core::engine::{Batched, Engine, OneByOne};
use duet_core::testing::{self, Devices, Forget};
use duet_core::{Handler as _, Mail, Now, Random, Settings, Shard, Wiped};
use duet_curve::{Backend, Teeth};
use duet_device::{Config, Device, Software};
use duet_protocol::ec::{
    Agreed, EncapsulateTask, Encapsulated, SecretScalar, Signature, VerifyTask,
};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::{KeySource, Mode, Profile, Transfer, Transport};
use duet_protocol::wire::MESSAGE_MAX;
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

const DEVICES: usize = 256;
const ROUNDS: usize = 7;
const RECORDS: usize = 4_096;

/// An engine that adds up the time spent in it: what of a handshake is curve work.
struct Timed<E> {
    engine: E,
    spent: Rc<Cell<Duration>>,
}

impl<E> Timed<E> {
    fn during<T>(&mut self, work: impl FnOnce(&mut E) -> T) -> T {
        let began = Instant::now();
        let result = work(&mut self.engine);
        self.spent.set(self.spent.get() + began.elapsed());
        result
    }
}

impl<E: Engine> Engine for Timed<E> {
    type PointTable = E::PointTable;

    fn decapsulate(
        &mut self,
        secret: &SecretScalar,
        xs: &[[u8; 32]],
    ) -> Wiped<Option<(Agreed, E::PointTable)>> {
        self.during(|engine| engine.decapsulate(secret, xs))
    }

    fn verify(&mut self, tasks: &[(&VerifyTask, Option<&Teeth>)]) -> Vec<Option<E::PointTable>> {
        self.during(|engine| engine.verify(tasks))
    }

    fn encapsulate(
        &mut self,
        tasks: &[(&EncapsulateTask, &E::PointTable)],
    ) -> Wiped<Option<Encapsulated>> {
        self.during(|engine| engine.encapsulate(tasks))
    }

    fn sign(
        &mut self,
        secret: &SecretScalar,
        digests: &[[u8; 32]],
        random: &mut Random,
    ) -> Vec<Option<Signature>> {
        self.during(|engine| engine.sign(secret, digests, random))
    }

    fn slow_verifications(&self) -> u64 {
        self.engine.slow_verifications()
    }
}

fn now() -> Now {
    Now { mono_us: 1_000_000, unix_ms: 1_800_000_000_000 }
}

fn address(device: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], u16::try_from(device).unwrap() + 1))
}

struct Duet<E: Engine> {
    shard: Shard<Timed<E>, Forget>,
    /// Time in the engine so far.
    curve: Rc<Cell<Duration>>,
    devices: Vec<Device<Software>>,
}

impl<E: Engine> Duet<E> {
    fn new(engine: E, source: KeySource, count: usize) -> Self {
        let known = Arc::<Devices>::default();
        let gateway = testing::gateway_key().gateway;
        let profile = Profile { mode: Mode::Certificate, source };
        let devices = (0..count as u64)
            .map(|number| {
                let id = DeviceId(number.to_be_bytes());
                let identity = known.enrol(&format!("d{number}"), id, profile);
                let transport = Transport::Datagram;
                let config = Config { identity, gateway, profile, transport, fresh: 1 };
                let mut seed = [1; 32];
                seed[..8].copy_from_slice(&number.to_be_bytes());
                Device::seeded(config, seed).unwrap()
            })
            .collect();
        let settings = Settings {
            pending_us: 600_000_000,
            sessions_max: 1 << 20,
            pending_max: 1 << 20,
            retry_from: usize::MAX,
            burst_us: 0,
            ..testing::settings()
        };
        let curve = Rc::default();
        let engine = Timed { engine, spent: Rc::clone(&curve) };
        let shard = testing::shard_with(settings, &known, engine, Forget);
        Self { shard, curve, devices }
    }

    /// New hellos of every device; not measured.
    fn hellos(&mut self) -> Vec<Vec<u8>> {
        let mut out = [0; MESSAGE_MAX];
        self.devices
            .iter_mut()
            .map(|device| {
                device.close();
                device.open(0);
                let len = device.poll_transmit(0, &mut out).unwrap();
                out[..len].to_vec()
            })
            .collect()
    }

    /// One handshake's time at this batch size, and what of it is curve work.
    fn handshakes(&mut self, batch: usize) -> [Duration; 2] {
        let hellos = self.hellos();
        let mut accepts = Vec::with_capacity(hellos.len());
        let mut out = [0; MESSAGE_MAX];
        self.curve.take();
        let began = Instant::now();
        for (number, hellos) in hellos.chunks(batch).enumerate() {
            for (place, hello) in hellos.iter().enumerate() {
                self.shard.handle_datagram(now(), address(number * batch + place), hello);
            }
            self.shard.handle_turn(now());
            while let Some(sent) = self.shard.poll_transmit(&mut out) {
                accepts.push(out[..sent.len].to_vec());
            }
        }
        let took = [began.elapsed(), self.curve.take()];
        assert_eq!(accepts.len(), hellos.len());
        for (device, accept) in self.devices.iter_mut().zip(&mut accepts) {
            device.handle_message(0, accept).unwrap();
        }
        took.map(|took| took / u32::try_from(hellos.len()).unwrap())
    }

    /// One 64-byte reading's time, sixteen a turn, from the devices that are connected.
    fn readings(&mut self) -> Duration {
        let mut records = Vec::with_capacity(RECORDS);
        let mut out = [0; MESSAGE_MAX];
        while records.len() < RECORDS {
            for (number, device) in self.devices.iter_mut().enumerate() {
                device.send_reading(0, 1, &[0x42; 64], false).unwrap();
                while let Some(len) = device.poll_transmit(0, &mut out) {
                    records.push((address(number), out[..len].to_vec()));
                }
            }
        }
        let before = self.shard.counts.readings;
        let began = Instant::now();
        for turn in records.chunks(16) {
            for (from, record) in turn {
                self.shard.handle_datagram(now(), *from, record);
            }
            self.shard.handle_turn(now());
            while self.shard.poll_transmit(&mut out).is_some() {}
        }
        while self.shard.poll_event().is_some() {}
        let took = began.elapsed();
        let taken = u32::try_from(self.shard.counts.readings - before).unwrap();
        assert!(taken as usize >= RECORDS - DEVICES);
        // The first exchange's mail is not part of this.
        self.shard.handle_mail(now(), Mail::Durable(Vec::new()));
        took / taken
    }
}

struct Tls {
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
}

impl Tls {
    fn new() -> Self {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::SECP256R1];
        provider.cipher_suites =
            vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
        let provider = Arc::new(provider);
        let made = |name: &str| {
            let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
            (made.cert.der().clone(), PrivateKeyDer::from(key))
        };
        let ((server_certificate, server_key), (client_certificate, client_key)) =
            (made("gateway"), made("device"));
        let roots = |certificate| {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(certificate).unwrap();
            Arc::new(roots)
        };
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            roots(client_certificate.clone()),
            Arc::clone(&provider),
        );
        let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![server_certificate.clone()], server_key)
            .unwrap();
        server.send_tls13_tickets = 0;
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots(server_certificate))
            .with_client_auth_cert(vec![client_certificate], client_key)
            .unwrap();
        client.resumption = rustls::client::Resumption::disabled();
        Self { client: Arc::new(client), server: Arc::new(server) }
    }

    /// The server's time for one full mutual TLS 1.3 handshake.
    fn handshake(&self) -> Duration {
        let name = ServerName::try_from("gateway").unwrap();
        let mut client = ClientConnection::new(Arc::clone(&self.client), name).unwrap();
        let mut spent = Duration::ZERO;
        let began = Instant::now();
        let mut server = ServerConnection::new(Arc::clone(&self.server)).unwrap();
        spent += began.elapsed();
        while client.is_handshaking() || server.is_handshaking() {
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).unwrap();
            }
            let began = Instant::now();
            let mut input = Cursor::new(&flight);
            while input.position() < flight.len() as u64 {
                server.read_tls(&mut input).unwrap();
                server.process_new_packets().unwrap();
            }
            let mut flight = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut flight).unwrap();
            }
            spent += began.elapsed();
            let mut input = Cursor::new(&flight);
            while input.position() < flight.len() as u64 {
                client.read_tls(&mut input).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        spent
    }
}

struct Row {
    name: &'static str,
    times: Vec<Duration>,
}

impl Row {
    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    }
}

fn main() {
    let pinned = support::pin(0);
    let backend = Backend::detect();
    let ephemeral = KeySource::Ephemeral;
    let mut batched = Duet::new(Batched::new(backend, &[3; 32]), ephemeral, DEVICES);
    let xor = KeySource::Xor(Transfer::Key);
    let mut xor = Duet::new(Batched::new(backend, &[3; 32]), xor, DEVICES);
    let mut portable =
        Duet::new(Batched::new(Backend::portable(), &[3; 32]), ephemeral, DEVICES / 4);
    let mut single = Duet::new(OneByOne, ephemeral, DEVICES / 16);
    let tls = Tls::new();
    let mut anchor = support::anchor();
    // The first round finds nothing in the caches.
    batched.handshakes(64);
    xor.handshakes(64);
    portable.handshakes(64);

    let names = [
        "aws-lc-rs, one ECDSA verification (anchor)",
        "rustls TLS 1.3, full mutual handshake",
        "Duet certificate/ephemeral, batch 64",
        "  of it curve work",
        "Duet certificate/ephemeral, batch 8",
        "  of it curve work",
        "Duet certificate/ephemeral, batch 1",
        "Duet certificate/xor-key, batch 64",
        "  of it curve work",
        "Duet certificate/ephemeral, portable, batch 64",
        "Duet certificate/ephemeral, p256 one by one",
        "Duet reading of 64 bytes, 16 a turn",
    ];
    let mut rows = names.map(|name| Row { name, times: Vec::new() });
    for _ in 0..ROUNDS {
        let mut handshakes: Vec<_> = (0..100).map(|_| tls.handshake()).collect();
        handshakes.sort_unstable();
        let [large, large_curve] = batched.handshakes(64);
        let [small, small_curve] = batched.handshakes(8);
        let [xored, xored_curve] = xor.handshakes(64);
        let times = [
            anchor(),
            handshakes[50],
            large,
            large_curve,
            small,
            small_curve,
            batched.handshakes(1)[0],
            xored,
            xored_curve,
            portable.handshakes(64)[0],
            single.handshakes(64)[0],
            batched.readings(),
        ];
        rows.iter_mut().zip(times).for_each(|(row, time)| row.times.push(time));
    }
    let rustls = rows[1].median();
    println!("\nbackends     curve {}, aead {}", backend.name(), duet_aead::Gcm::best().backend());
    println!("pinned       {pinned}; medians of {ROUNDS} interleaved rounds\n");
    println!("{:<48} {:>10} {:>14}", "server CPU", "µs", "rustls ÷ this");
    for row in &rows {
        let median = row.median();
        println!("{:<48} {median:>10.2} {:>14.2}", row.name, rustls / median);
    }
}
