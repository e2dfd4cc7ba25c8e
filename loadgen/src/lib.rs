//! Device fleet and measured comparison with TLS.
