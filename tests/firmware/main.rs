//! The firmware on a Cortex-M4 in QEMU, against the real gateway: it opens its channel with a reading in the first
//! message, carries out commands, survives a gateway that is killed, naps, and ends. What it takes of flash, memory and
//! instructions is printed, and held to a budget.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod world;

use std::path::Path;

use crate::world::{Board, World, flash, instructions, link, own_flash, program};

/// What a program may take: flash and memory in bytes, a handshake in instructions.
struct Budget {
    flash: u64,
    memory: u64,
    handshake: u64,
}

/// The life of a sensor, from its first reading to its end.
fn live(
    world: &mut World,
    name: &str,
    what: &str,
    elf: &Path,
    credential: Option<&Path>,
    budget: &Budget,
) {
    let mut board = world.board(elf, credential);
    board.hear("stored 2");
    // The gateway is killed in the midst of it, and comes back.
    world.kill_gateway();
    world.start_gateway();
    board.hear("lost");
    board.hear("opened");
    board.hear("stored ");
    let stored = board.hear("stored ");
    assert_eq!(world.duet(&["command", name, "nap", "--wait"]).trim(), "yes");
    board.hear("delivered");
    board.hear("awake");
    // What is queued reaches it whenever it is there.
    world.duet(&["command", name, "stop"]);
    let mut ticks = |step: &str| instructions(board.hear(&format!("ticks {step} ")));
    let [hello, accept, reading, ack] = ["hello", "accept", "reading", "ack"].map(&mut ticks);
    let (fixed, stack) = (board.hear("bytes static "), board.hear("bytes stack "));
    assert!(board.end());
    let seen = world.duet(&["spool", "cat"]);
    assert!(seen.matches(name).count() > usize::try_from(stored).unwrap(), "{seen}");
    let flash = flash(elf);
    println!(
        "{what:28} flash {flash:6} B  static {fixed:5} B  stack {stack:5} B  instructions: HELLO {hello:9}  \
         ACCEPT {accept:9}  reading {reading:6}  its ack {ack:6}"
    );
    assert!(flash <= budget.flash, "{what}: {flash} B of flash, {} are allowed", budget.flash);
    let memory = fixed + stack;
    assert!(memory <= budget.memory, "{what}: {memory} B of memory, {} are allowed", budget.memory);
    let handshake = hello + accept;
    let most = budget.handshake;
    assert!(handshake <= most, "{what}: {handshake} instructions, {most} are allowed");
}

#[test]
fn a_sensor_with_a_certificate_lives() {
    let Some(elf) = program("rust.elf") else { return };
    let mut world = World::new();
    let credential = world.register_certificate("boiler-1");
    let budget = Budget { flash: 40 * 1024, memory: 6 * 1024, handshake: 13_400_000 };
    live(&mut world, "boiler-1", "Rust, certificate/ephemeral", &elf, Some(&credential), &budget);
}

#[test]
fn a_sensor_with_a_registered_id_lives() {
    let Some(elf) = program("rust.elf") else { return };
    let mut world = World::new();
    let credential = world.register_id("boiler-2");
    let budget = Budget { flash: 40 * 1024, memory: 6 * 1024, handshake: 10_400_000 };
    live(&mut world, "boiler-2", "Rust, registered-id/ephemeral", &elf, Some(&credential), &budget);
}

/// What the vectors are called, in order.
fn names() -> Vec<&'static str> {
    let names = include_str!("../../device/c/tests/vectors.h").split(".name = \"").skip(1);
    names.filter_map(|rest| rest.split('"').next()).collect()
}

/// What HELLO, ACCEPT and a record take, in instructions, for each vector.
fn vectors(elf: &Path, folder: &Path) -> Vec<[u64; 3]> {
    let count = names().len();
    let mut board = Board::counting(elf, folder, &["-serial", "null"]);
    let mut step = |name| instructions(board.hear(&format!("ticks {name} ")));
    let costs = (0..count).map(|_| ["hello", "accept", "record"].map(&mut step)).collect();
    assert_eq!(board.hear("vectors "), u64::try_from(count).unwrap());
    assert!(board.end());
    costs
}

/// What a mutual TLS 1.3 handshake takes with the same primitives, in instructions, where the gateway's chain has one link and
/// where it has two.
fn tls(elf: &Path, folder: &Path) -> [u64; 2] {
    let mut board = Board::counting(elf, folder, &["-serial", "null"]);
    let costs = ["ticks tls ", "ticks tls with two links "].map(|it| instructions(board.hear(it)));
    assert!(board.end());
    costs
}

/// The vectors hold in Rust with each engine; the costs of every profile are printed, beside those of TLS.
#[test]
fn the_vectors_hold_on_the_board() {
    let folder = tempfile::tempdir().unwrap();
    // A handshake's share of what TLS takes, in percent, at most: HELLO and ACCEPT.
    for (engine, prefix, certificate, registered) in
        [("Compact", "", 50, 38), ("Software", "portable-", 88, 66)]
    {
        let (Some(elf), Some(other)) =
            (program(&format!("{prefix}conformance.elf")), program(&format!("{prefix}tls.elf")))
        else {
            return;
        };
        let (costs, tls) = (vectors(&elf, folder.path()), tls(&other, folder.path()));
        println!(
            "{engine:36} mutual TLS 1.3, its cryptography alone: {:9} instructions, with two links {:9}",
            tls[0], tls[1]
        );
        for (name, [hello, accept, record]) in names().iter().zip(&costs) {
            let [share, of_two] = tls.map(|tls| 1000 * (hello + accept) / tls);
            println!(
                "{engine:8} {name:42} HELLO {hello:9}  ACCEPT {accept:9}  record {record:6}  of TLS {}.{} %, {}.{} %",
                share / 10,
                share % 10,
                of_two / 10,
                of_two % 10
            );
            let most = 10
                * match *name {
                    "certificate-ephemeral" | "certificate-ephemeral-early" => certificate,
                    "registered-id-ephemeral" => registered,
                    _ => continue,
                };
            assert!(
                share <= most,
                "{engine}, {name}: {share} thousandths of TLS, {most} are allowed"
            );
        }
    }
}

#[test]
fn the_vectors_hold_on_the_board_in_c() {
    let Some(library) = program("libduet_device_c.a") else { return };
    let folder = tempfile::tempdir().unwrap();
    let elf = link(folder.path(), &["conformance.c", "board.c"], &library);
    let mut board = Board::start(&elf, folder.path(), &["-serial", "null"]);
    assert_eq!(board.hear("vectors "), u64::try_from(names().len()).unwrap());
    assert!(board.end());
}

#[test]
fn what_other_cryptography_takes() {
    let Some(portable) = program("portable.elf") else { return };
    println!("RustCrypto's primitives: flash {} B", flash(&portable));
    let Some(elf) = program("outside.elf") else { return };
    let (all, own) = (flash(&elf), own_flash(&elf));
    println!(
        "cryptography outside: flash of Duet itself {own} B, with board, driver and sensor {all} B"
    );
    assert!(own <= 16 * 1024, "{own} B of flash, 16 KiB are allowed");
    assert!(all <= 26 * 1024, "{all} B of flash, 26 KiB are allowed");
}

#[test]
fn a_sensor_in_c_lives() {
    let Some(library) = program("libduet_device_c.a") else { return };
    let mut world = World::new();
    let elf = world.compile("boiler-3", &library);
    let budget = Budget { flash: 40 * 1024, memory: 6 * 1024, handshake: 10_400_000 };
    live(&mut world, "boiler-3", "C, registered-id/ephemeral", &elf, None, &budget);
}
