//! The gateway's settings: one TOML file, the environment and flags above it, validated whole before anything binds.
//!
//! Every setting stands once in the [`catalogue`]. An unknown key is an error, so a misspelt setting never falls back
//! to its default in silence. Paths are relative to the state directory. This module reads files and nothing else:
//! whether an address can be bound is found out by binding it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use duet_upstream::Upstream;
use serde::Deserialize;
use thiserror::Error;

use crate::delivery::WhenFull;
use crate::driver::Choice;
use crate::log::{Format, Level};

pub mod catalogue;
mod reload;
mod values;

pub use self::reload::{Change, changes};
pub use self::values::{Origin, Place, Problem, Value, Values};

/// The file's name in the state directory.
pub const FILE: &str = "duet.toml";

/// UDP and TCP port of the gateway: 2, and DUET on a telephone's keys. Both it and its successor
/// are unassigned in IANA's registry, in a gap (23547–23999) of the registered range, and below
/// Linux's ephemeral ports (32768 and up), so that no outgoing connection can have taken it.
pub const PORT: u16 = 23838;

/// Port of metrics and health.
pub const METRICS_PORT: u16 = 23839;

/// The file that `duet init` writes: every key with its default, commented out.
pub static TEMPLATE: LazyLock<String> = LazyLock::new(catalogue::template);

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
    /// The most that the audit log may take, bytes.
    pub audit_max_bytes: u64,
    /// What is logged, and how.
    pub log: Log,
    /// Lives of sessions.
    pub session: Session,
    /// Bounds on memory.
    pub limits: Limits,
    /// The queue of commands.
    pub commands: Commands,
    /// What upstreams get besides readings.
    pub notices: Notices,
    /// Sizes of what each data-plane thread shares with the kernel.
    pub queues: Queues,
    /// The API over TLS, where it is asked for.
    pub api: Option<Api>,
    /// With what devices enrol.
    pub enrol: Enrol,
}

/// `[enrol]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrol {
    /// The certificate of the gateway's own CA; there may be none.
    pub certificate: PathBuf,
    /// The CA's key, PEM.
    pub key: PathBuf,
    /// How long the certificates are valid that it issues, days.
    pub days: u32,
    /// The certificates of other CAs that devices may bring one of, PEM.
    pub trusted: Option<PathBuf>,
}

/// `[api]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Address of the API over TLS.
    pub listen: SocketAddr,
    /// Its certificate with the chain, PEM.
    pub certificate: PathBuf,
    /// The certificate's key, PEM.
    pub key: PathBuf,
}

/// `[queues]`: sizes of what each data-plane thread shares with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Operations that are handed over at once.
    pub submissions: u32,
    /// Completions that wait to be taken; more are kept, at a cost.
    pub completions: u32,
    /// Receive buffers of 2 KiB for datagrams.
    pub datagram_buffers: u16,
    /// Receive buffers of 2 KiB for streams.
    pub stream_buffers: u16,
    /// Datagrams that are on their way out at once.
    pub send_slots: u32,
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

/// `[spool]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// Directory of the segments.
    pub dir: PathBuf,
    /// Size of one segment.
    pub segment_bytes: u64,
    /// Size of all segments together.
    pub max_bytes: u64,
    /// How old readings may get, delivered or not, seconds; 0: as old as they like.
    pub max_age_s: u64,
    /// What happens when `max_bytes` is reached.
    pub when_full: WhenFull,
}

/// `[quota]`, for each device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Readings a second, ten seconds' worth at once; 0: as many as it likes.
    pub readings_per_s: u32,
    /// Bytes a second as they are stored, the same way.
    pub bytes_per_s: u64,
    /// When less than a quarter of the spool is left: which part of the whole it may fill in an hour, percent;
    /// 0: all that is left.
    pub share_percent: u8,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Address of `/metrics`, `/health` and `/ready`.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// From which level on.
    pub level: Level,
    /// In which form.
    pub format: Format,
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

/// `[commands]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commands {
    /// How long a command waits that does not say, seconds.
    pub ttl_s: u32,
    /// The most that may wait for one device.
    pub per_device: u32,
}

/// `[notices]`: what upstreams get besides readings and results of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notices {
    /// Whether devices' coming and going is among it.
    pub presence: bool,
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
    /// `--defaults`: no settings file is needed.
    pub defaults: bool,
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
    /// There is none.
    #[error(
        "{}: no settings file here; `duet init` makes one in a new state directory, --state names another, and \
         --defaults does without", .0.display()
    )]
    Missing(PathBuf),
    /// There is nothing in it, as while an editor saves it, or after a disk was full.
    #[error(
        "{}: the settings file is empty; put it back, or write a line of comment into it if all defaults are meant", .0.display()
    )]
    Empty(PathBuf),
    /// It is in another encoding, or no text at all.
    #[error("{}: line {line} is not UTF-8 text; save the file as UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first line that is none.
        line: usize,
    },
    /// Something in it, in the environment or in a flag is wrong, all of it at once.
    #[error("{}: settings cannot be used{}", path.display(), Lines(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Each setting at fault.
        problems: Vec<Problem>,
    },
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// Settings together with where each of them comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings file, which need not exist with `--defaults`.
    pub path: PathBuf,
    /// The settings.
    pub config: Config,
    /// Their values and origins.
    pub values: Values,
}

impl Config {
    /// Reads `file`, or else `duet.toml` in the state directory, and puts environment and flags on top. The state
    /// directory is `state`, else the file's key, else the directory that `file` lies in.
    ///
    /// # Errors
    /// [`ConfigError`], with every setting at fault.
    pub fn load(
        state: Option<&Path>,
        file: Option<&Path>,
        flags: &Overrides,
    ) -> Result<Self, ConfigError> {
        Loaded::load(state, file, flags).map(|loaded| loaded.config)
    }
}

impl Loaded {
    /// The same as [`Config::load`], with the origins.
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
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !flags.defaults || file.is_some() {
                    return Err(ConfigError::Missing(path));
                }
                None
            }
            read => Some(read.map_err(|error| ConfigError::Io { path: path.clone(), error })?),
        };
        let text = match bytes.map(String::from_utf8).transpose() {
            Err(error) => {
                let whole = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = whole.iter().filter(|byte| **byte == b'\n').count() + 1;
                return Err(ConfigError::NotText { path, line });
            }
            Ok(Some(text)) if text.trim().is_empty() => return Err(ConfigError::Empty(path)),
            Ok(text) => text.unwrap_or_default(),
        };
        // The parent of a bare file name is the empty path, which is no directory.
        let beside = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let beside = beside.unwrap_or(Path::new("."));
        let state = match (state, values::state(&text)) {
            (Some(state), _) => state.to_owned(),
            (None, Some(state)) => beside.join(state),
            (None, None) => beside.to_owned(),
        };
        match resolve(&text, std::env::vars_os(), flags, &state) {
            Ok((config, values)) => Ok(Self { path, config, values }),
            Err(problems) => Err(ConfigError::Invalid { path, problems }),
        }
    }
}

type Variable = (std::ffi::OsString, std::ffi::OsString);

fn resolve(
    text: &str,
    variables: impl Iterator<Item = Variable>,
    flags: &Overrides,
    state: &Path,
) -> Result<(Config, Values), Vec<Problem>> {
    let mut values = Values::read(text).map_err(|problem| vec![problem])?;
    values.overlay(variables);
    let Overrides { listen, metrics, shards, defaults: _ } = flags;
    if let Some(address) = listen {
        values.put("listen", Value::Address(*address), Origin::Flag("--listen"));
    }
    if let Some(address) = metrics {
        values.put("metrics.listen", Value::Address(*address), Origin::Flag("--metrics"));
    }
    if let Some(shards) = shards {
        values.put("shards", Value::Number(*shards as u64), Origin::Flag("--shards"));
    }
    let mut config = config(&values, state);
    config.upstreams = upstreams(text, state, &mut values);
    check(&mut values, &config);
    if values.problems.is_empty() { Ok((config, values)) } else { Err(values.problems) }
}

/// The tables of upstreams. Their keys are not in the catalogue: there may be any number of them.
#[derive(Deserialize)]
struct Upstreams {
    #[serde(default)]
    upstream: Vec<duet_upstream::Settings>,
}

/// What the library says, without the names that a program has for things.
fn in_words(message: &str) -> String {
    if message.contains("expected a sequence") {
        return "each stands under [[upstream]], in two brackets".to_owned();
    }
    let number = |message: String, name: &str| message.replace(name, "a whole number from 0 on");
    ["usize", "u64", "u32"].into_iter().fold(message.to_owned(), number)
}

/// Checks each `[[upstream]]`, by its name where it has one.
fn upstreams(text: &str, state: &Path, values: &mut Values) -> Vec<Upstream> {
    let mut upstreams: Vec<Upstream> = Vec::new();
    let written: Upstreams = match toml::from_str(text) {
        Ok(written) => written,
        Err(error) => {
            let place = error.span().map(|span| values::place(text, span.start));
            let text = format!("upstream: {}", in_words(error.message()));
            values.problems.push(Problem { place, text });
            return upstreams;
        }
    };
    for settings in &written.upstream {
        match settings.check(state) {
            Ok(upstream) => {
                let known = upstreams.iter().any(|other| other.name() == upstream.name());
                values.check(!known, "upstream.name", "differ from those of other upstreams");
                upstreams.push(upstream);
            }
            Err(problems) => values.problems.extend(problems.into_iter().map(|problem| {
                let (name, key, must) = (&settings.name, problem.key, problem.must);
                Problem { place: None, text: format!("upstream {name:?}: {key} {must}") }
            })),
        }
    }
    upstreams
}

/// The settings that the values are. Each value is within its own limits.
fn config(values: &Values, state: &Path) -> Config {
    let place = |key| state.join(values.path(key));
    let given = |key| values.path_if_given(key).map(|path| state.join(path)).unwrap_or_default();
    let retiring = |certificate: PathBuf| KeyFiles {
        key_id: values
            .get("gateway.retiring.key_id")
            .map_or(0, |_| values.number_as("gateway.retiring.key_id")),
        certificate: state.join(certificate),
        key: given("gateway.retiring.key"),
    };
    Config {
        upstreams: Vec::new(),
        state: state.to_owned(),
        listen: values.address("listen"),
        shards: values.number_as("shards"),
        pin: values.switch("pin"),
        io: match values.text("io").as_str() {
            "io_uring" => Choice::IoUring,
            "epoll" => Choice::Epoll,
            _ => Choice::Auto,
        },
        gather_us: values.number_as("gather_us"),
        gateway: KeyFiles {
            key_id: values.number_as("gateway.key_id"),
            certificate: place("gateway.certificate"),
            key: place("gateway.key"),
        },
        retiring: values.path_if_given("gateway.retiring.certificate").map(retiring),
        spool: Spool {
            dir: place("spool.dir"),
            segment_bytes: values.number("spool.segment_bytes"),
            max_bytes: values.number("spool.max_bytes"),
            max_age_s: values.number("spool.max_age_s"),
            when_full: match values.text("spool.when_full").as_str() {
                "drop_oldest" => WhenFull::DropOldest,
                _ => WhenFull::Block,
            },
        },
        quota: Quota {
            readings_per_s: values.number_as("quota.readings_per_s"),
            bytes_per_s: values.number("quota.bytes_per_s"),
            share_percent: values.number_as("quota.share_percent"),
        },
        metrics: Metrics { listen: values.address("metrics.listen") },
        audit_max_bytes: values.number("audit.max_bytes"),
        log: Log {
            level: values.text("log.level").parse().unwrap_or_default(),
            format: match values.text("log.format").as_str() {
                "json" => Format::Json,
                _ => Format::Human,
            },
        },
        session: Session {
            idle_timeout_s: values.number_as("session.idle_timeout_s"),
            pending_timeout_ms: values.number_as("session.pending_timeout_ms"),
            lifetime_s: values.number_as("session.lifetime_s"),
        },
        limits: Limits {
            max_sessions: values.number_as("limits.max_sessions"),
            max_pending: values.number_as("limits.max_pending"),
            max_streams: values.number_as("limits.max_streams"),
        },
        commands: Commands {
            ttl_s: values.number_as("commands.ttl_s"),
            per_device: values.number_as("commands.per_device"),
        },
        notices: Notices { presence: values.switch("notices.presence") },
        queues: Queues {
            submissions: values.number_as("queues.submissions"),
            completions: values.number_as("queues.completions"),
            datagram_buffers: values.number_as("queues.datagram_buffers"),
            stream_buffers: values.number_as("queues.stream_buffers"),
            send_slots: values.number_as("queues.send_slots"),
        },
        api: values.get("api.listen").map(|_| Api {
            listen: values.address("api.listen"),
            certificate: given("api.certificate"),
            key: given("api.key"),
        }),
        enrol: Enrol {
            certificate: place("enrol.certificate"),
            key: place("enrol.key"),
            days: values.number_as("enrol.days"),
            trusted: values.path_if_given("enrol.trusted").map(|path| state.join(path)),
        },
    }
}

/// Whether one of two TCP addresses keeps the other from being bound.
fn collide(one: &SocketAddr, other: &SocketAddr) -> bool {
    // `[::]` is all addresses, and `0.0.0.0` those of IPv4.
    let covers =
        |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    let (a, b) = (one.ip(), other.ip());
    one.port() != 0 && one.port() == other.port() && (a == b || covers(a, b) || covers(b, a))
}

/// What settings must be to each other.
fn check(values: &mut Values, config: &Config) {
    let Config { listen, metrics, gateway, retiring, spool, session, .. } = config;
    let allow_remote = values.switch("metrics.allow_remote");
    values.check(
        metrics.listen.ip().is_loopback() || allow_remote,
        "metrics.listen",
        "be a loopback address, or set metrics.allow_remote = true (it has no password)",
    );
    values.check(
        !collide(listen, &metrics.listen),
        "metrics.listen",
        "differ from listen, which uses TCP as well",
    );
    let api = config.api.as_ref().map(|api| api.listen);
    for (other, must) in [
        (listen, "differ from listen, which uses TCP as well"),
        (&metrics.listen, "differ from metrics.listen"),
    ] {
        values.check(api.is_none_or(|api| !collide(&api, other)), "api.listen", must);
    }
    let given = ["certificate", "key", "key_id"]
        .map(|name| values.get(&format!("gateway.retiring.{name}")).is_some());
    for (key, is_given) in [
        ("gateway.retiring.certificate", given[0]),
        ("gateway.retiring.key", given[1]),
        ("gateway.retiring.key_id", given[2]),
    ] {
        let others = given.contains(&true);
        values.check(is_given || !others, key, "be given too, if another of gateway.retiring is");
    }
    values.check(
        retiring.as_ref().is_none_or(|retiring| retiring.key_id != gateway.key_id),
        "gateway.retiring.key_id",
        "differ from gateway.key_id: HELLO names the certificate by it",
    );
    for key in ["api.certificate", "api.key"] {
        let is_given = values.get(key).is_some();
        values.check(
            !is_given || config.api.is_some(),
            key,
            "come with api.listen: without it no API is served over TLS",
        );
        values.check(is_given || config.api.is_none(), key, "be given too, since api.listen is");
    }
    values.check(
        spool.max_bytes / 2 >= spool.segment_bytes,
        "spool.max_bytes",
        "be at least two segments (spool.segment_bytes)",
    );
    values.check(
        spool.max_age_s == 0 || spool.max_age_s >= 60,
        "spool.max_age_s",
        "be 0 (no limit) or at least 60",
    );
    values.check(
        session.idle_timeout_s <= session.lifetime_s,
        "session.idle_timeout_s",
        "be at most session.lifetime_s",
    );
}

#[cfg(test)]
mod tests;
