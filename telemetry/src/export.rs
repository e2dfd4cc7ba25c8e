//! Hands the catalogue's metrics to the exporter and writes what it has. The exporter's recorder is used directly and not
//! installed for the process: the catalogue alone makes series.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::{LazyLock, Mutex, PoisonError};

use metrics::{Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::catalogue;
use crate::family::{About, Kind};

static METADATA: Metadata<'static> = Metadata::new("duet", Level::INFO, None);

struct Export {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Counters of seconds: the library counts in whole numbers, so to it they are gauges.
    totals: Mutex<HashSet<&'static str>>,
    /// Series that are not shown, as they stand in the text.
    hidden: Mutex<HashSet<String>>,
}

static EXPORT: LazyLock<Export> = LazyLock::new(|| {
    let histograms = catalogue::all().filter(|metric| metric.about().kind == Kind::Histogram);
    let builder = histograms.fold(PrometheusBuilder::new(), |builder, metric| {
        let About { name, buckets, .. } = metric.about();
        let matcher = Matcher::Full((*name).to_owned());
        builder.set_buckets_for_metric(matcher, buckets).expect("every histogram has buckets")
    });
    let recorder = builder.build_recorder();
    for metric in catalogue::all() {
        let About { name, help, kind, .. } = metric.about();
        let (name, help) = ((*name).into(), help.trim().into());
        match kind {
            Kind::Counter => recorder.describe_counter(name, None, help),
            Kind::Gauge => recorder.describe_gauge(name, None, help),
            Kind::Histogram => recorder.describe_histogram(name, None, help),
        }
    }
    let handle = recorder.handle();
    Export { recorder, handle, totals: Mutex::default(), hidden: Mutex::default() }
});

fn lock<T>(mutex: &Mutex<HashSet<T>>) -> std::sync::MutexGuard<'_, HashSet<T>> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The series' key. Whoever asks for a series has it shown.
fn key(about: &'static About, values: &[&str]) -> Key {
    let mut hidden = lock(&EXPORT.hidden);
    if !hidden.is_empty() {
        hidden.remove(&series(about, values));
    }
    let labels = about.labels.iter().zip(values);
    let labels = labels.map(|(label, value)| Label::new(label.name, (*value).to_owned()));
    Key::from_parts(about.name, labels.collect::<Vec<_>>())
}

pub(crate) fn counter(about: &'static About, values: &[&str]) -> metrics::Counter {
    EXPORT.recorder.register_counter(&key(about, values), &METADATA)
}

pub(crate) fn total(about: &'static About, values: &[&str]) -> metrics::Gauge {
    lock(&EXPORT.totals).insert(about.name);
    gauge(about, values)
}

pub(crate) fn gauge(about: &'static About, values: &[&str]) -> metrics::Gauge {
    EXPORT.recorder.register_gauge(&key(about, values), &METADATA)
}

pub(crate) fn histogram(about: &'static About, values: &[&str]) -> metrics::Histogram {
    EXPORT.recorder.register_histogram(&key(about, values), &METADATA)
}

/// The library cannot forget a single series, so it is left out of the text.
pub(crate) fn hide(about: &About, values: &[&str]) {
    lock(&EXPORT.hidden).insert(series(about, values));
}

/// A series as it stands in the text.
fn series(about: &About, values: &[&str]) -> String {
    let mut text = String::from(about.name);
    for (place, (label, value)) in about.labels.iter().zip(values).enumerate() {
        let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n");
        let begin = if place == 0 { '{' } else { ',' };
        let _ = write!(text, "{begin}{}=\"{value}\"", label.name);
    }
    if !values.is_empty() {
        text.push('}');
    }
    text
}

/// Sums up what histograms were given since the last time, so that it does not pile up where nobody reads the metrics.
pub(crate) fn upkeep() {
    EXPORT.handle.run_upkeep();
}

/// Everything, in Prometheus' text format.
pub(crate) fn render() -> String {
    let whole = EXPORT.handle.render();
    let (totals, hidden) = (lock(&EXPORT.totals), lock(&EXPORT.hidden));
    let mut text = String::with_capacity(whole.len());
    for line in whole.lines() {
        let typed = line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" gauge"));
        if let Some(name) = typed.filter(|name| totals.contains(name)) {
            let _ = writeln!(text, "# TYPE {name} counter");
        } else if line.rsplit_once(' ').is_none_or(|(series, _)| !hidden.contains(series)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
