//! Names, conditions, what is refused, what is shown.

use serde_json::json;

use super::*;

fn load(p99: f64, per_s: f64) -> Value {
    json!({
        "schema": 3, "scenario": "steady", "devices": 10, "valid": true, "seed": 3,
        "measured": {"due": 8, "done": 6, "per_s": per_s, "latency_ms": {"p99": p99, "max": 0}},
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
    let report = json!({"schema": 2, "contenders": [{
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
        ("measured.*>21", 3),
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
    let empty = json!({"schema": 3, "scenario": "steady"});
    for report in [json!({"a": 1}), empty] {
        assert!(matches!(Figures::read(&report), Err(DiffError::NotAReport)), "{report}");
    }
    let mut older = load(1.0, 1.0);
    for schema in [json!(0), json!(null)] {
        older["schema"] = schema;
        assert!(matches!(Figures::read(&older), Err(DiffError::Structure { .. })), "{older}");
    }
    let mut invalid = load(1.0, 1.0);
    invalid["valid"] = false.into();
    invalid["invalid_because"] = json!(["late"]);
    let said = Figures::read(&invalid).err().unwrap().to_string();
    assert!(said.contains("late"), "{said}");
    let run = json!({"schema": 2, "devices": 3, "complete": 3});
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
    assert!(said.contains("+5 ") && said.contains("+25.0%"), "{said}");
    assert!(said.contains("5 figures changed by less"), "{said}");
}

#[test]
fn what_never_came_is_later_than_everything() {
    let report = |p50: Value| {
        let cell = json!({"round_trip_ms": 50, "loss_percent": 5, "p50_ms": p50, "packets": null});
        json!({"schema": 2, "contenders": [{"key": "dtls12", "cells": [cell]}]})
    };
    let (came, never) = (report(json!(200.0)), report(Value::Null));
    let failures = |first, second, condition| {
        let diff = diff(first, second, &[condition]).unwrap();
        (diff.failures.len(), diff.to_string())
    };
    let (count, said) = failures(&came, &never, "*.p50_ms>+10%");
    assert_eq!(count, 1, "{said}");
    assert!(said.contains("from 200 to never"), "{said}");
    assert_eq!(failures(&came, &never, "*.p50_ms>30000").0, 1);
    assert_eq!(failures(&never, &never, "*.p50_ms>+10%").0, 0);
    assert_eq!(failures(&never, &came, "*.p50_ms>+10%").0, 0);
    assert_eq!(failures(&never, &came, "*.p50_ms<-50%").0, 1);
    let run =
        |p99| json!({"schema": 2, "devices": 3, "complete": 3, "first_confirmed_ms": {"p99": p99}});
    let (came, never) = (run(json!(30.0)), run(Value::Null));
    assert_eq!(failures(&came, &never, "first_confirmed_ms.p99>+10%").0, 1);
}

#[test]
fn a_condition_on_what_one_report_lacks_is_not_fulfilled_in_silence() {
    let whole = load(20.0, 100.0);
    let mut part = whole.clone();
    part["measured"].as_object_mut().unwrap().remove("per_s");
    for (first, second, condition) in [
        (&whole, &part, "measured.per_s<-5%"),
        (&whole, &part, "measured.*<0"),
        (&part, &whole, "measured.per_s<-5%"),
    ] {
        let said = diff(first, second, &[condition]).err().unwrap().to_string();
        assert!(said.contains("measured.per_s"), "{said}");
    }
    assert_eq!(diff(&part, &whole, &["measured.per_s<101"]).unwrap().failures.len(), 1);
    assert_eq!(diff(&whole, &part, &["measured.latency_ms.p99>+1%"]).unwrap().failures, [""; 0]);
}

#[test]
fn what_was_done_of_what_was_due_is_a_figure() {
    let report = load(20.0, 100.0);
    let failures = |text| diff(&report, &report, &[text]).unwrap().failures.len();
    assert_eq!((failures("measured.done_percent<75"), failures("*.done_percent<100")), (0, 1));
}
