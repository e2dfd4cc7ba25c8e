//! The two messages and the record layer: what a device links.
