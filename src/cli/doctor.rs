//! `duet doctor`: whether this machine lets a gateway run at full speed and, where it does not, what to do.
//!
//! It asks for what a gateway would ask for and gives it back; it changes nothing that stays. Whether the settings
//! themselves are right, `duet check` says.

mod disk;

use std::io::Write as _;
use std::net::UdpSocket;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use duet::config::{Config, ConfigError, Overrides};
use duet::driver::DriverKind;
use duet::server::{OTHER_FILES, probe};
use duet::transport::Warning;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::settings::room;
use super::{Format, Place, output};

/// Flags of `duet doctor`.
#[derive(Args)]
#[command(
    after_help = "ok: full speed. slow: it works, at a price that is said. WRONG: a gateway would not start, or would not \
    do its work.\n\nExit code 0: nothing is wrong, though something may be slow. 1: something is wrong; what to do is said."
)]
pub(super) struct Doctor {
    /// How to show the results
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Slow,
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    /// What was found, with its figure.
    found: String,
    /// What to do about it; empty where nothing is to be done.
    advice: String,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
    }

    fn slow(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Slow, found: found.into(), advice: advice.into() }
    }

    fn wrong(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Wrong, ..Self::slow(what, found, advice) }
    }
}

impl Doctor {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let findings = examine(place)?;
        let mut out = output::stdout();
        for finding in &findings {
            match self.format {
                Format::Json => writeln!(out, "{}", serde_json::to_string(finding)?)?,
                Format::Table => {
                    let Finding { what, verdict, found, advice } = finding;
                    let mark = match verdict {
                        Verdict::Ok => "ok",
                        Verdict::Slow => "slow",
                        Verdict::Wrong => "WRONG",
                    };
                    writeln!(out, "{mark:<5} {what:<15} {found}")?;
                    if !advice.is_empty() {
                        writeln!(out, "{:21} → {advice}", "")?;
                    }
                }
            }
        }
        let wrong = findings.iter().any(|finding| finding.verdict == Verdict::Wrong);
        Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn examine(place: &Place) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let (config, initialised) = match place.load(&Overrides::default()) {
        Ok(config) => (config, true),
        Err(error) => {
            let missing = matches!(error.downcast_ref(), Some(ConfigError::Missing(_)));
            findings.push(if missing {
                Finding::ok(
                    "settings",
                    "none yet: their defaults are looked at (`duet init` makes them)",
                )
            } else {
                let advice = "mend the settings (`duet check`); their defaults are looked at here";
                Finding::wrong("settings", error.to_string(), advice)
            });
            let flags = Overrides { defaults: true, ..Overrides::default() };
            (defaults(&flags)?, false)
        }
    };
    findings.extend(processor());
    findings.extend(shards(&config));
    findings.push(cpus(&config));
    findings.push(locked_memory());
    findings.push(descriptors(&config));
    findings.extend(directories(&config, initialised));
    findings.push(clock(Path::new("/run/systemd/timesync")));
    findings.push(ipv6(&config));
    Ok(findings)
}

/// What a gateway without a settings file would take: no directory of this name can have one.
fn defaults(flags: &Overrides) -> Result<Config> {
    Ok(Config::load(Some(Path::new("/proc/no-such-directory")), None, flags)?)
}

/// What cryptography runs on.
fn processor() -> Vec<Finding> {
    let why = "this processor, or the machine that plays it, has no AVX-512 with";
    let curve = match duet_curve::Backend::select() {
        Ok(curve) if curve.lanes() > 1 => Finding::ok(
            "handshakes",
            format!("P-256 by {}, {} at a time", curve.name(), curve.lanes()),
        ),
        Ok(curve) => Finding::slow(
            "handshakes",
            format!("P-256 by {}, one at a time", curve.name()),
            format!(
                "{why} IFMA: a handshake costs some four times as much; it matters only where thousands of devices come back \
                 at once"
            ),
        ),
        Err(error) => Finding::wrong(
            "handshakes",
            error.to_string(),
            "unset the variable, or name one of those",
        ),
    };
    let aead = match duet_aead::Gcm::select().map(|gcm| gcm.backend()) {
        Ok(duet_aead::Backend::Vaes) => {
            Finding::ok("records", "AES-128-GCM by vaes, four blocks at a time")
        }
        Ok(backend) => Finding::slow(
            "records",
            format!("AES-128-GCM by {}", backend.name()),
            format!(
                "{why} VAES: a record costs more processor time, which is small beside its system calls"
            ),
        ),
        Err(error) => {
            Finding::wrong("records", error.to_string(), "unset the variable, or name one of those")
        }
    };
    vec![curve, aead]
}

/// Sockets and rings, as a gateway would make them.
fn shards(config: &Config) -> Vec<Finding> {
    let asked = duet::transport::Settings::default().receive_buffer;
    let found = match probe(config) {
        Ok(found) => found,
        Err(error) => {
            return vec![Finding::wrong("sockets, rings", error.to_string(), "see there")];
        }
    };
    let shards = config.shards;
    let mut findings = Vec::new();
    let refusal = found.warnings.iter().find(|one| matches!(one, Warning::Fallback(_)));
    findings.push(match (found.driver, refusal) {
        (DriverKind::IoUring, _) => Finding::ok(
            "io_uring",
            format!("rings for {shards} shards, with all that the gateway uses"),
        ),
        (DriverKind::Epoll, Some(refusal)) => {
            Finding::slow("io_uring", "refused", refusal.to_string())
        }
        (DriverKind::Epoll, None) => Finding::slow(
            "io_uring",
            "not asked for",
            "the settings say io = \"epoll\", which costs more processor time",
        ),
    });
    let mut buffers = Finding::ok("receive buffers", format!("{asked} bytes for each socket"));
    for warning in &found.warnings {
        let text = warning.to_string();
        match warning {
            Warning::ReceiveBuffer { effective, .. } => {
                buffers = Finding::slow(
                    "receive buffers",
                    format!("{effective} bytes for each socket"),
                    format!("{text}: `sysctl net.core.rmem_max={asked}`"),
                );
            }
            Warning::Fallback(_) | Warning::NoIpv6 { .. } => {}
            Warning::LocalAddress(_) => findings.push(Finding::slow("addresses", "not told", text)),
            Warning::Steering(_) => findings.push(Finding::slow("steering", "refused", text)),
            Warning::Unrestricted => findings.push(Finding::slow("rings", "not restricted", text)),
            Warning::NotPinned { .. } => findings.push(Finding::slow("cores", "not pinned", text)),
        }
    }
    findings.push(buffers);
    findings
}

fn cpus(config: &Config) -> Finding {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{cpus} for {} shards", config.shards);
    if config.shards > cpus {
        let advice =
            "shards take turns on them and none is pinned; set shards to the number of processors";
        return Finding::slow("processors", found, advice);
    }
    Finding::ok("processors", found)
}

/// What rings may lock. Whether it is enough, making them has shown.
fn locked_memory() -> Finding {
    let found = match getrlimit(Resource::Memlock).current {
        None => "no limit".to_owned(),
        Some(bytes) => {
            format!("{bytes} bytes for this user's rings; enough where the rings above were made")
        }
    };
    Finding::ok("locked memory", found)
}

fn descriptors(config: &Config) -> Finding {
    let wanted = u64::from(config.limits.max_streams + OTHER_FILES);
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < wanted => Finding::slow(
            "descriptors",
            format!("{most}, and limits.max_streams asks for {wanted}"),
            "with more TCP connections than that, accepting waits; raise the hard limit (LimitNOFILE=, ulimit -H -n) or \
             lower limits.max_streams",
        ),
        most => {
            let most = most.map_or("no limit".to_owned(), |most| most.to_string());
            Finding::ok("descriptors", format!("{most}, {wanted} are asked for"))
        }
    }
}

/// The state directory and the spool's: rights, room and the time of a sync.
fn directories(config: &Config, initialised: bool) -> Vec<Finding> {
    if !initialised {
        let here = Path::new(".");
        return vec![disk::finding(here)];
    }
    let mut findings = Vec::new();
    findings.push(match super::run::check_state(config) {
        Ok(()) => Finding::ok("state", config.state.display().to_string()),
        Err(error) => Finding::wrong(
            "state",
            error.to_string(),
            "run as the gateway's user, or mend the directory",
        ),
    });
    let spool = &config.spool.dir;
    // It is made by the first start.
    let there = spool.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."));
    match room(there, config.spool.segment_bytes) {
        Ok(found) => {
            findings.push(Finding::ok("spool", found));
            findings.push(disk::finding(there));
        }
        Err(error) => findings.push(Finding::wrong("spool", error, "nothing could be stored")),
    }
    findings
}

/// Whether the clock is right, as far as can be known. `timesync` is where systemd-timesyncd says so.
fn clock(timesync: &Path) -> Finding {
    const YEAR_2024_S: i64 = 1_704_067_200;
    let now_s = duet::identity::now_s();
    let found = duet::identity::Utc(now_s).to_string();
    if now_s < YEAR_2024_S {
        let advice = "set the clock: readings get its time, and certificates are judged by it";
        return Finding::wrong("clock", found, advice);
    }
    if timesync.is_dir() && !timesync.join("synchronized").exists() {
        let advice = "systemd-timesyncd has not set it yet: is its server reachable? (`timedatectl timesync-status`)";
        return Finding::slow("clock", format!("{found}, not synchronised"), advice);
    }
    Finding::ok("clock", found)
}

fn ipv6(config: &Config) -> Finding {
    match UdpSocket::bind("[::]:0") {
        Ok(_) => Finding::ok("IPv6", "there"),
        Err(error) if config.listen.is_ipv6() => Finding::slow(
            "IPv6",
            error.to_string(),
            format!(
                "the gateway serves IPv4 alone; listen = \"0.0.0.0:{}\" says the same without a warning",
                config.listen.port()
            ),
        ),
        Err(error) => {
            Finding::ok("IPv6", format!("none ({error}), and listen does not ask for it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn config(more: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("duet.toml"), format!("listen = \"127.0.0.1:0\"\n{more}"))
            .unwrap();
        Config::load(Some(dir.path()), None, &Overrides::default()).unwrap()
    }

    #[test]
    fn too_many_shards_and_too_few_descriptors_are_told_with_figures() {
        let all = cpus(&config("shards = 256\n"));
        assert_eq!(all.verdict, Verdict::Slow);
        assert!(all.found.ends_with("for 256 shards"), "{all:?}");
        assert_eq!(cpus(&config("shards = 1\n")).verdict, Verdict::Ok);
        let few = descriptors(&config("[limits]\nmax_streams = 10\n"));
        assert!(few.found.contains("522"), "{few:?}");
    }

    #[test]
    fn a_clock_that_nobody_has_set_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(clock(dir.path()).verdict, Verdict::Slow);
        fs::write(dir.path().join("synchronized"), "").unwrap();
        assert_eq!(clock(dir.path()).verdict, Verdict::Ok);
        assert_eq!(clock(&dir.path().join("none")).verdict, Verdict::Ok);
    }

    #[test]
    fn epoll_by_choice_is_slow_and_a_foreign_address_is_wrong() {
        let findings = shards(&config("io = \"epoll\"\nshards = 1\n"));
        let uring = findings.iter().find(|finding| finding.what == "io_uring").unwrap();
        assert_eq!((uring.verdict, &*uring.found), (Verdict::Slow, "not asked for"));
        let mut foreign = config("io = \"epoll\"\n");
        foreign.listen = "203.0.113.7:1".parse().unwrap();
        let findings = shards(&foreign);
        assert_eq!(findings[0].verdict, Verdict::Wrong);
        assert!(findings[0].found.contains("no interface of this machine"), "{findings:?}");
    }
}
