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
//! next segment in preparation; it means nothing after a restart, and where it goes before, it is
//! prepared again. `spool.durable` says how far the spool is durable, for readers in other
//! processes and for the next start. `spool.lock` is held
//! (`flock`) by the gateway that owns the directory. `spool-….cut` is what a start has cut off and
//! somebody has to look at. All integers are little-endian.
//!
//! ```text
//! segment  0    magic "duetspol"          record  0   length of the whole record; 0 ends a segment
//!          8    version u32 (2)                   4   CRC-32C of salt, length and bytes 8..length
//!          12   1: a gap before, u32              8   index u64
//!          16   first index u64                   16  position in its group u32
//!          24   size of the file u64              20  the reading's name: HELLO's digest, 12 bytes
//!          32   salt u64                          32  and the sequence u32
//!          40   the spool's name, 16 bytes        36  received u64, ms since 1970
//!          56   zero u32                          44  channel u16
//!          60   CRC-32C of bytes 0..60            46  length of the device's name u8
//!          4096 records                           47  flags u8: 1 again, 2 measured, 4 commit, 8 notice
//!                                                 48  [measured u64] [credential, 8; mark u64]
//!                                                     [notice, 16] device's name, payload
//! ```
//!
//! # Torn or damaged
//!
//! A group is written only after the one before it is durable, so a power cut leaves at most one
//! incomplete group, at the end. Its pages may have reached the disk in any order: a bad record
//! followed by good ones *of its own group* may still be a torn tail, never acknowledged, and is
//! cut. A bad record followed by a record of a *later* group was durable once: that is damage, and
//! the spool refuses to open, names the place and changes nothing. The position in the group tells
//! the two apart. The salt, random for each segment, keeps a device from planting a payload that
//! looks like a record.
//!
//! The last group has none after it. What `spool.durable` counts was durable, so when less of it
//! is found, readings are lost: what stands there is kept aside, the loss is told until somebody
//! has looked, and new readings begin in a segment of their own behind all indexes that were ever
//! given. After a power cut that file may be old; then a tail counts as torn only if a sector of
//! it still holds the zeros of a segment that was never written there.
//!
//! What is found at start may so far live in the page cache only (a failed sync marks pages
//! clean), therefore the last group is written and synced again before anything is appended.
//!
//! # What goes
//!
//! `cursor-<name>.pos` says how far somebody has read. What all required ones have passed goes by
//! itself, by whole segments; what they have not goes only by age or when the spool is full, as the
//! settings say, and is counted. The newest segment always stays.
//!
//! # Reading
//!
//! Readers see what is durable and nothing else: after a power cut another reading may stand at
//! the index of one that was not.

mod batch;
mod cat;
mod check;
mod cursor;
mod cut;
mod error;
mod file;
mod format;
mod health;
mod id;
mod keeper;
mod marker;
mod meters;
mod notice;
mod overview;
mod reader;
mod recover;
mod retention;
mod scan;
mod segment;
mod source;
mod spare;
mod spool;
mod trim;
mod verify;
mod writer;

pub use batch::{Batch, MAX_BATCH_BYTES};
pub use cat::{Event, Filter, cat};
pub use cursor::{Cursor, Hold, Position, cursors, readable_cursors};
pub use cut::{acknowledge_cuts, cuts};
pub use error::{Damage, SpoolError};
pub use format::{Commit, MAX_DEVICE, MAX_PAYLOAD, ReadingRef, Record};
pub use health::Health;
pub use id::SpoolId;
pub use keeper::Care;
pub use notice::{End as CommandEnd, Notice, Reason, Said, carrier_name};
pub use overview::{Overview, overview, spool_id};
pub use reader::Reader;
pub use recover::{Recovery, Unmarked, look};
pub use retention::{Retention, WhenFull};
pub use source::{Source, SpoolSource};
pub use spool::{Done, Durability, Spool, SpoolConfig, Submitter, Urgency};
pub use trim::{Expected, Trimmed, trim, trim_undelivered};
pub use verify::{End, Verified, verify};
