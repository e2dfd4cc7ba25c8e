//! Starts and ends the data plane: one thread a shard, the spool behind them. It moves no byte
//! itself.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use duet_aead::Gcm;
use duet_curve::Backend;
use duet_protocol::identity::DeviceId;
use duet_protocol::wire::SessionId;
use tokio::sync::oneshot;

use crate::admin::{CommandError, Fault, Gateway, Phase, Status};
use crate::config::Config;
use crate::delivery::{
    Batch, Durability, Health, MAX_PAYLOAD, ReadingRef, Spool, SpoolConfig, SpoolError, Submitter,
    Urgency,
};
use crate::registry::View;
use crate::shard::engine::Batched;
use crate::shard::{BATCH_MAX, Command, GatewayKey, Gauges, Mail, Reading, Settings, Shard, Sink};
use crate::transport::{self, Bound, MailSender, TransportError, run_shard};

/// The most batches whose memory a shard keeps for the next ones.
const SPARE_BATCHES: usize = 64;

/// Why the data plane could not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Sockets or rings.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The node's own secret.
    #[error("{}: cannot keep this node's key: {error}; without it devices take longer to return after a restart", path.display())]
    NodeKey {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The AEAD backend that the environment asks for.
    #[error(transparent)]
    Aead(#[from] duet_aead::SelectError),
    /// The kernel has no randomness or no thread to give.
    #[error("the system refused {0}")]
    System(&'static str),
}

/// A running data plane.
pub struct Server {
    /// Where it listens: the same port for UDP and TCP.
    pub local: SocketAddr,
    /// What went differently than wished, for people.
    pub warnings: Vec<String>,
    threads: Vec<JoinHandle<Result<(), TransportError>>>,
    spool: Spool,
    control: Arc<Control>,
}

/// The data plane as the control plane sees it.
pub struct Control {
    mail: Mutex<Vec<MailSender<Mail>>>,
    listen: SocketAddr,
    started: Instant,
    shards: u32,
    view: Arc<View>,
    draining: AtomicBool,
    spool: Arc<Health>,
    gauges: Vec<Arc<Gauges>>,
}

fn sum(gauges: &[Arc<Gauges>], of: impl Fn(&Gauges) -> &AtomicU64) -> u64 {
    gauges.iter().map(|gauges| of(gauges).load(Ordering::Relaxed)).sum()
}

/// A shard's readings on their way to the spool, and the spool's answers on their way back.
struct SpoolSink {
    submitter: Submitter,
    mail: MailSender<Mail>,
    batch: Batch,
    /// Those of the batch that want confirmation.
    confirm: Vec<(SessionId, u32)>,
    /// Batches that came back from the spool, for their memory.
    spare: Arc<ArrayQueue<Batch>>,
}

impl Sink for SpoolSink {
    fn take(&mut self, reading: &Reading<'_>) {
        let record = ReadingRef {
            device: reading.device,
            session: reading.session.0,
            sequence: reading.sequence,
            channel: reading.channel,
            time_ms: reading.time_ms,
            payload: reading.payload.get(..MAX_PAYLOAD).unwrap_or(reading.payload),
        };
        if !self.batch.push(&record) {
            self.flush();
            let fits = self.batch.push(&record);
            debug_assert!(fits, "an empty batch takes any reading");
        }
        if reading.confirm {
            self.confirm.push((reading.session, reading.sequence));
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let fresh = self.spare.pop().unwrap_or_default();
        let batch = std::mem::replace(&mut self.batch, fresh);
        let confirm = std::mem::take(&mut self.confirm);
        let urgency = if confirm.is_empty() { Urgency::Quiet } else { Urgency::Awaited };
        let (mail, spare) = (self.mail.clone(), Arc::clone(&self.spare));
        let done = move |batch: Batch, durability| {
            if durability == Durability::Durable && !confirm.is_empty() {
                // A shard whose mailbox is full is given no acknowledgement; the device asks again.
                let _ = mail.try_send(Mail::Durable(confirm));
            }
            // More spares than there is room for are not needed.
            let _ = spare.push(batch);
        };
        // What the spool refuses is counted there and never acknowledged.
        let _ = self.submitter.submit(batch, urgency, Box::new(done));
    }
}

impl SpoolSink {
    fn new(submitter: Submitter, mail: MailSender<Mail>) -> Self {
        let spare = Arc::new(ArrayQueue::new(SPARE_BATCHES));
        Self { submitter, mail, batch: Batch::new(), confirm: Vec::new(), spare }
    }
}

impl Server {
    /// Opens the spool, binds every socket, starts the shards.
    ///
    /// # Errors
    /// [`ServerError`]; then nothing is left running.
    pub fn start(
        config: &Config,
        keys: &[GatewayKey],
        view: &Arc<View>,
    ) -> Result<Self, ServerError> {
        let spool = Spool::start(SpoolConfig {
            dir: config.spool.dir.clone(),
            segment_bytes: config.spool.segment_bytes,
            max_bytes: config.spool.max_bytes,
        })?;
        let node_key = node_key(&config.state.join("node.key"))?;
        let settings = transport::Settings {
            listen: config.listen,
            shards: config.shards,
            // The limit is for all shards together, and a shard counts fewer than 2²⁰.
            streams_max: (config.limits.max_streams as usize / config.shards)
                .clamp(1, (1 << 20) - 1),
            cores: if config.pin { cores(config.shards) } else { Vec::new() },
            min_wait_us: config.gather_us,
            ..transport::Settings::default()
        };
        let Bound { local, shards, mail, warnings, .. } = transport::bind::<Mail>(settings)?;
        let sessions_max = config.limits.max_sessions as usize / config.shards;
        let (gcm, curve) = (Gcm::select()?, Backend::detect());
        metrics::gauge!("duet_backend_info", "curve" => curve.name(), "aead" => gcm.backend().name())
            .set(1.0);
        // Measured by the pipeline bench, in batches.
        let hello_us = if curve == Backend::portable() { 150 } else { 35 };
        let tables = config.limits.max_tables as usize / config.shards;
        let mut threads = Vec::new();
        let gauges: Vec<_> = shards.iter().map(|_| Arc::new(Gauges::default())).collect();
        for (io, own) in shards.into_iter().zip(mail.clone()) {
            let settings = Settings {
                keys: keys.to_vec(),
                node_key,
                index: io.index(),
                shards: config.shards,
                idle_us: u64::from(config.session.idle_timeout_s) * 1_000_000,
                pending_us: u64::from(config.session.pending_timeout_ms) * 1_000,
                lifetime_s: config.session.lifetime_s,
                sessions_max,
                pending_max: (config.limits.max_pending as usize / config.shards).max(1),
                retry_from: 2 * BATCH_MAX,
                hello_us,
                gcm,
                gauges: Arc::clone(&gauges[io.index()]),
            };
            let sink = SpoolSink::new(spool.submitter(), own);
            let view = Arc::clone(view);
            let thread = std::thread::Builder::new()
                .name(format!("shard-{}", io.index()))
                .spawn(move || {
                    let engine = Batched::new(curve, tables);
                    run_shard(io, Shard::new(settings, view, engine, sink)).map(|_| ())
                })
                .map_err(|_| ServerError::System("a thread"))?;
            threads.push(thread);
        }
        let control = Arc::new(Control {
            mail: Mutex::new(mail),
            listen: local,
            started: Instant::now(),
            shards: u32::try_from(config.shards).unwrap_or(u32::MAX),
            view: Arc::clone(view),
            draining: AtomicBool::new(false),
            spool: spool.health(),
            gauges,
        });
        let warnings = warnings.iter().map(ToString::to_string).collect();
        Ok(Self { local, warnings, threads, spool, control })
    }

    /// What the control plane holds.
    #[must_use]
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Ends every session, lets the spool finish, joins every thread.
    ///
    /// # Errors
    /// The first thing that went wrong on the way.
    pub fn drain(self) -> Result<(), ServerError> {
        self.control.draining.store(true, Ordering::Relaxed);
        self.control.tell_all(|| Mail::Drain);
        // The last senders but the spool's completions: what remains ends with the shards.
        let mut result = Ok(());
        for thread in self.threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => result = Err(error.into()),
                Err(_) => result = Err(ServerError::System("a shard its peace: it panicked")),
            }
        }
        self.spool.shutdown()?;
        result
    }
}

/// A core for each shard, of those that this process may use; none where there are too few.
fn cores(shards: usize) -> Vec<usize> {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    let allowed = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let cores: Vec<_> = allowed.take(shards).collect();
    if cores.len() == shards { cores } else { Vec::new() }
}

/// This node's own secret: made once, and kept, so that a device whose session a restart took
/// believes the RESET that tells it so.
fn node_key(path: &Path) -> Result<[u8; 32], ServerError> {
    let failed = |error| ServerError::NodeKey { path: path.to_owned(), error };
    match std::fs::read(path) {
        Ok(bytes) => <[u8; 32]>::try_from(bytes)
            .map_err(|_| failed(io::Error::new(io::ErrorKind::InvalidData, "not 32 bytes"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|_| ServerError::System("randomness"))?;
            keep_key(path, &key).map_err(failed)?;
            Ok(key)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Whole or not at all: whoever is killed on the way finds no file, or the key.
fn keep_key(path: &Path, key: &[u8; 32]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => crate::identity::write_new(&draft, key, 0o600)?,
    }
    std::fs::rename(&draft, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

impl Control {
    fn tell_all(&self, mail: impl Fn() -> Mail) {
        let Ok(shards) = self.mail.lock() else { return };
        for shard in shards.iter() {
            let mut waiting = mail();
            // Control mail must arrive; a full mailbox empties within a turn.
            for _ in 0..1_000 {
                match shard.try_send(waiting) {
                    Ok(()) => break,
                    Err(refused) => waiting = refused,
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Gateway for Control {
    fn revoked(&self, device: DeviceId) {
        self.tell_all(|| Mail::Revoked(device));
    }

    fn command(
        &self,
        device: DeviceId,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> oneshot::Receiver<Result<Vec<u8>, CommandError>> {
        let (answer, waiting) = oneshot::channel();
        let command = Command { device, payload, timeout, answer };
        let shard = usize::from(device.slot());
        if let Ok(mail) = self.mail.lock()
            && let Err(Mail::Command(refused)) =
                mail[shard % mail.len()].try_send(Mail::Command(command))
        {
            refused.refuse(CommandError::Busy);
        }
        waiting
    }

    fn status(&self) -> Status {
        let draining = self.draining.load(Ordering::Relaxed);
        let phase = if draining { Phase::Draining } else { Phase::Running };
        let faults = [
            (self.spool.has_failed(), Fault::SpoolFailed),
            (self.spool.is_full(), Fault::SpoolFull),
        ];
        Status {
            phase,
            uptime_s: self.started.elapsed().as_secs(),
            listen: Some(self.listen),
            transport: Some(crate::admin::Transport::Uring),
            sessions: sum(&self.gauges, |gauges| &gauges.sessions),
            pending: sum(&self.gauges, |gauges| &gauges.pending),
            devices: self.view.len() as u64,
            faults: faults.iter().filter(|(holds, _)| *holds).map(|(_, fault)| *fault).collect(),
            ..Status::starting(self.shards)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_key_is_kept_and_a_draft_of_it_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        std::fs::write(path.with_extension("draft"), b"cut off").unwrap();
        let key = node_key(&path).unwrap();
        assert_eq!(node_key(&path).unwrap(), key);
        assert!(!path.with_extension("draft").exists());
        std::fs::write(&path, b"cut off").unwrap();
        assert!(node_key(&path).unwrap_err().to_string().contains("not 32 bytes"));
    }
}
