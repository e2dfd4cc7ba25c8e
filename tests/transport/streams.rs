//! Streams: framing, hand-over, deadlines, back-pressure, every way to end.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use duet::transport::Settings;
use duet_core::{MESSAGE_MAX, StreamLimits};

use super::world::{
    BYE, ECHO, FLOOD, Gateway, PATIENCE, SINK, delivered, frame, loopback, shard_of, sum,
};

#[test]
fn messages_survive_any_cutting() {
    let gateway = Gateway::start(loopback());
    for slot in 0..4 {
        let mut client = gateway.tcp();
        for byte in frame(&[ECHO, slot, 1, 2, 3, 4]).iter().chain(&frame(&[ECHO, 9, 8])) {
            client.send(&[*byte]);
            std::thread::sleep(Duration::from_millis(1));
        }
        let shard = shard_of(slot);
        assert_eq!(client.message(), [ECHO, slot, 1, 2, 3, 4, shard]);
        assert_eq!(client.message(), [ECHO, 9, 8, shard], "the first message decides");
    }
    gateway.finish();
}

#[test]
fn pipelined_messages_move_with_their_stream() {
    let gateway = Gateway::start(loopback());
    for slot in 0..16 {
        let mut client = gateway.tcp();
        let messages: Vec<Vec<u8>> =
            (0..200u8).map(|number| [&[ECHO, slot][..], &[number; 100]].concat()).collect();
        let all: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
        client.send(&all);
        for message in &messages {
            client.expect_echo(message);
        }
    }
    let shards = gateway.finish();
    assert_eq!(delivered(&shards), 16 * 200);
    let moved = sum(&shards, |counters| counters.streams_handed_over);
    assert_eq!(moved, sum(&shards, |counters| counters.streams_adopted));
}

#[test]
fn some_streams_are_handed_over() {
    let gateway = Gateway::start(loopback());
    for number in 0..64 {
        gateway.tcp().echo(&[ECHO, number]);
    }
    assert!(sum(&gateway.finish(), |counters| counters.streams_handed_over) > 0);
}

#[test]
fn bad_lengths_close() {
    let gateway = Gateway::start(loopback());
    let long = u16::try_from(MESSAGE_MAX + 1).unwrap().to_be_bytes();
    for (bad, first) in [(&long[..], true), (&[0, 0], true), (&[0, 1, 5], true), (&long, false)] {
        let mut client = gateway.tcp();
        if !first {
            client.echo(&[ECHO, 7]);
        }
        client.send(bad);
        client.expect_closed();
    }
    let mut client = gateway.tcp();
    let longest = vec![ECHO; MESSAGE_MAX];
    client.send(&frame(&longest));
    assert_eq!(client.message(), longest);
    let shards = gateway.finish();
    assert_eq!(sum(&shards, |counters| counters.closed_long), 2);
    assert_eq!(sum(&shards, |counters| counters.closed_short), 2);
}

#[test]
fn a_slow_first_message_is_closed_at_the_deadline() {
    let limits = StreamLimits { first_message_us: 400_000, ..StreamLimits::default() };
    let gateway = Gateway::start_limited(loopback(), limits);
    let mut silent = gateway.tcp();
    let mut sorting = gateway.tcp();
    sorting.send(&[0, 9, ECHO]);
    let mut first = [gateway.tcp(), gateway.tcp()];
    for (slot, client) in (0..).zip(&mut first) {
        client.send(&[0, 9, ECHO, slot, 1]);
    }
    let mut prompt = gateway.tcp();
    prompt.echo(&[ECHO, 4]);
    let start = Instant::now();
    for client in [&mut silent, &mut sorting].into_iter().chain(&mut first) {
        client.expect_closed();
    }
    let waited = start.elapsed();
    assert!(waited > Duration::from_millis(50) && waited < Duration::from_secs(3), "{waited:?}");
    prompt.echo(&[ECHO, 4]);
    assert_eq!(sum(&gateway.finish(), |counters| counters.closed_first_message), 4);
}

#[test]
fn a_peer_that_never_reads_is_closed() {
    let gateway = Gateway::start(loopback());
    let mut client = gateway.tcp();
    let start = Instant::now();
    while client.0.write_all(&frame(&[FLOOD, 1])).is_ok() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.tcp().echo(&[ECHO, 1]);
    let shards = gateway.finish();
    assert_eq!(sum(&shards, |counters| counters.closed_queue_full), 1);
    assert_eq!(shards[1].handler.closed, 2);
}

#[test]
fn a_handler_closes_after_its_output() {
    let gateway = Gateway::start(loopback());
    for slot in 0..4 {
        let mut client = gateway.tcp();
        client.send(&frame(&[BYE, slot]));
        client.expect_echo(&[BYE, slot]);
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "an orderly end");
    }
    let shards = gateway.finish();
    assert_eq!(sum(&shards, |counters| counters.closed_handler), 4);
}

#[test]
fn two_thousand_streams_at_once() {
    let gateway = Gateway::start(loopback());
    let mut clients: Vec<_> = (0..2_000).map(|_| gateway.tcp()).collect();
    for round in 0..2 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(&frame(&[ECHO, u8::try_from(number % 256).unwrap(), round]));
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.expect_echo(&[ECHO, u8::try_from(number % 256).unwrap(), round]);
        }
    }
    drop(clients);
    let shards = gateway.finish();
    assert_eq!(delivered(&shards), 4_000);
    assert_eq!(sum(&shards, |counters| counters.streams_accepted), 2_000);
}

#[test]
fn streams_above_the_cap_are_refused() {
    let gateway = Gateway::start(Settings { shards: 1, streams_max: 10, ..loopback() });
    let mut clients: Vec<_> = (0..10).map(|_| gateway.tcp()).collect();
    for client in &mut clients {
        client.send(&frame(&[SINK, 0]));
    }
    gateway.tcp().expect_closed();
    drop(clients.pop());
    let start = Instant::now();
    loop {
        let mut client = gateway.tcp();
        let _ = client.0.write_all(&frame(&[ECHO, 0]));
        match client.0.read(&mut [0; 16]) {
            Ok(5) => break,
            _ => assert!(start.elapsed() < PATIENCE, "the freed place is not given again"),
        }
    }
    assert!(sum(&gateway.finish(), |counters| counters.closed_refused) >= 1);
}

/// Peers that leave at every point of a stream's life, in a fixed pseudo-random order.
#[test]
fn streams_end_at_any_point() {
    let limits = StreamLimits { first_message_us: 50_000, ..StreamLimits::default() };
    let gateway = Gateway::start_limited(loopback(), limits);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..1_500 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let [choice, slot, abrupt, pause, ..] = random.to_le_bytes();
        let mut client = gateway.tcp();
        let bytes = match choice % 9 {
            0 => vec![],
            1 => vec![0],
            2 => vec![0, 4, ECHO],
            3 => vec![0, 4, ECHO, slot],
            4 => frame(&[ECHO, slot]),
            5 => [frame(&[ECHO, slot]), vec![0]].concat(),
            6 => frame(&[FLOOD, slot]),
            7 => [frame(&[FLOOD, slot]), frame(&[BYE, slot])].concat(),
            _ => vec![255, 255, 1, 2],
        };
        let _ = client.0.write_all(&bytes);
        if pause < 40 {
            std::thread::sleep(Duration::from_micros(u64::from(pause) * 10));
        }
        match abrupt % 3 {
            0 => {
                let _ = socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO));
            }
            1 => {
                let _ = client.0.shutdown(Shutdown::Write);
            }
            _ => (),
        }
    }
    for slot in 0..8 {
        let mut client = gateway.tcp();
        client.echo(&[ECHO, slot]);
    }
    let shards = gateway.finish();
    assert_eq!(sum(&shards, |counters| counters.streams_accepted), 1_508);
}
