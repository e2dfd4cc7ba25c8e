//! Every decoder of the protocol crate: no panic, and what decodes encodes to the same bytes.
#![no_main]

use duet_protocol::message::{Down, TEXT_MAX, Up};
use duet_protocol::profile::Transport;
use duet_protocol::wire::{DownHeader, Hello, Kind, Reset, Retry, UP_HEADER, UpHeader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Kind::of(bytes);
    for transport in [Transport::Datagram, Transport::Stream] {
        if let Ok(hello) = Hello::decode(bytes, transport) {
            assert!(bytes.starts_with(hello.bytes()));
            assert_eq!(bytes.len() - hello.bytes().len(), hello.cookie().map_or(0, |c| c.len()));
        }
    }
    if let Ok(header) = UpHeader::decode(bytes) {
        assert_eq!(bytes[..UP_HEADER], header.encode());
    }
    let _ = DownHeader::decode(bytes);
    if let Ok(retry) = Retry::decode(bytes) {
        assert_eq!(bytes[1..], retry.encode()[1..]);
    }
    if let Ok(reset) = Reset::decode(bytes) {
        assert_eq!(bytes[1..], reset.encode()[1..]);
    }
    let mut out = [0; TEXT_MAX];
    if let Ok(message) = Up::decode(bytes) {
        let len = message.encode(&mut out);
        assert_eq!(&out[..len], bytes);
    }
    if let Ok(message) = Down::decode(bytes) {
        let len = message.encode(&mut out);
        assert_eq!(&out[..len], bytes);
    }
});
