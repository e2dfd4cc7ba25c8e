//! A gateway that can be killed and comes back at the same address, and the board in QEMU on the other side.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use duet_device::credentials::Credentials;
use duet_device::{Config, DeviceKey, compact};
use duet_protocol::profile::{Offer, Transport};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The board's clock: nanoseconds of QEMU's time for each of its ticks.
const TICK_NS: u64 = 40;
/// QEMU lets 2 to this power nanoseconds pass for each instruction.
const INSTRUCTION_SHIFT: u32 = 2;
/// Where the credential lies in the board's flash.
const PAGE_ADDRESS: u32 = 0x3_f000;
/// However busy the machine is.
const PATIENCE: Duration = Duration::from_secs(90);

/// The newest change below a folder or of a file.
fn newest(path: &Path) -> SystemTime {
    let own = fs::metadata(path).unwrap();
    if !own.is_dir() {
        return own.modified().unwrap();
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| newest(&path)).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The program that `scripts/firmware build` has made, unless it is not there or older than its source.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = Path::new(ROOT).join("target/firmware").join(name);
    if let Ok(why) = fs::read_to_string(path.with_file_name("missing")) {
        eprintln!("SKIPPED: what firmware needs cannot be had: {}", why.trim());
        return None;
    }
    let sources = [
        "device/src",
        "device/c/src",
        "device/c/tests/vectors.bin",
        "protocol/src",
        "device/Cargo.toml",
        "device/c/Cargo.toml",
        "protocol/Cargo.toml",
        "firmware",
    ];
    let changed = sources.iter().map(|source| newest(&Path::new(ROOT).join(source))).max();
    match fs::metadata(&path).and_then(|found| found.modified()) {
        Ok(built) if Some(built) >= changed => Some(path),
        Ok(_) => {
            eprintln!(
                "SKIPPED: target/firmware/{name} is older than its source: run scripts/firmware build"
            );
            None
        }
        Err(_) => {
            eprintln!("SKIPPED: there is no target/firmware/{name}: run scripts/firmware build");
            None
        }
    }
}

/// A gateway with a folder of its own.
pub(crate) struct World {
    dir: tempfile::TempDir,
    port: u16,
    gateway: Option<Child>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill_gateway();
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut world = Self { dir: tempfile::tempdir().unwrap(), port, gateway: None };
        world.duet(&["init"]);
        world.start_gateway();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
        command.args(["--state", "state"]).current_dir(self.dir.path()).env_remove("DUET_STATE");
        command.stdin(Stdio::null());
        command
    }

    /// Runs what must succeed; what it prints.
    pub(crate) fn duet(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn start_gateway(&mut self) {
        let listen = format!("127.0.0.1:{}", self.port);
        let arguments = ["run", "--shards", "1", "--metrics", "127.0.0.1:0", "--listen", &listen];
        let mut child = self.command().args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line.trim_end() != "running" {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "the gateway ended");
        }
        // Whatever else it says must find somebody who reads.
        std::thread::spawn(move || {
            let _ = out.read_to_end(&mut Vec::new());
        });
        self.gateway = Some(child);
    }

    /// Ends the gateway as a power cut does.
    pub(crate) fn kill_gateway(&mut self) {
        if let Some(mut child) = self.gateway.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A device without a certificate.
    pub(crate) fn register_id(&self, name: &str) -> PathBuf {
        let file = format!("{name}.json");
        self.duet(&["device", "add", name, "--registered-id", "--out", &file]);
        self.path(&file)
    }

    /// A program in C with the credential of a new device inside, linked with the library.
    pub(crate) fn compile(&self, name: &str, library: &Path) -> PathBuf {
        self.duet(&[
            "device",
            "add",
            name,
            "--registered-id",
            "--format",
            "c",
            "--out",
            "credential.h",
        ]);
        link(self.dir.path(), &["main.c", "board.c"], library)
    }

    /// A device with a certificate of its own making.
    pub(crate) fn register_certificate(&self, name: &str) -> PathBuf {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(self.path("device.pem"), made.cert.pem()).unwrap();
        fs::write(self.path("device.key"), made.signing_key.serialize_pem()).unwrap();
        let file = format!("{name}.json");
        let key = ["--private-key-file", "device.key"];
        let out = ["--cert", "device.pem", "--out", &file];
        self.duet(&[&["device", "add", name][..], &key, &out].concat());
        self.path(&file)
    }

    /// The board with this program; its serial line ends in the gateway's TCP port.
    pub(crate) fn board(&self, program: &Path, credential: Option<&Path>) -> Board {
        let line =
            format!("socket,id=line,host=127.0.0.1,port={},server=off,reconnect=1", self.port);
        let mut arguments = vec!["-chardev".to_owned(), line];
        arguments.extend(["-serial".to_owned(), "chardev:line".to_owned()]);
        if let Some(credential) = credential {
            let page = self.path("credential.page");
            fs::write(&page, page_of(credential)).unwrap();
            let page = page.to_str().unwrap().to_owned();
            let at = format!("loader,file={page},addr={PAGE_ADDRESS:#x},force-raw=on");
            arguments.extend(["-device".to_owned(), at]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        Board::counting(program, self.dir.path(), &arguments)
    }
}

/// A program in C of these sources in `firmware/c`, linked with the library; headers of this folder are its own.
pub(crate) fn link(folder: &Path, sources: &[&str], library: &Path) -> PathBuf {
    let (root, elf) = (Path::new(ROOT), folder.join("program.elf"));
    let mut gcc = Command::new("arm-none-eabi-gcc");
    gcc.args(["-mcpu=cortex-m4", "-mthumb", "-ffreestanding", "-DDUET_SMALL", "-Oz", "-g"]);
    gcc.args([
        "-fno-tree-loop-distribute-patterns",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-nostdlib",
        "-Wl,--gc-sections",
        "-o",
    ]);
    gcc.arg(&elf).arg("-I").arg(folder);
    for headers in ["device/c/include", "device/c/tests"] {
        gcc.arg("-I").arg(root.join(headers));
    }
    gcc.arg("-T").arg(root.join("firmware/c/board.ld"));
    gcc.args(sources.iter().map(|source| root.join("firmware/c").join(source)));
    let output = gcc.arg(library).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    elf
}

/// The page of flash that holds the credential: `firmware/src/credential.rs` reads it.
fn page_of(credential: &Path) -> Vec<u8> {
    let credentials = Credentials::read(credential).unwrap_or_else(|error| panic!("{error}"));
    let Config { identity, gateway, profile, fresh, .. } = credentials.config(Transport::Stream);
    let offer = Offer::new(profile, Transport::Datagram).encode();
    let secret = match &identity.key {
        DeviceKey::Private(scalar) => *scalar.expose(),
        DeviceKey::Registration(key) => key.0,
        DeviceKey::External { .. } => unreachable!("a file names no key elsewhere"),
    };
    let mut page = b"dfp1".to_vec();
    page.extend([offer, gateway.key_id]);
    page.extend(fresh.to_be_bytes());
    page.extend(identity.id.0);
    page.extend(identity.fingerprint.0);
    page.extend(secret);
    page.extend(gateway.fingerprint.0);
    page.extend(&gateway.key.0[1..]);
    page.extend([0; 2]);
    let comb = compact::comb(&gateway.key).unwrap();
    page.extend(comb.as_flattened().as_flattened().iter().flat_map(|word| word.to_le_bytes()));
    page
}

/// A board that runs.
pub(crate) struct Board {
    child: Child,
    said: Receiver<String>,
    heard: Vec<String>,
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Board {
    /// The same, with a clock that counts instructions.
    pub(crate) fn counting(program: &Path, folder: &Path, arguments: &[&str]) -> Self {
        let shift = format!("shift={INSTRUCTION_SHIFT}");
        Self::start(program, folder, &[&["-icount", &shift], arguments].concat())
    }

    /// QEMU's board with this program, in this folder.
    pub(crate) fn start(program: &Path, folder: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("qemu-system-arm");
        command.args(["-M", "mps2-an386", "-display", "none", "-monitor", "none"]);
        command.args(["-chardev", "stdio,id=out"]);
        command.args(["-semihosting-config", "enable=on,target=native,chardev=out"]);
        command.arg("-kernel").arg(program).args(arguments);
        command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, said) = channel();
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Self { child, said, heard: Vec::new() }
    }

    /// Waits for a line that begins like this; its number.
    pub(crate) fn hear(&mut self, begins: &str) -> u64 {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(line) = self.said.recv_timeout(left) else {
                panic!("the board never said {begins:?}, but {:?}", self.heard)
            };
            self.heard.push(line.clone());
            if let Some(rest) = line.strip_prefix(begins) {
                return rest.trim().parse().unwrap_or(0);
            }
            assert!(!matches!(line.as_str(), "panic" | "fault" | "failed"), "{:?}", self.heard);
        }
    }

    /// Waits until it has ended; whether all was well.
    pub(crate) fn end(mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

/// How many instructions take so many ticks.
pub(crate) const fn instructions(ticks: u64) -> u64 {
    (ticks * TICK_NS) >> INSTRUCTION_SHIFT
}

/// Flash that a program takes, bytes: what is loaded of it.
pub(crate) fn flash(program: &Path) -> u64 {
    let size = Command::new("arm-none-eabi-size").arg(program).output().unwrap();
    let text = String::from_utf8(size.stdout).unwrap();
    let numbers = text.lines().nth(1).unwrap().split_whitespace();
    numbers.take(2).map(|number| number.parse::<u64>().unwrap()).sum()
}

/// Flash that the device's library and the protocol take of a program: their functions and tables, without what they call.
pub(crate) fn own_flash(program: &Path) -> u64 {
    let names = Command::new("arm-none-eabi-nm").args(["-S", "-C"]).arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&names.stdout).into_owned();
    let own = text.lines().filter_map(|line| {
        let mut fields = line.splitn(4, ' ');
        let (_, size) = (fields.next()?, fields.next()?);
        let (kind, name) = (fields.next()?, fields.next()?);
        let name = name.trim_start_matches('<');
        let is_own = ["duet_device::", "duet_protocol::"].iter().any(|own| name.starts_with(own));
        (is_own && matches!(kind, "t" | "T" | "r" | "R"))
            .then(|| u64::from_str_radix(size, 16).ok())?
    });
    own.sum()
}
