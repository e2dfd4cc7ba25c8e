//! `duet run`: checks everything, then starts, waits for a signal and ends.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use duet::admin::{self, CommandError, Gateway, Options, Phase, Status};
use duet::config::Config;
use duet::identity::{GatewayIdentity, now_s};
use duet::registry::Registry;
use duet_protocol::identity::DeviceId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::control::open_patiently;

/// All that was checked before anything is bound.
struct Prepared {
    config: Config,
    registry: Arc<Registry>,
    /// Key id and identity; the current one first.
    identities: Vec<(u8, GatewayIdentity)>,
}

pub(super) fn run(config: Config) -> Result<ExitCode> {
    serve(prepare(config)?)?;
    Ok(ExitCode::SUCCESS)
}

fn prepare(config: Config) -> Result<Prepared> {
    if !config.state.is_dir() {
        bail!("{}: no such state directory; `duet init` makes one", config.state.display());
    }
    let now_s = now_s();
    let mut identities = Vec::new();
    for files in std::iter::once(&config.gateway).chain(&config.retiring) {
        let identity = GatewayIdentity::load(&files.certificate, &files.key, now_s)?;
        identities.push((files.key_id, identity));
    }
    let registry = Arc::new(open_patiently(&config.state)?);
    registry.view()?;
    Ok(Prepared { config, registry, identities })
}

/// Runs the control plane until a signal comes.
fn serve(prepared: Prepared) -> Result<()> {
    let Prepared { config, registry, identities } = prepared;
    let stop = Stop::listen()?;
    let telemetry = admin::install_telemetry();
    let gateway = Arc::new(ControlOnly { started: Instant::now(), shards: config.shards });
    let admin = admin::start(Options::new(&config), Arc::clone(&registry), gateway, telemetry)?;

    let mut out = io::stdout();
    let devices = registry.view()?.len();
    let fingerprint = &identities[0].1.certificate.fingerprint;
    writeln!(out, "fingerprint  {}", duet::identity::fingerprint_text(fingerprint))?;
    writeln!(out, "devices      {devices}")?;
    writeln!(out, "metrics      http://{}/metrics", admin.http())?;
    writeln!(out, "running")?;
    stop.wait();
    admin.shutdown()?;
    Ok(writeln!(out, "stopped")?)
}

/// SIGTERM and SIGINT, caught from the moment this exists.
struct Stop {
    runtime: tokio::runtime::Runtime,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        drop(entered);
        Ok(Self { runtime, terminate, interrupt })
    }

    fn wait(mut self) {
        self.runtime.block_on(async {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
        });
    }
}

/// A gateway with no data plane: the registry, its commands and its metrics.
struct ControlOnly {
    started: Instant,
    shards: usize,
}

impl Gateway for ControlOnly {
    fn revoked(&self, _: DeviceId) {}

    fn command(
        &self,
        _: DeviceId,
        _: Vec<u8>,
        _: Duration,
    ) -> oneshot::Receiver<Result<Vec<u8>, CommandError>> {
        let (answer, waiting) = oneshot::channel();
        // The receiver is right here.
        let _ = answer.send(Err(CommandError::NotConnected));
        waiting
    }

    fn status(&self) -> Status {
        let shards = self.shards.try_into().unwrap_or(u32::MAX);
        let uptime_s = self.started.elapsed().as_secs();
        Status { phase: Phase::Running, uptime_s, ..Status::starting(shards) }
    }
}
