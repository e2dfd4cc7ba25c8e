//! The page of the documents on metrics.

use std::fmt::Write as _;

use crate::catalogue::SECTIONS;
use crate::{About, Kind, Label, Values};

const HEAD: &str = "\
# Metrics

What `http://127.0.0.1:23839/metrics` shows, in Prometheus' text format. This page is made from the catalogue in
`telemetry/src/catalogue.rs`, which alone hands out what can be counted; a test holds it to that.

Every series is there from the start, at zero, as far as the values of its labels are known: those of `shard` from
the start of the gateway, those of `upstream` and `key_id` as long as the settings have them. Shards publish their
counts once a second. Histograms have fixed buckets, so that they can be added up over shards and gateways.
";

fn values(label: &Label) -> String {
    match label.values {
        Values::Of(values) => {
            let values: Vec<_> = values().iter().map(|value| format!("`{value}`")).collect();
            values.join(", ")
        }
        Values::Open(what) => what.to_owned(),
    }
}

/// The page, whole.
#[must_use]
pub fn page() -> String {
    let mut text = HEAD.to_owned();
    let mut labels: Vec<&Label> = Vec::new();
    for (title, metrics) in SECTIONS {
        let _ = write!(
            text,
            "\n## {title}\n\n| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n"
        );
        for metric in *metrics {
            let About { name, help, kind, unit, labels: own, buckets } = metric.about();
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let mut help = help.trim().to_owned();
            if let ([first, ..], [.., last]) = (buckets, buckets) {
                let _ = write!(help, " Buckets from {first} to {last}.");
            }
            let names: Vec<_> = own.iter().map(|label| format!("`{}`", label.name)).collect();
            let _ =
                writeln!(text, "| `{name}` | {kind} | {unit} | {} | {help} |", names.join(", "));
            for label in *own {
                if labels
                    .iter()
                    .all(|known| known.name != label.name || values(known) != values(label))
                {
                    labels.push(label);
                }
            }
        }
    }
    text.push_str("\n## Labels\n\n| label | values |\n|---|---|\n");
    labels.sort_by_key(|label| label.name);
    for label in labels {
        let _ = writeln!(text, "| `{}` | {} |", label.name, values(label));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_the_catalogue() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let page = super::page();
        if std::env::var_os("DUET_WRITE_DOCS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == page, "run this test with DUET_WRITE_DOCS=1 to write docs/metrics.md");
    }
}
