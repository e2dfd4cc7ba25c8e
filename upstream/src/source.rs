//! Where readings come from: what an upstream may know of a spool.
//!
//! Owns the face only. A source shows nothing that a power cut could still take, numbers every
//! reading with an index that rises by one, and can be asked again for any index that it keeps.

use std::fmt;
use std::ops::ControlFlow;

/// Names a spool for ever: random, made with its first segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SpoolId(pub [u8; 16]);

impl fmt::Display for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One thing that a notice says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// In a word.
    Text(&'a str),
    /// A number.
    Number(u64),
    /// It is so.
    True,
}

/// What happened to a device, in place of a reading. `docs/delivery.md` lists the kinds and their facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice<'a> {
    /// What happened, in a word.
    pub kind: &'a str,
    /// What there is to say of it, by names of lower-case letters.
    pub facts: &'a [(&'static str, Fact<'a>)],
    /// Whether the payload says something, too.
    pub payload: bool,
}

/// A stored reading, or a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The device's name.
    pub device: &'a str,
    /// What the device knows it by, for ever: the digest of the HELLO of the session in which it
    /// was first sent, and its sequence there.
    pub id: [u8; 16],
    /// The device said that it may have come before.
    pub again: bool,
    /// What happened, where this is no reading.
    pub notice: Option<Notice<'a>>,
    /// The device's channel; 0 in a notice.
    pub channel: u16,
    /// When the gateway received it, in milliseconds since 1970 UTC.
    pub received_ms: u64,
    /// When it was measured, the same way; equal to `received_ms` where the device gave no age.
    pub measured_ms: u64,
    /// What the device sent.
    pub payload: &'a [u8],
}

impl<'a> Reading<'a> {
    /// What the device sent, unless this is a notice without it.
    pub(crate) fn sent(&self) -> Option<&'a [u8]> {
        self.notice.is_none_or(|notice| notice.payload).then_some(self.payload)
    }
}

/// The spool could not be read; the text names the file and the cause.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SourceError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// A spool's durable readings, by index.
pub trait Source: Send {
    /// Which spool this is.
    fn spool_id(&self) -> SpoolId;

    /// The oldest index that is kept.
    fn first(&self) -> u64;

    /// One past the last durable index.
    fn durable(&self) -> u64;

    /// Visits readings from `index` on, in order, until `visit` says stop or the durable end, and
    /// returns the index to go on with: after the last one visited, and after what is missing there.
    /// Where `index` is no longer kept it begins at the oldest that is.
    ///
    /// # Errors
    /// [`SourceError`] when a file cannot be read or is damaged.
    fn read(
        &mut self,
        index: u64,
        visit: &mut dyn FnMut(u64, &Reading<'_>) -> ControlFlow<()>,
    ) -> Result<u64, SourceError>;

    /// What the spool was told last of this reader, also before this start: everything below has left by it. The oldest
    /// index where it was told nothing.
    fn released(&self) -> u64;

    /// Everything below `index` has left by this reader, and that is on disk: the spool may let
    /// it go.
    fn release(&mut self, index: u64);
}
