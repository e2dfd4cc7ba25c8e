//! The next segment, being filled with zeros on a thread of its own while the one before is still in use.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::error::SpoolError;
use super::segment;
use super::spool::SpoolConfig;

/// A segment in the making.
pub(super) struct Spare {
    cancel: Arc<AtomicBool>,
    thread: JoinHandle<Result<Option<PathBuf>, SpoolError>>,
}

impl Spare {
    pub(super) fn begin(config: &SpoolConfig) -> io::Result<Self> {
        let cancel = Arc::new(AtomicBool::new(false));
        let (flag, dir, size) = (Arc::clone(&cancel), config.dir.clone(), config.segment_bytes);
        let thread = std::thread::Builder::new()
            .name("spool-spare".into())
            .spawn(move || segment::prepare(&dir, size, &flag))?;
        Ok(Self { cancel, thread })
    }

    /// Waits until it is whole. `None`: the disk had no room then, and may have by now.
    pub(super) fn finish(self) -> Result<Option<PathBuf>, SpoolError> {
        match self.thread.join().map_err(|_| SpoolError::ThreadEnded)? {
            Err(error) if error.is_no_space() => Ok(None),
            finished => finished,
        }
    }

    /// Ends it, whole or not.
    pub(super) fn give_up(self) {
        self.cancel.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}
