//! Batched P-256.
