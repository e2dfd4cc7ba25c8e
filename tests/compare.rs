//! Eight against two, counted: the real gateway, real TLS and DTLS servers, over a link that sees every
//! packet. Skips loudly where no link can be made.

use std::path::Path;
use std::process::Command;

use loadgen::compare::{self, CATALOGUE, Kind, Place, Settings};
use loadgen::link::{Conditions, Emulator};
use loadgen::local::LocalGateway;
use loadgen::tls::Host;

#[path = "support/schema.rs"]
mod schema;

/// Each contender's flights of TCP's set-up, of the handshake, and all until the confirmation.
const EXPECTED: [(&str, u32, u32, u32); 18] = [
    ("ephemeral-udp", 0, 2, 4),
    ("xor-udp", 0, 2, 4),
    ("client-udp", 0, 2, 4),
    ("registered-id-udp", 0, 2, 4),
    ("early-udp", 0, 2, 2),
    ("early-registered-id-udp", 0, 2, 2),
    ("early-tcp", 2, 2, 4),
    ("fast-udp", 0, 2, 4),
    ("ephemeral-tcp", 2, 2, 6),
    ("xor-tcp", 2, 2, 6),
    ("client-tcp", 2, 2, 6),
    ("registered-id-tcp", 2, 2, 6),
    ("tls12", 2, 4, 8),
    ("tls13", 2, 3, 6),
    ("tls13-raw-keys", 2, 3, 6),
    ("tls13-resumed", 2, 3, 6),
    ("tls13-early-data", 2, 2, 4),
    // The server's cookie is one round trip of them.
    ("dtls12", 0, 6, 8),
];

#[test]
fn two_messages_and_two_round_trips_against_four_and_four_at_each_round_trip_time() {
    let mut settings = Settings {
        contenders: CATALOGUE.to_vec(),
        repetitions: 1,
        // The median of three is judged: a disk that once takes half a second makes a reading inside HELLO wait for a record.
        samples: 3,
        round_trips_ms: vec![50, 100, 300],
        losses_percent: vec![0.0],
        conditions: Conditions::default(),
        sessions: 2,
        in_flight: 8,
        pace: 40,
        seed: 1,
    };
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: openssl is missing: DTLS is not compared");
        settings.contenders.retain(|entry| !matches!(entry.kind, Kind::Dtls));
    }
    let link = match Emulator::start(&settings.paths().unwrap(), settings.seed) {
        Ok(link) => link,
        Err(error) => {
            eprintln!("SKIPPED: flights are not counted: {error:#}");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let (program, address) = (Path::new(env!("CARGO_BIN_EXE_duet")), link.server_address());
    let wanted = settings.wanted();
    let start = || LocalGateway::start_at(address, program, dir.path(), 1, &wanted);
    let (gateway, members) = link.server.run(start).unwrap();
    let place = Place::Link(&link, Host::Thread { address });
    let report = compare::run(&gateway, members, &settings, place, &|_| ()).unwrap();
    gateway.stop().unwrap();
    schema::assert_valid("compare.json", &report);

    assert_eq!(report.contenders.len(), settings.contenders.len());
    for row in &report.contenders {
        let (_, set_up, handshake, all) = *EXPECTED.iter().find(|one| one.0 == row.key).unwrap();
        let flights = (row.flights.set_up, row.flights.handshake, row.flights.all);
        assert_eq!(flights, (set_up, handshake, all), "{}: {:?}", row.key, row.exchange);
        // All of them fit into one packet each, so nobody is made to look bigger by how it is driven.
        for flight in 1..=all {
            let packets = row.exchange.iter().filter(|packet| packet.flight == Some(flight));
            let packets: Vec<_> = packets.collect();
            assert_eq!(packets.len(), 1, "{}, flight {flight}: {packets:?}", row.key);
        }
        let tickets = row.exchange.iter().filter(|packet| packet.what.contains("icket")).count();
        let resumes = row.key == "tls13-resumed";
        assert_eq!(tickets, usize::from(resumes), "{}: {:?}", row.key, row.exchange);
        if row.key == "early-udp" {
            let bytes = row.ip_bytes.up + row.ip_bytes.down;
            assert_eq!((row.packets.up, row.packets.down), (1, 1));
            assert!(bytes <= 330, "64 bytes are stored and confirmed for {bytes} bytes of IP");
        }
        for cell in &row.cells {
            let at = format!("{} at {} ms", row.key, cell.round_trip_ms);
            assert_eq!(cell.success_percent, 100.0, "{at}");
            assert_eq!(cell.round_trips, Some(all.div_ceil(2)), "{at}");
            // Light is not faster: so many round trips take at least so long.
            #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
            let least = (cell.round_trip_ms * u64::from(all / 2)) as f64;
            assert!(cell.p50_ms.unwrap() >= least, "{at}: {:?}", cell.p50_ms);
        }
    }
}
