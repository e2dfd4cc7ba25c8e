//! One `[[upstream]]` of the settings: as it is written, and what it says after it was checked.
//!
//! Checked is what can be known without asking anybody. Whether a host answers, a certificate is
//! believed or a password is right is found out by connecting, and told by `status`; the gateway
//! runs on meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::encode::{Format, Payload};
use crate::template::Template;

/// What kind of upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Files of NDJSON in a directory.
    File,
    /// HTTP POST.
    Webhook,
    /// A NATS JetStream.
    Nats,
    /// An MQTT 5 broker.
    Mqtt,
    /// A table in PostgreSQL.
    Postgres,
    /// A topic in Kafka.
    Kafka,
}

impl Kind {
    /// As the settings name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Webhook => "webhook",
            Self::Nats => "nats",
            Self::Mqtt => "mqtt",
            Self::Postgres => "postgres",
            Self::Kafka => "kafka",
        }
    }

    /// Whether this program was built with it.
    #[must_use]
    pub fn is_built_in(self) -> bool {
        match self {
            Self::Postgres => cfg!(feature = "postgres"),
            Self::Kafka => cfg!(feature = "kafka"),
            Self::File | Self::Webhook | Self::Nats | Self::Mqtt => true,
        }
    }
}

/// Compression of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// None.
    #[default]
    None,
    /// Zstandard, level 1. It takes several times as long as the encoding: for lines that are paid for by the byte.
    Zstd,
}

/// `[[upstream]]` as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Names it: its cursor, its parked readings, its metrics.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Whether the spool keeps readings until this upstream has them; without it, true.
    pub required: Option<bool>,
    /// What it is given; without it, NDJSON.
    pub format: Option<Format>,
    /// How payloads stand in text formats; without it, text.
    pub payload: Option<Payload>,
    /// Compression of each batch; without it, none.
    pub compression: Option<Compression>,
    /// `http://`, `https://`, `nats://`, `tls://`, `mqtt://`, `mqtts://`, `postgres://` or `kafka://`, host, port, path.
    /// Kafka's may name several brokers, with commas between.
    pub url: Option<String>,
    /// Where files are made; relative to the state directory.
    pub dir: Option<PathBuf>,
    /// A file is ended after this many bytes; without it, 64 MiB.
    pub file_bytes: Option<u64>,
    /// A file is ended after this time; without it, 3600.
    pub file_age_s: Option<u32>,
    /// Where NATS is to put a batch; may hold `{device}` and `{channel}`.
    pub subject: Option<String>,
    /// Where MQTT is to put a batch; may hold `{device}` and `{channel}`. Where Kafka is to put readings; may not.
    pub topic: Option<String>,
    /// Subject (NATS) or topic (MQTT) from which commands for devices come; without it, none do.
    pub commands: Option<String>,
    /// The table in PostgreSQL, perhaps with its schema; without it, `duet_readings`. Its cursor is in the table of
    /// this name and `_cursor`.
    pub table: Option<String>,
    /// The client's name at an MQTT broker; without it, `duet-` and the upstream's name.
    pub client_id: Option<String>,
    /// PEM file of the authorities to believe instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM file of our own certificate.
    pub certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// User's name.
    pub user: Option<String>,
    /// File that holds the user's password.
    pub password_file: Option<PathBuf>,
    /// File that holds a token: NATS' own, or what a web hook gets as `Authorization: Bearer`.
    pub token_file: Option<PathBuf>,
    /// NATS' credentials file (`.creds`).
    pub credentials_file: Option<PathBuf>,
    /// Batches that may wait for their answer at a time; without it, 64, for a web hook 1.
    pub in_flight: Option<usize>,
    /// An answer that takes longer is no answer; without it, 5000.
    pub answer_timeout_ms: Option<u32>,
    /// A fault is shown when the oldest reading has waited this long; without it, 8.
    pub late_after_s: Option<u32>,
    /// Whether a message that an MQTT broker had nobody to give to (0x10) counts as delivered; without it, false.
    pub accept_no_subscriber: Option<bool>,
}

/// Who we are to the other side. Secrets stay in their files until they are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) credentials_file: Option<PathBuf>,
}

/// How a connection is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// Where an upstream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) secure: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path and query; at least `/`.
    pub(crate) path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    File {
        dir: PathBuf,
        bytes: u64,
        age: Duration,
    },
    Webhook {
        address: Address,
    },
    Nats {
        address: Address,
        subject: Template,
    },
    Mqtt {
        address: Address,
        topic: Template,
        client_id: String,
        accept_no_subscriber: bool,
    },
    #[cfg_attr(
        not(feature = "postgres"),
        allow(dead_code, reason = "checked also where it is not built in")
    )]
    Postgres {
        address: Address,
        database: String,
        table: String,
    },
    #[cfg_attr(
        not(feature = "kafka"),
        allow(dead_code, reason = "checked also where it is not built in")
    )]
    Kafka {
        brokers: String,
        topic: String,
    },
}

impl Target {
    /// Where it is, if that is one host.
    fn address(&self) -> Option<&Address> {
        match self {
            Self::Webhook { address }
            | Self::Nats { address, .. }
            | Self::Mqtt { address, .. }
            | Self::Postgres { address, .. } => Some(address),
            Self::File { .. } | Self::Kafka { .. } => None,
        }
    }
}

/// Checked settings of one upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    pub(crate) format: Format,
    pub(crate) payload: Payload,
    pub(crate) compression: Compression,
    pub(crate) target: Target,
    pub(crate) commands: Option<String>,
    pub(crate) credentials: Credentials,
    pub(crate) tls: Tls,
    pub(crate) in_flight: usize,
    pub(crate) answer_timeout: Duration,
    pub(crate) late_after: Duration,
}

/// One key at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, within `[[upstream]]`.
    pub key: &'static str,
    /// What it must be.
    pub must: &'static str,
}

impl Upstream {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the spool waits for it.
    #[must_use]
    pub fn required(&self) -> bool {
        self.required
    }

    /// The files that its settings name: certificates, keys and secrets.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let Self { credentials, tls, .. } = self;
        let Credentials { user: _, password_file, token_file, credentials_file } = credentials;
        let (certificate, key) = tls.identity.as_ref().map(|(one, two)| (one, two)).unzip();
        let all = [password_file.as_ref(), token_file.as_ref(), credentials_file.as_ref()];
        let all = all.into_iter().chain([tls.ca.as_ref(), certificate, key]);
        all.flatten().map(PathBuf::as_path)
    }

    /// What to say where its credential goes over a network without TLS.
    ///
    /// Neither NATS' `credentials_file` nor a certificate is meant: their keys sign, and stay here.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let Credentials { user: _, password_file, token_file, credentials_file: _ } =
            &self.credentials;
        let key = match (token_file, password_file) {
            (Some(_), _) => "token_file",
            (None, Some(_)) => "password_file",
            (None, None) => return None,
        };
        let remedy = match self.kind {
            Kind::Webhook => "begin it with https://",
            Kind::Nats => "begin it with tls://",
            Kind::Mqtt => "begin it with mqtts://",
            Kind::Postgres => "leave ?sslmode=disable away",
            Kind::Kafka => "this kind has no TLS: lead it through a tunnel to this host",
            Kind::File => return None,
        };
        let open: Vec<_> = match &self.target {
            Target::Kafka { brokers, .. } => brokers.split(',').filter(|at| !is_here(at)).collect(),
            target => {
                let address = target.address().filter(|at| !at.secure && !is_here(&at.host));
                address.map(|at| at.host.as_str()).into_iter().collect()
            }
        };
        (!open.is_empty()).then(|| {
            format!(
                "upstream {:?}: url has no TLS, so whoever is on the way to {} can take what {key} holds; {remedy}",
                self.name,
                open.join(" and ")
            )
        })
    }

    /// How messages are addressed, where they are.
    pub(crate) fn template(&self) -> Option<&Template> {
        match &self.target {
            Target::Nats { subject, .. } => Some(subject),
            Target::Mqtt { topic, .. } => Some(topic),
            Target::File { .. }
            | Target::Webhook { .. }
            | Target::Postgres { .. }
            | Target::Kafka { .. } => None,
        }
    }
}

/// Collects what is wrong instead of stopping at the first.
struct Check(Vec<Problem>);

impl Check {
    fn that(&mut self, holds: bool, key: &'static str, must: &'static str) {
        if !holds {
            self.0.push(Problem { key, must });
        }
    }

    /// A key that this kind has no use for would be believed to do something.
    fn unused<T>(&mut self, value: Option<&T>, used: bool, key: &'static str) {
        self.that(
            value.is_none() || used,
            key,
            "must be absent: this kind of upstream has no use for it",
        );
    }
}

/// Whether a host, perhaps with its port, is this machine itself, so that what goes there is on no network.
fn is_here(host: &str) -> bool {
    let bare = match host.parse::<SocketAddr>() {
        Ok(address) => return address.ip().is_loopback(),
        // An IPv6 address without a port has colons, too.
        Err(_) if host.parse::<IpAddr>().is_ok() => host,
        Err(_) => host.split_once(':').map_or(host, |(name, _)| name),
    };
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A file's name, a metric's label and a word in messages at once.
fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
}

/// A table's name that needs no thought about quotes, with room for `_cursor` behind it.
fn is_table(name: &str) -> bool {
    let part = |part: &str| {
        (1..=56).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && !part.starts_with(|first: char| first.is_ascii_digit())
    };
    name.split('.').count() <= 2 && name.split('.').all(part)
}

impl Settings {
    /// Checks one upstream; its relative paths begin at `state`.
    ///
    /// # Errors
    /// Every key at fault.
    pub fn check(&self, state: &Path) -> Result<Upstream, Vec<Problem>> {
        let mut check = Check(Vec::new());
        check.that(
            is_name(&self.name),
            "name",
            "must be 1 to 32 of a-z, 0-9 and -, not beginning with -",
        );
        check.that(
            self.kind.is_built_in(),
            "kind",
            "must be one that this program was built with: postgres and kafka need cargo's --features of that name",
        );
        self.check_use(&mut check);
        let rows = self.kind == Kind::Postgres;
        let format = match self.kind {
            Kind::Postgres => Format::Rows,
            Kind::Kafka => Format::Records,
            _ => self.format.unwrap_or_default(),
        };
        check.that(
            self.kind == Kind::Webhook
                || matches!(
                    format,
                    Format::Ndjson | Format::Protobuf | Format::Rows | Format::Records
                ),
            "format",
            "must be ndjson or protobuf; cloudevents, influx and otlp are for kind webhook",
        );
        check.that(
            self.kind != Kind::File || format == Format::Ndjson,
            "format",
            "must be ndjson for kind file: its files are read by the line",
        );
        let compression = self.compression.unwrap_or_default();
        check.that(
            self.kind != Kind::File || compression == Compression::None,
            "compression",
            "must be none for kind file: compress files when they have their name",
        );
        let in_flight = self.in_flight.unwrap_or(if self.kind == Kind::Webhook { 1 } else { 64 });
        check.that((1..=256).contains(&in_flight), "in_flight", "must be 1 to 256");
        let answer_ms = self.answer_timeout_ms.unwrap_or(5_000);
        check.that(
            (100..=600_000).contains(&answer_ms),
            "answer_timeout_ms",
            "must be 100 to 600000",
        );
        let late_s = self.late_after_s.unwrap_or(8);
        check.that((1..=86_400).contains(&late_s), "late_after_s", "must be 1 to 86400");
        check.that(
            self.certificate.is_some() == self.key.is_some(),
            "certificate",
            "must come with key, and key with it",
        );
        check.that(
            self.user.is_some() == self.password_file.is_some() || rows,
            "user",
            "must come with password_file, and password_file with it",
        );
        check.that(self.user.is_some() || !rows, "user", "must be given: as whom to sign in");
        for (key, path) in [
            ("dir", &self.dir),
            ("ca", &self.ca),
            ("certificate", &self.certificate),
            ("key", &self.key),
            ("password_file", &self.password_file),
            ("token_file", &self.token_file),
            ("credentials_file", &self.credentials_file),
        ] {
            let bytes = path.as_ref().map(|path| path.as_os_str().as_encoded_bytes());
            let is_path = bytes.is_none_or(|bytes| !bytes.is_empty() && !bytes.contains(&0));
            check.that(is_path, key, "must be a path");
        }
        let named = self.user.as_ref().is_none_or(|user| !user.is_empty());
        check.that(named, "user", "must be a name");
        let ways =
            [self.user.is_some(), self.token_file.is_some(), self.credentials_file.is_some()];
        check.that(
            ways.into_iter().filter(|given| *given).count() <= 1,
            "user",
            "must be the only one of user, token_file and credentials_file: as whom to sign in is said once",
        );
        let target = self.target(state, &mut check);
        // They would be believed to protect it.
        let plain = target.as_ref().and_then(Target::address).is_some_and(|at| !at.secure);
        for (key, given) in [("ca", &self.ca), ("certificate", &self.certificate)] {
            check.that(
                given.is_none() || !plain,
                key,
                "must be absent, or the url one with TLS (https://, tls://, mqtts://, postgres:// without sslmode=disable)",
            );
        }
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| state.join(path));
        let upstream = target.map(|target| Upstream {
            name: self.name.clone(),
            kind: self.kind,
            required: self.required.unwrap_or(true),
            format,
            payload: self.payload.unwrap_or_default(),
            compression,
            target,
            commands: self.commands.clone(),
            credentials: Credentials {
                user: self.user.clone(),
                password_file: path(&self.password_file),
                token_file: path(&self.token_file),
                credentials_file: path(&self.credentials_file),
            },
            tls: Tls { ca: path(&self.ca), identity: path(&self.certificate).zip(path(&self.key)) },
            in_flight,
            answer_timeout: Duration::from_millis(answer_ms.into()),
            late_after: Duration::from_secs(late_s.into()),
        });
        match upstream {
            Some(upstream) if check.0.is_empty() => Ok(upstream),
            _ => Err(check.0),
        }
    }

    fn check_use(&self, check: &mut Check) {
        let (file, nats, mqtt) =
            (self.kind == Kind::File, self.kind == Kind::Nats, self.kind == Kind::Mqtt);
        let fixed = |address: Option<Template>| address.is_some_and(|address| !address.varies());
        if let Some(commands) = &self.commands {
            let other =
                [&self.subject, &self.topic].into_iter().flatten().all(|own| own != commands);
            let valid = match self.kind {
                Kind::Nats => fixed(Template::subject(commands)),
                Kind::Mqtt => fixed(Template::topic(commands)),
                _ => false,
            };
            check.that(
                valid && other,
                "commands",
                "must be a subject (kind nats) or a topic (kind mqtt) without wildcards and {…}, another than that of readings",
            );
        }
        let postgres = self.kind == Kind::Postgres;
        check.unused(self.table.as_ref(), postgres, "table");
        let kafka = self.kind == Kind::Kafka;
        check.unused(self.format.as_ref(), !postgres && !kafka, "format");
        check.unused(self.payload.as_ref(), !postgres, "payload");
        check.unused(self.compression.as_ref(), !postgres && !kafka, "compression");
        check.unused(self.url.as_ref(), !file, "url");
        check.unused(self.dir.as_ref(), file, "dir");
        check.unused(self.file_bytes.as_ref(), file, "file_bytes");
        check.unused(self.file_age_s.as_ref(), file, "file_age_s");
        check.unused(self.subject.as_ref(), nats, "subject");
        check.unused(self.topic.as_ref(), mqtt || kafka, "topic");
        check.unused(self.client_id.as_ref(), mqtt, "client_id");
        check.unused(self.accept_no_subscriber.as_ref(), mqtt, "accept_no_subscriber");
        check.unused(self.credentials_file.as_ref(), nats, "credentials_file");
        check.unused(self.token_file.as_ref(), nats || self.kind == Kind::Webhook, "token_file");
        check.unused(self.user.as_ref(), !file, "user");
        check.unused(self.ca.as_ref(), !file && !kafka, "ca");
        check.unused(self.certificate.as_ref(), !file && !kafka, "certificate");
    }

    fn target(&self, state: &Path, check: &mut Check) -> Option<Target> {
        match self.kind {
            Kind::File => {
                check.that(self.dir.is_some(), "dir", "must be given: where the files are made");
                let bytes = self.file_bytes.unwrap_or(64 << 20);
                check.that(bytes >= 1 << 16, "file_bytes", "must be at least 65536");
                let age_s = self.file_age_s.unwrap_or(3_600);
                check.that(age_s >= 1, "file_age_s", "must be at least 1");
                let age = Duration::from_secs(age_s.into());
                self.dir.as_ref().map(|dir| Target::File { dir: state.join(dir), bytes, age })
            }
            Kind::Webhook => {
                let address = self.address(&[("http", false, 80), ("https", true, 443)]);
                check.that(
                    address.is_some(),
                    "url",
                    "must be http:// or https://, a host and a path",
                );
                address.map(|address| Target::Webhook { address })
            }
            Kind::Nats => {
                let address = self.address(&[("nats", false, 4222), ("tls", true, 4222)]);
                check.that(
                    address.as_ref().is_some_and(|address| address.path == "/"),
                    "url",
                    "must be nats:// or tls://, a host and a port",
                );
                let subject = self.subject.as_deref().and_then(Template::subject);
                check.that(
                    subject.is_some(),
                    "subject",
                    "must be given: words with dots between, without spaces and wildcards; {device} and {channel} are replaced",
                );
                address.zip(subject).map(|(address, subject)| Target::Nats { address, subject })
            }
            Kind::Mqtt => {
                let address = self.address(&[("mqtt", false, 1883), ("mqtts", true, 8883)]);
                check.that(
                    address.as_ref().is_some_and(|address| address.path == "/"),
                    "url",
                    "must be mqtt:// or mqtts://, a host and a port",
                );
                let topic = self.topic.as_deref().and_then(Template::topic);
                check.that(
                    topic.is_some(),
                    "topic",
                    "must be given, without + and #; {device} and {channel} are replaced",
                );
                let client_id =
                    self.client_id.clone().unwrap_or_else(|| format!("duet-{}", self.name));
                check.that(
                    (1..=128).contains(&client_id.len()),
                    "client_id",
                    "must be 1 to 128 bytes",
                );
                let accept_no_subscriber = self.accept_no_subscriber.unwrap_or(false);
                address.zip(topic).map(|(address, topic)| Target::Mqtt {
                    address,
                    topic,
                    client_id,
                    accept_no_subscriber,
                })
            }
            Kind::Postgres => self.postgres(check),
            Kind::Kafka => self.kafka(check),
        }
    }

    fn kafka(&self, check: &mut Check) -> Option<Target> {
        let brokers = self.url.as_deref().and_then(|url| url.strip_prefix("kafka://"));
        let brokers = brokers.and_then(|brokers| {
            let broker = |broker: &str| {
                let one = Self { url: Some(format!("kafka://{broker}")), ..self.clone() };
                let address = one.address(&[("kafka", false, 9092)])?;
                (address.path == "/").then(|| address.authority())
            };
            brokers.split(',').map(broker).collect::<Option<Vec<_>>>()
        });
        check.that(
            brokers.is_some(),
            "url",
            "must be kafka://, a host and a port, or several of them with commas between",
        );
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = |topic: &&String| {
            (1..=249).contains(&topic.len()) && topic.bytes().all(plain) && !topic.starts_with('.')
        };
        let topic = self.topic.as_ref().filter(fits);
        check.that(topic.is_some(), "topic", "must be given: 1 to 249 of a-z, A-Z, 0-9, . _ and -");
        brokers.zip(topic).map(|(brokers, topic)| Target::Kafka {
            brokers: brokers.join(","),
            topic: topic.clone(),
        })
    }

    fn postgres(&self, check: &mut Check) -> Option<Target> {
        // As PostgreSQL's own tools have it, but for the default: without a word the connection is protected.
        let address = self.address(&[("postgres", true, 5432), ("postgresql", true, 5432)]);
        let parts = address.and_then(|address| {
            let (database, secure) = match address.path.split_once('?') {
                None => (address.path.as_str(), true),
                Some((database, "sslmode=verify-full")) => (database, true),
                Some((database, "sslmode=disable")) => (database, false),
                Some(_) => return None,
            };
            let database = database.strip_prefix('/')?.to_owned();
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            let valid = (1..=63).contains(&database.len()) && database.bytes().all(plain);
            valid.then_some((Address { secure, ..address }, database))
        });
        check.that(
            parts.is_some(),
            "url",
            "must be postgres://, a host, a port, / and a database; ?sslmode=disable behind it where the network may be trusted",
        );
        let table = self.table.as_deref().unwrap_or("duet_readings");
        check.that(
            is_table(table),
            "table",
            "must be a name of a-z, 0-9 and _, up to 56 bytes, or two of them with a dot between: schema and table",
        );
        let table = table.to_owned();
        parts.map(|(address, database)| Target::Postgres { address, database, table })
    }

    /// The url in its parts, if its scheme is one of these. Secrets have no place in it: they would
    /// end up in logs.
    fn address(&self, schemes: &[(&str, bool, u16)]) -> Option<Address> {
        let (scheme, rest) = self.url.as_deref()?.split_once("://")?;
        let (_, secure, port) = schemes.iter().copied().find(|known| known.0 == scheme)?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if authority.contains(['@', '?']) || !plain(authority) || !plain(path) {
            return None;
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(literal) => {
                let (host, after) = literal.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                match after.strip_prefix(':') {
                    Some(port) => (host, port.parse().ok()?),
                    None if after.is_empty() => (host, port),
                    None => return None,
                }
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, port.parse().ok()?),
                None => (authority, port),
            },
        };
        let valid = !host.is_empty() && port != 0;
        valid.then(|| Address { secure, host: host.to_owned(), port, path: path.to_owned() })
    }
}

impl Address {
    /// Host and port as one text; an IPv6 address in its brackets.
    pub(crate) fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Upstream, Vec<Problem>> {
        toml::from_str::<Settings>(text).unwrap().check(Path::new("/state"))
    }

    fn keys(text: &str) -> Vec<&'static str> {
        read(text).unwrap_err().into_iter().map(|problem| problem.key).collect()
    }

    #[test]
    fn each_kind_has_a_shortest_form() {
        let file = read("name = \"archive\"\nkind = \"file\"\ndir = \"out\"").unwrap();
        let dir = PathBuf::from("/state/out");
        assert_eq!(
            file.target,
            Target::File { dir, bytes: 64 << 20, age: Duration::from_secs(3_600) }
        );
        let hook = read("name = \"h\"\nkind = \"webhook\"\nurl = \"https://[::1]/a?b=c\"").unwrap();
        let address =
            Address { secure: true, host: "::1".into(), port: 443, path: "/a?b=c".into() };
        assert_eq!((hook.target, hook.in_flight), (Target::Webhook { address }, 1));
        let nats =
            read("name = \"n\"\nkind = \"nats\"\nurl = \"nats://h\"\nsubject = \"duet.{device}\"");
        assert!(nats.unwrap().required);
        read("name = \"m\"\nkind = \"mqtt\"\nurl = \"mqtts://h:9\"\ntopic = \"a/b\"").unwrap();
    }

    #[test]
    fn a_credential_that_goes_over_a_network_without_tls_is_told() {
        let token = "token_file = \"t\"\n";
        let user = "user = \"u\"\npassword_file = \"p\"\n";
        let hook = |url: &str, more: &str| {
            read(&format!("name = \"n\"\nkind = \"webhook\"\nurl = \"{url}\"\n{more}"))
                .unwrap()
                .warning()
        };
        let said = hook("http://hub.example/in", token).unwrap();
        for part in ["upstream \"n\": url", "hub.example", "token_file", "https://"] {
            assert!(said.contains(part), "{said}");
        }
        for url in ["http://127.0.0.1:80/", "http://[::1]/", "http://LocalHost:80/"] {
            assert_eq!(hook(url, token), None, "{url}");
        }
        assert_eq!(hook("https://hub.example/", token), None);
        assert_eq!(hook("http://hub.example/", ""), None, "nothing secret goes there");
        assert!(hook("http://[2001:db8::1]/", user).unwrap().contains("password_file"));
        assert!(hook("http://localhost.example/", user).is_some());
        for (kind, remedy) in [
            ("\"nats\"\nurl = \"nats://hub\"\nsubject = \"s\"", "tls://"),
            ("\"mqtt\"\nurl = \"mqtt://hub\"\ntopic = \"t\"", "mqtts://"),
            #[cfg(feature = "postgres")]
            ("\"postgres\"\nurl = \"postgres://hub/d?sslmode=disable\"", "sslmode"),
            #[cfg(feature = "kafka")]
            ("\"kafka\"\nurl = \"kafka://localhost,hub\"\ntopic = \"t\"", "to hub:9092 can"),
        ] {
            let said = read(&format!("name = \"n\"\nkind = {kind}\n{user}")).unwrap().warning();
            assert!(said.as_ref().is_some_and(|said| said.contains(remedy)), "{said:?}");
        }
        let signs =
            "kind = \"nats\"\nurl = \"nats://hub\"\nsubject = \"s\"\ncredentials_file = \"c\"";
        assert_eq!(read(&format!("name = \"n\"\n{signs}")).unwrap().warning(), None);
    }

    #[test]
    fn every_key_at_fault_is_named() {
        let nats = "kind = \"nats\"\nurl = \"nats://h\"\nsubject = \"s\"\n";
        for (text, key) in [
            ("name = \"\"", "name"),
            ("name = \"../x\"", "name"),
            ("name = \"n\"\nformat = \"otlp\"", "format"),
            ("name = \"n\"\nin_flight = 0", "in_flight"),
            ("name = \"n\"\nanswer_timeout_ms = 1", "answer_timeout_ms"),
            ("name = \"n\"\nlate_after_s = 0", "late_after_s"),
            ("name = \"n\"\nkey = \"k.pem\"", "certificate"),
            ("name = \"n\"\nuser = \"u\"", "user"),
            ("name = \"n\"\ntopic = \"t\"", "topic"),
            ("name = \"n\"\ncommands = \"s\"", "commands"),
            ("name = \"n\"\ncommands = \"a.>\"", "commands"),
            ("name = \"n\"\ncommands = \"a.{device}\"", "commands"),
            ("name = \"n\"\ndir = \"d\"", "dir"),
            ("name = \"n\"\ntoken_file = \"\"", "token_file"),
            ("name = \"n\"\npassword_file = \"a\\u0000\"\nuser = \"u\"", "password_file"),
            ("name = \"n\"\npassword_file = \"a\"\nuser = \"\"", "user"),
            ("name = \"n\"\nca = \"ca.pem\"", "ca"),
            ("name = \"n\"\ncertificate = \"c.pem\"\nkey = \"c.key\"", "certificate"),
            ("name = \"n\"\ntoken_file = \"t\"\ncredentials_file = \"c\"", "user"),
        ] {
            assert_eq!(keys(&format!("{nats}{text}")), [key], "{text}");
        }
        let kind = "name = \"n\"\nkind = ";
        for (text, key) in [
            ("\"file\"", "dir"),
            ("\"file\"\ndir = \"d\"\ncommands = \"c\"", "commands"),
            ("\"file\"\ndir = \"d\"\nformat = \"protobuf\"", "format"),
            ("\"file\"\ndir = \"d\"\ncompression = \"zstd\"", "compression"),
            ("\"webhook\"", "url"),
            ("\"webhook\"\nurl = \"ftp://h/\"", "url"),
            ("\"webhook\"\nurl = \"http://u:p@h/\"", "url"),
            ("\"webhook\"\nurl = \"http://h:0/\"", "url"),
            ("\"webhook\"\nurl = \"http:// h/\"", "url"),
            ("\"nats\"\nurl = \"nats://h/x\"\nsubject = \"s\"", "url"),
            ("\"nats\"\nurl = \"nats://h\"\nsubject = \"a.*\"", "subject"),
            ("\"mqtt\"\nurl = \"mqtt://h\"\ntopic = \"a/#\"", "topic"),
            ("\"mqtt\"\nurl = \"mqtt://h\"\ntopic = \"a\"\nclient_id = \"\"", "client_id"),
        ] {
            assert_eq!(keys(&format!("{kind}{text}")), [key], "{text}");
        }
    }
}
