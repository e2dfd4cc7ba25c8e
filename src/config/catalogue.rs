//! Every setting once: its key, what it may be, its default, its unit and meaning, and whether a running gateway takes
//! a change of it. The file that `duet init` writes, the page in the documents and the error texts are made from this.

use std::fmt::Write as _;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its table and its name, for example `session.idle_timeout_s`.
    pub key: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// Its default as it stands in the file; empty where there is none.
    pub default: &'static str,
    /// What it means, in lines as they stand in the file.
    pub meaning: &'static [&'static str],
    /// When a change of it is taken.
    pub taken: Taken,
}

/// What a setting may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A number from one to another.
    Number {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
        /// In a word, what the smallest or the largest is; may be empty.
        note: &'static str,
    },
    /// A power of two up to a limit.
    PowerOfTwo {
        /// The largest.
        max: u64,
    },
    /// A multiple of 4096 from one size to another.
    Blocks {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
        /// The limits for people.
        note: &'static str,
    },
    /// Yes or no.
    Switch,
    /// An IP address and a port.
    Address,
    /// A path; relative ones start at the state directory.
    Path,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// When a change of a setting is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// With `duet config reload`, or SIGHUP.
    AtReload,
    /// At the next start.
    AtStart,
}

/// The default of `shards` where none is given: the number of CPUs.
pub(super) const CPUS: &str = "CPUs";

const fn number(min: u64, max: u64, note: &'static str) -> Kind {
    Kind::Number { min, max, note }
}

const fn setting(
    key: &'static str,
    kind: Kind,
    default: &'static str,
    meaning: &'static [&'static str],
    taken: Taken,
) -> Setting {
    Setting { key, kind, default, meaning, taken }
}

use Taken::{AtReload, AtStart};

/// All of them, in the order of the file.
pub const SETTINGS: &[Setting] = &[
    setting("listen", Kind::Address, "\"[::]:23838\"", &["Address for UDP and TCP."], AtStart),
    setting(
        "shards",
        number(1, 256, ""),
        CPUS,
        &["Data-plane threads; the default is the number of CPUs."],
        AtStart,
    ),
    setting(
        "pin",
        Kind::Switch,
        "true",
        &[
            "Whether each of them stays on a core of its own; where there are fewer CPUs than threads, none does.",
        ],
        AtStart,
    ),
    setting(
        "io",
        Kind::Word(&["auto", "io_uring", "epoll"]),
        "\"auto\"",
        &["How they do I/O. auto is io_uring, and epoll where the system refuses that."],
        AtStart,
    ),
    setting(
        "gather_us",
        number(0, 10_000, "readings and hellos wait that long under load"),
        "200",
        &[
            "Microseconds that a thread gathers input under load before it works on all of it: more saves",
            "processor time, less saves delay. With little to do nothing ever waits.",
        ],
        AtStart,
    ),
    setting(
        "gateway.certificate",
        Kind::Path,
        "\"gateway.pem\"",
        &["The certificate that devices hold (PEM or DER)."],
        AtReload,
    ),
    setting("gateway.key", Kind::Path, "\"gateway.key\"", &["Its key (PEM, mode 0600)."], AtReload),
    setting(
        "gateway.key_id",
        number(0, 255, ""),
        "0",
        &["The byte by which a HELLO names this certificate."],
        AtReload,
    ),
    setting(
        "gateway.retiring.certificate",
        Kind::Path,
        "",
        &[
            "While devices move to a new certificate, the one before stays accepted. All three are needed:",
            "its certificate, its key, and the byte that names it.",
        ],
        AtReload,
    ),
    setting("gateway.retiring.key", Kind::Path, "", &[], AtReload),
    setting("gateway.retiring.key_id", number(0, 255, ""), "", &[], AtReload),
    setting("spool.dir", Kind::Path, "\"spool\"", &["Directory of the stored readings."], AtStart),
    setting(
        "spool.segment_bytes",
        Kind::Blocks { min: 1 << 20, max: 1 << 30, note: "1048576 (1 MiB) to 1073741824 (1 GiB)" },
        "67108864",
        &["Size of one file of readings."],
        AtStart,
    ),
    setting(
        "spool.max_bytes",
        number(2 << 20, u64::MAX >> 1, "at least two segments (spool.segment_bytes)"),
        "4294967296",
        &["Size of all of them together."],
        AtStart,
    ),
    setting(
        "spool.max_age_s",
        number(0, 100 * 31_536_000, "a hundred years"),
        "0",
        &[
            "Readings that every required upstream has go by themselves. Others go when they are older than",
            "this, in seconds; with 0 they never do.",
        ],
        AtStart,
    ),
    setting(
        "spool.when_full",
        Kind::Word(&["block", "drop_oldest"]),
        "\"block\"",
        &[
            "When the spool is full: store nothing more (devices keep their readings), or remove the oldest.",
        ],
        AtStart,
    ),
    setting(
        "quota.readings_per_s",
        number(0, 1_000_000, "0: no limit"),
        "0",
        &[
            "Readings a second that one device may store; ten seconds' worth may come at once. More is not",
            "confirmed: a device keeps it and tries again.",
        ],
        AtReload,
    ),
    setting(
        "quota.bytes_per_s",
        number(0, 1 << 30, "0: no limit"),
        "0",
        &["Stored bytes a second, the same way."],
        AtReload,
    ),
    setting(
        "quota.share_percent",
        number(0, 25, "0: no limit; more is not left when it counts"),
        "1",
        &[
            "When less than a quarter of the spool is left: the part of the whole that one device may fill in an hour.",
        ],
        AtReload,
    ),
    setting(
        "metrics.listen",
        Kind::Address,
        "\"127.0.0.1:23839\"",
        &[
            "Address of /metrics, /health and /ready over HTTP. There is no password: other than loopback",
            "addresses need allow_remote = true.",
        ],
        AtStart,
    ),
    setting(
        "metrics.allow_remote",
        Kind::Switch,
        "false",
        &["Whether others than this machine may read them."],
        AtStart,
    ),
    setting(
        "log.level",
        Kind::Word(&["error", "warn", "info", "debug"]),
        "\"info\"",
        &[
            "From which importance on the log has lines. `duet log level` changes it until the next reload.",
        ],
        AtReload,
    ),
    setting(
        "log.format",
        Kind::Word(&["human", "json"]),
        "\"human\"",
        &["How the log on standard error is written: for people, or one JSON object a line."],
        AtReload,
    ),
    setting(
        "audit.max_bytes",
        number(1 << 20, 1 << 36, "1 MiB to 64 GiB"),
        "134217728",
        &[
            "Bytes that the audit log may take, in eight files; the oldest file goes when there is no room, and the",
            "log says so.",
        ],
        AtStart,
    ),
    setting(
        "session.idle_timeout_s",
        number(10, 30 * 86_400, "at most session.lifetime_s"),
        "3600",
        &["Seconds without a record after which a session ends."],
        AtReload,
    ),
    setting(
        "session.pending_timeout_ms",
        number(500, 60_000, "a confirmation takes one round trip and a retry"),
        "5000",
        &["Milliseconds that a session waits for its first record."],
        AtReload,
    ),
    setting(
        "session.lifetime_s",
        number(60, 30 * 86_400, "30 days"),
        "86400",
        &["Seconds after which a session ends in any case, and the device makes a new one."],
        AtReload,
    ),
    setting(
        "limits.max_sessions",
        number(1, 1 << 24, ""),
        "1000000",
        &["Sessions at once, on all threads together."],
        AtReload,
    ),
    setting(
        "limits.max_pending",
        number(1, 1 << 20, ""),
        "65536",
        &["Sessions at once that wait for their first record."],
        AtReload,
    ),
    setting(
        "limits.max_streams",
        number(1, 1 << 20, ""),
        "65536",
        &["TCP connections at once; each takes a descriptor."],
        AtStart,
    ),
    setting(
        "commands.ttl_s",
        number(1, 30 * 86_400, "30 days"),
        "86400",
        &[
            "Seconds that a command waits for its device's answer, where the one who gives it says nothing.",
        ],
        AtStart,
    ),
    setting(
        "commands.per_device",
        number(1, 10_000, ""),
        "50",
        &["Commands that may wait for one device."],
        AtStart,
    ),
    setting(
        "notices.presence",
        Kind::Switch,
        "false",
        &[
            "Whether upstreams are told, among the readings, when a device comes and goes (docs/delivery.md).",
        ],
        AtStart,
    ),
    setting(
        "queues.submissions",
        number(1, 1 << 15, ""),
        "1024",
        &[
            "For each thread. Smaller queues take less locked memory, and more processor time under load.",
            "Operations that are handed to the kernel at once.",
        ],
        AtStart,
    ),
    setting(
        "queues.completions",
        number(1, 1 << 16, ""),
        "8192",
        &["Completions that wait to be taken."],
        AtStart,
    ),
    setting(
        "queues.datagram_buffers",
        Kind::PowerOfTwo { max: 1 << 15 },
        "1024",
        &["Receive buffers of 2 KiB for datagrams. When they run out the sockets hold what comes."],
        AtStart,
    ),
    setting(
        "queues.stream_buffers",
        Kind::PowerOfTwo { max: 1 << 15 },
        "512",
        &["Receive buffers of 2 KiB for TCP."],
        AtStart,
    ),
    setting(
        "queues.send_slots",
        number(1, 1 << 20, ""),
        "1024",
        &["Datagrams on their way out; when they run out, answers wait."],
        AtStart,
    ),
    setting(
        "api.listen",
        Kind::Address,
        "",
        &[
            "Address of the API over TLS, for callers with a token (`duet token add`). Without it the API is",
            "on the control socket alone.",
        ],
        AtStart,
    ),
    setting(
        "api.certificate",
        Kind::Path,
        "",
        &["Its certificate with the chain (PEM). It is read again at a reload."],
        AtStart,
    ),
    setting("api.key", Kind::Path, "", &["The certificate's key (PEM, mode 0600)."], AtStart),
    setting(
        "enrol.certificate",
        Kind::Path,
        "\"ca.pem\"",
        &[
            "The CA whose certificates devices get that enrol; `duet ca init` makes it. There may be none.",
        ],
        AtStart,
    ),
    setting("enrol.key", Kind::Path, "\"ca.key\"", &["Its key (PEM, mode 0600)."], AtStart),
    setting(
        "enrol.days",
        number(1, 36_500, "a hundred years"),
        "730",
        &["Days for which a certificate is valid that it issues; not beyond the CA's own end."],
        AtStart,
    ),
    setting(
        "enrol.trusted",
        Kind::Path,
        "",
        &[
            "Certificates of other CAs (PEM): a device that enrols may bring a certificate that one of them issued.",
        ],
        AtStart,
    ),
];

/// What `duet init` writes above the settings.
const HEAD: &str = "\
# Settings of the Duet gateway. Each line below shows a default; remove the `#` to change it.
# Unknown keys are errors. Relative paths start at the state directory. An environment variable
# stands above its setting: DUET__SESSION__LIFETIME_S=3600 is session.lifetime_s.
# `duet check` tells whether a gateway would start with them.
#
# Where readings go on to: as many as are wanted, each a table of its own (docs/delivery.md), for example
#   [[upstream]]
#   name = \"archive\"
#   kind = \"file\"
#   dir = \"archive\"
";

/// The setting of a key.
#[must_use]
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

impl Setting {
    /// The table that it stands in; empty at the top.
    fn table(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(table, _)| table)
    }

    /// Its name in that table.
    /// A path where there is no default.
    fn example(&self) -> &'static str {
        match self.key {
            "gateway.retiring.key" => "\"old.key\"",
            "api.certificate" => "\"api.pem\"",
            "api.key" => "\"api.key\"",
            "enrol.trusted" => "\"manufacturer.pem\"",
            _ => "\"old.pem\"",
        }
    }

    fn name(&self) -> &'static str {
        self.key.rsplit_once('.').map_or(self.key, |(_, name)| name)
    }

    /// What it may be, to be read after "must be".
    #[must_use]
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Number { min, max, note } => {
                let range = match max > u64::MAX >> 2 {
                    true => format!("a number from {min}"),
                    false => format!("{min} to {max}"),
                };
                if note.is_empty() { range } else { format!("{range} ({note})") }
            }
            Kind::PowerOfTwo { max } => format!("a power of two up to {max}"),
            Kind::Blocks { note, .. } => format!("{note}, a multiple of 4096"),
            Kind::Switch => "true or false".into(),
            Kind::Address => {
                "an IP address and a port, for example \"127.0.0.1:23839\" or \"[::]:23838\"".into()
            }
            Kind::Path => "a path in quotation marks".into(),
            Kind::Word(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
                words.join(", ").replacen(", ", if words.len() == 2 { " or " } else { ", " }, 1)
            }
        }
    }
}

/// The file that `duet init` writes: every setting with its default, commented out.
#[must_use]
pub fn template() -> String {
    let mut text = HEAD.to_owned();
    let mut table = "";
    for setting in SETTINGS {
        if setting.table() != table {
            table = setting.table();
            // A table that has no defaults would ask for what is missing in it.
            let mark = if setting.default.is_empty() { "#" } else { "" };
            let _ = write!(text, "\n{mark}[{table}]\n");
        } else if table.is_empty() {
            text.push('\n');
        }
        for line in setting.meaning {
            let _ = writeln!(text, "# {line}");
        }
        if !setting.meaning.is_empty() {
            let _ = writeln!(text, "# Allowed: {}.", setting.allowed());
        }
        let default = match (setting.default, setting.kind) {
            (CPUS, _) => "4",
            ("", Kind::Path) => setting.example(),
            ("", Kind::Address) => "\"[::]:23840\"",
            ("", _) => "255",
            (default, _) => default,
        };
        let _ = writeln!(text, "#{} = {default}", setting.name());
    }
    text
}

/// The page of the documents on settings.
#[must_use]
pub fn page() -> String {
    let mut text = String::from(
        "# Settings\n\nThe file `duet.toml` in the state directory, as `duet init` writes it. This page is made from the \
         list in\n`src/config/catalogue.rs`; a test holds it to that.\n\nA setting is taken from the first of these \
         that has it: a flag of `duet run`, the environment\n(`DUET__SESSION__LIFETIME_S` for `session.lifetime_s`), \
         the file, its default. `duet config show --origin` says\nwhich. `duet check` checks them all, and the \
         certificates, directories and addresses that they name. \
         Upstreams have tables of their own\n([delivery.md](delivery.md)).\n\n| setting | default | allowed | taken | meaning |\n\
         |---|---|---|---|---|\n",
    );
    for Setting { key, default, meaning, taken, .. } in SETTINGS {
        let allowed = find(key).map(Setting::allowed).unwrap_or_default();
        let default = if default.is_empty() { "none".into() } else { format!("`{default}`") };
        let taken = if *taken == AtReload { "at reload" } else { "at start" };
        let _ =
            writeln!(text, "| `{key}` | {default} | {allowed} | {taken} | {} |", meaning.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_tables_stand_together() {
        let mut tables = Vec::new();
        for (at, setting) in SETTINGS.iter().enumerate() {
            assert!(SETTINGS[at + 1..].iter().all(|other| other.key != setting.key));
            if tables.last() != Some(&setting.table()) {
                assert!(!tables.contains(&setting.table()), "{}", setting.key);
                tables.push(setting.table());
            }
        }
    }

    #[test]
    fn the_page_is_the_catalogue() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md");
        let page = page();
        if std::env::var_os("DUET_WRITE_DOCS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(kept == page, "run this test with DUET_WRITE_DOCS=1 to write docs/settings.md");
    }
}
