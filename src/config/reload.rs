//! The difference between the settings that a gateway runs with and those that it is to take.

use super::catalogue::Taken;
use super::{Loaded, Value};

/// A setting that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its key.
    pub key: &'static str,
    /// Its value so far; `None` where it had none.
    pub old: Option<Value>,
    /// Its new value.
    pub new: Option<Value>,
    /// When it is taken.
    pub taken: Taken,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<Value>| value.as_ref().map_or("none".into(), Value::to_string);
        write!(f, "{} = {} (was {})", self.key, shown(&self.new), shown(&self.old))
    }
}

/// Every setting whose value differs, in the order of the catalogue.
#[must_use]
pub fn changes(old: &Loaded, new: &Loaded) -> Vec<Change> {
    let value = |loaded: &Loaded, key| loaded.values.get(key).map(|(value, _)| value);
    let change = |setting: &super::catalogue::Setting| {
        let (old, new) = (value(old, setting.key), value(new, setting.key));
        (old != new).then_some(Change { key: setting.key, old, new, taken: setting.taken })
    };
    super::catalogue::SETTINGS.iter().filter_map(change).collect()
}
