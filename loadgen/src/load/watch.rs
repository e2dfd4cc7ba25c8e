//! Shows a run while it goes on, and keeps it second by second.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Second;
use crate::crowd::Progress;

/// Prints how it goes on standard error, and keeps the series.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Second>>,
}

impl Watch {
    pub(super) fn begin(progress: Arc<Progress>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (began, terminal) = (Instant::now(), io::stderr().is_terminal());
            let mut series: Vec<Second> = Vec::new();
            while !flag.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                let at_s = began.elapsed().as_secs();
                if series.last().is_some_and(|last| last.at_s >= at_s) {
                    continue;
                }
                let [open, sent, confirmed, late] =
                    [&progress.open, &progress.sent, &progress.confirmed, &progress.late]
                        .map(|count| count.load(Ordering::Relaxed));
                let before = series.last().copied().unwrap_or_default();
                series.push(Second { at_s, open, sent, confirmed, late });
                let line = format!(
                    "{at_s:>4} s  {open:>7} channels  {:>7} sent/s  {:>7} done/s  {:>7} under way  {late} late",
                    sent - before.sent,
                    confirmed - before.confirmed,
                    sent - confirmed.min(sent),
                );
                // Nobody needs to read this.
                let _ = match (terminal, at_s % 5) {
                    (true, _) => write!(io::stderr(), "\r{line}\u{1b}[K"),
                    (false, 0) => writeln!(io::stderr(), "{line}"),
                    (false, _) => Ok(()),
                };
            }
            if terminal {
                let _ = writeln!(io::stderr());
            }
            series
        });
        Self { stop, thread }
    }

    pub(super) fn end(self) -> Vec<Second> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}
