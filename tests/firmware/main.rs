//! The firmware on a Cortex-M4 in QEMU, against the real gateway: it opens its channel with a reading in the first
//! message, carries out commands, survives a gateway that is killed, naps, and ends. What it takes of flash, memory and
//! instructions is printed, and held to a budget.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod world;

use std::path::Path;

use crate::world::{World, flash, instructions, program};

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
    let budget = Budget { flash: 40 * 1024, memory: 6 * 1024, handshake: 24_000_000 };
    live(&mut world, "boiler-1", "Rust, certificate/ephemeral", &elf, Some(&credential), &budget);
}

#[test]
fn a_sensor_with_a_registered_id_lives() {
    let Some(elf) = program("rust.elf") else { return };
    let mut world = World::new();
    let credential = world.register_id("boiler-2");
    let budget = Budget { flash: 40 * 1024, memory: 6 * 1024, handshake: 24_000_000 };
    live(&mut world, "boiler-2", "Rust, registered-id/ephemeral", &elf, Some(&credential), &budget);
}

#[test]
fn a_sensor_in_c_lives() {
    let Some(library) = program("libduet_device_c.a") else { return };
    let mut world = World::new();
    let elf = world.compile("boiler-3", &library);
    let budget = Budget { flash: 40 * 1024, memory: 6 * 1024, handshake: 24_000_000 };
    live(&mut world, "boiler-3", "C, registered-id/ephemeral", &elf, None, &budget);
}
