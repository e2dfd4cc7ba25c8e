//! Two reports beside each other, and conditions under which the second is not good enough.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;
use thiserror::Error;

/// Why there is no comparison, or why it is a bad one.
#[derive(Debug, Error)]
pub enum DiffError {
    /// Not a report of this program.
    #[error("is no report of loadgen (--json of `run`, `load` or `compare`)")]
    NotAReport,
    /// The report says so itself.
    #[error("is marked as not valid, so its figures say nothing about the gateway: {0}")]
    Invalid(String),
    /// One is of `run`, say, and the other of `load`.
    #[error("are reports of different commands: {0} and {1}")]
    Kinds(&'static str, &'static str),
    /// The reports hold no such figure.
    #[error("there is no figure {0:?}; there are: {1}")]
    NoSuchFigure(String, String),
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
        let (kind, figures, settings): (_, &[&str], &[&str]) = if has("contenders") {
            ("compare", &["contenders"], &["settings", "link"])
        } else if has("scenario") {
            let settings =
                &["scenario", "devices", "profile", "transport", "per_s", "pacing", "loss_ppm"];
            let figures =
                &["connect", "measured", "hostile", "generator", "gateway_bytes_a_session"];
            ("load", figures, settings)
        } else if has("complete") {
            ("run", &[""], &["devices"])
        } else {
            return Err(DiffError::NotAReport);
        };
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
                collect(&below(field), value, values);
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
    /// How far the second is above the first, percent; infinite if that was nothing.
    fn change_percent(&self) -> f64 {
        if self.first == self.second {
            0.0
        } else {
            (self.second - self.first) / self.first.abs() * 100.0
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
    /// [`DiffError::Kinds`], and [`DiffError::NoSuchFigure`] if a condition names none that both reports have.
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
        let alone = [only(first, second), only(second, first)].concat();
        let mut failures = Vec::new();
        for condition in conditions {
            let mut named = lines.iter().filter(|line| condition.names(&line.name)).peekable();
            if named.peek().is_none() {
                let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
                return Err(DiffError::NoSuchFigure(condition.figure.clone(), names.join(", ")));
            }
            for line in named.filter(|line| condition.holds(line)) {
                let (name, change) = (&line.name, line.change_percent());
                failures.push(format!(
                    "{}: {name} went from {} to {} ({change:+.1}%)",
                    condition.text,
                    Short(line.first),
                    Short(line.second)
                ));
            }
        }
        Ok(Self { above_percent, settings, lines, alone, failures })
    }
}

/// A number with as many digits as help.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for setting in &self.settings {
            writeln!(f, "note: the runs were not alike in {setting}")?;
        }
        let shown = |line: &&Line| line.change_percent().abs() >= self.above_percent;
        let lines: Vec<_> = self.lines.iter().filter(shown).collect();
        let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
        if !lines.is_empty() {
            writeln!(f, "{:width$} {:>12} {:>12} {:>9}", "", "first", "second", "change")?;
        }
        for line in &lines {
            let (first, second) = (Short(line.first), Short(line.second));
            let change = line.change_percent();
            writeln!(f, "{:width$} {first:>12} {second:>12} {change:>+8.1}%", line.name)?;
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
mod tests {
    use serde_json::json;

    use super::*;

    fn load(p99: f64, per_s: f64) -> Value {
        json!({
            "scenario": "steady", "devices": 10, "valid": true, "seed": 3,
            "measured": {"per_s": per_s, "latency_ms": {"p99": p99, "max": 0}},
            "series": [{"at_s": 1, "sent": 4}],
        })
    }

    fn diff(first: &Value, second: &Value, conditions: &[&str]) -> Result<Diff, DiffError> {
        let conditions: Vec<_> = conditions.iter().map(|text| text.parse().unwrap()).collect();
        let (first, second) = (Figures::read(first).unwrap(), Figures::read(second).unwrap());
        Diff::new(&first, &second, &conditions, 1.0)
    }

    #[test]
    fn figures_are_named_by_where_they_stand() {
        let report = json!({"contenders": [{
            "key": "tls12", "solo_ms": 2.5, "exchange": [{"bytes": 3}],
            "cells": [{"round_trip_ms": 50, "loss_percent": 0.5, "p50_ms": 101.0}],
        }]});
        let figures = Figures::read(&report).unwrap().values;
        assert_eq!(figures["tls12.solo_ms"], 2.5);
        assert_eq!(figures["tls12.cells.50ms-0.5%.p50_ms"], 101.0);
        assert_eq!(figures.len(), 2, "{figures:?}");
    }

    #[test]
    fn a_condition_holds_beyond_its_limit_only() {
        let failures = |condition: &str| {
            diff(&load(20.0, 100.0), &load(22.0, 96.0), &[condition]).unwrap().failures.len()
        };
        for (condition, holds) in [
            ("measured.latency_ms.p99>+9%", 1),
            ("measured.latency_ms.p99>+10%", 0),
            ("measured.per_s < -3%", 1),
            ("measured.per_s<-4%", 0),
            ("measured.latency_ms.p99>21.9", 1),
            ("measured.latency_ms.p99>22", 0),
            ("measured.per_s<97", 1),
            ("measured.*>21", 2),
            ("*p99>+9%", 1),
            ("*>+9%", 1),
        ] {
            assert_eq!(failures(condition), holds, "{condition}");
        }
        let from_nothing = diff(&load(0.0, 1.0), &load(0.1, 1.0), &["*.p99>+1000%"]).unwrap();
        assert_eq!(from_nothing.failures.len(), 1);
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for text in ["", "p99", ">5", "p99>", "p99>x", "p99>10%", "p99>+10", "p99>nan", "p99=3"] {
            assert_eq!(text.parse::<Condition>(), Err(BadCondition), "{text}");
        }
    }

    #[test]
    fn reports_that_say_nothing_are_refused() {
        assert!(matches!(Figures::read(&json!({"a": 1})), Err(DiffError::NotAReport)));
        let mut invalid = load(1.0, 1.0);
        invalid["valid"] = false.into();
        invalid["invalid_because"] = json!(["late"]);
        let said = Figures::read(&invalid).err().unwrap().to_string();
        assert!(said.contains("late"), "{said}");
        let run = json!({"devices": 3, "complete": 3});
        assert!(matches!(diff(&run, &load(1.0, 1.0), &[]), Err(DiffError::Kinds("run", "load"))));
        let said = diff(&load(1.0, 1.0), &load(1.0, 1.0), &["p98>1"]).err().unwrap().to_string();
        assert!(said.contains("measured.latency_ms.p99"), "{said}");
    }

    #[test]
    fn the_table_shows_what_changed_and_what_was_unlike() {
        let mut second = load(25.0, 100.0);
        second["devices"] = 20.into();
        let said = diff(&load(20.0, 100.0), &second, &[]).unwrap().to_string();
        assert!(said.contains("devices: 10 and 20"), "{said}");
        assert!(said.contains("+25.0%") && said.contains("2 figures changed by less"), "{said}");
    }
}
