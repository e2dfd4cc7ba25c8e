//! How long a disk takes to make something durable: every confirmation waits for it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Finding;

/// How often it is tried.
const TIMES: usize = 20;
/// How long trying may take in all.
const LIMIT: Duration = Duration::from_secs(2);
/// From here on a sync delays confirmations so that people notice.
const SLOW: Duration = Duration::from_millis(20);
/// What is written each time.
const BLOCK: [u8; 4_096] = [0x5a; 4_096];

/// A file that goes with this value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes and syncs as the spool does, in a file that goes again.
pub(super) fn finding(dir: &Path) -> Finding {
    match times(dir) {
        Ok(times) => judged(dir, times),
        Err(error) => Finding::wrong(
            "disk sync",
            format!("{}: {error}", dir.display()),
            "a gateway could not store readings there; run as its user, or mend the directory",
        ),
    }
}

fn times(dir: &Path) -> io::Result<Vec<Duration>> {
    let path = dir.join(format!(".duet-doctor-{}", std::process::id()));
    let file: File = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let _scratch = Scratch(path);
    // Written in advance, as segments are: a sync that also has to note a file's growth takes longer.
    for place in 0..TIMES {
        file.write_all_at(&BLOCK, (place * BLOCK.len()) as u64)?;
    }
    file.sync_all()?;
    let began = Instant::now();
    let mut times = Vec::new();
    for place in 0..TIMES {
        let one = Instant::now();
        file.write_all_at(&BLOCK, (place * BLOCK.len()) as u64)?;
        file.sync_data()?;
        times.push(one.elapsed());
        if began.elapsed() > LIMIT {
            break;
        }
    }
    times.sort();
    Ok(times)
}

/// `times` is sorted.
fn judged(dir: &Path, times: Vec<Duration>) -> Finding {
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    let found =
        format!("{:.2} ms, at most {:.2} ms, in {}", ms(median), ms(longest), dir.display());
    if median >= SLOW {
        let advice = "each confirmation waits for a sync; put spool.dir on a disk that has its own (an SSD with a power-loss \
                      capacitor syncs in less than 0.1 ms), not on one that is shared or behind a network";
        return Finding::slow("disk sync", found, advice);
    }
    Finding::ok("disk sync", found)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_sync_is_measured_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let found = finding(dir.path());
        assert!(found.verdict != Verdict::Wrong && found.found.contains(" ms"), "{found:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(finding(&dir.path().join("none")).verdict, Verdict::Wrong);
    }

    #[test]
    fn a_slow_disk_is_told_by_its_median() {
        let [fast, slow] = [1, 40].map(Duration::from_millis);
        let dir = Path::new("x");
        assert_eq!(judged(dir, vec![fast, fast, slow]).verdict, Verdict::Ok);
        let told = judged(dir, vec![fast, slow, slow]);
        assert_eq!(told.verdict, Verdict::Slow);
        assert!(told.found.starts_with("40.00 ms, at most 40.00 ms"), "{told:?}");
    }
}
