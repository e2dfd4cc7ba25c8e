//! The spool: where readings become durable before the gateway acknowledges them.
//!
//! Owns the spool directory, the thread that writes to it, the format of its files and the
//! read-only way through them. It must not know sessions, datagrams or keys, and it must never
//! answer [`Durability::Durable`] for a reading that a power cut could still take.
//!
//! # How a reading gets here
//!
//! A shard encodes its readings into a [`Batch`] on its own thread and submits it with a
//! completion. The spool's thread takes all that is queued, gives every record its index and
//! checksum, writes and syncs one group, and only then calls the completions. While one group is
//! on its way the next one queues up. Readings whose device waits are written at once, but under
//! load not more often than once a millisecond; readings for which nobody waits gather for ten:
//! a sync costs more processor time than hundreds of readings.
//!
//! # Files
//!
//! `spool-<first index, 16 hex digits>.log` is a segment: a fixed size, written full of zeros
//! before its first use, so that a commit changes data and no metadata. `spool-spare.tmp` is the
//! next segment in preparation; it means nothing after a restart. `spool.lock` is held (`flock`)
//! by the gateway that owns the directory. All integers are little-endian.
//!
//! ```text
//! segment  0    magic "duetspol"          record  0   length of the whole record; 0 ends a segment
//!          8    version u32 (1)                   4   CRC-32C of salt, length and bytes 8..length
//!          12   zero u32                          8   index u64
//!          16   first index u64                   16  position in its group u32
//!          24   size of the file u64              20  session u32
//!          32   salt u64                          24  sequence u32
//!          40   zeros                             28  time u64, ms since 1970
//!          60   CRC-32C of bytes 0..60            36  channel u16
//!          4096 records                           38  length of the device's name u8, then a zero
//!                                                 40  device's name, payload
//! ```
//!
//! # Torn or damaged
//!
//! A group is written only after the one before it is durable, so a power cut leaves at most one
//! incomplete group, at the end. Its pages may have reached the disk in any order: a bad record
//! followed by good ones *of its own group* is still a torn tail, never acknowledged, and is cut.
//! A bad record followed by a record of a *later* group was durable once: that is damage, and the
//! spool refuses to open, names the place and changes nothing. The position in the group tells
//! the two apart. The salt, random for each segment, keeps a device from planting a payload that
//! looks like a record.
//!
//! What is found at start may so far live in the page cache only (a failed sync marks pages
//! clean), therefore the last group is written and synced again before anything is appended.

mod batch;
mod cat;
mod check;
mod error;
mod file;
mod format;
mod health;
pub mod metrics;
mod reader;
mod recover;
mod scan;
mod segment;
mod spare;
mod spool;
mod trim;

pub use batch::{Batch, MAX_BATCH_BYTES};
pub use cat::{Filter, cat, verify};
pub use error::{Damage, SpoolError};
pub use format::{MAX_DEVICE, MAX_PAYLOAD, ReadingRef, Record};
pub use health::Health;
pub use reader::Reader;
pub use recover::Recovery;
pub use spool::{Done, Durability, Spool, SpoolConfig, Submitter, Urgency};
pub use trim::{Trimmed, trim};
