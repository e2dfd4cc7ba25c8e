//! What a running gateway says: lines on standard error, for people or as JSON, from a level on that can be changed
//! while it runs. Results of commands are not logs and do not go through here.
//!
//! A line tells of something that happened once, such as a start, a reload, a full disk or a refused device; nothing is
//! written for each record or each HELLO. Whatever comes from outside (a peer's text, a name) is made harmless in one
//! place, the [`line`](self) that is written: no control characters, no endless text, no field that looks like another.
//!
//! Nobody waits for whoever reads the log: shards write to it, too. What standard error does not take at once is left out,
//! and how many lines those were is the first thing that is said when it takes some again.
//!
//! Under journald a line begins with its priority and has no time of its own; there are never any colours.

use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use duet_telemetry::catalogue::LOG_LINES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use utoipa::ToSchema;

use crate::printable::Printable;

/// The longest text of a line, in bytes; what is longer is cut.
const TEXT_MAX: usize = 4_096;
/// The longest value of a field.
const VALUE_MAX: usize = 512;

/// So many bytes a pipe takes at once or not at all.
const PIPE_BUF: usize = 4_096;

/// From which importance on lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Level {
    /// What keeps the gateway from its work.
    Error,
    /// What an operator has to look at.
    Warn,
    /// What happens in the life of a gateway.
    #[default]
    Info,
    /// What helps to find out why something does not work.
    Debug,
}

impl Level {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// Its name in the settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No level has this name.
#[derive(Debug, thiserror::Error)]
#[error("no level has this name; there are error, warn, info and debug")]
pub struct UnknownLevel;

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        Self::ALL.into_iter().find(|level| level.name() == name).ok_or(UnknownLevel)
    }
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// For programs: one JSON object a line.
    Json,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static FORMAT: AtomicU8 = AtomicU8::new(Format::Human as u8);
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Begins to write lines. It does so once in the life of a process; before, and in commands that call a gateway, nothing
/// is written.
pub fn start(level: Level, format: Format) {
    set_format(format);
    set_level(level);
    let (filter, handle) = reload::Layer::new(targets(level));
    let lines = Lines { journal: is_journal(io::stderr()) };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Libraries have their say only where they warn.
fn targets(level: Level) -> Targets {
    let others = level.filter().min(LevelFilter::WARN);
    Targets::new().with_default(others).with_target("duet", level.filter())
}

/// Writes from this level on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
    if let Some(filter) = FILTER.get() {
        // The subscriber is never taken down.
        let _ = filter.reload(targets(level));
    }
}

/// From which level on lines are written.
#[must_use]
pub fn level() -> Level {
    let level = LEVEL.load(Ordering::Relaxed);
    Level::ALL.into_iter().find(|known| *known as u8 == level).unwrap_or_default()
}

/// Writes in this way from now on.
pub fn set_format(format: Format) {
    FORMAT.store(format as u8, Ordering::Relaxed);
}

/// Whether this is a stream to journald, which says in the environment which one that is.
fn is_journal(stream: impl AsFd) -> bool {
    let Some(said) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(found) = rustix::fs::fstat(stream) else { return false };
    said.to_str() == Some(&format!("{}:{}", found.st_dev, found.st_ino))
}

/// Writes each event as one line.
struct Lines {
    journal: bool,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        let mut parts = Parts::default();
        event.record(&mut parts);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Moment { s: now.as_secs(), ms: now.subsec_millis() };
        let line = if FORMAT.load(Ordering::Relaxed) == Format::Json as u8 {
            json(now, level, target, &parts)
        } else {
            human(now, level, self.journal, &parts)
        };
        if let tracing::Level::ERROR | tracing::Level::WARN = level {
            LOG_LINES.with([name(level)]).add(1);
        }
        let lost = |count: u64| {
            let text =
                format!("{count} lines of this log were left out, since nobody took them in time");
            let parts = Parts { text, fields: Vec::new() };
            if FORMAT.load(Ordering::Relaxed) == Format::Json as u8 {
                json(now, tracing::Level::WARN, module_path!(), &parts)
            } else {
                human(now, tracing::Level::WARN, self.journal, &parts)
            }
        };
        // Whole lines, whatever else writes there.
        offer(&mut io::stderr().lock(), &LEFT_OUT, &line, lost);
    }
}

/// Lines that were not taken since one was.
struct LeftOut {
    count: AtomicU64,
    /// The last of them was taken in part.
    torn: AtomicBool,
}

static LEFT_OUT: LeftOut = LeftOut::new();

impl LeftOut {
    const fn new() -> Self {
        Self { count: AtomicU64::new(0), torn: AtomicBool::new(false) }
    }
}

/// Writes a line where that is possible without waiting, behind what is to be said of those that were left out.
fn offer(
    out: &mut (impl io::Write + AsFd),
    left_out: &LeftOut,
    line: &str,
    lost: impl FnOnce(u64) -> String,
) {
    let count = left_out.count.load(Ordering::Relaxed);
    let mut text = String::new();
    if count > 0 {
        // What was taken of a line that was torn ends here.
        text.push_str(if left_out.torn.load(Ordering::Relaxed) { "\n" } else { "" });
        text.push_str(&lost(count));
    }
    text.push_str(line);
    // What a pipe takes at once where it takes anything.
    for (place, part) in text.as_bytes().chunks(PIPE_BUF).enumerate() {
        if !takes(out) {
            left_out.count.store(count + 1, Ordering::Relaxed);
            if place > 0 {
                left_out.torn.store(true, Ordering::Relaxed);
            }
            return;
        }
        // A gateway does not end because nobody reads its log.
        let _ = out.write_all(part);
    }
    left_out.count.store(0, Ordering::Relaxed);
    left_out.torn.store(false, Ordering::Relaxed);
}

/// Whether something can be written without waiting; an error is no reason to wait either.
fn takes(out: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(out, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn name(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        _ => "debug",
    }
}

#[derive(Clone, Copy)]
struct Moment {
    s: u64,
    ms: u32,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = crate::identity::Utc(i64::try_from(self.s).unwrap_or_default()).to_string();
        write!(f, "{}.{:03}Z", time.trim_end_matches('Z'), self.ms)
    }
}

/// What an event says.
#[derive(Default)]
struct Parts {
    text: String,
    fields: Vec<(&'static str, String)>,
}

impl Parts {
    fn take(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.text = harmless(value, TEXT_MAX);
        } else {
            self.fields.push((field.name(), harmless(value, VALUE_MAX)));
        }
    }
}

impl Visit for Parts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, &format!("{value:?}"));
    }
}

/// The text without anything that a terminal, a pager or a reader could take for something else, and cut off where it
/// is too long.
fn harmless(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        if out.len() >= most {
            out.push('…');
            break;
        }
        let _ = write!(out, "{}", Printable(c.encode_utf8(&mut [0; 4])));
    }
    out
}

/// For people: `2026-11-26T12:00:00.123Z WARN  text key=value`, or `<4>text key=value` for journald.
fn human(now: Moment, level: tracing::Level, journal: bool, parts: &Parts) -> String {
    let mut line = String::new();
    let _ = match journal {
        // Priorities of syslog (sd-daemon(3)).
        true => write!(
            line,
            "<{}>",
            match level {
                tracing::Level::ERROR => 3,
                tracing::Level::WARN => 4,
                tracing::Level::INFO => 6,
                _ => 7,
            }
        ),
        false => write!(line, "{now} {:<5} ", name(level).to_uppercase()),
    };
    line.push_str(&parts.text);
    for (key, value) in &parts.fields {
        let plain = !value.is_empty() && !value.contains([' ', '"', '=']);
        let _ =
            if plain { write!(line, " {key}={value}") } else { write!(line, " {key}={value:?}") };
    }
    line.push('\n');
    line
}

/// For programs.
fn json(now: Moment, level: tracing::Level, target: &str, parts: &Parts) -> String {
    let mut line = serde_json::Map::new();
    line.insert("time".into(), now.to_string().into());
    line.insert("level".into(), name(level).into());
    line.insert("target".into(), target.into());
    line.insert("message".into(), parts.text.clone().into());
    for (key, value) in &parts.fields {
        line.insert((*key).into(), value.clone().into());
    }
    format!("{}\n", serde_json::Value::Object(line))
}

/// Says what stands in the way of something that is tried each second, once for each cause.
#[derive(Default)]
pub(crate) struct Complaint(Option<String>);

impl Complaint {
    pub(crate) fn about<E: fmt::Display>(&mut self, tried: Result<(), E>) {
        let now = tried.err().map(|error| error.to_string());
        if let Some(cause) = now.as_ref().filter(|_| now != self.0) {
            tracing::warn!("{cause}; it is tried again each second");
        }
        self.0 = now;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    struct Kept(Arc<Mutex<Vec<[String; 3]>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            let mut parts = Parts::default();
            event.record(&mut parts);
            let (now, level) = (Moment { s: 1_795_694_400, ms: 7 }, *event.metadata().level());
            let lines = [
                human(now, level, false, &parts),
                human(now, level, true, &parts),
                json(now, level, "duet::x", &parts),
            ];
            self.0.lock().unwrap().push(lines);
        }
    }

    /// What is logged meanwhile: each line for people, for journald and for programs.
    pub(crate) fn kept(log: impl FnOnce()) -> Vec<[String; 3]> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(Kept(Arc::clone(&lines)));
        tracing::subscriber::with_default(subscriber, log);
        let lines = lines.lock().unwrap();
        lines.clone()
    }

    #[test]
    fn a_line_is_for_people_for_journald_or_for_programs() {
        let lines = kept(|| tracing::warn!(device = "boiler-1", why = "no key", "refused"));
        let [people, journal, programs] = &lines[0];
        assert_eq!(
            people,
            "2026-11-26T12:00:00.007Z WARN  refused device=boiler-1 why=\"no key\"\n"
        );
        assert_eq!(journal, "<4>refused device=boiler-1 why=\"no key\"\n");
        let parsed: serde_json::Value = serde_json::from_str(programs).unwrap();
        assert_eq!(parsed["time"], "2026-11-26T12:00:00.007Z");
        assert_eq!((&parsed["level"], &parsed["message"]), (&"warn".into(), &"refused".into()));
        assert_eq!((&parsed["device"], &parsed["why"]), (&"boiler-1".into(), &"no key".into()));
    }

    #[test]
    fn hostile_text_stays_on_its_line_and_in_its_field() {
        let hostile = "a\r\nWARN  forged\u{1b}[31m\u{9b}2J\u{202e}x\u{2028}y level=error \"q";
        let long = "é".repeat(1 << 19);
        let lines =
            kept(|| tracing::warn!(peer = hostile, long = long.as_str(), "{hostile}{long}"));
        for line in &lines[0] {
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            assert!(line.ends_with('\n') && line.len() < 6_000, "{}", line.len());
            assert!(!line.trim_end().contains(|c: char| c.is_control()), "{line:?}");
            assert!(!line.contains(['\u{202e}', '\u{2028}']), "{line:?}");
        }
        assert!(lines[0][0].contains(r#"peer="a\\u{d}\\u{a}WARN  forged"#), "{}", lines[0][0]);
        let parsed: serde_json::Value = serde_json::from_str(&lines[0][2]).unwrap();
        assert_eq!(parsed["level"], "warn");
        assert!(parsed["peer"].as_str().unwrap().ends_with("level=error \"q"));
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_was_left_out_is_counted() {
        use std::io::{Read as _, Write as _};
        let (mut reader, mut writer) = io::pipe().unwrap();
        let left_out = LeftOut::new();
        let mut say = |line: &str| {
            offer(&mut writer, &left_out, line, |count| format!("({count})\n"));
        };
        say("one\n");
        // More than a pipe holds.
        let long = format!("{}\n", "x".repeat(3 * PIPE_BUF + 100));
        (0..40).for_each(|_| say(&long));
        let mut taken = vec![0; 1 << 20];
        let count = reader.read(&mut taken).unwrap();
        say("two\n");
        writer.flush().unwrap();
        drop(writer);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        taken.truncate(count);
        let text = String::from_utf8(taken).unwrap() + &rest;
        let lines: Vec<_> = text.lines().collect();
        let whole = lines.iter().filter(|line| line.len() == long.len() - 1).count();
        assert!((1..40).contains(&whole), "{whole}");
        assert_eq!(lines[0], "one");
        assert_eq!(lines[lines.len() - 2..], [format!("({})", 40 - whole).as_str(), "two"]);
    }

    #[test]
    fn libraries_are_heard_only_where_they_warn() {
        use tracing::Level as Of;
        let heard = |level, target, of| targets(level).would_enable(target, &of);
        assert!(heard(Level::Debug, "duet::server", Of::DEBUG));
        assert!(heard(Level::Debug, "duet_upstream::worker", Of::DEBUG));
        assert!(!heard(Level::Debug, "async_nats", Of::INFO));
        assert!(heard(Level::Info, "async_nats", Of::WARN));
        assert!(!heard(Level::Error, "async_nats", Of::WARN));
        assert!(!heard(Level::Info, "duet", Of::DEBUG));
    }

    #[test]
    fn levels_have_names() {
        for level in Level::ALL {
            assert_eq!(level.name().parse::<Level>().unwrap(), level);
        }
        assert!("loud".parse::<Level>().is_err());
        set_level(Level::Debug);
        assert_eq!(level(), Level::Debug);
        set_level(Level::Info);
    }
}
