//! The thread that makes the teeth of the registered devices' keys after a start. Proofs are verified without them until all
//! are there, which takes the longer the more devices there are, and longest where the processor lacks AVX-512.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use duet_curve::Backend;

use crate::registry::View;

/// Ends the thread when it is dropped.
pub(super) struct Making {
    goes_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Making {
    pub(super) fn begin(view: Arc<View>, backend: Backend) -> io::Result<Self> {
        let goes_on = Arc::new(AtomicBool::new(true));
        let told = Arc::clone(&goes_on);
        let thread = Builder::new().name("teeth".into()).spawn(move || {
            // Devices that come back after a restart are served first. On Linux this is the thread's own.
            let _ = rustix::process::setpriority_process(None, 19);
            view.make_teeth(backend, || told.load(Ordering::Relaxed));
        })?;
        Ok(Self { goes_on, thread: Some(thread) })
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
