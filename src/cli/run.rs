//! `duet run`: checks everything, then starts, waits for a signal and ends.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use duet::admin::audit::Audit;
use duet::admin::{self, GatewayFacts, Options};
use duet::config::{Config, Overrides};
use duet::delivery::{Care, Health};
use duet::identity::{AuthorityError, GatewayIdentity};
use duet::log;
use duet::manager::Inherited;
use duet::registry::Registry;
use duet::server::{Control, Server};
use duet::wipe;
use duet_core::{GatewayKey, TakenOver};
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::Gateway;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use super::control::open_patiently;
use super::identities::Identities;
use super::reload::{Reloader, Renewed, Start};
use super::{Place, files, life};

/// All that was checked before anything is bound.
struct Prepared {
    registry: Arc<Registry>,
    identities: Identities,
}

pub(super) fn run(place: Place, flags: Overrides, forget: &[String]) -> Result<ExitCode> {
    // Before anything else is opened.
    let inherited = Inherited::take();
    // From here on no SIGHUP ends the process.
    let mut stop = Stop::listen()?;
    let loaded = place.loaded(&flags)?;
    log::start(loaded.config.log.level, loaded.config.log.format);
    let inherited = inherited.unwrap_or_else(|error| {
        tracing::warn!("LISTEN_FDS: {error}; what a service manager passes is not used");
        Inherited::default()
    });
    let prepared = wipe::stack_after(|| prepare(&loaded.config, &mut stop))?;
    give_up(&loaded.config, forget)?;
    serve(prepared, stop, Start { place, flags, loaded }, inherited)?;
    Ok(ExitCode::SUCCESS)
}

/// Forgets upstreams that the settings no longer have. The registry is open, so no other gateway runs here.
fn give_up(config: &Config, names: &[String]) -> Result<()> {
    for name in names {
        if config.upstreams.iter().any(|upstream| upstream.name() == name) {
            bail!("--forget {name}: the settings have this upstream; remove it from them first");
        }
        if !duet::server::forget(config, name)? {
            bail!("--forget {name}: there is no upstream of this name to forget");
        }
    }
    Ok(())
}

/// Whether the state directory is one, and others cannot change what is in it.
pub(super) fn check_state(config: &Config) -> Result<()> {
    duet_control::socket(&config.state)?;
    if !config.state.is_dir() {
        bail!("{}: no such state directory; `duet init` makes one", config.state.display());
    }
    super::restore::is_finished(&config.state)?;
    let mode = fs::metadata(&config.state).map_or(0, |found| found.mode() & 0o777);
    if mode & 0o022 != 0 {
        bail!(
            "{}: mode {mode:04o} lets others change what is in it; run `chmod 700` on it",
            config.state.display()
        );
    }
    files::check(config)
}

fn prepare(config: &Config, stop: &mut Stop) -> Result<Prepared> {
    check_state(config)?;
    duet::identity::overwrite_in_place(&config.state);
    let warn = |text: &str| {
        tracing::warn!("{text}");
        life::status(text);
    };
    files::lost(&config.state).iter().for_each(|text| warn(text));
    let loaded = Identities::load_in_time(config, warn, |time| stop.pause(time))?;
    let Some(identities) = loaded else { bail!("ended by a signal, before it had started") };
    identities.warnings.iter().for_each(|text| warn(text));
    let registry = Arc::new(open_patiently(&config.state)?);
    registry.told().iter().for_each(|text| warn(text));
    registry.view()?;
    Ok(Prepared { registry, identities })
}

/// The keys that shards answer hellos with.
pub(super) fn gateway_keys(identities: &Identities) -> Result<Vec<GatewayKey>> {
    let key = |(key_id, identity): &(u8, GatewayIdentity)| {
        let GatewayIdentity { certificate, secret } = identity;
        let gateway =
            Gateway { key_id: *key_id, fingerprint: certificate.fingerprint, key: certificate.key };
        let Some(secret) = SecretScalar::from_bytes(secret.expose()) else {
            bail!("key {key_id}: the private key is out of range");
        };
        Ok(GatewayKey::new(gateway, secret))
    };
    identities.all.iter().map(key).collect()
}

/// What devices need to know of a gateway that listens here.
pub(super) fn facts(config: &Config, identities: &Identities, listen: SocketAddr) -> GatewayFacts {
    let (current, files) = (&identities.all[0].1.certificate, &config.gateway);
    GatewayFacts::of(files.key_id, current, &files.certificate, listen)
}

/// Runs both planes until a signal comes.
fn serve(prepared: Prepared, stop: Stop, start: Start, mut inherited: Inherited) -> Result<()> {
    let Prepared { registry, identities } = prepared;
    let telemetry = admin::install_telemetry();
    let view = registry.view()?;
    for (key_id, identity) in &identities.all {
        telemetry.set_certificate_end(*key_id, identity.certificate.validity.not_after_s);
    }
    let (curve, gcm) = (duet_curve::Backend::select()?, duet_aead::Gcm::select()?);
    telemetry.set_build(curve.name(), gcm.backend().name());
    let config = &start.loaded.config;
    let mut options = Options::new(config);
    let mut renew_tls = None;
    if let Some(api) = &config.api {
        let (acceptor, end_s) = admin::acceptor(&api.certificate, &api.key)?;
        telemetry.set_api_certificate_end(end_s);
        let (sender, acceptor) = watch::channel(acceptor);
        (options.api, renew_tls) = (Some((api.listen, acceptor)), Some(sender));
    }
    // A CA that has ended keeps nobody out who is registered; a file that is none is a mistake.
    match admin::check_enrol(&config.enrol, duet::identity::now_s()) {
        Err(error @ (AuthorityError::Ended(..) | AuthorityError::NotYet(..))) => {
            tracing::warn!("no device can enrol: {error}");
        }
        checked => drop(checked?),
    }
    // It comes first of all that a start makes: where the rest is and the log is not, somebody has taken it.
    drop(Audit::open(&config.state, Some(config.audit_max_bytes))?);
    let server = Server::start(config, &gateway_keys(&identities)?, &registry, &mut inherited)?;
    identities.remember(&config.state);
    for (name, _) in inherited.named(|_| true) {
        tracing::warn!(
            "a service manager passes a descriptor \"{name}\", which nothing here needs: closed"
        );
    }
    let facts = watch::Sender::new(Some(facts(config, &identities, server.local)));
    options.facts = facts.subscribe();
    let renewed = Renewed { facts, tls: renew_tls };
    let fingerprint = identities.all[0].1.certificate.fingerprint;
    let reloader = Reloader::new(start, &identities, server.control(), telemetry.clone(), renewed);
    let reloader = Arc::new(reloader);
    let asked = Arc::clone(&reloader);
    let reload = Box::new(move || asked.reload().map_err(|error| crate::message(&error)));
    let options = Options { reload, ..options };
    let started = admin::start(options, Arc::clone(&registry), server.control(), telemetry);
    let admin = match started {
        Ok(admin) => admin,
        Err(error) => {
            server.drain(false)?;
            return Err(error.into());
        }
    };
    drop(identities);

    // Nobody needs to read this: a gateway does not end because its log has.
    let tell = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(io::stdout(), "{text}");
    };
    server.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    tell(format_args!("listening    {} (UDP and TCP)", server.local));
    tell(format_args!("fingerprint  {}", duet::identity::fingerprint_text(&fingerprint)));
    tell(format_args!("devices      {}", view.len()));
    if let Some(TakenOver { taken, left }) = server.taken_over {
        tell(format_args!("sessions     {taken} go on, {left} are over"));
    }
    tell(format_args!("metrics      http://{}/metrics", admin.http()));
    if let Some(address) = admin.api() {
        tell(format_args!("API          https://{address}"));
    }
    tell(format_args!("running"));
    life::ready();
    let (spool, damage) = (server.spool(), server.damage());
    let asked =
        stop.wait(&server.ended(), spool, damage, server.care(), &reloader, server.control());
    life::stopping();
    // A shard that has ended by itself may do so again: everything begins anew then.
    let drained = server.drain(asked);
    let saved = admin.shutdown();
    // A full disk fails both, and only the spool's error has the place and the cause.
    drained?;
    saved?;
    if !asked {
        bail!("a shard ended by itself");
    }
    tell(format_args!("stopped"));
    Ok(())
}

/// SIGTERM, SIGINT and SIGHUP, caught from the moment this exists.
struct Stop {
    runtime: tokio::runtime::Runtime,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let hangup = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
        drop(entered);
        Ok(Self { runtime, terminate, interrupt, hangup })
    }

    /// Waits so long; false as soon as a signal says to end.
    fn pause(&mut self, time: Duration) -> bool {
        let (terminate, interrupt) = (&mut self.terminate, &mut self.interrupt);
        self.runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => false,
                _ = interrupt.recv() => false,
                () = tokio::time::sleep(time) => true,
            }
        })
    }

    /// Whether it was a signal, and not a shard's end.
    fn wait(
        mut self,
        ended: &Notify,
        spool: watch::Receiver<Health>,
        damage: watch::Receiver<Option<String>>,
        care: watch::Receiver<Care>,
        reloader: &Arc<Reloader>,
        control: Arc<Control>,
    ) -> bool {
        let (terminate, interrupt) = (&mut self.terminate, &mut self.interrupt);
        self.runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => true,
                _ = interrupt.recv() => true,
                () = ended.notified() => false,
                () = tell_health(spool) => false,
                () = tell_damage(damage) => false,
                () = tell_care(care) => false,
                () = life::watch(control) => false,
                () = reload_at(&mut self.hangup, reloader) => false,
            }
        })
    }
}

/// Has changed settings taken whenever the signal comes. It never completes.
async fn reload_at(hangup: &mut tokio::signal::unix::Signal, reloader: &Arc<Reloader>) {
    while hangup.recv().await.is_some() {
        let reloader = Arc::clone(reloader);
        life::reloading();
        // It reads files, and shards may take a moment to hear of it.
        let done =
            tokio::task::spawn_blocking(move || wipe::stack_after(|| reloader.reload())).await;
        life::ready();
        // What became of it, it has logged itself.
        if done.is_err() {
            tracing::error!("reload: failed; this is a bug in duet, please report it");
        }
    }
    std::future::pending().await
}

/// Says how the spool is when that changes: whoever finds devices unanswered looks here first. It never completes.
async fn tell_health(mut spool: watch::Receiver<Health>) {
    while spool.changed().await.is_ok() {
        match spool.borrow_and_update().clone() {
            Health::Working => {
                tracing::info!("there is room again: readings are stored and confirmed");
            }
            Health::Full => tracing::error!(
                "the spool has reached spool.max_bytes; no reading is stored or confirmed until there is room: copy \
                 readings away and run `duet spool trim`, or raise the limit"
            ),
            Health::DiskFull(cause) => {
                tracing::error!("{cause}; no reading is stored or confirmed until there is room")
            }
            Health::Failed(cause) => tracing::error!(
                "{cause}; no reading is stored or confirmed until the gateway is started anew"
            ),
        }
    }
    std::future::pending().await
}

/// Says what is damaged in what was stored before, once. It never completes.
async fn tell_damage(mut damage: watch::Receiver<Option<String>>) {
    if let Ok(found) = damage.wait_for(Option::is_some).await
        && let Some(found) = &*found
    {
        tracing::error!("{found}; new readings are stored as before");
    }
    std::future::pending().await
}

/// Says why readings do not go by themselves, when that changes. It never completes.
async fn tell_care(mut care: watch::Receiver<Care>) {
    let mut told = None;
    while care.changed().await.is_ok() {
        let untrimmed = care.borrow_and_update().untrimmed.clone();
        if let Some(cause) = untrimmed.as_ref().filter(|_| untrimmed != told) {
            tracing::warn!("{cause}; until then no delivered reading is removed");
        }
        told = untrimmed;
    }
    std::future::pending().await
}
