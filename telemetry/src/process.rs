//! The process as the system sees it, looked at whenever metrics are read.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::catalogue as metrics;

/// Brings the metrics of the process to this moment. What the system does not tell stays as it was.
pub(crate) fn look() {
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse)
    {
        metrics::PROCESS_CPU.one().set(seconds(stat.cpu_ticks));
        metrics::PROCESS_THREADS.one().set_count(stat.threads);
        metrics::PROCESS_VIRTUAL.one().set_count(stat.virtual_bytes);
        metrics::PROCESS_RESIDENT.one().set_count(stat.resident_pages * page_size() as u64);
        metrics::PROCESS_START.one().set(*STARTED_S.get_or_init(|| started_s(stat.started_ticks)));
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The directory itself is open while it is read.
        metrics::PROCESS_FDS.one().set_count((open.count() as u64).saturating_sub(1));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        metrics::PROCESS_MAX_FDS.one().set_count(most);
    }
}

#[expect(clippy::cast_precision_loss, reason = "ticks since the boot are far below 2^53")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

/// When the process was started, Unix time. Found out once: otherwise a clock that is set later would look like a start.
static STARTED_S: OnceLock<f64> = OnceLock::new();

/// The same, from the ticks between the boot and the start.
fn started_s(started_ticks: u64) -> f64 {
    let boot = clock_gettime(ClockId::Boottime);
    let since_boot = Duration::new(
        u64::try_from(boot.tv_sec).unwrap_or_default(),
        u32::try_from(boot.tv_nsec).unwrap_or_default(),
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs_f64() - since_boot.as_secs_f64() + seconds(started_ticks)
}

/// What `/proc/self/stat` says (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    started_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The program's name may hold anything, and ends with the last parenthesis. The state, which is the third
        // field, comes next.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<_> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            started_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_confuses_nobody() {
        let text = "7 (a) S 1) R 1 7 7 0 -1 4 1 0 0 0 30 12 0 0 20 0 5 0 900 4096 77 1844 1";
        let found = Stat {
            cpu_ticks: 42,
            threads: 5,
            started_ticks: 900,
            virtual_bytes: 4096,
            resident_pages: 77,
        };
        assert_eq!(Stat::parse(text), Some(found));
        assert_eq!(Stat::parse("7 (a) R 1 7"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
