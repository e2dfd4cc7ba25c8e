//! The gateway's metrics. Every metric stands once in the [`catalogue`], with its kind, unit, labels and meaning; the
//! page in the documents is made from it, and nothing else hands out anything that counts. So whatever is recorded is
//! in the catalogue, and whoever reads the catalogue knows every series that a gateway can have.
//!
//! Metrics belong to the process, as in every library for them. This crate knows nothing of the gateway; it must not
//! be used by code that does no I/O (the core keeps plain numbers, which its host publishes here).

pub mod catalogue;
mod export;
mod family;
mod page;
mod process;

pub use family::{
    About, Counter, Family, Gauge, Histogram, Kind, Label, Listed, Metric, Seconds, Tally, Values,
};
pub use page::page;

/// Has every series exist from now on whose labels' values are known in advance: at zero, which a graph can tell from
/// missing. Series of shards, upstreams and certificates begin with these.
pub fn start() {
    catalogue::all().for_each(Listed::begin);
}

/// Everything, in Prometheus' text format.
#[must_use]
pub fn render() -> String {
    process::look();
    export::render()
}

/// To be called now and then, also when nobody reads the metrics.
pub fn upkeep() {
    export::upkeep();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_there_from_the_start_as_far_as_its_labels_are_known() {
        start();
        let text = render();
        for metric in catalogue::all() {
            let about = metric.about();
            let known = about.labels.iter().all(|label| !matches!(label.values, Values::Open(_)));
            let there = text.contains(&format!("# TYPE {} ", about.name));
            assert!(there || !known, "{}", about.name);
        }
        let reasons = catalogue::SPOOL_DROPPED.about().labels[0].known();
        for reason in reasons {
            let line = format!("duet_spool_dropped_total{{reason=\"{reason}\"}} 0\n");
            assert!(text.contains(&line), "{line}");
        }
        assert!(text.contains("\nprocess_open_fds "), "{text}");
        let began = text.split("process_start_time_seconds ").last().unwrap();
        let began: f64 = began.lines().next().unwrap().parse().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(
            (0.0..600.0).contains(&(now.as_secs_f64() - began)),
            "started {began}, now {now:?}"
        );
    }

    #[test]
    fn a_series_that_is_removed_is_gone_and_begins_anew() {
        let ends = &catalogue::CERTIFICATE_END;
        ends.with(["250"]).set(5.0);
        assert!(render().contains("duet_certificate_end_timestamp_seconds{key_id=\"250\"} 5\n"));
        ends.remove(["250"]);
        assert!(!render().contains("key_id=\"250\""));
        ends.remove(["250"]);
    }

    #[test]
    fn a_tally_adds_what_a_total_has_grown_by() {
        let counter = catalogue::READINGS.with(["254"]);
        let mut tally = Tally::new(counter);
        tally.set(5);
        tally.set(7);
        tally.set(7);
        assert!(render().contains("duet_readings_total{shard=\"254\"} 7\n"));
    }

    #[test]
    #[should_panic(expected = "the catalogue has no reason=\"weather\"")]
    fn a_value_that_the_catalogue_does_not_know_is_no_label() {
        catalogue::SPOOL_DROPPED.with(["weather"]);
    }

    #[test]
    fn hostile_values_stay_in_their_quotation_marks() {
        catalogue::UPSTREAM_PARKED.with(["a\"} 5\nduet_x 1\\"]).add(1);
        let text = render();
        let line = r#"duet_upstream_parked_readings_total{upstream="a\"} 5\nduet_x 1\\"} 1"#;
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}
