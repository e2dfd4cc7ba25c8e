//! The shipped unit under the system's own systemd, as the first process of namespaces of its own: a clock that is wrong at
//! first, a restart that no device notices, a kill, a process that stands still.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet_device::{Config, Device};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::Kind;

use crate::world::{Client, DUET, Scratch};

const PROFILE: Profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
/// How long anything may take; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
const SYSTEMD: &str = "/lib/systemd/systemd";

/// A systemd that has booted.
struct Booted {
    child: Child,
    /// Its first process, as this system numbers it.
    init: String,
    dir: PathBuf,
}

impl Booted {
    /// Boots one for a directory as `boot.sh` wants it, with a network of its own if `net`; why it cannot be.
    fn new(dir: &Path, net: bool) -> Result<Self, String> {
        for program in ["awk", "curl", "ip", "mount", "nsenter", "systemctl", "unshare"] {
            if Command::new(program).arg("--version").output().is_err() {
                return Err(format!("{program} is missing"));
            }
        }
        if !Path::new(SYSTEMD).exists() {
            return Err("systemd is missing".into());
        }
        if !rustix::process::geteuid().is_root() {
            return Err("must be root".into());
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
            return Err("this kernel, or what it runs in, has no cgroup2".into());
        }
        let log = fs::File::create(dir.join("boot.log")).unwrap();
        let child = Command::new("sh")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway/boot.sh"))
            .args([dir, Path::new(DUET)])
            .args(net.then_some("--net"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut booted = Self { child, init: String::new(), dir: dir.to_owned() };
        let began = Instant::now();
        loop {
            let pid = booted.child.id();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            booted.init = children.unwrap_or_default().trim().to_owned();
            if !booted.init.is_empty() && booted.ask(&["is-system-running"]).trim() == "running" {
                return Ok(booted);
            }
            let said = || fs::read_to_string(dir.join("boot.log")).unwrap().replace('\n', " ");
            assert!(began.elapsed() < PATIENCE, "it is not running: {}", said());
            if booted.child.try_wait().unwrap().is_some() {
                // What runs this may forbid it, even to root. Whatever else keeps it from booting is a fault.
                let said = said();
                let forbidden = ["not permitted", "ermission denied", "Read-only"];
                assert!(forbidden.iter().any(|text| said.contains(text)), "no boot: {said}");
                return Err(format!("this kernel, or what it runs in, forbids it: {said}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `systemctl` says.
    fn ask(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init, "-m", "-p", "-C", "systemctl"]).args(arguments);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// What a line of a shell says there, which must succeed.
    fn line(&self, line: &str) -> String {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init, "-m", "-p", "-C", "-n", "sh", "-c"]);
        let output = command.arg(format!("cd /run/said; {line}")).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(output.status.success(), "{line}: {said}\n{}", self.said());
        said
    }

    fn property(&self, name: &str) -> String {
        self.ask(&["show", "--value", "-p", name, "duet.service"]).trim().to_owned()
    }

    /// Waits until a property has this value.
    fn until(&self, name: &str, value: &str) {
        let began = Instant::now();
        while self.property(name) != value {
            assert!(
                began.elapsed() < PATIENCE,
                "{name} is {:?} and not {value:?}:\n{}\n{}",
                self.property(name),
                self.ask(&["status", "--no-pager", "duet.service"]),
                self.said()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the gateway's processes have said.
    fn said(&self) -> String {
        fs::read_to_string(self.dir.join("said/log")).unwrap_or_default()
    }

    /// The last thing that a gateway has said with this word.
    fn last(&self, word: &str) -> String {
        let said = self.said();
        let line = said.lines().rev().find_map(|line| line.strip_prefix(word));
        line.unwrap_or_else(|| panic!("no {word} in {said}")).trim().to_owned()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // With it systemd ends, and all that it has started.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let mut fields = mounts.lines().map(|line| line.split(' '));
        let groups = fields.find_map(|mut line| {
            let place = line.nth(1)?.to_owned();
            (line.next()? == "cgroup2").then_some(place)
        });
        let group =
            Path::new(&groups.unwrap_or_default()).join(format!("duet-test-{}", self.child.id()));
        // A group can be removed once the last of its processes is gone.
        let began = Instant::now();
        while group.exists() && began.elapsed() < Duration::from_secs(5) {
            let mut remove = Command::new("find");
            remove.arg(&group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]);
            let _ = remove.stderr(Stdio::null()).status();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The only units there are: the shipped one, with `more` settings, and targets that it names.
fn units(dir: &Path, more: &str) {
    for name in ["units", "said", "lib"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    let units = dir.join("units");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/duet.service");
    fs::copy(shipped, units.join("duet.service")).unwrap();
    for name in
        ["basic", "multi-user", "network-online", "shutdown", "sysinit", "test", "time-sync"]
    {
        let target = units.join(format!("{name}.target"));
        fs::write(target, format!("[Unit]\nDescription={name}\n")).unwrap();
    }
    // There is no journal, and the test wants to read what is said.
    let log = "StandardOutput=append:/run/said/log\nStandardError=append:/run/said/log";
    // systemd's own surroundings are empty.
    let io = std::env::var("DUET_IO");
    let io = io.map(|io| format!("Environment=DUET_IO={io}")).unwrap_or_default();
    fs::create_dir(units.join("duet.service.d")).unwrap();
    fs::write(units.join("duet.service.d/test.conf"), format!("[Service]\n{log}\n{io}\n{more}\n"))
        .unwrap();
}

/// Puts a certificate of the gateway in place that is valid in so many seconds from now.
fn certificate(scratch: &Scratch, in_s: i64) {
    let created = duet::identity::create("gateway", 300, duet::identity::now_s() + 3_600 + in_s);
    let created = created.unwrap();
    for (ending, mode, text) in [
        ("pem", 0o644, created.certificate_pem.as_bytes()),
        ("key", 0o600, created.key_pem.as_bytes()),
    ] {
        let path = scratch.state().join(format!("gateway.{ending}"));
        fs::remove_file(&path).unwrap();
        duet::identity::write_new(&path, text, mode).unwrap();
    }
}

/// Sends a reading; whether it was confirmed.
fn say(client: &mut Client, payload: &[u8]) {
    let before = client.confirmed.len();
    client.device.send_reading(client.now(), 1, payload, true).unwrap();
    let began = Instant::now();
    while !client.drive(|client| client.confirmed.len() > before) {
        assert!(began.elapsed() < PATIENCE, "no answer");
    }
}

#[test]
fn the_shipped_unit_outlives_whatever_happens_to_it() {
    let scratch = Scratch::new();
    let identity = scratch.identity(1, PROFILE);
    let dir = scratch.0.path().to_owned();
    // Other addresses and less patience.
    let more = "Environment=DUET__LISTEN=127.0.0.1:0 DUET__METRICS__LISTEN=127.0.0.1:0\nWatchdogSec=5\nRestartSec=100ms";
    units(&dir, more);
    DirBuilder::new().mode(0o700).create(dir.join("lib/private")).unwrap();
    fs::rename(scratch.state(), dir.join("lib/private/duet")).unwrap();
    symlink("lib/private/duet", scratch.state()).unwrap();
    certificate(&scratch, 4);
    let booted = match Booted::new(&dir, false) {
        Ok(booted) => booted,
        Err(why) => {
            eprintln!("SKIPPED: the unit under systemd: {why}");
            return;
        }
    };

    // The clock is behind at first.
    booted.ask(&["start", "--no-block", "duet.service"]);
    let began = Instant::now();
    while !booted.property("StatusText").contains("waiting for the clock") {
        assert!(began.elapsed() < PATIENCE, "{}", booted.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    booted.until("ActiveState", "active");
    let address = booted.last("listening").split(' ').next().unwrap().parse().unwrap();
    let transport = Transport::Datagram;
    let config =
        Config { identity, gateway: scratch.gateway(), profile: PROFILE, transport, fresh: 1 };
    let device = Device::seeded(config, [1; 32]).unwrap();
    let mut client = Client::new(device, address, transport);
    client.device.open(0);
    say(&mut client, b"first");

    // A restart that no device notices.
    client.crossed.clear();
    booted.ask(&["restart", "duet.service"]);
    assert_eq!(booted.last("sessions"), "1 go on, 0 are over");
    say(&mut client, b"after a restart");
    assert_eq!(client.lost, 0);
    let crossed = client.crossed.iter();
    assert!(crossed.clone().all(|(_, kind, _)| matches!(kind, Kind::Up | Kind::Down)));
    assert_eq!((booted.property("NRestarts").as_str(), handshakes(&booted)), ("0", 0.0));

    // A kill, and a process that stands still: systemd starts another one, and the device comes back.
    for (number, signal) in [("1", "KILL"), ("2", "STOP")] {
        booted.ask(&["kill", "--signal", signal, "duet.service"]);
        booted.until("NRestarts", number);
        booted.until("ActiveState", "active");
        say(&mut client, signal.as_bytes());
        assert_eq!(client.lost.to_string(), number, "told by a RESET");
    }
    assert!(booted.ask(&["show", "-p", "Result", "duet.service"]).contains("success"));
    booted.ask(&["stop", "duet.service"]);
    booted.until("ActiveState", "inactive");
    assert_eq!(booted.property("NFileDescriptorStore"), "0");
    drop(booted);
    let (done, stored) = scratch.duet(&["spool", "cat"]);
    assert!(done, "{stored}");
    for payload in ["first", "after a restart", "KILL", "STOP"] {
        assert_eq!(stored.matches(&format!("\"{payload}\"")).count(), 1, "{stored}");
    }
}

/// The lines of `docs/operating.md` from the package to a reading, as they stand there.
#[test]
fn the_documents_lines_lead_from_the_package_to_a_reading() {
    let document =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md"));
    let document = document.unwrap();
    let (_, lines) = document.split_once("From the package to a reading").unwrap();
    let (lines, _) = lines.split_once("```sh\n").unwrap().1.split_once("```").unwrap();
    let mut lines = lines.lines();
    assert!(lines.next().unwrap().contains("apt install"), "here the program lies there already");
    let dir = tempfile::tempdir().unwrap();
    units(dir.path(), "");
    let booted = match Booted::new(dir.path(), true) {
        Ok(booted) => booted,
        Err(why) => {
            eprintln!("SKIPPED: the documents' lines under systemd: {why}");
            return;
        }
    };
    let mut said = String::new();
    for line in lines {
        let line = line.replace("sudo ", "");
        let began = Instant::now();
        // Metrics are published every second.
        while line.starts_with("curl") && !booted.line(&line).contains("} 1\n") {
            assert!(began.elapsed() < PATIENCE, "{}", booted.line(&line));
            std::thread::sleep(Duration::from_millis(100));
        }
        said.push_str(&booted.line(&line));
    }
    for part in ["stored: hello", "boiler-1", "21.5", "1 devices", "} 1\n"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

/// How many the gateway has answered, once it has published that it took a reading.
fn handshakes(booted: &Booted) -> f64 {
    let url = booted.last("metrics");
    let address = url.trim_start_matches("http://").trim_end_matches("/metrics");
    let sum = |text: &str, name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    let began = Instant::now();
    loop {
        let text = crate::world::get_metrics(address.parse().unwrap());
        if sum(&text, "duet_readings_total{") > 0.0 {
            return sum(&text, "duet_accepts_total{");
        }
        assert!(began.elapsed() < PATIENCE, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
