//! The settings' values before they are a [`Config`](super::Config): from flags, environment and file, each with its
//! origin, each checked against the catalogue. Everything that is wrong is collected, none stops at the first.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::catalogue::{self, CPUS, Kind, SETTINGS, Setting};
use crate::printable::is_printable;

/// What an environment variable of a setting begins with.
const PREFIX: &str = "DUET__";

/// A value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// Yes or no.
    Switch(bool),
    /// An address.
    Address(SocketAddr),
    /// A path or a word.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Switch(on) => on.fmt(f),
            Self::Address(address) => write!(f, "\"{address}\""),
            Self::Text(text) => write!(f, "{}", toml::Value::from(text.as_str())),
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave one.
    Default,
    /// The settings file.
    File {
        /// The line, the first being 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag of the command.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { line } => write!(f, "line {line}"),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Something that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The place in the file, if it stands there.
    pub place: Option<Place>,
    /// What is wrong, and what is allowed.
    pub text: String,
}

/// A place in the settings file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line, the first being 1.
    pub line: usize,
    /// The column, the first being 1.
    pub column: usize,
    /// The line's text.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            None => f.write_str(&self.text),
            Some(Place { line, column, text }) => {
                write!(f, "line {line}, column {column}: {}\n      {text}", self.text)
            }
        }
    }
}

/// Values by their keys.
#[derive(Clone, Debug, Default)]
pub struct Values {
    given: BTreeMap<&'static str, (Value, Origin)>,
    /// Where in the file each of them stands.
    places: BTreeMap<&'static str, Place>,
    pub(super) problems: Vec<Problem>,
}

impl Values {
    /// Reads the file's text. A text that is no TOML is an error of its own.
    pub(super) fn read(text: &str) -> Result<Self, Problem> {
        // A credential, whose lines are not to be shown.
        if text.trim_start().starts_with('{') {
            let text = "JSON, and settings are TOML: is this the settings file?".to_owned();
            return Err(Problem { place: None, text });
        }
        let table = DeTable::parse(text).map_err(|error| Problem {
            place: error.span().map(|span| place(text, span.start)),
            text: format!("not TOML: {}", error.message()),
        })?;
        let mut values = Self::default();
        values.walk(text, "", table.get_ref());
        Ok(values)
    }

    fn walk(&mut self, text: &str, table: &str, entries: &DeTable<'_>) {
        for (name, value) in entries {
            let key = match table {
                "" => name.get_ref().to_string(),
                table => format!("{table}.{}", name.get_ref()),
            };
            let at = place(text, name.span().start);
            // It says where everything else is, and was looked for before.
            if key == "state" {
                if value.get_ref().as_str().is_none() {
                    let text = "state must be a path in quotation marks".into();
                    self.problems.push(Problem { place: Some(at), text });
                }
                continue;
            }
            // Tables of any number, which are read and checked apart.
            if key == "upstream" {
                continue;
            }
            match (catalogue::find(&key), value.get_ref()) {
                (Some(setting), value) => match read(setting, value) {
                    Some(value) => {
                        let origin = Origin::File { line: at.line };
                        self.places.insert(setting.key, at);
                        self.given.insert(setting.key, (value, origin));
                    }
                    None => self.refuse(setting, &shown(value), Some(at)),
                },
                (None, DeValue::Table(entries)) if is_table(&key) => self.walk(text, &key, entries),
                (None, _) => {
                    let text = match nearest(&key) {
                        Some(near) => format!("unknown setting {key}; did you mean {near}?"),
                        None => format!(
                            "unknown setting {key}; docs/settings.md and `duet config show` name all"
                        ),
                    };
                    self.problems.push(Problem { place: Some(at), text });
                }
            }
        }
    }

    /// Lays the environment over what was read.
    pub(super) fn overlay(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) {
        for (name, text) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            let key = name[PREFIX.len()..].replace("__", ".").to_ascii_lowercase();
            let Some(setting) = catalogue::find(&key) else {
                let text = format!("{name} (environment): there is no setting {key}");
                self.problems.push(Problem { place: None, text });
                continue;
            };
            // A path that was mended would be another one.
            let read = text.to_str().and_then(|text| read_text(setting, text));
            let text = text.to_string_lossy();
            match read {
                Some(value) => self.put(setting.key, value, Origin::Environment(name.to_owned())),
                None => {
                    let text = text.escape_default();
                    let text = format!(
                        "{name} (environment): {key} must be {}, and is {text}",
                        setting.allowed()
                    );
                    self.problems.push(Problem { place: None, text });
                }
            }
        }
    }

    /// Puts a value above all others.
    pub(super) fn put(&mut self, key: &'static str, value: Value, origin: Origin) {
        self.places.remove(key);
        self.given.insert(key, (value, origin));
    }

    fn refuse(&mut self, setting: &Setting, value: &str, place: Option<Place>) {
        let text = format!("{} must be {}, and is {value}", setting.key, setting.allowed());
        self.problems.push(Problem { place, text });
    }

    /// Notes what is wrong with a value that is right by itself.
    pub(super) fn check(&mut self, holds: bool, key: &'static str, must: &str) {
        if !holds {
            let place = self.places.get(key).cloned();
            self.problems.push(Problem { place, text: format!("{key} must {must}") });
        }
    }

    /// The value of a key and its origin; `None` where there is no default.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<(Value, Origin)> {
        let setting = catalogue::find(key)?;
        match self.given.get(key) {
            Some(given) => Some(given.clone()),
            None => default(setting).map(|value| (value, Origin::Default)),
        }
    }

    /// All keys with a value, in the order of the catalogue.
    pub fn all(&self) -> impl Iterator<Item = (&'static Setting, Value, Origin)> + '_ {
        SETTINGS.iter().filter_map(|setting| {
            let (value, origin) = self.get(setting.key)?;
            Some((setting, value, origin))
        })
    }

    pub(super) fn number(&self, key: &str) -> u64 {
        match self.get(key) {
            Some((Value::Number(number), _)) => number,
            _ => unreachable_key(key),
        }
    }

    pub(super) fn number_as<T: TryFrom<u64>>(&self, key: &str) -> T {
        T::try_from(self.number(key)).unwrap_or_else(|_| unreachable_key(key))
    }

    pub(super) fn switch(&self, key: &str) -> bool {
        match self.get(key) {
            Some((Value::Switch(on), _)) => on,
            _ => unreachable_key(key),
        }
    }

    pub(super) fn address(&self, key: &str) -> SocketAddr {
        match self.get(key) {
            Some((Value::Address(address), _)) => address,
            _ => unreachable_key(key),
        }
    }

    pub(super) fn text(&self, key: &str) -> String {
        match self.get(key) {
            Some((Value::Text(text), _)) => text,
            _ => unreachable_key(key),
        }
    }

    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.text(key).into()
    }

    /// A path that has no default.
    pub(super) fn path_if_given(&self, key: &str) -> Option<PathBuf> {
        match self.get(key)? {
            (Value::Text(text), _) => Some(text.into()),
            _ => None,
        }
    }
}

/// A key that the catalogue has with another kind, or not at all.
fn unreachable_key<T>(key: &str) -> T {
    panic!("the catalogue of settings has no such {key}")
}

fn default(setting: &Setting) -> Option<Value> {
    match setting.default {
        "" => None,
        CPUS => {
            let cpus = std::thread::available_parallelism().map_or(1, |n| n.get().min(256));
            Some(Value::Number(cpus as u64))
        }
        text => read_text(setting, text.trim_matches('"')),
    }
}

/// A value of the file, if the setting allows it.
fn read(setting: &Setting, value: &DeValue<'_>) -> Option<Value> {
    match (setting.kind, value) {
        (
            Kind::Number { .. } | Kind::PowerOfTwo { .. } | Kind::Blocks { .. },
            DeValue::Integer(digits),
        ) => {
            let number = u64::from_str_radix(digits.as_str(), digits.radix()).ok()?;
            in_range(setting, number)
        }
        (Kind::Switch, DeValue::Boolean(on)) => Some(Value::Switch(*on)),
        (Kind::Address | Kind::Path | Kind::Word(_), DeValue::String(text)) => {
            read_text(setting, text)
        }
        _ => None,
    }
}

/// A value of an environment variable or a default, if the setting allows it.
fn read_text(setting: &Setting, text: &str) -> Option<Value> {
    match setting.kind {
        Kind::Number { .. } | Kind::PowerOfTwo { .. } | Kind::Blocks { .. } => {
            in_range(setting, text.replace('_', "").parse().ok()?)
        }
        Kind::Switch => Some(Value::Switch(text.parse().ok()?)),
        Kind::Address => Some(Value::Address(text.parse().ok()?)),
        Kind::Path => {
            (!text.is_empty() && !text.contains('\0')).then(|| Value::Text(text.to_owned()))
        }
        Kind::Word(words) => words.contains(&text).then(|| Value::Text(text.to_owned())),
    }
}

fn in_range(setting: &Setting, number: u64) -> Option<Value> {
    let good = match setting.kind {
        Kind::Number { min, max, .. } => (min..=max).contains(&number),
        Kind::PowerOfTwo { max } => number.is_power_of_two() && number <= max,
        Kind::Blocks { min, max, .. } => {
            (min..=max).contains(&number) && number.is_multiple_of(4096)
        }
        _ => false,
    };
    good.then_some(Value::Number(number))
}

/// A value of the file for people; one line.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{}\"", text.escape_default()),
        DeValue::Integer(digits) => digits.to_string(),
        DeValue::Float(digits) => digits.to_string(),
        DeValue::Boolean(on) => on.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

fn is_table(key: &str) -> bool {
    SETTINGS
        .iter()
        .any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// The place of a byte of the file.
pub(super) fn place(text: &str, byte: usize) -> Place {
    let before = text.get(..byte).unwrap_or(text);
    let begin = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[begin..].lines().next().unwrap_or_default();
    Place {
        line: before.matches('\n').count() + 1,
        column: before[begin..].chars().count() + 1,
        // A file may hold anything; a terminal is shown none of it, and the column stays what it is.
        text: line.chars().take(120).map(|c| if is_printable(c) { c } else { ' ' }).collect(),
    }
}

/// The known key that an unknown one is most likely to mean.
fn nearest(key: &str) -> Option<&'static str> {
    let distance = |known: &str| distance(key, known);
    let best = SETTINGS.iter().min_by_key(|setting| distance(setting.key))?;
    (distance(best.key) <= 3).then_some(best.key)
}

/// How many letters have to be put in, taken out or changed to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

/// The `state` key, which says where everything else is.
pub(super) fn state(text: &str) -> Option<PathBuf> {
    let table = DeTable::parse(text).ok()?;
    let state: &Spanned<DeValue<'_>> = table.get_ref().get("state")?;
    state.get_ref().as_str().map(PathBuf::from)
}
