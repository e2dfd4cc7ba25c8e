//! Servers that a test starts on a free port and stops by their id.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where `scripts/install-servers` puts what Debian does not have, or else wherever it is.
fn program(name: &str) -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join(name)).collect::<Vec<_>>();
    places.insert(0, installed);
    places.push(Path::new("/usr/sbin").join(name));
    places.push(Path::new("/usr/lib/postgresql/15/bin").join(name));
    let found = places.into_iter().find(|place| place.is_file());
    if found.is_none() {
        println!("SKIPPED: {name} is not installed; scripts/install-servers does it");
    }
    found
}

/// Of PostgreSQL's superuser.
#[cfg(feature = "postgres")]
pub(crate) const PASSWORD: &str = "a rather long password";

/// PostgreSQL refuses to be root.
#[cfg(feature = "postgres")]
fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// A command as the user of PostgreSQL, where we are root.
#[cfg(feature = "postgres")]
fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command
}

/// To the user of PostgreSQL, where we are root.
#[cfg(feature = "postgres")]
fn give_away(path: &Path) {
    if is_root() {
        assert!(Command::new("chown").arg("postgres:").arg(path).status().unwrap().success());
    }
}

pub(crate) struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    pub(crate) port: u16,
    child: Child,
    /// Its files go with it.
    _dir: tempfile::TempDir,
}

impl Server {
    /// NATS with JetStream; `None` where it is not installed. `more` goes into its configuration.
    pub(crate) fn nats(more: &str) -> Option<Self> {
        Self::start("nats-server", |dir, port| {
            format!(
                "listen: 127.0.0.1:{port}\njetstream {{ store_dir: \"{}\" }}\n{more}",
                dir.display()
            )
        })
    }

    /// mosquitto; `None` where it is not installed.
    pub(crate) fn mosquitto(more: &str) -> Option<Self> {
        Self::start("mosquitto", |_, port| {
            format!(
                "listener {port} 127.0.0.1\nmax_inflight_messages 0\nmax_queued_messages 0\n{more}"
            )
        })
    }

    /// PostgreSQL, whose user `postgres` has [`PASSWORD`]; `None` where it is not installed. With TLS, if `openssl` is.
    #[cfg(feature = "postgres")]
    pub(crate) fn postgres(more: &str) -> Option<Self> {
        let program = program("postgres")?;
        let program = fs::canonicalize(program).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (data, secret) = (dir.path().join("data"), dir.path().join("secret"));
        fs::write(&secret, PASSWORD).unwrap();
        for file in ["", "secret"] {
            give_away(&dir.path().join(file));
        }
        let mut init = as_postgres(&program.with_file_name("initdb"));
        init.arg("-D").arg(&data).args(["--no-sync", "-A", "scram-sha-256", "-U", "postgres"]);
        init.arg("--pwfile").arg(&secret).stdout(Stdio::null());
        assert!(init.status().unwrap().success());
        if more.contains("ssl") {
            let mut request = Command::new("openssl");
            let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
            request.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
            request.args(["-nodes", "-days", "2", "-addext", "basicConstraints=critical,CA:FALSE"]);
            request.args(subject).arg("-keyout").arg(data.join("server.key"));
            request.arg("-out").arg(data.join("server.crt")).stderr(Stdio::null());
            if !request.status().is_ok_and(|status| status.success()) {
                println!("SKIPPED: openssl is not installed, which makes the server's certificate");
                return None;
            }
            give_away(&data.join("server.key"));
            give_away(&data.join("server.crt"));
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let conf = format!(
            "\nlisten_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n{more}"
        );
        let path = data.join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap() + &conf;
        fs::write(&path, text).unwrap();
        let command = as_postgres(&program);
        let mut line: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_str().unwrap().to_owned())
            .collect();
        line.extend(["-D".to_owned(), data.display().to_string()]);
        let (program, arguments) = (PathBuf::from(line.remove(0)), line);
        let child = spawn(&program, &arguments, port);
        Some(Self { program, arguments, port, child, _dir: dir })
    }

    /// tansu, which speaks Kafka's protocol and keeps all in memory; `None` where it is not installed.
    #[cfg(feature = "kafka")]
    pub(crate) fn tansu() -> Option<Self> {
        let program = program("tansu")?;
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("tcp://127.0.0.1:{port}");
        let words = ["broker", "--listener-url", &url, "--advertised-listener-url", &url];
        let words =
            words.iter().chain(&["--storage-engine", "memory://tansu/", "--cluster-id", "duet"]);
        let arguments: Vec<_> = words.map(ToString::to_string).collect();
        let child = spawn(&program, &arguments, port);
        Some(Self { program, arguments, port, child, _dir: dir })
    }

    /// What a client of this PostgreSQL has to believe.
    #[cfg(feature = "postgres")]
    pub(crate) fn certificate(&self) -> Option<PathBuf> {
        let path = self._dir.path().join("data/server.crt");
        path.is_file().then_some(path)
    }

    fn start(name: &str, configuration: impl Fn(&Path, u16) -> String) -> Option<Self> {
        let program = program(name)?;
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = dir.path().join("conf");
        fs::write(&path, configuration(dir.path(), port)).unwrap();
        let arguments = vec!["-c".to_owned(), path.display().to_string()];
        let child = spawn(&program, &arguments, port);
        Some(Self { program, arguments, port, child, _dir: dir })
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn go_on(&self) {
        self.signal("-CONT");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        // What a server that was killed leaves running for a moment keeps the next one from its memory.
        let began = Instant::now();
        self.child = loop {
            if let Some(child) = try_spawn(&self.program, &self.arguments, self.port) {
                break child;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "it does not start again");
            std::thread::sleep(Duration::from_millis(50));
        };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that was killed before is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, arguments: &[String], port: u16) -> Child {
    let spawned = try_spawn(program, arguments, port);
    spawned.unwrap_or_else(|| panic!("{} ended at once", program.display()))
}

/// Once it listens; `None` where it ends before.
fn try_spawn(program: &Path, arguments: &[String], port: u16) -> Option<Child> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{} does not listen", program.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(child)
}
