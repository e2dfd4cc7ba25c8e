//! What happens on SIGINT, SIGTERM and SIGHUP: the programs that this one started end with it, and its directory goes.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How often it is tried anew, should a thread still start a child or write into the directory.
const ATTEMPTS: usize = 20;

/// Set once a signal came: from then on this program only ends.
static ENDING: AtomicBool = AtomicBool::new(false);

/// From now on a signal ends this process, with the usual exit code 128 and its number, after its children, and without `dir`
/// if one is given.
///
/// # Errors
/// When the system gives no thread or refuses the handlers.
pub fn watch(dir: Option<PathBuf>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        ENDING.store(true, Ordering::Release);
        // A thread may be about to start another one, or to fail for want of one: it then waits in `hold`.
        for _ in 0..ATTEMPTS {
            children().into_iter().for_each(end);
            let is_gone = |dir: &PathBuf| fs::remove_dir_all(dir).is_ok() || !dir.exists();
            if dir.as_ref().is_none_or(is_gone) && children().is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        std::process::exit(128 + signal);
    })?;
    Ok(())
}

/// To be called before this program ends or says that something went wrong: after a signal, that is only the
/// children's end, and the process is about to end by itself.
pub fn hold() {
    while ENDING.load(Ordering::Acquire) {
        thread::park();
    }
}

/// The children of all threads of this process.
fn children() -> Vec<Pid> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| {
        let list = fs::read_to_string(thread.path().join("children")).ok()?;
        Some(list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect())
    });
    lists.collect::<Vec<Vec<_>>>().concat()
}

/// What it holds is temporary, so it need not drain. A child keeps its number until it is waited for, so no other
/// process can be met.
fn end(child: Pid) {
    let _ = kill_process(child, Signal::KILL);
    let _ = waitpid(Some(child), WaitOptions::empty());
}
