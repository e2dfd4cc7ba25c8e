//! Commands for devices that sleep, through the real process, which may be killed at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use duet::admin::{Client as Control, How};
use duet::commands::{CommandInfo, CommandState};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_upstream::testing::Rng;

use crate::world::{Client, Scratch};

const PROFILE: Profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };

/// The gateway's control socket, as soon as it answers.
fn control(scratch: &Scratch) -> Control {
    Control::connect(&scratch.state()).unwrap().expect("a gateway that runs")
}

/// Wakes the device: it sends a reading and stays until the gateway has nothing more for it.
fn wake(client: &mut Client) -> bool {
    client.device.send_reading(client.now(), 1, b"awake", true).unwrap();
    client.device.rest(client.now());
    client.drive(|client| client.device.may_sleep(client.now()))
}

#[test]
fn a_command_for_a_sleeper_comes_with_the_answer_to_its_reading() {
    let scratch = Scratch::new();
    let device = scratch.device(1, PROFILE, Transport::Datagram);
    let gateway = scratch.run("127.0.0.1:0");
    let mut client = Client::new(device, gateway.address, Transport::Datagram);
    let (done, said) = scratch.duet(&["command", "device-1", "first"]);
    assert!(done && said.contains("queued 1 for device-1"), "{said}");
    let ttl = ["--ttl", "1h", "--key", "k", "--collapse", "c"];
    let (done, said) = scratch.duet(&[&["command", "device-1", "second"], &ttl[..]].concat());
    assert!(done && said.contains("queued 2"), "{said}");
    let (done, said) = scratch.duet(&[&["command", "device-1", "second"], &ttl[..]].concat());
    assert!(done && said.contains("was queued before as 2"), "{said}");
    assert!(scratch.duet(&["command", "device-1", "third"]).0);
    let (done, said) = scratch.duet(&["command", "cancel", "3"]);
    assert!(done && said.contains("cancelled 3"), "{said}");
    let (done, said) = scratch.duet(&["command", "--timeout", "2", "device-1", "now"]);
    assert!(
        !done && said.contains("no result in time") || said.contains("not connected"),
        "{said}"
    );

    client.device.open(0);
    assert!(wake(&mut client), "told that nothing more waits");
    assert_eq!(client.commands, [b"first".to_vec(), b"second".to_vec()], "before it slept");
    let (_, said) = scratch.duet(&["command", "list", "device-1"]);
    assert_eq!(said.lines().filter(|line| line.contains("done")).count(), 2, "{said}");
    let (_, said) = scratch.duet(&["command", "show", "1"]);
    assert!(said.contains("result       status 0, tsrif"), "{said}");
    let (_, said) = scratch.duet(&["command", "list", "--open", "--format", "json"]);
    assert_eq!(said, "", "nothing is open");
    gateway.terminate();
}

/// Kills the gateway ten times while commands are queued, sent, answered and recorded.
#[test]
fn a_command_is_carried_out_once_and_its_result_recorded_whenever_the_gateway_is_killed() {
    const COMMANDS: u32 = 20;
    let scratch = Scratch::new();
    let device = scratch.device(1, PROFILE, Transport::Datagram);
    let mut settings =
        fs::OpenOptions::new().append(true).open(scratch.state().join("duet.toml")).unwrap();
    let upstream =
        "\n[[upstream]]\nname = \"files\"\nkind = \"file\"\ndir = \"out\"\npayload = \"hex\"\n";
    settings.write_all(upstream.as_bytes()).unwrap();
    let mut gateway = Some(scratch.run("127.0.0.1:0"));
    let address = gateway.as_ref().unwrap().address;
    let mut client = Client::new(device, address, Transport::Datagram);
    client.device.open(0);
    let mut rng = Rng::new(11);
    let mut ids = Vec::new();
    for number in 0..COMMANDS {
        let payload: String =
            number.to_be_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let key = || How { key: Some(format!("k{number}")), ..How::default() };
        let kill = number % 2 == 0;
        let (awake, killed) = (AtomicBool::new(false), AtomicBool::new(false));
        let running = gateway.take().unwrap();
        std::thread::scope(|scope| {
            let pause = Duration::from_micros(rng.below(12_000));
            let (awake, killed) = (&awake, &killed);
            let killer = scope.spawn(move || {
                if !kill {
                    return Some(running);
                }
                while !awake.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                std::thread::sleep(pause);
                running.kill();
                killed.store(true, Ordering::Relaxed);
                None
            });
            let state = scratch.state();
            let queuer = {
                let payload = payload.clone();
                scope.spawn(move || {
                    awake.store(true, Ordering::Relaxed);
                    let control = Control::connect(&state).ok().flatten();
                    control.map(|mut control| control.queue("device-1", payload, key()).is_ok())
                })
            };
            if let Ok(sent) = client.device.send_reading(client.now(), 1, b"awake", true) {
                let _ = sent;
            }
            let before = client.commands.len();
            client.drive(|client| {
                killed.load(Ordering::Relaxed) || !kill && client.commands.len() > before
            });
            queuer.join().unwrap();
            gateway = killer.join().unwrap();
        });
        let _ = gateway.get_or_insert_with(|| scratch.run(&address.to_string()));
        // Whoever queued it and heard nothing asks once more, under the same key.
        let (command, _) = control(&scratch).queue("device-1", payload, key()).unwrap();
        ids.push(command.id);
    }
    let mut outputs = BTreeMap::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    let all = |control: &mut Control| -> Vec<CommandInfo> {
        ids.iter().map(|id| control.show_command(*id).unwrap()).collect()
    };
    loop {
        let infos = all(&mut control(&scratch));
        if infos.iter().all(|info| info.state == CommandState::Done) {
            for (number, info) in (0..COMMANDS).zip(&infos) {
                let mut output = number.to_be_bytes();
                output.reverse();
                let output: String = output.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(info.output.as_ref(), Some(&output));
                outputs.insert(info.id, output);
            }
            break;
        }
        assert!(Instant::now() < deadline, "{infos:?}");
        // While too many readings wait for their confirmation the device is awake all the same.
        let _ = client.device.send_reading(client.now(), 1, b"awake", true);
        let before = client.confirmed.len();
        client.drive(|client| client.confirmed.len() > before);
    }
    let expected: Vec<_> = (0..COMMANDS).map(|number| number.to_be_bytes().to_vec()).collect();
    assert_eq!(client.commands, expected, "each of them once, in order");
    gateway.unwrap().terminate();
    // Each result is in the spool, from which upstreams get it; where it is there twice, it has the same name.
    let (_, stored) = scratch.duet(&["spool", "cat"]);
    let lines = stored.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let mut told = BTreeMap::<_, BTreeSet<_>>::new();
    for line in lines.filter(|line| line["type"] == "result") {
        assert_eq!((&line["state"], &line["status"]), (&"done".into(), &0.into()), "{line}");
        let name = (line["hello"].to_string(), line["sequence"].as_u64());
        told.entry(line["command"].as_u64().unwrap()).or_default().insert(name);
    }
    assert_eq!(told.keys().copied().collect::<BTreeSet<_>>(), ids.into_iter().collect());
    assert!(told.values().all(|names| names.len() == 1), "{told:?}");
    // And upstream, with what the device answered.
    let files = fs::read_dir(scratch.state().join("out")).unwrap();
    let text: String =
        files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    let mut arrived = BTreeMap::new();
    for line in text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()) {
        if line["type"] == "result" {
            let output = line["payload_hex"].as_str().unwrap().to_owned();
            arrived.insert(line["command"].as_u64().unwrap(), output);
        }
    }
    assert_eq!(arrived, outputs);
}
