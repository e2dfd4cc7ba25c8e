//! Reports are what their published schemas say.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::path::Path;

use serde::Serialize;

/// Checks a report with a schema of `loadgen/schema`.
pub(crate) fn assert_valid(schema: &str, report: &impl Serialize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("loadgen/schema").join(schema);
    let published = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&published).unwrap();
    let report = serde_json::to_value(report).unwrap();
    let wrong: Vec<_> = validator
        .iter_errors(&report)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert_eq!(wrong, [""; 0]);
}
