//! Two reports beside each other, and conditions under which the second is not good enough.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;
use thiserror::Error;

use crate::{compare, load, summary};

/// Why there is no comparison, or why it is a bad one.
#[derive(Debug, Error)]
pub enum DiffError {
    /// Not a report of this program.
    #[error("is no report of loadgen (--json of `run`, `load` or `compare`)")]
    NotAReport,
    /// The report says so itself.
    #[error("is marked as not valid, so its figures say nothing about the gateway: {0}")]
    Invalid(String),
    /// Of another version of this program, whose figures may mean something else.
    #[error(
        "has version {} of the reports of `{kind}`, and this program reads {known} alone: \
         write both reports with one program",
        found.map_or("none".to_owned(), |found| found.to_string())
    )]
    Structure {
        /// Which command's report.
        kind: &'static str,
        /// Its version, if it has one.
        found: Option<u64>,
        /// What this program writes.
        known: u32,
    },
    /// One is of `run`, say, and the other of `load`.
    #[error("are reports of different commands: {0} and {1}")]
    Kinds(&'static str, &'static str),
    /// The reports hold no such figure.
    #[error("there is no figure {0:?}; there are: {1}")]
    NoSuchFigure(String, String),
    /// A condition speaks of what one of them does not tell.
    #[error("{0}: only one of the reports has {1}; give both runs the same options")]
    Alone(String, String),
}

/// A report's figures by name.
pub struct Figures {
    kind: &'static str,
    settings: BTreeMap<String, String>,
    values: BTreeMap<String, f64>,
}

impl Figures {
    /// Reads a report.
    ///
    /// # Errors
    /// [`DiffError::NotAReport`] and [`DiffError::Invalid`].
    pub fn read(report: &Value) -> Result<Self, DiffError> {
        let has = |key| report.get(key).is_some();
        let (kind, known, figures, settings): (_, _, &[&str], &[&str]) = if has("contenders") {
            ("compare", compare::SCHEMA, &["contenders"], &["settings", "link"])
        } else if has("scenario") {
            let settings = &[
                "scenario",
                "devices",
                "profile",
                "transport",
                "early",
                "per_s",
                "pacing",
                "loss_ppm",
            ];
            let figures =
                &["connect", "measured", "hostile", "generator", "gateway_bytes_a_session"];
            ("load", load::SCHEMA, figures, settings)
        } else if has("complete") {
            ("run", summary::SCHEMA, &[""], &["devices"])
        } else {
            return Err(DiffError::NotAReport);
        };
        let found = report.get("schema").and_then(Value::as_u64);
        if found != Some(known.into()) {
            return Err(DiffError::Structure { kind, found, known });
        }
        if report.get("valid") == Some(&Value::Bool(false)) {
            let because = report.get("invalid_because").or(report.get("remarks"));
            return Err(DiffError::Invalid(because.unwrap_or(&Value::Null).to_string()));
        }
        let mut values = BTreeMap::new();
        for figure in figures {
            let part = if figure.is_empty() { Some(report) } else { report.get(figure) };
            // The names of compare's figures begin with the contender's.
            let name = if *figure == "contenders" { "" } else { figure };
            collect(name, part.unwrap_or(&Value::Null), &mut values);
        }
        values.remove("schema");
        if values.is_empty() {
            return Err(DiffError::NotAReport);
        }
        let mut settings: BTreeMap<_, _> = settings
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), report.get(name)?.to_string())))
            .collect();
        if let Some(each) = report.get("settings").and_then(Value::as_object) {
            settings.remove("settings");
            settings.extend(each.iter().map(|(name, value)| (name.clone(), value.to_string())));
        }
        Ok(Self { kind, settings, values })
    }
}

/// What a cell of `compare`'s sweep is named by.
const CELL: [&str; 2] = ["round_trip_ms", "loss_percent"];
/// What `compare` and `run` leave empty when it never came.
const TIMES: [&str; 6] = ["p50_ms", "p99_ms", "p50", "p90", "p99", "max"];

/// Adds the numbers in `value` under names joined by dots.
fn collect(name: &str, value: &Value, values: &mut BTreeMap<String, f64>) {
    let below = |part: &str| {
        if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") }
    };
    match value {
        Value::Number(number) => {
            values.extend(number.as_f64().map(|number| (name.to_owned(), number)));
        }
        Value::Object(fields) => {
            // What a row is named by is no figure of it.
            let figures = fields.iter().filter(|(field, _)| !CELL.contains(&field.as_str()));
            for (field, value) in figures {
                if value.is_null() && TIMES.contains(&field.as_str()) {
                    values.insert(below(field), f64::INFINITY);
                }
                collect(&below(field), value, values);
            }
            // A phase of `load`.
            let [due, done] =
                ["due", "done"].map(|field| fields.get(field).and_then(Value::as_f64));
            if let (Some(due), Some(done)) = (due.filter(|due| *due > 0.0), done) {
                values.insert(below("done_percent"), done / due * 100.0);
            }
        }
        // Rows are named by what they are rows of. Others, like a drawn exchange, are no figures.
        Value::Array(rows) => {
            for row in rows {
                let [round_trip, loss] = CELL.map(|key| row.get(key).and_then(Value::as_f64));
                if let Some(key) = row.get("key").and_then(Value::as_str) {
                    collect(&below(key), row, values);
                } else if let (Some(round_trip), Some(loss)) = (round_trip, loss) {
                    collect(&below(&format!("{round_trip}ms-{loss}%")), row, values);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// When the second report is not good enough: a figure's name, in which `*` stands for anything, `>` or `<`,
/// and a limit: a number, or with sign and percent sign a change against the first report.
///
/// `measured.latency_ms.p99>+10%`, `measured.per_s<-5%`, `*.success_percent<100`.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    figure: String,
    above: bool,
    limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    /// Of the second report's figure itself.
    Value(f64),
    /// Of its change against the first report's, percent.
    Change(f64),
}

/// Not a condition.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "a condition is a figure, > or <, and a number or a change like +10%: \
     measured.latency_ms.p99>+10%"
)]
pub struct BadCondition;

impl FromStr for Condition {
    type Err = BadCondition;

    fn from_str(text: &str) -> Result<Self, BadCondition> {
        let at = text.find(['<', '>']).ok_or(BadCondition)?;
        let (figure, limit) = (text[..at].trim(), text[at + 1..].trim());
        let number = |text: &str| {
            text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or(BadCondition)
        };
        let limit = match limit.strip_suffix('%') {
            Some(change) if change.starts_with(['+', '-']) => Limit::Change(number(change)?),
            None if !limit.starts_with('+') => Limit::Value(number(limit)?),
            _ => return Err(BadCondition),
        };
        if figure.is_empty() {
            return Err(BadCondition);
        }
        let above = text.as_bytes()[at] == b'>';
        Ok(Self { text: text.to_owned(), figure: figure.to_owned(), above, limit })
    }
}

impl Condition {
    /// Whether this condition speaks of the figure.
    fn names(&self, figure: &str) -> bool {
        let mut parts = self.figure.split('*');
        let Some(mut rest) = parts.next().and_then(|first| figure.strip_prefix(first)) else {
            return false;
        };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        true
    }

    /// Whether the first report matters to it.
    const fn compares(&self) -> bool {
        matches!(self.limit, Limit::Change(_))
    }

    fn holds(&self, line: &Line) -> bool {
        let (value, limit) = match self.limit {
            Limit::Value(limit) => (line.second, limit),
            Limit::Change(limit) => (line.change_percent(), limit),
        };
        if self.above { value > limit } else { value < limit }
    }
}

/// A figure of both reports.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    name: String,
    first: f64,
    second: f64,
}

impl Line {
    /// How far the second is above the first.
    fn change(&self) -> f64 {
        if self.first == self.second { 0.0 } else { self.second - self.first }
    }

    /// The same in percent; infinite if the first was nothing, or the second never came.
    fn change_percent(&self) -> f64 {
        if self.first.is_infinite() && self.second.is_finite() {
            -100.0
        } else if self.change() == 0.0 {
            0.0
        } else {
            self.change() / self.first.abs() * 100.0
        }
    }
}

/// Two reports beside each other.
pub struct Diff {
    /// The least change that is shown, percent.
    above_percent: f64,
    settings: Vec<String>,
    lines: Vec<Line>,
    alone: Vec<String>,
    /// Which conditions hold, and for which figure.
    pub failures: Vec<String>,
}

impl Diff {
    /// Compares; changes below `above_percent` are counted and not shown.
    ///
    /// # Errors
    /// [`DiffError::Kinds`]; [`DiffError::NoSuchFigure`] if a condition names none, and [`DiffError::Alone`] if
    /// it names one that is missing where it is needed.
    pub fn new(
        first: &Figures,
        second: &Figures,
        conditions: &[Condition],
        above_percent: f64,
    ) -> Result<Self, DiffError> {
        if first.kind != second.kind {
            return Err(DiffError::Kinds(first.kind, second.kind));
        }
        let settings = first
            .settings
            .iter()
            .filter_map(|(name, value)| {
                let other = second.settings.get(name).filter(|other| *other != value)?;
                Some(format!("{name}: {value} and {other}"))
            })
            .collect();
        let lines: Vec<Line> = first
            .values
            .iter()
            .filter_map(|(name, &first)| {
                Some(Line { name: name.clone(), first, second: *second.values.get(name)? })
            })
            .collect();
        let only = |these: &Figures, others: &Figures| -> Vec<String> {
            let names = these.values.keys();
            names.filter(|name| !others.values.contains_key(*name)).cloned().collect()
        };
        let (gone, new) = (only(first, second), only(second, first));
        let mut failures = Vec::new();
        for condition in conditions {
            let named = |names: &[String]| names.iter().find(|name| condition.names(name)).cloned();
            // What is new has a value, and no change.
            let fresh = if condition.compares() { named(&new) } else { None };
            if let Some(missing) = named(&gone).or(fresh) {
                return Err(DiffError::Alone(condition.text.clone(), missing));
            }
            let mut any = false;
            for (name, &value) in second.values.iter().filter(|(name, _)| condition.names(name)) {
                any = true;
                let before = first.values.get(name).copied();
                let line =
                    Line { name: name.clone(), first: before.unwrap_or(value), second: value };
                if !condition.holds(&line) {
                    continue;
                }
                failures.push(match before {
                    None => format!("{}: {name} is {}", condition.text, Short(value)),
                    Some(before) => format!(
                        "{}: {name} went from {} to {} ({:+.1}%)",
                        condition.text,
                        Short(before),
                        Short(value),
                        line.change_percent()
                    ),
                });
            }
            if !any {
                let names: Vec<_> = second.values.keys().map(String::as_str).collect();
                return Err(DiffError::NoSuchFigure(condition.figure.clone(), names.join(", ")));
            }
        }
        let alone = [gone, new].concat();
        Ok(Self { above_percent, settings, lines, alone, failures })
    }
}

/// A number with as many digits as help.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_infinite() {
            return f.pad("never");
        }
        let digits = if self.0.fract() == 0.0 {
            0
        } else if self.0.abs() >= 100.0 {
            1
        } else {
            3
        };
        f.pad(&format!("{:.digits$}", self.0))
    }
}

/// A change: the same with its sign; none where one side has no number.
struct Signed(f64);

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_infinite() {
            return f.pad("–");
        }
        f.pad(&format!("{}{}", if self.0 > 0.0 { "+" } else { "" }, Short(self.0)))
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for setting in &self.settings {
            writeln!(f, "note: the runs were not alike in {setting}")?;
        }
        let shown = |line: &&Line| line.change_percent().abs() >= self.above_percent;
        let lines: Vec<_> = self.lines.iter().filter(shown).collect();
        let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
        if !lines.is_empty() {
            let head = ["first", "second", "change", "in percent"];
            let [first, second, change, percent] = head;
            writeln!(f, "{:width$} {first:>12} {second:>12} {change:>12} {percent:>11}", "")?;
        }
        for line in &lines {
            let (first, second) = (Short(line.first), Short(line.second));
            let (change, percent) = (Signed(line.change()), line.change_percent());
            writeln!(
                f,
                "{:width$} {first:>12} {second:>12} {change:>12} {percent:>+10.1}%",
                line.name
            )?;
        }
        let rest = self.lines.len() - lines.len();
        if rest > 0 {
            writeln!(f, "{rest} figures changed by less than {}%", self.above_percent)?;
        }
        if !self.alone.is_empty() {
            writeln!(f, "in one report only: {}", self.alone.join(", "))?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
