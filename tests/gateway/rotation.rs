//! New certificates for the gateway and for a device, as the operator's manual has it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use duet_device::{Config, Device, Identity, Software};
use duet_protocol::identity::Gateway;
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::MESSAGE_MAX;

use crate::socket::Socket;
use crate::world::{Client, Running, Scratch};

const PROFILE: Profile = Profile { mode: Mode::Certificate, source: KeySource::Ephemeral };

/// The settings that the manual gives for a rotation.
fn settings() -> String {
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md");
    let manual = fs::read_to_string(manual).unwrap();
    let mut blocks =
        manual.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    blocks.find(|block| block.contains("[gateway.retiring]")).unwrap().to_owned()
}

/// A device that opens a session and sees a reading confirmed, with whichever certificate it holds.
fn works(device: Device<Software>, gateway: &Running) {
    let mut client = Client::new(device, gateway.address, Transport::Datagram);
    client.device.send_reading(0, 1, b"x", true).unwrap();
    client.device.open(0);
    assert!(client.drive(|client| !client.confirmed.is_empty()));
}

#[test]
fn a_new_certificate_of_the_gateway_reaches_devices_one_by_one() {
    let scratch = Scratch::new();
    let [identity, another] = [1, 2].map(|seed| scratch.identity(seed, PROFILE));
    let device = |identity: &Identity, gateway: Gateway, fresh: u64| {
        let (identity, transport) = (identity.clone(), Transport::Datagram);
        let config = Config { identity, gateway, profile: PROFILE, transport, fresh };
        Device::seeded(config, [u8::try_from(fresh).unwrap(); 32]).unwrap()
    };
    let old = scratch.gateway();
    let gateway = scratch.run("127.0.0.1:0");
    works(device(&identity, old, 1), &gateway);
    gateway.terminate();

    scratch.gateway_certificate("gateway-2027", 90);
    fs::write(scratch.state().join("duet.toml"), settings()).unwrap();
    let new = scratch.gateway();
    assert!(new.key_id == 1 && new.fingerprint != old.fingerprint);
    let gateway = scratch.run("127.0.0.1:0");
    works(device(&identity, old, 2), &gateway);
    works(device(&another, old, 3), &gateway);
    works(device(&identity, new, 4), &gateway);
    for end in ["{key_id=\"0\"} 1", "{key_id=\"1\"} 1"] {
        let gauge = format!("duet_certificate_end_timestamp_seconds{end}");
        assert!(gateway.scrape().contains(&gauge), "{gauge}");
    }
    // Shards publish once a second.
    let accepts = |key_id: &str| -> u64 {
        let text = gateway.scrape();
        let of = |line: &&str| line.starts_with("duet_accepts_total") && line.contains(key_id);
        text.lines()
            .filter(of)
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum()
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while [accepts("key_id=\"0\""), accepts("key_id=\"1\"")] != [2, 1] {
        assert!(Instant::now() < deadline, "two devices use the old one, one the new one");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Whoever is registered now is told of the new one.
    let (done, told) = scratch.duet(&["device", "add", "late", "--registered-id"]);
    assert!(done && told.contains("\"key_id\":1") && told.contains("gateway-2027.pem"), "{told}");
    gateway.terminate();

    let settings = settings();
    let (current, _) = settings.split_once("[gateway.retiring]").unwrap();
    fs::write(scratch.state().join("duet.toml"), current).unwrap();
    let gateway = scratch.run("127.0.0.1:0");
    works(device(&identity, new, 5), &gateway);
    let mut left = device(&another, old, 6);
    left.open(0);
    let mut hello = [0; MESSAGE_MAX];
    let len = left.poll_transmit(0, &mut hello).unwrap();
    let mut socket =
        Socket::connect(gateway.address, Transport::Datagram, Duration::from_millis(20));
    socket.send(&hello[..len]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !gateway.scrape().contains("reason=\"gateway_key\"") {
        assert!(Instant::now() < deadline, "{}", gateway.scrape());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(socket.receive(&mut hello).is_err(), "whoever kept the old one hears nothing");
    gateway.terminate();
}

#[test]
fn what_is_wrong_with_a_certificate_or_its_settings_is_told_at_start() {
    let scratch = Scratch::new();
    scratch.gateway_certificate("gateway-2027", 2);
    let key = scratch.state().join("gateway-2027.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(scratch.state().join("duet.toml"), settings()).unwrap();
    let (done, said) =
        scratch.duet(&["run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    assert!(!done && said.contains("gateway-2027.key") && said.contains("chmod 600"), "{said}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let (done, said) = scratch.duet(&["run", "--listen", "203.0.113.7:1"]);
    assert!(!done && said.contains("no interface of this machine"), "{said}");
    assert_eq!(said.matches(" WARN ").count(), 1, "{said}");
    assert!(said.contains("gateway-2027.pem ends on 20"), "{said}");
    let twice = settings().replace("key_id = 0", "key_id = 1");
    fs::write(scratch.state().join("duet.toml"), twice).unwrap();
    let (done, said) = scratch.duet(&["run"]);
    assert!(!done && said.contains("gateway.retiring.key_id must differ"), "{said}");
}

#[test]
fn a_new_key_of_a_device_works_beside_the_old_one_until_that_is_revoked() {
    let scratch = Scratch::new();
    let [old, new] = [1, 2].map(|seed| scratch.device(seed, PROFILE, Transport::Datagram));
    let gateway = scratch.run("127.0.0.1:0");
    let mut before = Client::new(old, gateway.address, Transport::Datagram);
    before.device.send_reading(0, 1, b"x", true).unwrap();
    before.device.open(0);
    assert!(before.drive(|client| !client.confirmed.is_empty()));
    works(new, &gateway);
    assert!(before.device.is_open(), "one does not push out the other");
    assert!(scratch.duet(&["device", "revoke", "device-1"]).0);
    assert!(before.drive(|client| !client.device.is_open()));
    // The key is refused for ever, under whichever name.
    let certificate = scratch.0.path().join("1.der");
    let again = scratch.duet(&["device", "add", "again", "--cert", certificate.to_str().unwrap()]);
    assert!(!again.0 && again.1.contains("revoked"), "{}", again.1);
    gateway.terminate();
}
