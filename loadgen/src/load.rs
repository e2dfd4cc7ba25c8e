//! Load on a gateway, mostly one's own: what is asked for, how it went, and whether the figures mean anything.

mod commands;
mod hostile;
mod report;
mod search;
mod target;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duet_protocol::identity::Gateway;
use duet_protocol::profile::{Profile, Transport};
use schemars::JsonSchema;
use serde::Serialize;

use self::commands::Commander;
pub use self::hostile::Hostile;
use self::hostile::{Ledger, Stranger};
pub(crate) use self::report::SCHEMA;
pub use self::report::{Generator, Latency, Outcome, Phase, Report, Second};
use self::search::Search;
use self::target::Target;
use self::watch::Watch;
use crate::contact;
use crate::crowd::{Crowd, KNOCKING_SHARE_MAX, Loop, Loss, Overheard, Steady, Tally};
use crate::local::{LocalGateway, Wanted};
use crate::process_clock::process_memory;
use crate::running::RunningGateway;

/// How long devices may take to get their channels after the last one has begun.
const OPEN_LIMIT: Duration = Duration::from_secs(60);

/// Open files of this program or of the gateway that are no device's connection.
const OTHER_FILES: u64 = 512;

/// What the devices do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// They connect at their pace, then send readings.
    Steady,
    /// They connect at their pace, then the gateway has each of them carry out commands, in turn.
    Commands,
    /// They connect at their pace, then send readings, at first undisturbed, then beside strangers who attack.
    Hostile,
    /// They all connect in the same instant.
    HandshakeStorm,
    /// They connect at their pace; then all of them connect anew in the same instant.
    ReconnectStorm,
}

impl Scenario {
    /// Whether all devices connect at once, and nothing else is measured.
    #[must_use]
    pub const fn is_storm(self) -> bool {
        matches!(self, Self::HandshakeStorm | Self::ReconnectStorm)
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the devices do.
    pub scenario: Scenario,
    /// How many there are.
    pub devices: u32,
    /// Their profile.
    pub profile: Profile,
    /// How many begin to connect each second, outside of storms.
    pub connect_per_s: u32,
    /// What carries their messages.
    pub transport: Transport,
    /// Whether each HELLO carries a reading, which is confirmed when the channel counts as open.
    pub early: bool,
    /// Readings, or commands, a second, of all together.
    pub per_s: u32,
    /// Whether latency counts from the schedule.
    pub pacing: Loop,
    /// Datagrams of strangers a second, in the scenario `hostile`.
    pub hostile_per_s: u32,
    /// How long readings or commands are sent before the measurement.
    pub warm_up: Duration,
    /// How long they are measured.
    pub span: Duration,
    /// Payloads of readings or commands, taken in turn.
    pub payloads: Vec<Vec<u8>>,
    /// What the link loses.
    pub loss: Loss,
    /// Of the devices' randomness and of the losses.
    pub seed: u64,
    /// Threads of this program.
    pub threads: usize,
    /// Shards of the gateway, when it is an own one.
    pub shards: usize,
    /// The state directory of a gateway that runs already; without it, an own one is started.
    pub state: Option<PathBuf>,
}

/// A phase's figures, and all that was counted.
type Measured = (Phase, Tally);

/// All phases of a run.
struct Phases {
    /// The devices' first channels, if that is not what is measured.
    connect: Option<Measured>,
    /// Before strangers came.
    undisturbed: Option<Measured>,
    /// What the scenario is about.
    measured: Measured,
    ledger: Option<Ledger>,
}

impl Phases {
    const fn new(connect: Option<Measured>, measured: Measured) -> Self {
        Self { connect, undisturbed: None, measured, ledger: None }
    }
}

/// A rate that a search tried.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Readings or commands a second.
    pub per_s: u32,
    /// How it went.
    pub phase: Phase,
    /// Whether the gateway kept to what was wanted, and it was the gateway that was measured.
    pub holds: bool,
    /// Why this program was measured instead.
    pub invalid_because: Vec<String>,
}

/// A gateway and its devices, ready.
pub struct Bench {
    gateway: Target,
    /// What it is known by.
    identity: Gateway,
    crowd: Crowd,
    overheard: Arc<Overheard>,
    commander: Option<Commander>,
    plan: Plan,
    /// Memory before there were sessions and devices, bytes.
    before: [u64; 2],
}

impl Bench {
    /// Registers the devices, and starts the gateway if none is named.
    ///
    /// # Errors
    /// When either refuses; the message says what to do.
    pub fn start(program: &Path, dir: &Path, plan: Plan) -> Result<Self> {
        ensure!(plan.devices > 0, "--devices must be at least 1");
        if plan.scenario == Scenario::Commands {
            ensure!(
                plan.pacing == Loop::Open,
                "commands are always given on a schedule: leave --closed-loop out"
            );
        }
        if plan.transport == Transport::Stream {
            ensure!(
                plan.loss.0 == 0,
                "a stream loses nothing: leave --loss out, or use --transport udp"
            );
            allow_descriptors(plan.devices)?;
        }
        if plan.scenario == Scenario::Hostile {
            ensure!(
                plan.transport == Transport::Datagram,
                "strangers overhear datagrams here: use --transport udp"
            );
        }
        let wanted: Vec<_> = (0..plan.devices)
            .map(|number| Wanted {
                name: format!("device-{number:06}"),
                profile: plan.profile,
                transport: plan.transport,
            })
            .collect();
        let (gateway, mut members) = match &plan.state {
            None => {
                let (own, members) = LocalGateway::start(program, dir, plan.shards, &wanted)?;
                (Target::Own(own), members)
            }
            Some(state) => {
                let (running, members) = RunningGateway::attach(state, &wanted)?;
                (Target::Running(running), members)
            }
        };
        for (number, member) in members.iter_mut().enumerate() {
            member.seed[..8].copy_from_slice(&plan.seed.to_be_bytes());
            member.seed[8..16].copy_from_slice(&number.to_be_bytes());
        }
        let identity = members[0].config.gateway;
        contact::check(&mut members[0], gateway.address())?;
        let before = [gateway.memory()?, process_memory(std::process::id())?];
        let commander = match plan.scenario {
            Scenario::Commands => {
                let names = members.iter().map(|member| member.name.clone()).collect();
                Some(Commander::new(gateway.state(), names)?)
            }
            _ => None,
        };
        let mut crowd = Crowd::new(members, gateway.address(), plan.threads, plan.loss, plan.seed)?;
        if plan.early {
            crowd.carry(plan.payloads.first().context("no reading to carry")?);
        }
        let overheard = Arc::default();
        if plan.scenario == Scenario::Hostile {
            crowd.overhear(&overheard);
        }
        Ok(Self { gateway, identity, crowd, overheard, commander, plan, before })
    }

    /// The gateway's process.
    #[must_use]
    pub fn gateway_pid(&self) -> u32 {
        self.gateway.pid()
    }

    /// Does what was asked for, once.
    ///
    /// # Errors
    /// When the system refuses, or not every device gets a channel.
    pub fn run(&mut self) -> Result<Outcome> {
        let watch = Watch::begin(Arc::clone(&self.crowd.progress));
        let phases = self.phases();
        let series = watch.end();
        let Phases { connect, undisturbed, measured: (measured, tally), ledger } = phases?;
        let plan = &self.plan;
        let mut invalid_because = Vec::new();
        if let Some((_, connecting)) = &connect {
            let lower = "a lower --connect-rate";
            invalid_because.extend(connecting.own_faults("while devices connected, ", lower));
        }
        if let Some((_, alone)) = &undisturbed {
            invalid_because.extend(alone.own_faults("before strangers came, ", "a lower rate"));
        }
        invalid_because.extend(tally.own_faults("", "a lower rate"));
        if plan.scenario.is_storm() && tally.knocking_share() > KNOCKING_SHARE_MAX {
            invalid_because.push(format!(
                "this program took {:.0}% of the storm to let all devices knock: use more --threads, or cores",
                tally.knocking_share() * 100.0
            ));
        }
        let connect = connect.map_or(measured, |one| one.0);
        let hostile = undisturbed.zip(ledger).map(|(one, ledger)| ledger.report(one.0));
        invalid_because.extend(hostile.as_ref().and_then(|one| one.own_fault(plan.hostile_per_s)));
        let devices = u64::from(plan.devices);
        let each = |now: u64, before: u64| now.saturating_sub(before) / devices;
        let report = Report {
            schema: SCHEMA,
            scenario: plan.scenario,
            devices: plan.devices,
            profile: plan.profile.name().to_owned(),
            transport: if plan.transport == Transport::Stream { "tcp" } else { "udp" }.to_owned(),
            early: plan.early,
            per_s: if plan.scenario.is_storm() { 0 } else { plan.per_s },
            pacing: if plan.pacing == Loop::Open { "open" } else { "closed" }.to_owned(),
            loss_ppm: plan.loss.0,
            seed: plan.seed,
            valid: invalid_because.is_empty(),
            invalid_because,
            connect,
            measured,
            refusals: self.commander.as_ref().map_or_else(Default::default, |c| c.refusals.clone()),
            hostile,
            generator: Generator {
                busy: tally.busy,
                late_share: tally.late_share(),
                late_p99_ms: Latency::of(&tally.lateness).p99,
                bytes_a_device: each(process_memory(std::process::id())?, self.before[1]),
            },
            gateway_bytes_a_session: each(self.gateway.memory()?, self.before[0]),
            series,
        };
        Ok(Outcome { report, latency: tally.latency })
    }

    /// Searches the highest rate of readings or commands at which `p99_ms` holds and all are confirmed; what was tried, in
    /// order, each told as soon as it is over.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn find_max(&mut self, p99_ms: f64, mut tell: impl FnMut(&Trial)) -> Result<Vec<Trial>> {
        self.open(Duration::from_secs(self.plan.devices.into()) / self.plan.connect_per_s.max(1))?;
        let (mut tried, mut search) = (Vec::new(), Search::from(self.plan.per_s));
        while let Some(per_s) = search.next() {
            self.plan.per_s = per_s;
            let (phase, tally) = self.work(self.plan.span)?;
            let invalid_because = tally.own_faults("", "a lower rate");
            let kept = phase.latency_ms.p99 <= p99_ms && phase.done == phase.due;
            let holds = kept && invalid_because.is_empty();
            search.tell(per_s, holds);
            let trial = Trial { per_s, phase, holds, invalid_because };
            tell(&trial);
            tried.push(trial);
        }
        Ok(tried)
    }

    /// Lets the gateway drain and end.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(self) -> Result<()> {
        self.gateway.stop()
    }

    fn phases(&mut self) -> Result<Phases> {
        let ramp = Duration::from_secs(self.plan.devices.into()) / self.plan.connect_per_s.max(1);
        match self.plan.scenario {
            Scenario::HandshakeStorm => Ok(Phases::new(None, self.open(Duration::ZERO)?)),
            Scenario::ReconnectStorm => {
                Ok(Phases::new(Some(self.open(ramp)?), self.open(Duration::ZERO)?))
            }
            Scenario::Steady | Scenario::Commands | Scenario::Hostile => {
                let connect = Some(self.open(ramp)?);
                if !self.plan.warm_up.is_zero() {
                    self.work(self.plan.warm_up)?;
                }
                let measured = self.work(self.plan.span)?;
                if self.plan.scenario != Scenario::Hostile {
                    return Ok(Phases::new(connect, measured));
                }
                let undisturbed = Some(measured);
                let (measured, ledger) = self.work_beside_strangers()?;
                Ok(Phases { connect, undisturbed, measured, ledger: Some(ledger) })
            }
        }
    }

    fn open(&mut self, ramp: Duration) -> Result<Measured> {
        let (gateway, crowd) = (&self.gateway, &mut self.crowd);
        let measured = measured(gateway, || crowd.open(ramp, OPEN_LIMIT))?;
        let missing = measured.0.due - measured.0.done;
        ensure!(
            missing == 0,
            "{missing} of {} devices got no channel within {} s: connect fewer in a second (--connect-rate), or see \
             what the gateway counts in duet_drops_total",
            measured.0.due,
            OPEN_LIMIT.as_secs()
        );
        Ok(measured)
    }

    fn work_beside_strangers(&mut self) -> Result<(Measured, Ledger)> {
        let stranger = Stranger {
            gateway: self.identity,
            overheard: Arc::clone(&self.overheard),
            random: fastrand::Rng::with_seed(self.plan.seed),
        };
        let (to, per_s) = (self.gateway.address(), self.plan.hostile_per_s);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let attacking = scope.spawn(|| stranger.attack(to, per_s, &over));
            let measured = self.work(self.plan.span);
            over.store(true, Ordering::Relaxed);
            let ledger = attacking.join().ok().context("the strangers' thread panicked")??;
            Ok((measured?, ledger))
        })
    }

    /// Readings or commands for some time.
    fn work(&mut self, span: Duration) -> Result<Measured> {
        let Self { gateway, crowd, commander, plan, .. } = self;
        let payloads = plan.payloads.as_slice();
        measured(gateway, || match commander {
            None => {
                let period = Duration::from_secs(plan.devices.into()) / plan.per_s.max(1);
                crowd.steady(Steady { period, pacing: plan.pacing, span, payloads })
            }
            Some(commander) => {
                let progress = Arc::clone(&crowd.progress);
                let (tally, answering) =
                    crowd.during(|| commander.give(plan.per_s, span, payloads, &progress))?;
                let mut tally = tally?;
                tally.busy = tally.busy.max(answering.busy);
                tally.overflowed += answering.overflowed;
                Ok(tally)
            }
        })
    }
}

/// Allows a connection for each device, here and in the gateway, which inherits the limit.
fn allow_descriptors(devices: u32) -> Result<()> {
    let needed = u64::from(devices) + OTHER_FILES;
    let allowed = rlimit::increase_nofile_limit(needed).context("the limit of open files")?;
    ensure!(
        allowed >= needed,
        "{devices} devices over TCP need {needed} open files, and only {allowed} are allowed: raise the limit with \
         `ulimit -n {needed}` (as root, or LimitNOFILE= of a service), or use fewer --devices"
    );
    // The kernel doubles a process's table of descriptors when it is full, and all of its threads wait for milliseconds.
    // One high number makes it large enough now.
    let last = i32::try_from(needed).unwrap_or(i32::MAX) - 1;
    drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run")]
fn measured(gateway: &Target, work: impl FnOnce() -> Result<Tally>) -> Result<Measured> {
    let before = gateway.cpu()?;
    let tally = work()?;
    let cpu = gateway.cpu()?.saturating_sub(before);
    let (done, seconds) = (tally.done.max(1) as f64, tally.took.as_secs_f64());
    let phase = Phase {
        due: tally.due,
        done: tally.done,
        seconds,
        per_s: tally.done as f64 / seconds.max(1e-6),
        latency_ms: Latency::of(&tally.latency),
        gateway_cpu_us: cpu.as_secs_f64() * 1e6 / done,
    };
    Ok((phase, tally))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schema_is_up_to_date() {
        let validator = crate::schema::published::<Report>("load.json");
        assert!(!validator.is_valid(&serde_json::json!({ "schema": SCHEMA })));
    }

    #[test]
    fn too_few_descriptors_are_named_with_what_would_do() {
        let error = allow_descriptors(u32::MAX).unwrap_err().to_string();
        assert!(error.contains("ulimit -n 4294967807"), "{error}");
    }
}
