//! AES-128-GCM for batches of small records of different sessions.
