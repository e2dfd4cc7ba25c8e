//! Published schemas are what reports are made from.

use std::path::Path;

use jsonschema::Validator;
use schemars::JsonSchema;
use serde_json::Value;

/// Compares a report's schema with the published one; `DUET_WRITE_SCHEMA=1` writes that anew. What checks reports.
pub(crate) fn published<T: JsonSchema>(name: &str) -> Validator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema").join(name);
    let schema = serde_json::to_value(schemars::schema_for!(T)).unwrap();
    if std::env::var_os("DUET_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&schema).unwrap() + "\n").unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap();
    let published: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(published, schema);
    jsonschema::validator_for(&published).unwrap()
}
