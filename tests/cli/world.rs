//! A state directory of one's own, and the commands that are given to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

pub(crate) struct Scratch {
    pub(crate) dir: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn initialised() -> Self {
        let scratch = Self::empty();
        scratch.good(&["init"]);
        scratch
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
        command.current_dir(self.dir.path()).env_remove("DUET_STATE");
        command.arg("--state").arg("state").args(arguments).stdin(Stdio::null());
        command
    }

    pub(crate) fn duet(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs what must succeed; its standard output.
    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        let output = self.duet(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs what must fail with exit code 1; its standard error.
    pub(crate) fn bad(&self, arguments: &[&str]) -> String {
        let output = self.duet(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    pub(crate) fn openssl(&self, line: &str) {
        let output = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "openssl {line}: {}", text(&output.stderr));
    }

    /// Makes `name.key` and `name.pem`.
    pub(crate) fn certificate(&self, name: &str, key: &str, more: &str) {
        self.openssl(&format!(
            "req -x509 {key} -nodes -subj /CN={name} -keyout {name}.key -out {name}.pem {more}"
        ));
    }

    pub(crate) fn run(&self) -> Gateway {
        self.run_with(&[])
    }

    /// Runs a gateway with more in its environment.
    pub(crate) fn run_with(&self, environment: &[(&str, &str)]) -> Gateway {
        let arguments = ["run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
        let mut command = self.command(&arguments);
        command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut http, mut address) = (String::new(), None);
        let mut api = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while out.read_line(&mut line).unwrap() > 0 {
            if let Some((_, url)) = line.trim_end().split_once("http://") {
                http = url.trim_end_matches("/metrics").to_owned();
            }
            if let Some(rest) = line.strip_prefix("listening") {
                address = rest.split_whitespace().next().unwrap().parse().ok();
            }
            if let Some((_, address)) = line.trim_end().split_once("https://") {
                api = address.to_owned();
            }
            if line.trim_end() == "running" {
                let address = address.expect("the gateway says where it listens");
                return Gateway { child, http, address, api, _out: out };
            }
            line.clear();
        }
        let mut why = String::new();
        child.stderr.take().unwrap().read_to_string(&mut why).unwrap();
        child.wait().unwrap();
        panic!("the gateway did not start: {why}");
    }
}

/// A running gateway; killed, by its handle, when the test forgets it.
pub(crate) struct Gateway {
    pub(crate) child: Child,
    pub(crate) http: String,
    pub(crate) address: SocketAddr,
    /// Where the API is served over TLS, if it is.
    pub(crate) api: String,
    /// Kept open: the gateway says more when it ends.
    _out: BufReader<std::process::ChildStdout>,
}

impl Gateway {
    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: duet\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(crate) fn stop(mut self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Fails when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
