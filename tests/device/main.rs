//! `docs/device.md` as a new user follows it: the very lines of the page, against the real gateway. Those of
//! its shell blocks are run in order, in one folder; a block whose tools are not here is skipped, and that is said.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// What the page says where the gateway listens; here it is a free port.
const PORT: &str = "23838";

struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        // It has ended, or is ended here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Page {
    dir: tempfile::TempDir,
    port: String,
}

/// The blocks of the page that are marked like this, in order.
fn blocks(mark: &str) -> Vec<String> {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/device.md")).unwrap();
    let parts = page.split("\n```").collect::<Vec<_>>();
    let marked = parts.iter().filter_map(|part| part.strip_prefix(&format!("{mark}\n")));
    marked.map(str::to_owned).collect()
}

impl Page {
    fn new() -> Self {
        // Free for both carriers.
        let free = std::iter::repeat_with(|| TcpListener::bind("127.0.0.1:0").unwrap())
            .map(|taken| taken.local_addr().unwrap())
            .find(|address| UdpSocket::bind(address).is_ok())
            .unwrap()
            .port();
        Self { dir: tempfile::tempdir().unwrap(), port: free.to_string() }
    }

    fn shell(&self, lines: &str) -> Command {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_duet"));
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &lines.replace(PORT, &self.port)])
            .current_dir(self.dir.path())
            .env("PATH", format!("{}:{path}", program.parent().unwrap().display()))
            .env("DUET", ROOT)
            .env_remove("DUET_STATE")
            .stdin(Stdio::null());
        command
    }

    /// Runs lines that must succeed; what they print.
    fn run(&self, lines: &str) -> String {
        let output = self.shell(lines).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{lines}\n{said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn gateway(&self, lines: &str) -> Gateway {
        let lines = format!("exec {}", lines.trim());
        let mut child = self.shell(&lines).stdout(Stdio::piped()).spawn().unwrap();
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
        Gateway(child)
    }

    /// What the last block of the page shows: the readings that the gateway has stored.
    fn stored(&self) -> String {
        self.run(&blocks("sh show")[0])
    }
}

/// Two threads with one device, and a command whose function would send by itself.
const PYTHON_THREADS: &str = "
import threading
from duet import Device, DuetError

device = Device.from_file('boiler-1.json', timeout=60)
threads = [threading.Thread(target=device.send, args=(1, b'22.0')) for _ in range(2)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
done = []

def act(payload):
    done.append(payload)
    try:
        device.send(1, b'23.0')
    except DuetError as error:
        return str(error)
    return 'sent'

device.on_command(act)
print('both', flush=True)
while not done:
    device.wait(0.2)
device.rest()
device.close()
";

fn there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
}

fn begin() -> (Page, Gateway) {
    let page = Page::new();
    page.run(&blocks("sh init")[0]);
    let gateway = page.gateway(&blocks("sh gateway")[0]);
    (page, gateway)
}

#[test]
fn a_device_in_rust_is_the_page() {
    let (page, _gateway) = begin();
    page.run(&blocks("sh register")[0]);
    let said = page.run(&blocks("sh try")[0]);
    assert!(said.contains("stored: hello"), "{said}");
    let said = page.run(&blocks("sh rust")[0]);
    assert!(said.contains("stored: 21.5"), "{said}");
    assert!(page.stored().contains("boiler-1"), "{}", page.stored());
    // The program on the page is the one that was run.
    let example = fs::read_to_string(Path::new(ROOT).join("device/examples/sensor.rs")).unwrap();
    let shown = blocks("rust");
    assert!(example.contains(shown[0].trim()), "docs/device.md shows another sensor.rs");
    assert!(example.lines().filter(|line| !line.trim().is_empty()).count() <= 30);
}

/// How long the programs are of which the page says so; empty lines are not counted.
#[test]
fn the_examples_are_short() {
    let lines = |text: &str| text.lines().filter(|line| !line.trim().is_empty()).count();
    let c = fs::read_to_string(Path::new(ROOT).join("device/examples/c/sensor.c")).unwrap();
    assert!(lines(&c) <= 40, "sensor.c has {} lines", lines(&c));
    let page = fs::read_to_string(Path::new(ROOT).join("docs/device.md")).unwrap();
    assert!(page.contains(&format!("sensor.c` is {} lines", lines(&c))), "the page counts others");
    let python = &blocks("python")[0];
    assert!(lines(python) <= 12, "the page's Python has {} lines", lines(python));
}

#[test]
fn a_device_in_c_is_the_page() {
    if !there("cc") || !there("make") {
        eprintln!("SKIPPED: no C compiler or no make, so no device in C was built");
        return;
    }
    let (page, _gateway) = begin();
    let said = page.run(&blocks("sh c")[0]);
    assert!(said.contains("stored: 42.0"), "{said}");
    assert!(page.stored().contains("pump-1"), "{}", page.stored());
    // A second life goes on above the counter of the first.
    assert!(page.run("./sensor 43.0").contains("stored: 43.0"));
    assert_eq!(page.stored().matches("pump-1").count(), 2, "{}", page.stored());
    if there("valgrind") {
        let lines = "valgrind -q --error-exitcode=9 --leak-check=full ./sensor 44.0";
        assert!(page.run(lines).contains("stored: 44.0"));
    } else {
        eprintln!("SKIPPED: no valgrind, so the device in C was not run under it");
    }
}

/// The ports for Zephyr and ESP-IDF with their samples, compiled against stubs of the few calls that they use, and run against
/// the real gateway: neither system can be had here. Each lives twice, since what it keeps must be found again.
#[test]
fn the_ports_work_on_stubs_of_their_systems() {
    if !there("cc") {
        eprintln!("SKIPPED: no C compiler, so the ports were not compiled");
        return;
    }
    let (page, _gateway) = begin();
    page.run("cargo build -q --manifest-path $DUET/Cargo.toml -p duet-device-c");
    let register = &blocks("sh c")[0];
    let register = register.lines().next().unwrap();
    if std::net::UdpSocket::bind("[::1]:0").is_ok() {
        page.run(
            "P=$DUET/device/c/ports
            echo '#include \"duet_udp.h\"
            int main(void) { return duet_udp_connect(\"[::1]:9\") < 0 || duet_udp_connect(\"127.0.0.1:9\") < 0; }' >six.c
            cc -std=gnu11 -I$P -I$DUET/device/c/include six.c $P/duet_udp.c $DUET/target/debug/libduet_device_c.a \
                -lpthread -ldl -lm -lgcc_s -o six && ./six",
        );
    }
    let zephyr = "-D__ZEPHYR__ -I$P/stubs/zephyr -I$P/zephyr $P/zephyr/duet_zephyr.c $P/zephyr/sample/src/main.c";
    let esp = "-I$P/stubs/esp -I$P/esp-idf/duet $P/esp-idf/duet/duet_esp.c $P/esp-idf/sample/main/main.c \
        $P/stubs/esp/start.c";
    for (name, sources) in [("zephyr-1", zephyr), ("esp-1", esp)] {
        page.run(&register.replace("pump-1", name).replace("credential.h", &format!("{name}.h")));
        let lines = format!(
            "P=$DUET/device/c/ports; mkdir {name}; mv {name}.h {name}/credential.h; cd {name}
            cc -std=gnu11 -O1 -Wall -Wextra -Werror -I. -I$P -I$P/stubs -I$DUET/device/c/include {sources} $P/duet_udp.c \
                $DUET/target/debug/libduet_device_c.a -lpthread -ldl -lm -lgcc_s -o sensor"
        );
        page.run(&lines);
        for life in 1..=2 {
            let said = page.run(&format!("cd {name}; ./sensor"));
            assert!(said.contains("stored") && !said.contains("not"), "{name}: {said}");
            assert_eq!(page.stored().matches(name).count(), life, "{}", page.stored());
        }
    }
}

#[test]
fn a_device_in_python_is_the_page() {
    let wheel =
        Command::new("python3").args(["-m", "venv", "--help"]).stdout(Stdio::null()).status();
    if !wheel.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no python3 with venv, so no device in Python was installed");
        return;
    }
    let (page, _gateway) = begin();
    page.run(&blocks("sh register")[0]);
    let install = page.shell(&blocks("sh python")[0]).output().unwrap();
    let said = String::from_utf8_lossy(&install.stderr);
    if said.contains("Could not find a version") || said.contains("No matching distribution") {
        eprintln!("SKIPPED: no package index, so the wheel could not be built");
        return;
    }
    assert!(install.status.success(), "{said}");
    fs::write(page.dir.path().join("sensor.py"), blocks("python")[0].trim()).unwrap();
    let said = page.run("venv/bin/python sensor.py");
    assert!(said.contains("stored"), "{said}");
    assert!(page.stored().contains("boiler-1"), "{}", page.stored());
    // What is wrong is told in Python's own way, and named.
    let lines =
        "venv/bin/python -c 'import duet; duet.Device.from_file(\"none.json\")' 2>&1 || true";
    let said = page.run(lines);
    assert!(said.contains("DuetError") && said.contains("none.json"), "{said}");
    // Threads take turns; the function of a command that calls its own device is told, and does not wait for itself.
    fs::write(page.dir.path().join("threads.py"), PYTHON_THREADS).unwrap();
    let mut sensor =
        page.shell("exec venv/bin/python threads.py").stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(sensor.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "both\n");
    let answer = page.run("duet --state gateway command boiler-1 now --wait");
    assert!(answer.contains("cannot call its own device"), "{answer}");
    assert!(sensor.wait().unwrap().success());
    let documented = "import duet; assert all(getattr(duet.Device, n).__doc__ for n in \
        ('from_file', 'send', 'post', 'on_command', 'wait', 'rest', 'close'))";
    page.run(&format!("venv/bin/python -c \"{documented}\""));
}
