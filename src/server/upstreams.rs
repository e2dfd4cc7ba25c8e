//! The spool as upstreams see it, and their start.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use duet_protocol::reading::ReadingId;
use duet_upstream::{
    Options, Reading, Source, SourceError, StartError, Upstream, Upstreams, Vanished,
};

use crate::config::Config;
use crate::delivery::{
    Cursor, Hold, ReadingRef, Source as _, Spool, SpoolError, SpoolSource, cursors,
};

/// Where cursors and parked readings lie, in the state directory.
const DIR: &str = "upstream";
/// What the names of upstreams' cursors in the spool begin with.
const PREFIX: &str = "upstream-";

/// Why upstreams cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Their files.
    #[error(transparent)]
    Start(#[from] StartError),
    /// One is missing that readings wait for.
    #[error(transparent)]
    Vanished(#[from] Vanished),
    /// The spool's cursors.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Forgets how far an upstream was that the settings no longer have; false when there is none of this name.
///
/// # Errors
/// [`UpstreamError`] when its cursors cannot be removed.
pub fn forget(config: &Config, name: &str) -> Result<bool, UpstreamError> {
    let known = duet_upstream::forget(&config.state.join(DIR), name)?;
    match Cursor::find(&config.spool.dir, &cursor_name(name)) {
        Err(SpoolError::CursorNone(_)) => Ok(known),
        found => {
            found?.remove()?;
            Ok(true)
        }
    }
}

/// What an upstream's place is called in the spool, which keeps what lies behind it.
fn cursor_name(upstream: &str) -> String {
    format!("{PREFIX}{upstream}")
}

/// Starts what the settings name.
pub(super) fn start(config: &Config, spool: &Spool) -> Result<Upstreams, UpstreamError> {
    let dir = config.state.join(DIR);
    let look = Tail { source: spool.source(), carried: None, cursor: None };
    if let Some(vanished) = duet_upstream::vanished(&dir, &config.upstreams, &look)?.pop() {
        return Err(vanished.into());
    }
    // Others that the settings no longer have are done with, and must not keep what lies behind them.
    for position in cursors(&config.spool.dir)? {
        if let Some(name) = position.name.strip_prefix(PREFIX)
            && config.upstreams.iter().all(|upstream| upstream.name() != name)
        {
            forget(config, name)?;
        }
    }
    let options = Options {
        dir,
        upstreams: config.upstreams.clone(),
        // Nobody needs to read this.
        tell: Arc::new(|text| drop(writeln!(io::stderr(), "duet: {text}"))),
    };
    let mut open = |upstream: &Upstream| {
        let hold = if upstream.required() { Hold::Required } else { Hold::Nothing };
        let cursor = spool
            .cursor(&cursor_name(upstream.name()), hold)
            .map_err(|error| SourceError(Box::new(error)))?;
        let tail = Tail { source: spool.source(), carried: None, cursor: Some(cursor) };
        Ok(Box::new(tail) as Box<dyn Source>)
    };
    Ok(duet_upstream::start(options, &mut open)?)
}

/// A reading that was shown and not taken: it comes first the next time.
struct Carried {
    index: u64,
    device: String,
    id: ReadingId,
    again: bool,
    channel: u16,
    received_ms: u64,
    measured_ms: u64,
    payload: Vec<u8>,
}

impl Carried {
    fn new(index: u64, reading: &ReadingRef<'_>) -> Self {
        Self {
            index,
            device: reading.device.to_owned(),
            id: reading.id,
            again: reading.again,
            channel: reading.channel,
            received_ms: reading.received_ms,
            measured_ms: reading.measured_ms,
            payload: reading.payload.to_owned(),
        }
    }

    fn reading(&self) -> ReadingRef<'_> {
        ReadingRef {
            device: &self.device,
            id: self.id,
            again: self.again,
            channel: self.channel,
            received_ms: self.received_ms,
            measured_ms: self.measured_ms,
            commit: None,
            payload: &self.payload,
        }
    }
}

/// One upstream's way through the spool.
///
/// The spool's reader only goes on. The reading at which a batch ended is kept, so that the next batch, which may
/// begin with it, needs no search for its place.
struct Tail {
    source: SpoolSource,
    carried: Option<Carried>,
    /// Tells the spool what is no longer needed.
    cursor: Option<Cursor>,
}

fn shown<'a>(reading: &ReadingRef<'a>) -> Reading<'a> {
    Reading {
        device: reading.device,
        id: reading.id.encode(),
        again: reading.again,
        channel: reading.channel,
        received_ms: reading.received_ms,
        measured_ms: reading.measured_ms,
        payload: reading.payload,
    }
}

impl Source for Tail {
    fn spool_id(&self) -> duet_upstream::SpoolId {
        duet_upstream::SpoolId(self.source.spool_id().0)
    }

    fn first(&self) -> u64 {
        self.source.first()
    }

    fn durable(&self) -> u64 {
        self.source.durable()
    }

    fn read(
        &mut self,
        index: u64,
        visit: &mut dyn FnMut(u64, &Reading<'_>) -> ControlFlow<()>,
    ) -> Result<u64, SourceError> {
        let mut next = index;
        if let Some(carried) = self.carried.take_if(|carried| carried.index == index) {
            let taken = visit(index, &shown(&carried.reading()));
            next = index + 1;
            if taken.is_break() {
                self.carried = Some(carried);
                return Ok(next);
            }
        }
        let carried = &mut self.carried;
        let mut visit = |index: u64, reading: &ReadingRef<'_>| {
            let taken = visit(index, &shown(reading));
            if taken.is_break() {
                *carried = Some(Carried::new(index, reading));
            }
            taken
        };
        let read = match self.source.read(next, &mut visit) {
            Err(SpoolError::Trimmed { .. }) => {
                let first = self.source.first();
                self.source.read(first.max(next), &mut visit)
            }
            read => read,
        };
        read.map_err(|error| SourceError(Box::new(error)))
    }

    fn release(&mut self, index: u64) {
        if let Some(cursor) = &mut self.cursor {
            // Where it cannot be written, the spool keeps more than it must, and the next one tries again.
            let _ = cursor.set(index);
        }
    }
}
