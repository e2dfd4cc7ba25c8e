//! The gateway's settings: one TOML file, flags on top, validated whole before anything binds.
//!
//! Every key is optional and an unknown key is an error, so a misspelt setting never falls back
//! to its default in silence. Paths in the file are relative to the state directory. This module
//! reads files and nothing else: whether an address can be bound is found out by binding it.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use duet_upstream::Upstream;
use serde::Deserialize;
use thiserror::Error;

use crate::driver::Choice;

mod queues;
mod quota;
mod spool;

use self::queues::FileQueues;
pub use self::queues::Queues;
use self::quota::FileQuota;
pub use self::quota::Quota;
use self::spool::FileSpool;
pub use self::spool::{Spool, WhenFull};

/// The file's name in the state directory.
pub const FILE: &str = "duet.toml";

/// UDP and TCP port of the gateway: 2, and DUET on a telephone's keys. Both it and its successor
/// are unassigned in IANA's registry, in a gap (23547–23999) of the registered range, and below
/// Linux's ephemeral ports (32768 and up), so that no outgoing connection can have taken it.
pub const PORT: u16 = 23838;

/// Port of metrics and health.
pub const METRICS_PORT: u16 = 23839;

/// What `duet init` writes: every key with its default, commented out.
pub const TEMPLATE: &str = include_str!("config/duet.toml");

/// Validated settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where registry, control socket and, by default, everything else lives.
    pub state: PathBuf,
    /// UDP and TCP address.
    pub listen: SocketAddr,
    /// Data-plane threads, 1 to 256.
    pub shards: usize,
    /// Whether each data-plane thread stays on a core of its own.
    pub pin: bool,
    /// How data-plane threads do I/O.
    pub io: Choice,
    /// Under load, how long a data-plane thread gathers input for one turn, µs.
    pub gather_us: u32,
    /// Certificate and key that new devices are given.
    pub gateway: KeyFiles,
    /// The certificate before it, accepted as long as devices hold it.
    pub retiring: Option<KeyFiles>,
    /// Durable store of readings.
    pub spool: Spool,
    /// Where readings go on to.
    pub upstreams: Vec<Upstream>,
    /// What one device may store.
    pub quota: Quota,
    /// Metrics and health over HTTP.
    pub metrics: Metrics,
    /// Lives of sessions.
    pub session: Session,
    /// Bounds on memory.
    pub limits: Limits,
    /// Sizes of what each data-plane thread shares with the kernel.
    pub queues: Queues,
}

/// One certificate of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFiles {
    /// The byte by which HELLO names this certificate.
    pub key_id: u8,
    /// Certificate, PEM or DER.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Address of `/metrics`, `/health` and `/ready`.
    pub listen: SocketAddr,
}

/// `[session]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// A session without records for this long ends.
    pub idle_timeout_s: u32,
    /// A session that no record confirms ends after this.
    pub pending_timeout_ms: u32,
    /// A session ends after this in any case, and the device makes a new one.
    pub lifetime_s: u32,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions on all shards together.
    pub max_sessions: u32,
    /// Unconfirmed sessions on all shards together.
    pub max_pending: u32,
    /// TCP connections on all shards together.
    pub max_streams: u32,
    /// Devices' keys with a precomputed table, on all shards together; 4 KiB each.
    pub max_tables: u32,
}

/// Flags that stand above the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<SocketAddr>,
    /// `--metrics`
    pub metrics: Option<SocketAddr>,
    /// `--shards`
    pub shards: Option<usize>,
}

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind. The detail has line and column.
    #[error("{}: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Place and expectation.
        error: Box<toml::de::Error>,
    },
    /// Values out of range, all of them at once.
    #[error("{}: settings cannot be used{}", path.display(), Lines(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Each setting at fault.
        problems: Vec<Problem>,
    },
}

/// One setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, with its table.
    pub key: Cow<'static, str>,
    /// What it must be.
    pub must: &'static str,
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {} {}", problem.key, problem.must))
    }
}

/// The file as it is written: nothing is required.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    state: Option<PathBuf>,
    listen: Option<SocketAddr>,
    shards: Option<usize>,
    pin: Option<bool>,
    io: Option<Choice>,
    gather_us: Option<u32>,
    gateway: FileGateway,
    spool: FileSpool,
    upstream: Vec<duet_upstream::Settings>,
    quota: FileQuota,
    metrics: FileMetrics,
    session: FileSession,
    limits: FileLimits,
    queues: FileQueues,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileGateway {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    key_id: Option<u8>,
    retiring: Option<FileRetiring>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRetiring {
    certificate: PathBuf,
    key: PathBuf,
    key_id: u8,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileMetrics {
    listen: Option<SocketAddr>,
    allow_remote: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileSession {
    idle_timeout_s: Option<u32>,
    pending_timeout_ms: Option<u32>,
    lifetime_s: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLimits {
    max_sessions: Option<u32>,
    max_pending: Option<u32>,
    max_streams: Option<u32>,
    max_tables: Option<u32>,
}

impl Config {
    /// Reads `file`, or else `duet.toml` in the state directory if there is one, and puts the
    /// flags on top. The state directory is `state`, else the file's key, else the directory that
    /// `file` lies in.
    ///
    /// # Errors
    /// [`ConfigError`], with every setting at fault.
    pub fn load(
        state: Option<&Path>,
        file: Option<&Path>,
        flags: &Overrides,
    ) -> Result<Self, ConfigError> {
        let path = match (file, state) {
            (Some(file), _) => file.to_owned(),
            (None, state) => state.unwrap_or(Path::new(".")).join(FILE),
        };
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => {
                String::new()
            }
            read => read.map_err(|error| ConfigError::Io { path: path.clone(), error })?,
        };
        let parsed: File = toml::from_str(&text)
            .map_err(|error| ConfigError::Syntax { path: path.clone(), error: Box::new(error) })?;
        // The parent of a bare file name is the empty path, which is no directory.
        let beside = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let beside = beside.unwrap_or(Path::new("."));
        let state = match (state, &parsed.state) {
            (Some(state), _) => state.to_owned(),
            (None, Some(state)) => beside.join(state),
            (None, None) => beside.to_owned(),
        };
        Self::resolve(parsed, state, flags)
            .map_err(|problems| ConfigError::Invalid { path, problems })
    }

    fn resolve(file: File, state: PathBuf, flags: &Overrides) -> Result<Self, Vec<Problem>> {
        let mut check = Check::default();
        let allow_remote = file.metrics.allow_remote.unwrap_or(false);
        let metrics = flags.metrics.or(file.metrics.listen);
        let metrics = metrics.unwrap_or((IpAddr::from(Ipv4Addr::LOCALHOST), METRICS_PORT).into());
        check.that(
            metrics.ip().is_loopback() || allow_remote,
            "metrics.listen",
            "must be a loopback address, or set metrics.allow_remote = true (it has no password)",
        );
        let listen = flags.listen.or(file.listen);
        let listen = listen.unwrap_or((IpAddr::from(Ipv6Addr::UNSPECIFIED), PORT).into());
        check.that(
            listen.port() == 0 || listen != metrics,
            "metrics.listen",
            "must differ from listen, which uses TCP as well",
        );
        let shards = flags.shards.or(file.shards).unwrap_or_else(cpus);
        check.that((1..=256).contains(&shards), "shards", "must be 1 to 256");

        let gateway = KeyFiles {
            key_id: file.gateway.key_id.unwrap_or(0),
            certificate: state.join(file.gateway.certificate.unwrap_or("gateway.pem".into())),
            key: state.join(file.gateway.key.unwrap_or("gateway.key".into())),
        };
        let retiring = file.gateway.retiring.map(|retiring| KeyFiles {
            key_id: retiring.key_id,
            certificate: state.join(retiring.certificate),
            key: state.join(retiring.key),
        });
        check.that(
            retiring.as_ref().is_none_or(|retiring| retiring.key_id != gateway.key_id),
            "gateway.retiring.key_id",
            "must differ from gateway.key_id: HELLO names the certificate by it",
        );
        let upstreams = upstreams(&file.upstream, &state, &mut check);
        let config = Self {
            upstreams,
            listen,
            shards,
            pin: file.pin.unwrap_or(true),
            io: file.io.unwrap_or_default(),
            gather_us: file.gather_us.unwrap_or(200),
            gateway,
            retiring,
            spool: file.spool.resolve(&state),
            quota: file.quota.resolve(),
            metrics: Metrics { listen: metrics },
            session: Session {
                idle_timeout_s: file.session.idle_timeout_s.unwrap_or(3_600),
                pending_timeout_ms: file.session.pending_timeout_ms.unwrap_or(5_000),
                lifetime_s: file.session.lifetime_s.unwrap_or(86_400),
            },
            limits: Limits {
                max_sessions: file.limits.max_sessions.unwrap_or(1_000_000),
                max_pending: file.limits.max_pending.unwrap_or(65_536),
                max_streams: file.limits.max_streams.unwrap_or(65_536),
                max_tables: file.limits.max_tables.unwrap_or(65_536),
            },
            queues: file.queues.resolve(),
            state,
        };
        config.check_ranges(&mut check);
        if check.0.is_empty() { Ok(config) } else { Err(check.0) }
    }

    fn check_ranges(&self, check: &mut Check) {
        let Self { spool, session, limits, .. } = self;
        check.that(
            self.gather_us <= 10_000,
            "gather_us",
            "must be at most 10000: readings and hellos wait that long under load",
        );
        spool.check(check);
        self.quota.check(check);
        check.that(
            (500..=60_000).contains(&session.pending_timeout_ms),
            "session.pending_timeout_ms",
            "must be 500 to 60000: a confirmation takes one round trip and a retry",
        );
        check.that(
            (60..=30 * 86_400).contains(&session.lifetime_s),
            "session.lifetime_s",
            "must be 60 to 2592000 (30 days)",
        );
        check.that(
            (10..=session.lifetime_s).contains(&session.idle_timeout_s),
            "session.idle_timeout_s",
            "must be 10 to session.lifetime_s",
        );
        check.that(
            (1..=1 << 24).contains(&limits.max_sessions),
            "limits.max_sessions",
            "must be 1 to 16777216",
        );
        check.that(
            (1..=1 << 20).contains(&limits.max_pending),
            "limits.max_pending",
            "must be 1 to 1048576",
        );
        check.that(
            (1..=1 << 20).contains(&limits.max_streams),
            "limits.max_streams",
            "must be 1 to 1048576",
        );
        check.that(
            (1..=1 << 24).contains(&limits.max_tables),
            "limits.max_tables",
            "must be 1 to 16777216",
        );
        self.queues.check(check);
    }
}

/// Checks each `[[upstream]]`, by its name where it has one.
fn upstreams(
    written: &[duet_upstream::Settings],
    state: &Path,
    check: &mut Check,
) -> Vec<Upstream> {
    let mut upstreams: Vec<Upstream> = Vec::new();
    for settings in written {
        match settings.check(state) {
            Ok(upstream) => {
                let known = upstreams.iter().any(|other| other.name() == upstream.name());
                check.that(!known, "upstream.name", "must differ from those of other upstreams");
                upstreams.push(upstream);
            }
            Err(problems) => check.0.extend(problems.into_iter().map(|problem| Problem {
                key: format!("upstream {:?}: {}", settings.name, problem.key).into(),
                must: problem.must,
            })),
        }
    }
    upstreams
}

/// Collects what is wrong instead of stopping at the first.
#[derive(Default)]
struct Check(Vec<Problem>);

impl Check {
    fn that(&mut self, holds: bool, key: &'static str, must: &'static str) {
        if !holds {
            self.0.push(Problem { key: key.into(), must });
        }
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(256))
}

#[cfg(test)]
mod tests;
