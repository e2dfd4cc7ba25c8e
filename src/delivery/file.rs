//! The segment being written, and the runtime that its writes need: tokio-uring's, or plain calls
//! on the spool's thread where the system refuses io_uring. Nothing else runs on that thread, and
//! what comes meanwhile waits in the queue, as it does while the ring writes.

use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::SpoolError;

/// What drives the spool's thread.
pub(super) enum Runtime {
    Ring(tokio_uring::Runtime),
    Plain(tokio::runtime::Runtime),
}

impl Runtime {
    /// A ring where the system lets one be made.
    pub(super) fn new(dir: &Path) -> Result<Self, SpoolError> {
        // `tokio_uring::start` would panic where the kernel refuses the ring.
        if let Ok(runtime) = tokio_uring::Runtime::new(&tokio_uring::builder()) {
            return Ok(Self::Ring(runtime));
        }
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map(Self::Plain)
            .map_err(SpoolError::io("starting a runtime for", dir))
    }

    pub(super) fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Ring(runtime) => runtime.block_on(future),
            Self::Plain(runtime) => runtime.block_on(future),
        }
    }

    /// How files are written on this runtime.
    pub(super) fn storage(&self) -> Storage {
        match self {
            Self::Ring(_) => Storage::Ring,
            Self::Plain(_) => Storage::Plain,
        }
    }
}

/// How files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    Ring,
    Plain,
}

/// A file that is written at offsets and synced.
pub(super) enum File {
    Ring(tokio_uring::fs::File),
    Plain(std::fs::File),
}

impl File {
    pub(super) fn new(file: std::fs::File, storage: Storage) -> Self {
        match storage {
            Storage::Ring => Self::Ring(tokio_uring::fs::File::from_std(file)),
            Storage::Plain => Self::Plain(file),
        }
    }

    /// Writes all of `bytes`; the buffer comes back.
    pub(super) async fn write_all_at(&self, bytes: Vec<u8>, at: u64) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Ring(file) => file.write_all_at(bytes, at).await,
            Self::Plain(file) => (file.write_all_at(&bytes, at), bytes),
        }
    }

    pub(super) async fn sync_data(&self) -> io::Result<()> {
        match self {
            Self::Ring(file) => file.sync_data().await,
            Self::Plain(file) => file.sync_data(),
        }
    }

    pub(super) async fn close(self) -> io::Result<()> {
        match self {
            Self::Ring(file) => file.close().await,
            Self::Plain(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_write_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let plain = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for (name, runtime) in
            [("a", Runtime::new(dir.path()).unwrap()), ("b", Runtime::Plain(plain))]
        {
            let path = dir.path().join(name);
            let file = File::new(std::fs::File::create(&path).unwrap(), runtime.storage());
            let left = runtime.block_on(async {
                let (written, buffer) = file.write_all_at(b"reading".to_vec(), 3).await;
                written.unwrap();
                file.sync_data().await.unwrap();
                file.close().await.unwrap();
                buffer
            });
            assert_eq!(left, b"reading");
            assert_eq!(std::fs::read(path).unwrap(), b"\0\0\0reading");
        }
    }
}
