//! Starts and ends the data plane: one thread a shard, the spool behind them. It moves no byte
//! itself.

mod commands;
mod desk;
mod handover;
mod host;
mod journal;
mod marks;
mod node_key;
mod notices;
mod probe;
mod publish;
mod quota;
mod refusals;
mod sink;
mod teeth;
mod upstreams;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use duet_aead::Gcm;
use duet_core::engine::Batched;
use duet_core::{
    BATCH_MAX, Directory, GatewayKey, Handler as _, Mail, Random, Renewal, Settings, Shard,
    StreamLimits, TakenOver,
};
use duet_curve::Backend;
use duet_protocol::identity::DeviceId;
use duet_protocol::reason::DropReason;
use duet_protocol::wire::Kind;
use duet_telemetry::catalogue::{DRIVER_INFO, LIMITS};
use duet_upstream::Taker;
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use self::commands::ShardWays;
use self::desk::Desk;
use self::handover::HandedOver;
use self::host::{Gauges, Host};
use self::journal::Journals;
use self::marks::Marks;
pub use self::marks::MarksError;
use self::notices::Notices;
pub use self::probe::{Probe, probe};
use self::quota::{Allowance, Quotas};
use self::refusals::Telling;
use self::teeth::Making;
use self::upstreams::Forwarding;
pub use self::upstreams::{UpstreamError, expected_cursors, forget};
use crate::admin::{Activity, Dropped, Fault, Gateway, Phase, Status};
use crate::commands::{Commands, Limits, Opened, StoreError};
use crate::config::Config;
use crate::delivery::{self, Care, Health, Retention, Spool, SpoolConfig, SpoolError, Submitter};
use crate::driver::{DriverKind, LocalAddress};
use crate::manager::{self, Inherited};
use crate::presence::{LastValue, Looking, Watch};
use crate::registry::{Registry, RegistryError, View};
use crate::transport::{
    self, Bound, KeptSockets, MailSender, TransportError, is_socket_name, run_shard,
};
use crate::wipe;

/// A burst of hellos that is answered within this time waits, µs. A device asks again after a second (R83).
const BURST_US: u64 = 600_000;

/// Looks whether a gateway of this state directory has a node key that it can use, and changes nothing.
///
/// # Errors
/// [`ServerError::NodeKey`].
pub fn look_at_node_key(state: &Path) -> Result<(), ServerError> {
    let path = state.join(node_key::FILE);
    node_key::look(&path).map_err(|error| ServerError::NodeKey { path, error })
}

/// Whether a gateway with these settings would take its spool, and what it would find missing; changes nothing.
///
/// # Errors
/// [`SpoolError`], as a start would have it.
pub fn look_at_spool(config: &Config) -> Result<Option<String>, SpoolError> {
    delivery::look(&spool_config(config))
}

fn spool_config(config: &Config) -> SpoolConfig {
    SpoolConfig {
        dir: config.spool.dir.clone(),
        segment_bytes: config.spool.segment_bytes,
        max_bytes: config.spool.max_bytes,
        known: Some(config.state.join("spool.id")),
        retention: Retention {
            max_age: match config.spool.max_age_s {
                0 => None,
                seconds => Some(Duration::from_secs(seconds)),
            },
            when_full: config.spool.when_full,
        },
    }
}

/// Why the data plane could not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Sockets or rings.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What readings in the spool say of their devices could not be read, or not be kept.
    #[error("what stored readings say of their devices: {0}")]
    Marks(#[from] MarksError),
    /// What readings go on to.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The queue of commands.
    #[error(transparent)]
    Commands(#[from] StoreError),
    /// The node's own secret.
    #[error("{}: the node key cannot be used: {error}. With another key devices take longer to come back: restore the file from a backup if there is one", path.display())]
    NodeKey {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The AEAD backend that the environment asks for.
    #[error(transparent)]
    Aead(#[from] duet_aead::SelectError),
    /// The curve's backend that the environment asks for.
    #[error(transparent)]
    Curve(#[from] duet_curve::NoSuchBackend),
    /// The system lets too few files be open.
    #[error(
        "only {found} files may be open at once, and a gateway of {shards} shards needs {needed} at least: raise the limit \
         (`ulimit -n`, `LimitNOFILE=`), or use fewer shards"
    )]
    Descriptors {
        /// How many may be.
        found: u64,
        /// How many shards it is to have.
        shards: usize,
        /// What those need.
        needed: usize,
    },
    /// The system has no thread to give.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The kernel has no randomness, or a thread has ended.
    #[error("the system refused {0}")]
    System(&'static str),
}

/// A running data plane.
pub struct Server {
    /// Where it listens: the same port for UDP and TCP.
    pub local: SocketAddr,
    /// What went differently than wished, for people.
    pub warnings: Vec<String>,
    /// What became of the sessions of the process before, if it has left some.
    pub taken_over: Option<TakenOver>,
    threads: Vec<JoinHandle<Result<Option<HandedOver>, TransportError>>>,
    node_key: Zeroizing<[u8; 32]>,
    stop: transport::Stop,
    ended: Arc<Notify>,
    spool: Spool,
    /// The thread that copies marks from the spool, and what stops it.
    marks: (mpsc::Sender<()>, JoinHandle<()>),
    teeth: Making,
    refusals: Telling,
    journals: Option<Journals>,
    control: Arc<Control>,
}

/// The data plane as the control plane sees it.
pub struct Control {
    commands: Commands,
    desk: Arc<Desk>,
    presence: Arc<Watch>,
    mail: Vec<MailSender<Mail>>,
    listen: SocketAddr,
    driver: DriverKind,
    started: Instant,
    shards: u32,
    view: Arc<View>,
    draining: AtomicBool,
    spool: watch::Receiver<Health>,
    upstreams: Forwarding,
    allowed: Arc<Allowance>,
    damage: watch::Receiver<Option<String>>,
    care: watch::Receiver<Care>,
    gauges: Vec<Arc<Gauges>>,
}

fn sum(gauges: &[Arc<Gauges>], of: impl Fn(&Gauges) -> &AtomicU64) -> u64 {
    gauges.iter().map(|gauges| of(gauges).load(Ordering::Relaxed)).sum()
}

/// Open files that are no device's connection.
pub const OTHER_FILES: u32 = 512;

/// Raises the soft limit of open files to what connections may need, as far as the hard limit lets it. The table
/// of descriptors gets that size at once: the kernel doubles it when it is full, and all threads wait meanwhile.
fn allow_descriptors(config: &Config) -> Result<(), ServerError> {
    let wanted = u64::from(config.limits.max_streams + OTHER_FILES);
    let found = rlimit::increase_nofile_limit(wanted).unwrap_or(wanted);
    let needed = 33 + 5 * config.shards + 2 * config.upstreams.len();
    if found < needed as u64 {
        return Err(ServerError::Descriptors { found, shards: config.shards, needed });
    }
    // Too few for connections are no reason not to start: accepting waits then, and the failures are counted.
    let allowed = found.min(wanted);
    let last = i32::try_from(allowed).unwrap_or(i32::MAX) - 1;
    drop(rustix::io::fcntl_dupfd_cloexec(io::stderr(), last));
    Ok(())
}

/// Where it is written down who is online. Without it a gateway serves all the same, and says nothing once it was killed.
fn journals(config: &Config, spool: &Submitter, handed_over: bool) -> Option<Journals> {
    if !config.notices.presence {
        Journals::forget(&config.state);
        return None;
    }
    let opened = Journals::open(&config.state, spool, handed_over);
    if let Err(error) = &opened {
        tracing::warn!(
            "the folder presence of the state directory: {error}; upstreams will not hear who left if this gateway is killed"
        );
    }
    opened.ok()
}

impl Server {
    /// Binds every socket, or takes those of the process before, opens the spool, starts the shards.
    ///
    /// # Errors
    /// [`ServerError`]; then nothing is left running.
    pub fn start(
        config: &Config,
        keys: &[GatewayKey],
        registry: &Arc<Registry>,
        inherited: &mut Inherited,
    ) -> Result<Self, ServerError> {
        let (gcm, curve) = (Gcm::select()?, Backend::select()?);
        allow_descriptors(config)?;
        let settings = transport_settings(config);
        let streams_max = settings.streams_max;
        // Refusals come first: they leave no file behind.
        let kept = kept_sockets(&settings, inherited);
        let are_kept = kept.is_some();
        let bound = transport::bind_kept::<Mail>(settings, kept)?;
        let unkept = (!are_kept).then(|| keep_sockets(&bound).err()).flatten();
        let Bound { local, shards, mail, warnings, stop, driver, .. } = bound;
        let (node_key, other_key) = node_key::load(&config.state.join(node_key::FILE))?;
        let limits = Limits {
            per_device: config.commands.per_device as usize,
            ttl_ms: u64::from(config.commands.ttl_s) * 1_000,
            ..Limits::default()
        };
        let view = &registry.view()?;
        let teeth = Making::begin(Arc::clone(view), curve).map_err(ServerError::Thread)?;
        let known = Arc::clone(view);
        let registrations =
            move |device: &DeviceId| known.lookup(device).map(|device| device.registration());
        let path = config.state.join(crate::commands::FILE);
        let commands = Opened::open(path, limits, Box::new(registrations))?;
        let spool = Spool::start(spool_config(config))?;
        // R101: before the first HELLO is answered.
        let marks = Marks::restore(&config.spool.dir, Arc::clone(registry), spool.source())?;
        let desk = Arc::new(Desk::new());
        let upstreams = match Forwarding::start(config, spool.source(), Arc::clone(&desk)) {
            Ok(upstreams) => upstreams,
            Err(error) => {
                spool.shutdown()?;
                return Err(error.into());
            }
        };
        // What marks and upstreams still need is held from here on.
        spool.begin_removal();
        for kind in [DriverKind::IoUring, DriverKind::Epoll] {
            DRIVER_INFO.with([kind.name()]).set_flag(kind == driver);
        }
        set_limits(config);
        LIMITS.with(["streams"]).set_count(u64::from(config.limits.max_streams));
        // Measured by the pipeline bench, in batches.
        let hello_us = if curve.lanes() == 1 { 150 } else { 35 };
        let allowed = Allowance::new(&config.quota, config.spool.max_bytes, spool.scarce());
        let allowed = Arc::new(allowed);
        let (mut threads, ended) = (Vec::new(), Arc::new(Notify::new()));
        let gauges: Vec<_> = shards.iter().map(|_| Arc::new(Gauges::default())).collect();
        let presence = Arc::new(Watch::new(config.shards));
        let (notes, refusals) =
            Telling::begin(Arc::clone(&presence)).map_err(ServerError::Thread)?;
        let most = config.limits.max_sessions as usize;
        let handed = handed_over(inherited, &node_key, keys, most).map(Arc::new);
        let (tell_taken, taken) = mpsc::channel::<(TakenOver, Vec<Arc<str>>)>();
        let mut waiting = Vec::new();
        let mut journals = journals(config, &spool.submitter(), handed.is_some());
        for (mut io, own) in shards.into_iter().zip(mail.clone()) {
            let settings = Settings {
                keys: keys.to_vec(),
                node_key: *node_key,
                index: io.index(),
                shards: config.shards,
                idle_us: u64::from(config.session.idle_timeout_s) * 1_000_000,
                pending_us: u64::from(config.session.pending_timeout_ms) * 1_000,
                lifetime_s: config.session.lifetime_s,
                sessions_max: share(config.limits.max_sessions, config.shards),
                pending_max: share(config.limits.max_pending, config.shards),
                retry_from: 2 * BATCH_MAX,
                burst_us: BURST_US,
                hello_us,
                streams: StreamLimits { most: streams_max, ..StreamLimits::default() },
                gcm,
            };
            let quotas = Quotas::new(Arc::clone(&allowed));
            let sink =
                sink::SpoolSink::new(spool.submitter(), own, quotas, presence.values(io.index()));
            let (gauges, teller) = (Arc::clone(&gauges[io.index()]), commands.teller());
            let notes = notes.clone();
            let watch = Arc::clone(&presence);
            let journal = journals.as_ref().and_then(|all| all.shard(io.index()).ok());
            let notices = config.notices.presence.then(|| {
                Notices::new(spool.submitter(), Quotas::new(Arc::clone(&allowed)), journal)
            });
            let directory: Arc<dyn Directory> = Arc::<View>::clone(view);
            let ending = Ending(Arc::clone(&ended));
            let handed = handed.clone().map(|handed| {
                let (release, released) = mpsc::channel::<()>();
                waiting.push(release);
                (handed, tell_taken.clone(), released)
            });
            let mut random = Random::new(kernel_randomness);
            let thread = std::thread::Builder::new()
                .name(format!("shard-{}", io.index()))
                .spawn(move || {
                    let _ending = ending;
                    wipe::nothing_on_this_thread();
                    let engine = Batched::new(curve, &random.bytes());
                    let mut shard = Shard::new(settings, directory, engine, sink, random);
                    // R113: what is queued comes by mail.
                    shard.handle_mail(transport::now(), Mail::CommandsBehind(true));
                    let mut host = Host::new(shard, gauges, teller, watch, notices, notes);
                    if let Some((handed, tell, released)) = handed {
                        let via = |local| io.via(LocalAddress::from_parts(local));
                        // Whoever starts the shards waits for it.
                        let _ = tell.send(host.take_over(transport::now(), &handed, via));
                        drop((handed, tell));
                        // Of who has left it is told before it is of who comes.
                        let _ = released.recv();
                    }
                    let mut finished = run_shard(io, host)?;
                    let (host, local) = finished.handler_and_locals();
                    Ok(host.leave(|via| Some(local(via)?.parts())))
                })
                .map_err(ServerError::Thread)?;
            threads.push(thread);
        }
        drop(tell_taken);
        let mut go_on = HashSet::new();
        let taken_over = handed.map(|handed| {
            drop(handed);
            taken.iter().fold(TakenOver::default(), |sum, (one, devices)| {
                go_on.extend(devices);
                TakenOver { taken: sum.taken + one.taken, left: sum.left + one.left }
            })
        });
        if let Some(Err(error)) = journals.as_mut().map(|all| all.go_on(&go_on, &spool.submitter()))
        {
            tracing::warn!(
                "the folder presence of the state directory: {error}; upstreams may hear late which devices left with the process before"
            );
        }
        drop((go_on, waiting));
        let teller = commands.teller();
        let commands = commands
            .run(Box::new(ShardWays { mail: mail.clone(), spool: spool.submitter(), teller }))
            .map_err(ServerError::Thread)?;
        let control = Arc::new(Control {
            commands,
            desk,
            presence,
            mail,
            listen: local,
            driver,
            started: Instant::now(),
            shards: u32::try_from(config.shards).unwrap_or(u32::MAX),
            view: Arc::clone(view),
            draining: AtomicBool::new(false),
            spool: spool.health(),
            upstreams,
            allowed,
            damage: spool.damage(),
            care: spool.care(),
            gauges,
        });
        let mut warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        warnings.extend(unkept.map(|error| {
            format!("the service manager does not keep the sockets over a restart: {error}")
        }));
        warnings.extend(other_key);
        warnings.extend(spool.recovery.told(&config.spool.dir));
        warnings.extend(marks.told.clone());
        let (stop_marks, stopped) = mpsc::channel();
        let marks = std::thread::Builder::new()
            .name("marks".into())
            .spawn(move || marks.keep(&stopped))
            .map_err(ServerError::Thread)?;
        let marks = (stop_marks, marks);
        let node_key = Zeroizing::new(*node_key);
        Ok(Self {
            local,
            warnings,
            taken_over,
            threads,
            node_key,
            stop,
            ended,
            spool,
            marks,
            teeth,
            refusals,
            journals,
            control,
        })
    }

    /// Completes when a shard ends by itself: then the gateway must end, for a supervisor to
    /// start it anew.
    #[must_use]
    pub fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// How the spool is.
    #[must_use]
    pub fn spool(&self) -> watch::Receiver<Health> {
        self.spool.health()
    }

    /// What is damaged in its older segments, as far as they have been read.
    #[must_use]
    pub fn damage(&self) -> watch::Receiver<Option<String>> {
        self.spool.damage()
    }

    /// What an operator has to see of it although it works.
    #[must_use]
    pub fn care(&self) -> watch::Receiver<Care> {
        self.spool.care()
    }

    /// What the control plane holds.
    #[must_use]
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Ends every session, or leaves it to the next process where a service manager can hand it on and `hand_over` allows
    /// it; lets the spool finish, joins every thread.
    ///
    /// # Errors
    /// The first thing that went wrong on the way.
    pub fn drain(self, hand_over: bool) -> Result<(), ServerError> {
        self.control.draining.store(true, Ordering::Relaxed);
        let hand_over = hand_over && manager::keeps(to_keep(self.threads.len()));
        let mail = || if hand_over { Mail::HandOver } else { Mail::Drain };
        if !self.control.tell_all(mail) {
            // One that takes no mail is stuck: all end, without their goodbyes.
            self.stop.stop();
        }
        // The last senders but the spool's completions: what remains ends with the shards.
        let (mut result, mut left) = (Ok(()), Vec::new());
        for thread in self.threads {
            match thread.join() {
                Ok(Ok(one)) => left.extend(one),
                Ok(Err(error)) => result = Err(error.into()),
                Err(_) => result = Err(ServerError::System("a shard to go on: it panicked")),
            }
        }
        if hand_over && result.is_ok() {
            keep_sessions(left, &self.node_key);
            if let Some(Err(error)) = self.journals.map(|all| all.stopped()) {
                tracing::warn!(
                    "the folder presence of the state directory: {error}; upstreams will hear that devices left because this gateway \
                     was killed, unless the next one takes their sessions over"
                );
            }
        }
        // What devices said last is recorded before the spool, to which it goes on, ends.
        self.control.commands.shutdown();
        drop(self.teeth);
        self.refusals.end();
        let (stop, marks) = self.marks;
        // Dropped, it tells the thread to copy once more and end.
        drop(stop);
        if marks.join().is_err() {
            result = Err(ServerError::System("the copying of marks to go on: it panicked"));
        }
        let stored = self.spool.shutdown();
        // What was stored last may still arrive.
        self.control.upstreams.shutdown();
        stored?;
        result
    }
}

/// How many descriptors a service manager is to keep: three sockets a shard, and the sessions.
fn to_keep(shards: usize) -> usize {
    3 * shards + 1
}

/// The sockets of the process before, if they are what the settings ask for. Otherwise the manager closes them, so that
/// their address can be bound.
fn kept_sockets(settings: &transport::Settings, inherited: &mut Inherited) -> Option<KeptSockets> {
    let named = inherited.named(is_socket_name);
    let names: Vec<_> = named.iter().map(|(name, _)| name.clone()).collect();
    let kept = KeptSockets::fitting(settings, named);
    if kept.is_none() {
        // One that does not listen any more keeps nothing either.
        names.iter().for_each(|name| drop(manager::forget(name)));
    }
    kept
}

/// Has the manager keep new sockets, if there is one that can.
fn keep_sockets(bound: &Bound<Mail>) -> io::Result<()> {
    if manager::keeps(to_keep(bound.shards.len())) {
        for (name, socket) in bound.sockets() {
            manager::store(&name, socket)?;
        }
    }
    Ok(())
}

/// The sessions that the process before has left, which nobody can take again.
fn handed_over(
    inherited: &mut Inherited,
    node_key: &[u8; 32],
    keys: &[GatewayKey],
    sessions_max: usize,
) -> Option<Zeroizing<Vec<u8>>> {
    let all = inherited.named(|name| name == handover::NAME);
    if all.is_empty() {
        return None;
    }
    let gateways: Vec<_> = keys.iter().map(|key| key.gateway.fingerprint).collect();
    let now_us = transport::now().mono_us;
    let mut found = None;
    for (_, memory) in all {
        match handover::unpack(memory, node_key, &gateways, sessions_max, now_us) {
            Ok(sessions) => found = Some(sessions),
            Err(refused) => tracing::warn!(
                "sessions of the process before are not taken over: {refused}; their devices open new ones"
            ),
        }
    }
    if let Err(error) = manager::forget(handover::NAME) {
        tracing::warn!(
            "the service manager does not close what held sessions, which is wiped: {error}"
        );
    }
    found
}

/// Has the manager keep sessions until the next start.
fn keep_sessions(left: Vec<HandedOver>, node_key: &[u8; 32]) {
    let kept = handover::pack(&left, node_key, transport::now().mono_us).and_then(|memory| {
        memory.map_or(Ok(()), |memory| manager::store(handover::NAME, memory.as_fd()))
    });
    if let Err(error) = kept {
        tracing::warn!("sessions cannot be left to the next start: {error}; devices open new ones");
    }
}

/// A shard's part of a limit. One below the number of shards still lets each of them work.
fn share(limit: u32, shards: usize) -> usize {
    (limit as usize / shards).max(1)
}

/// Tells that a shard's thread ends, also by a panic.
struct Ending(Arc<Notify>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Fresh bytes from the kernel. No session may be made without, so a shard ends where it has none.
fn kernel_randomness(out: &mut [u8]) {
    let filled = getrandom::fill(out);
    assert!(filled.is_ok(), "the kernel has no randomness to give");
}

/// What the settings ask of sockets and rings.
fn transport_settings(config: &Config) -> transport::Settings {
    // The limit is for all shards together, and a shard counts fewer than 2²⁰.
    let streams_max = (config.limits.max_streams as usize / config.shards).clamp(1, (1 << 20) - 1);
    transport::Settings {
        listen: config.listen,
        shards: config.shards,
        io: config.io,
        streams_max,
        cores: if config.pin { cores(config.shards) } else { Vec::new() },
        hello: Kind::Hello.byte(),
        min_wait_us: config.gather_us,
        submissions: config.queues.submissions,
        completions: config.queues.completions,
        datagram_buffers: config.queues.datagram_buffers,
        stream_buffers: config.queues.stream_buffers,
        send_slots: config.queues.send_slots,
        ..transport::Settings::default()
    }
}

/// A core for each shard, of those that this process may use; none where there are too few.
fn cores(shards: usize) -> Vec<usize> {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    let allowed = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let cores: Vec<_> = allowed.take(shards).collect();
    if cores.len() == shards { cores } else { Vec::new() }
}

/// Shows the limits that a running gateway takes.
fn set_limits(config: &Config) {
    LIMITS.with(["sessions"]).set_count(u64::from(config.limits.max_sessions));
    LIMITS.with(["pending"]).set_count(u64::from(config.limits.max_pending));
}

impl Control {
    /// For each shard, how often it has shown that it turns: it does so every second, with or without work.
    #[must_use]
    pub fn turns(&self) -> Vec<u64> {
        self.gauges.iter().map(|gauges| gauges.turns.load(Ordering::Relaxed)).collect()
    }

    /// Has every shard take new keys and the settings that can change while it runs; what it already holds keeps
    /// its former terms. It blocks until all have been told.
    pub fn renew(&self, config: &Config, keys: &[GatewayKey]) {
        self.allowed.change(&config.quota);
        set_limits(config);
        let shards = self.mail.len();
        let limits = Renewal {
            keys: keys.to_vec(),
            idle_us: u64::from(config.session.idle_timeout_s) * 1_000_000,
            pending_us: u64::from(config.session.pending_timeout_ms) * 1_000,
            lifetime_s: config.session.lifetime_s,
            sessions_max: share(config.limits.max_sessions, shards),
            pending_max: share(config.limits.max_pending, shards),
        };
        let _ = self.tell_all(|| Mail::Renew(Box::new(limits.clone())));
    }

    /// Where devices reach it.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Passes readings on by other settings; says which upstreams are new, changed or gone. It blocks until those of
    /// before have ended.
    ///
    /// # Errors
    /// [`UpstreamError`]; then those of before go on.
    pub fn change_upstreams(&self, config: &Config) -> Result<Vec<String>, UpstreamError> {
        self.upstreams.change(config)
    }

    /// Whether every shard took it. Control mail must arrive, and a full mailbox empties within
    /// a turn.
    fn tell_all(&self, mail: impl Fn() -> Mail) -> bool {
        let mut all = true;
        for shard in &self.mail {
            let mut waiting = Some(mail());
            for _ in 0..1_000 {
                let Some(mail) = waiting.take() else { break };
                waiting = shard.try_send(mail).err();
                if waiting.is_some() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            all &= waiting.is_none();
        }
        all
    }
}

impl Gateway for Control {
    fn revoked(&self, device: DeviceId) {
        // Where it does not arrive, the registry's view tells with the device's next record.
        let _ = self.tell_all(|| Mail::Revoked(device));
        self.commands.revoked(device);
    }

    fn commands(&self) -> Option<&Commands> {
        Some(&self.commands)
    }

    fn take_orders(&self, taker: Arc<dyn Taker>) {
        self.desk.open(taker);
    }

    fn latest(&self, device: DeviceId) -> Vec<LastValue> {
        self.presence.latest(device)
    }

    fn look(&self, devices: &[DeviceId]) -> Option<Looking> {
        let mail = |shard: usize, mail| {
            self.mail.get(shard).is_some_and(|sender| sender.try_send(mail).is_ok())
        };
        Some(self.presence.look(devices, mail))
    }

    fn activity(&self) -> Activity {
        let mut all = Activity::default();
        let mut drops = [0_u64; DropReason::ALL.len()];
        for gauges in &self.gauges {
            let counts = gauges.counts.lock().unwrap_or_else(PoisonError::into_inner);
            all.readings += counts.readings;
            all.readings_early += counts.readings_early;
            all.readings_known += counts.readings_known;
            all.accepts += counts.accepts;
            all.confirmed += counts.confirmed;
            all.challenges += counts.challenges;
            all.resets += counts.resets;
            all.unsent += counts.unsent;
            for (sum, count) in drops.iter_mut().zip(counts.drops) {
                *sum += count;
            }
        }
        let there = DropReason::ALL.iter().zip(drops).filter(|(_, count)| *count > 0);
        all.drops = there.map(|(reason, count)| Dropped::new(*reason, count)).collect();
        all
    }

    fn status(&self) -> Status {
        let draining = self.draining.load(Ordering::Relaxed);
        let phase = if draining { Phase::Draining } else { Phase::Running };
        let fault = match *self.spool.borrow() {
            Health::Working => None,
            Health::Full => Some(Fault::SpoolFull),
            Health::DiskFull(_) => Some(Fault::DiskFull),
            Health::Failed(_) => Some(Fault::SpoolFailed),
        };
        let damaged = self.damage.borrow().as_ref().map(|_| Fault::SpoolDamaged);
        let upstreams = self.upstreams.look();
        let late = upstreams.iter().any(|upstream| upstream.late).then_some(Fault::Delivering);
        let commands = self.commands.has_failed().then_some(Fault::CommandsUnwritten);
        let (cut, untrimmed) = {
            let care = self.care.borrow();
            let cut = (care.cuts > 0).then_some(Fault::SpoolCut);
            (cut, care.untrimmed.as_ref().map(|_| Fault::SpoolUntrimmed))
        };
        Status {
            phase,
            uptime_s: self.started.elapsed().as_secs(),
            listen: self.listen,
            driver: self.driver,
            shards: self.shards,
            sessions: sum(&self.gauges, |gauges| &gauges.sessions),
            pending: sum(&self.gauges, |gauges| &gauges.pending),
            devices: self.view.len() as u64,
            upstreams: upstreams.into_iter().map(Into::into).collect(),
            faults: [fault, damaged, cut, untrimmed, late, commands]
                .into_iter()
                .flatten()
                .collect(),
        }
    }
}
