//! Who is online, who was turned away and why, and what upstreams hear of it: the real process.

use std::fs;
use std::time::{Duration, Instant};

use duet_device::{Config, Device, DeviceKey, Identity};
use duet_protocol::identity::RegistrationKey;
use duet_protocol::profile::{KeySource, Mode, Profile, Transfer, Transport};

use crate::world::{Client, Scratch};

const PROFILE: Profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };

/// What `duet device show` says, once it has this in it.
fn shown(scratch: &Scratch, client: &mut Client, name: &str, wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (done, said) = scratch.duet(&["device", "show", name]);
        assert!(done, "{said}");
        if said.contains(wanted) {
            return said;
        }
        assert!(Instant::now() < deadline, "no {wanted:?} in\n{said}");
        // Whatever was lost on the way goes again.
        let until = Instant::now() + Duration::from_millis(50);
        client.drive(|_| Instant::now() > until);
    }
}

#[test]
fn a_device_shows_as_it_is_and_why_it_was_turned_away() {
    let scratch = Scratch::new();
    let identity = scratch.identity(1, PROFILE);
    let gateway = scratch.gateway();
    let other = scratch.identity(2, PROFILE);
    let settings = scratch.state().join("duet.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, text.replace("#presence = false", "presence = true")).unwrap();
    let running = scratch.run("127.0.0.1:0");
    let device = |identity: Identity, profile, fresh| {
        let transport = Transport::Datagram;
        let config = Config { identity, gateway, profile, transport, fresh };
        Device::seeded(config, [7; 32]).unwrap()
    };
    let connect = |device| Client::new(device, running.address, Transport::Datagram);

    let (_, said) = scratch.duet(&["device", "show", "device-2"]);
    assert!(said.contains("online       no, and not since the gateway started"), "{said}");
    // Somebody who knows the id and not the key.
    let key = DeviceKey::Registration(RegistrationKey([9; 32]));
    let mut stranger = connect(device(Identity { key, ..other }, PROFILE, 1));
    stranger.device.open(0);
    let said = shown(&scratch, &mut stranger, "device-2", "turned away");
    assert!(said.contains("unproven: somebody named this device"), "{said}");
    // The device itself, which asks for what it is not registered for.
    let denied = Profile { source: KeySource::Client(Transfer::Random), ..PROFILE };
    let mut denied = connect(device(identity.clone(), denied, 1));
    denied.device.open(0);
    let said = shown(&scratch, &mut denied, "device-1", "turned away");
    assert!(
        said.contains("the key source that it asked for") && !said.contains("unproven"),
        "{said}"
    );

    let mut client = connect(device(identity.clone(), PROFILE, 1));
    client.device.send_reading(0, 5, b"21.5", true).unwrap();
    client.device.send_reading(0, 5, b"21.7", true).unwrap();
    client.device.open(0);
    assert!(client.drive(|client| client.confirmed.len() == 2));
    let said = shown(&scratch, &mut client, "device-1", "online       since");
    for part in
        ["from 127.0.0.1:", "registered-id/ephemeral over udp", "in this session", "21.7 at "]
    {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    assert!(said.contains("2 readings"), "{said}");
    let (_, said) = scratch.duet(&["device", "list", "--online", "--format", "names"]);
    assert_eq!(said, "device-1\n");
    client.device.close();
    let said = shown(&scratch, &mut client, "device-1", "no; left at");
    assert!(said.contains("turned away"), "{said}");
    let mut again = connect(device(identity.clone(), PROFILE, 10));
    again.device.send_reading(0, 5, b"x", true).unwrap();
    again.device.open(0);
    assert!(again.drive(|client| !client.confirmed.is_empty()));
    // A notice is stored some ten milliseconds after what it tells of: nobody waits for it.
    let began = Instant::now();
    while scratch.duet(&["spool", "cat"]).1.matches("\"type\":\"online\"").count() < 2 {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    // Killed, and killed again: the next start says it, and only that one.
    running.kill();
    scratch.run("127.0.0.1:0").kill();
    let running = scratch.run("127.0.0.1:0");
    let mut last = Client::new(device(identity, PROFILE, 20), running.address, Transport::Datagram);
    last.device.send_reading(0, 5, b"y", true).unwrap();
    last.device.open(0);
    assert!(last.drive(|client| !client.confirmed.is_empty()));
    running.terminate();

    let (_, stored) = scratch.duet(&["spool", "cat", "--device", "device-1"]);
    let lines = stored.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let mut notices: Vec<_> = lines.filter(|line| !line["type"].is_null()).collect();
    // A gateway that is killed before it knows that a notice is stored has it stored again, under the same name.
    notices.dedup_by(|one, other| one["hello"] == other["hello"]);
    let told: Vec<_> = notices
        .iter()
        .map(|line| {
            [&line["type"], &line["reason"]].map(|text| text.as_str().unwrap_or("").to_owned())
        })
        .collect();
    let expected = [
        ["online", ""],
        ["offline", "left"],
        ["online", ""],
        ["offline", "killed"],
        ["online", ""],
        ["offline", "stopped"],
    ];
    assert_eq!(told, expected.map(|pair| pair.map(str::to_owned)), "{stored}");
    // The last sign of life of the gateway that was killed, as RFC 3339 says it.
    assert!(notices[3]["received"].as_str() >= notices[2]["received"].as_str(), "{stored}");
    assert!(notices[3]["since_ms"].as_u64() > Some(0), "{stored}");
    assert_eq!(notices[0]["carrier"], "udp");
    assert!(notices[0]["address"].as_str().unwrap().starts_with("127.0.0.1:"));
}
