//! The sans-IO gateway under arbitrary messages, on both transports: no panic, no state, no
//! answer longer than what came, one reason for each.
#![no_main]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use duet_core::engine::Batched;
use duet_core::testing::{self, Devices};
use duet_core::{Handler as _, Now, Path, Reading, Shard, Sink, StreamId};
use libfuzzer_sys::fuzz_target;

struct Nothing;

impl Sink for Nothing {
    fn take(&mut self, _: &Reading<'_>) {
        panic!("nobody is registered, so nothing is delivered");
    }

    fn flush(&mut self) {}
}

fn shard() -> Shard<Batched, Nothing> {
    testing::shard(testing::settings(), &Arc::<Devices>::default(), Nothing)
}

thread_local!(static SHARD: RefCell<Shard<Batched, Nothing>> = RefCell::new(shard()));

fuzz_target!(|bytes: &[u8]| {
    SHARD.with_borrow_mut(|shard| {
        let now = Now { mono_us: 1_000_000, unix_ms: 1_800_000_000_000 };
        let from: SocketAddr = "192.0.2.1:4000".parse().expect("an address");
        let before: u64 = shard.counts.drops.iter().sum();
        shard.handle_datagram(now, from, bytes);
        let peer = "192.0.2.2:4000".parse().expect("an address");
        assert!(shard.handle_stream_opened(now, StreamId(1), peer, now.mono_us));
        shard.handle_message(now, StreamId(1), bytes);
        shard.handle_turn(now);
        let after: u64 = shard.counts.drops.iter().sum();
        assert_eq!(after, before + 2);
        assert_eq!(shard.sessions(), 0);
        let mut out = [0; 1_500];
        while let Some(sent) = shard.poll_transmit(&mut out) {
            assert!(sent.len <= bytes.len());
            assert!(matches!(sent.to, Path::Datagram(_) | Path::Stream(_)));
        }
        shard.check();
        while shard.poll_event().is_some() {}
        while shard.poll_close().is_some() {}
        shard.handle_stream_closed(now, StreamId(1));
    });
});
