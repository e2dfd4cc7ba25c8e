//! The lengths that the specification names are the code's.

use std::{fs, path::PathBuf};

use duet_protocol::{
    profile::{Offer, Profile, Transport},
    wire::{self, Kind},
};

/// The specification's tables of lengths and first bytes are the code's.
#[test]
fn the_specification_says_how_long_everything_is() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let document = fs::read_to_string(path).unwrap();
    let says = |line: &str| {
        assert_eq!(document.lines().filter(|l| l.starts_with(line)).count(), 1, "{line}");
    };
    for profile in Profile::ALL {
        let plain = Offer::new(profile, Transport::Datagram);
        let (hello, accept) = (plain.hello_len(0), profile.accept_len());
        let (mode, source) = profile.name().split_once('/').unwrap();
        let (byte, text) = (plain.encode(), plain.sealed_text_len(0));
        let padding = plain.padding_len(0);
        let both = hello + accept;
        says(&format!(
            "| `{mode}` | `{source}` | {byte:#04x} | {text} | {padding} | {hello} | {accept} | {both} |"
        ));
        let stream = Offer { transport: Transport::Stream, ..plain };
        let challenged = Offer { challenged: true, ..plain };
        assert_eq!((stream.encode(), stream.hello_len(0)), (byte + 0x20, hello));
        assert_eq!((challenged.encode(), challenged.hello_len(0)), (byte + 0x40, hello + 16));
    }
    for profile in Profile::ALL {
        let early = Offer { early: true, ..Offer::new(profile, Transport::Datagram) };
        let (least, hello) = (early.hello_len(wire::READING_MIN), early.hello_len(3 + 64));
        let (mode, source) = profile.name().split_once('/').unwrap();
        let (byte, most, accept) = (early.encode(), profile.reading_max(), profile.accept_len());
        let (up, down) = (hello + 28, accept + 28);
        let both = up + down;
        says(&format!(
            "| `{mode}` | `{source}` | {byte:#04x} | {most} | {least} | {hello} | {accept} | {up}, {down} | {both} |"
        ));
    }
    let lengths = Profile::ALL.map(|profile| {
        let plain = Offer::new(profile, Transport::Datagram);
        plain.hello_len(0)
    });
    let (least, most) = (lengths.iter().min().unwrap(), wire::BARE_HELLO_MAX);
    let hello = format!("{least} … {most}, by profile; with a reading up to 1,200");
    assert_eq!(wire::HELLO_MAX, 1_200);
    for (kind, number, name, from, length) in [
        (Kind::Hello, 1, "HELLO", "device", hello),
        (Kind::Accept, 2, "ACCEPT", "gateway", "69, 133 or 149, by profile".to_owned()),
        (Kind::Retry, 3, "RETRY", "gateway", wire::RETRY_LEN.to_string()),
        (Kind::Challenge, 4, "CHALLENGE", "gateway", wire::CHALLENGE_LEN.to_string()),
        (Kind::Up, 5, "UP, a record", "device", record_lengths(wire::UP_HEADER)),
        (Kind::Down, 6, "DOWN, a record", "gateway", record_lengths(wire::DOWN_HEADER)),
        (Kind::Reset, 7, "RESET", "gateway", wire::RESET_LEN.to_string()),
    ] {
        says(&format!("| {number} {name} | {:#04x} | {from} | {length} |", kind.byte()));
    }
}

fn record_lengths(header: usize) -> String {
    assert_eq!(wire::RECORD_MAX, 1_200);
    format!("{} … 1,200", header + 1 + wire::TAG)
}
