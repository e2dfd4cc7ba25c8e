//! The older segments, read once after start: what opening leaves out, since it would take too long.
//!
//! Damage there takes nothing from new readings, so it is told and ends nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::watch;

use super::error::SpoolError;
use super::reader::Reader;

/// Records between two pauses: some megabytes.
const STRETCH: u32 = 65_536;

/// A check under way.
pub(super) struct Check {
    cancel: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Check {
    /// Begins to read all records before the index `end`; what is damaged goes to `found`.
    pub(super) fn begin(
        dir: &Path,
        end: u64,
        found: watch::Sender<Option<String>>,
    ) -> Result<Self, SpoolError> {
        let cancel = Arc::new(AtomicBool::new(false));
        let (flag, own) = (Arc::clone(&cancel), dir.to_owned());
        let thread = std::thread::Builder::new()
            .name("spool-check".into())
            .spawn(move || {
                if let Err(error) = read_before(&own, end, &flag) {
                    let _ = found.send(Some(error.to_string()));
                }
            })
            .map_err(SpoolError::io("starting the check of", dir))?;
        Ok(Self { cancel, thread })
    }

    /// Ends it, finished or not.
    pub(super) fn end(self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let _ = self.thread.join();
    }
}

/// Pauses for as long as it reads, so that the disk is there for others.
fn read_before(dir: &Path, end: u64, cancel: &AtomicBool) -> Result<(), SpoolError> {
    let mut reader = Reader::open(dir)?;
    loop {
        let began = Instant::now();
        for _ in 0..STRETCH {
            match reader.read()? {
                Some(record) if record.index < end => {}
                _ => return Ok(()),
            }
        }
        // Whoever wants it to end wakes it.
        std::thread::park_timeout(began.elapsed());
        if cancel.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}
