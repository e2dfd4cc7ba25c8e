//! Datagrams, and queues that are too small for them.

use duet::transport::Settings;
use duet_core::MESSAGE_MAX;

use super::world::{ECHO, Gateway, SINK, delivered, frame, loopback, ping, sum};

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
