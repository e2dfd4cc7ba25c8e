//! The devices' work, the kills, and the end.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use duet_device::Early;
use duet_protocol::profile::{Profile, Transport};
use duet_upstream::testing::Rng;
use loadgen::local::{LocalGateway, Wanted};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use rustix::time::Timespec;

use crate::ledger;
use crate::unit::{Counts, Unit};

const DUET: &str = env!("CARGO_BIN_EXE_duet");
const SHARDS: usize = 2;
const DEVICES: usize = 15;
/// The devices' clocks run faster, so that what waits a second for its repetition does not hold everything up.
const FASTER: u64 = 8;
/// How many messages are kept to be played back.
const OVERHEARD: usize = 4_096;
/// How long a gateway may leave all devices without a confirmation.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Campaign {
    program: PathBuf,
    gateway: LocalGateway,
    units: Vec<Unit>,
    thief: UdpSocket,
    overheard: Vec<Vec<u8>>,
    rng: Rng,
    began: Instant,
    counts: Counts,
    played_back: usize,
    rounds: u32,
    /// Whether nothing new is measured any more.
    ending: bool,
}

impl Campaign {
    /// A gateway with its state on `disk`, and everything else in `place`.
    pub(crate) fn begin(place: &Path, disk: &Path, seed: u64) -> Self {
        let program = program(place);
        let wanted: Vec<_> = (0..DEVICES)
            .map(|number| Wanted {
                name: format!("device-{number}"),
                profile: Profile::ALL[number % Profile::ALL.len()],
                transport: Transport::Datagram,
            })
            .collect();
        let (gateway, members) = LocalGateway::start(&program, disk, SHARDS, &wanted).unwrap();
        let thief = UdpSocket::bind("127.0.0.1:0").unwrap();
        thief.connect(gateway.address).unwrap();
        thief.set_nonblocking(true).unwrap();
        let members = members.into_iter().enumerate();
        let units =
            members.map(|(number, member)| Unit::new(member, number, gateway.address)).collect();
        Self {
            program,
            gateway,
            units,
            thief,
            overheard: Vec::new(),
            rng: Rng::new(seed),
            began: Instant::now(),
            counts: Counts::default(),
            played_back: 0,
            rounds: 0,
            ending: false,
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap() * FASTER
    }

    fn confirmed(&self) -> usize {
        self.units.iter().map(|unit| unit.confirmed.len()).sum()
    }

    /// Until some readings are confirmed, and then to a moment that nobody chose.
    pub(crate) fn work(&mut self) {
        let enough = self.confirmed() + 1 + usize::try_from(self.rng.below(40)).unwrap();
        self.drive(PATIENCE, |campaign| campaign.confirmed() >= enough);
        assert!(self.confirmed() >= enough, "the gateway confirms nothing any more");
        self.linger();
    }

    /// A few milliseconds, down to the microsecond at random.
    pub(crate) fn linger(&mut self) {
        let moment = Duration::from_micros(self.rng.below(15_000));
        self.drive(moment, |_| false);
    }

    /// Kills the gateway; then `between`, and another one. It may be killed while it starts, too.
    pub(crate) fn kill(&mut self, between: impl FnOnce()) {
        self.rounds += 1;
        let listen = self.gateway.address.to_string();
        let (state, program) = (self.gateway.state.clone(), self.program.clone());
        let unborn =
            (self.rng.below(3) == 0).then(|| Duration::from_micros(self.rng.below(60_000)));
        let pid = i32::try_from(self.gateway.pid()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        between();
        if let Some(moment) = unborn {
            let mut command = Command::new(&program);
            command.arg("--state").arg(&state).args(["run", "--shards", &SHARDS.to_string()]);
            command.args(["--listen", &listen, "--metrics", "127.0.0.1:0"]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        self.gateway.crash(&program, SHARDS).unwrap();
    }

    /// Compares what is stored with what was confirmed so far.
    pub(crate) fn check(&self) -> ledger::Found {
        ledger::compare(&self.gateway.state.join("spool"), &self.units)
    }

    /// Lets everything be confirmed, stops the gateway, compares, and says what there was.
    pub(crate) fn end(mut self, what: &str) {
        self.ending = true;
        self.drive(PATIENCE, |campaign| campaign.units.iter().all(Unit::is_done));
        assert!(self.units.iter().all(Unit::is_done), "readings are left that nobody confirms");
        let found = self.check();
        let Self { gateway, counts, played_back, rounds, .. } = self;
        gateway.stop().unwrap();
        println!(
            "{rounds} {what}, {} power cuts of devices: {} readings confirmed, {} of them first sent inside HELLO, none lost; \
             {} stored, none twice but {} that are told by their names; {} HELLOs with a reading, {played_back} messages played back",
            counts.power_cuts,
            found.confirmed,
            found.confirmed_early,
            found.stored,
            found.again,
            counts.early,
        );
        assert!(found.confirmed_early > 0 && found.confirmed > found.confirmed_early);
    }

    fn drive(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + limit;
        while !done(self) && Instant::now() < until {
            let now_us = self.now_us();
            for number in 0..self.units.len() {
                self.drive_unit(number, now_us);
            }
            self.play_back();
            self.wait(until);
        }
    }

    fn drive_unit(&mut self, number: usize, now_us: u64) {
        let unit = &mut self.units[number];
        unit.receive(now_us);
        if !self.ending {
            unit.measure(now_us, &mut self.rng);
            if self.rng.below(400) == 0 {
                let early = [Early::Leave, Early::Stay, Early::Never];
                let early = early[usize::try_from(self.rng.below(3)).unwrap()];
                unit.lose_power(now_us, early, &mut self.counts);
            }
        }
        let (rng, overheard) = (&mut self.rng, &mut self.overheard);
        unit.transmit(now_us, &mut self.counts, &mut |message| {
            if overheard.len() < OVERHEARD {
                overheard.push(message.to_vec());
            } else {
                overheard[usize::try_from(rng.below(4_096)).unwrap()] = message.to_vec();
            }
        });
    }

    /// Any message of any time may come again, from somewhere else.
    fn play_back(&mut self) {
        if self.overheard.is_empty() || self.rng.below(4) > 0 {
            return;
        }
        let which = self.rng.below(u64::try_from(self.overheard.len()).unwrap());
        let message = &self.overheard[usize::try_from(which).unwrap()];
        self.played_back += usize::from(self.thief.send(message).is_ok());
        let mut answer = [0; 1_500];
        while self.thief.recv(&mut answer).is_ok() {}
    }

    /// Until a message comes or a device has something to send.
    fn wait(&self, until: Instant) {
        let next_us = self.units.iter().filter_map(Unit::next_us).min();
        let due_us =
            next_us.map_or(5_000, |next_us| next_us.saturating_sub(self.now_us()) / FASTER);
        let left = until.saturating_duration_since(Instant::now());
        let wait = Duration::from_micros(due_us.min(5_000)).min(left);
        let mut sockets: Vec<_> =
            self.units.iter().map(|unit| PollFd::new(&unit.socket, PollFlags::IN)).collect();
        poll(&mut sockets, Some(&Timespec::try_from(wait).unwrap())).unwrap();
    }
}

/// `duet` with small segments.
fn program(place: &Path) -> PathBuf {
    let path = place.join("duet");
    let settings = "[spool]\\nsegment_bytes = 1048576\\n";
    let lines = format!(
        "#!/bin/sh\nif [ \"$3\" = init ]; then {DUET} \"$@\" && printf '{settings}' > \"$2/duet.toml\"\nelse exec {DUET} \"$@\"; fi\n"
    );
    // Another process writes it: what this one has open for writing cannot be run (ETXTBSY).
    let written = place.join("script");
    std::fs::write(&written, lines).unwrap();
    let mut install = Command::new("install");
    assert!(install.args(["-m", "755"]).arg(&written).arg(&path).status().unwrap().success());
    path
}
