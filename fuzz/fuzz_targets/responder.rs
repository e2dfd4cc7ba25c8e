//! The sans-IO gateway under arbitrary messages, on both transports: no panic, no state, no
//! answer longer than what came, one reason for each.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use duet::registry::Registry;
use duet::shard::engine::Batched;
use duet::shard::{GatewayKey, Reading, Settings, Shard, Sink};
use duet::transport::{Handler as _, Now, Path, StreamId};
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::{Fingerprint, Gateway};
use libfuzzer_sys::fuzz_target;

struct Nothing;

impl Sink for Nothing {
    fn take(&mut self, _: &Reading<'_>) {
        panic!("nobody is registered, so nothing is delivered");
    }

    fn flush(&mut self) {}
}

fn shard() -> Shard<Batched, Nothing> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let registry = Registry::create(&dir.path().join("registry.redb")).expect("a registry");
    let secret = SecretScalar::from_bytes(&[0x31; 32]).expect("in range");
    let fingerprint = Fingerprint::of_certificate(b"gateway");
    let gateway = Gateway { key_id: 1, fingerprint, key: secret.public_key() };
    let settings = Settings {
        keys: vec![GatewayKey { gateway, secret }],
        node_key: [0x77; 32],
        index: 0,
        shards: 1,
        idle_us: 600_000_000,
        pending_us: 10_000_000,
        lifetime_s: 86_400,
        sessions_max: 100,
        pending_max: 50,
        retry_from: 64,
        hello_us: 40,
        gcm: duet_aead::Gcm::best(),
        gauges: Arc::default(),
    };
    let engine = Batched::new(duet_curve::Backend::detect(), 64);
    Shard::new(settings, registry.view().expect("a view"), engine, Nothing)
}

thread_local!(static SHARD: RefCell<Shard<Batched, Nothing>> = RefCell::new(shard()));

fuzz_target!(|bytes: &[u8]| {
    SHARD.with_borrow_mut(|shard| {
        let now = Now { mono_us: 1_000_000, unix_ms: 1_800_000_000_000 };
        let from = "192.0.2.1:4000".parse().expect("an address");
        let before: u64 = shard.counts.drops.iter().sum();
        shard.handle_datagram(now, from, bytes);
        shard.handle_message(now, StreamId::simulated(1), bytes);
        shard.handle_turn(now);
        let after: u64 = shard.counts.drops.iter().sum();
        assert_eq!(after, before + 2);
        assert_eq!(shard.sessions(), 0);
        let mut out = [0; 1_500];
        while let Some(sent) = shard.poll_transmit(&mut out) {
            assert!(sent.len <= bytes.len());
            assert!(matches!(sent.to, Path::Datagram(_) | Path::Stream(_)));
        }
        while shard.poll_close().is_some() {}
    });
});
