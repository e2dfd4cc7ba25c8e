//! DTLS 1.2 with mutual authentication by OpenSSL's own programs, `openssl s_server` and `s_client`: two
//! processes for each job. P-256, ECDSA, AES-128-GCM; the server asks for its cookie, as `s_server` always does.
//!
//! The reading is a line on the client's standard input, the confirmation a line on the server's. Starting a
//! process is no device's work, so time begins with the first packet on the link, and so does the client's processor
//! time.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::exchange::Seen;
use crate::link::Emulator;
use crate::process_clock::process_cpu;

use super::{Job, Road};

const SUITE: &str = "ECDHE-ECDSA-AES128-GCM-SHA256";
/// Bytes of the reading and of the confirmation, their ends of line and the 2 bytes that stand for TLS's frame included.
const READING: usize = 66;
const CONFIRMATION: &str = "acknowled.";

/// A child that ends when dropped, and its output line by line.
struct Process {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, or is ended here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(dir: &Path, name: &str, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new("openssl")
            .args(arguments)
            .args(["-dtls1_2", "-cipher", SUITE, "-curves", "P-256", "-verify_return_error"])
            // Left to itself it cuts its messages to 256 bytes, and adds a ticket that nobody asked for.
            .args(["-mtu", "1500", "-no_ticket"])
            .args(["-cert", &format!("{name}.pem"), "-key", &format!("{name}.key")])
            .args(["-CAfile", "authority.pem"])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context(
                "openssl: cannot be started; install it, or leave dtls12 out with --contenders",
            )?;
        let input = child.stdin.take().context("openssl has no input")?;
        let output = child.stdout.take().context("openssl has no output")?;
        Ok(Self { child, input, lines: reader(output) })
    }

    /// Waits for a line that ends so.
    fn wait_for(&self, end: &str, until: Instant) -> Result<()> {
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.ends_with(end) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("no {end:?} from openssl in time"),
                Err(RecvTimeoutError::Disconnected) => bail!("openssl ended without {end:?}"),
            }
        }
    }

    fn cpu(&self) -> Duration {
        process_cpu(self.child.id()).unwrap_or_default()
    }
}

/// Hands on lines of output until it ends.
fn reader(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output.take(1 << 20));
        let mut line = String::new();
        while matches!(output.read_line(&mut line), Ok(1..)) {
            if sender.send(std::mem::take(&mut line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    lines
}

/// Whether there is an `openssl` program, and which.
pub(super) fn version() -> Option<String> {
    let output = Command::new("openssl").arg("version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

/// The device's job, and the processor time of the server that was made for it. The calling thread is in the
/// client's namespace; `dir` has the keys.
///
/// # Errors
/// When it cannot be done within the road's time.
pub(super) fn job(dir: &Path, link: &Emulator, road: &Road<'_>) -> Result<(Job, Duration)> {
    let address = link.server_address();
    let server = link.server.run(|| start_server(dir, address))?;
    let (mut server, to) = server;
    let began_server = server.cpu();
    let local = road.port()?;
    let (to, from) = (to.to_string(), local.to_string());
    let arguments = ["s_client", "-connect", &to, "-bind", &from, "-quiet"];
    let mut client = Process::start(dir, "device", &arguments)?;
    let reading = "x".repeat(READING - 1);
    client.input.write_all(format!("{reading}\n").as_bytes())?;
    let mut cpu = client.cpu();
    let began_us = loop {
        if let Some(first_us) = link.first_us(false, local) {
            break first_us;
        }
        cpu = client.cpu();
        road.left()?;
        ensure!(client.child.try_wait()?.is_none(), "openssl s_client ended at once");
        std::thread::sleep(Duration::from_micros(200));
    };
    // Nothing comes back for a round trip: what it has used until now was its start.
    cpu = cpu.max(client.cpu());
    server.wait_for(&reading, road.until)?;
    server.input.write_all(format!("{CONFIRMATION}\n").as_bytes())?;
    client.wait_for(CONFIRMATION, road.until)?;
    let confirmed = Instant::now();
    let device_cpu = client.cpu().saturating_sub(cpu);
    let server_cpu = server.cpu().saturating_sub(began_server);
    let began = link.instant(began_us);
    let (handshake, all) = (Seen::default(), Seen::default());
    let job =
        Job { began, confirmed, device_cpu, handshake, all, segments: None, local, stream: None };
    Ok((job, server_cpu))
}

/// On a port that was free a moment ago; another one when somebody was quicker.
fn start_server(dir: &Path, address: Ipv4Addr) -> Result<(Process, std::net::SocketAddr)> {
    let mut last = anyhow!("no UDP port for openssl s_server");
    for _ in 0..5 {
        let to = UdpSocket::bind((address, 0)).and_then(|socket| socket.local_addr())?;
        let text = to.to_string();
        let arguments = ["s_server", "-accept", &text, "-naccept", "1", "-Verify", "1"];
        let server = Process::start(dir, "gateway", &arguments)?;
        match server.wait_for("ACCEPT", Instant::now() + Duration::from_secs(10)) {
            Ok(()) => return Ok((server, to)),
            Err(error) => last = error,
        }
    }
    Err(last.context("openssl s_server does not start"))
}
