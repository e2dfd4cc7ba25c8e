//! The spool as upstreams see it, and their start.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use duet_protocol::reading::ReadingId;
use duet_upstream::{
    Fact, KeptCursor, Options, Reading, Report, Reports, Source, SourceError, StartError, Upstream,
    Upstreams, Vanished,
};

use super::desk::Desk;
use super::marks;
use crate::admin::UpstreamStatus;
use crate::config::Config;
use crate::delivery::{
    Cursor, Expected, Hold, Notice, Position, ReadingRef, Said, Source as _, SpoolError, SpoolId,
    SpoolSource, readable_cursors,
};

/// Where cursors and parked readings lie, in the state directory.
const DIR: &str = "upstream";
/// What the names of upstreams' cursors in the spool begin with.
const PREFIX: &str = "upstream-";

/// Why upstreams cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Their files.
    #[error(transparent)]
    Start(#[from] StartError),
    /// One is missing that readings wait for.
    #[error(transparent)]
    Vanished(#[from] Vanished),
    /// The spool's cursors.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Forgets how far an upstream was that the settings no longer have; false when there is none of this name.
///
/// # Errors
/// [`UpstreamError`] when its cursors cannot be removed.
pub fn forget(config: &Config, name: &str) -> Result<bool, UpstreamError> {
    let known = duet_upstream::forget(&config.state.join(DIR), name)?;
    match Cursor::find(&config.spool.dir, &cursor_name(name)) {
        Err(SpoolError::CursorNone(_)) => Ok(known),
        found => {
            found?.remove()?;
            Ok(true)
        }
    }
}

/// The cursors that have to be in the spool of a gateway with these settings: whoever removes readings beside it must not
/// take one whose file is gone for one that holds nothing. `running` is what a gateway that runs here says of its upstreams, whose
/// settings may be others by now.
///
/// # Errors
/// [`UpstreamError`] when an upstream's own cursor cannot be read.
pub fn expected_cursors(
    config: &Config,
    spool: SpoolId,
    running: &[UpstreamStatus],
) -> Result<Vec<Expected>, UpstreamError> {
    let named = config.upstreams.iter().filter(|one| one.required()).map(Upstream::name);
    let running = running.iter().filter(|one| one.required).map(|one| one.name.as_str());
    let mut names: BTreeSet<_> = named.chain(running).map(str::to_owned).collect();
    let left = left(config, spool)?.into_iter().filter(|left| left.required);
    names.extend(left.map(|left| left.name));
    let upstream = |name: String| Expected { name: cursor_name(&name), hold: Hold::Required };
    let marks = Expected { name: marks::NAME.into(), hold: Hold::Always };
    Ok(names.into_iter().map(upstream).chain([marks]).collect())
}

/// The upstreams that the settings no longer have, and that took readings from this spool.
fn left(config: &Config, spool: SpoolId) -> Result<Vec<KeptCursor>, StartError> {
    let is_gone = |name: &str| config.upstreams.iter().all(|upstream| upstream.name() != name);
    let mut left = duet_upstream::kept_cursors(&config.state.join(DIR), is_gone)?;
    left.retain(|left| left.spool.0 == spool.0);
    Ok(left)
}

/// What an upstream's place is called in the spool, which keeps what lies behind it.
fn cursor_name(upstream: &str) -> String {
    format!("{PREFIX}{upstream}")
}

/// What runs, and by which settings.
struct Running {
    /// Nothing where it could not be started again, and at the end.
    upstreams: Option<Upstreams>,
    /// Those that ran last, or are to run again.
    settings: Vec<Upstream>,
    /// Of each of the settings.
    files: Vec<Files>,
    ended: bool,
}

/// What the files were like that an upstream's settings name. Whoever writes or replaces one changes some of it.
#[derive(Debug, PartialEq, Eq)]
struct Files(Vec<Option<Stamp>>);

/// Device, inode, size, and the time of the last change with its nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Files {
    /// As they are now.
    fn of(upstream: &Upstream) -> Self {
        let look = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
        };
        Self(upstream.files().map(look).collect())
    }

    fn of_all(config: &Config) -> Vec<Self> {
        config.upstreams.iter().map(Self::of).collect()
    }
}

/// Passes readings on to what the settings name, which can change meanwhile.
pub(super) struct Forwarding {
    spool: SpoolSource,
    desk: Arc<Desk>,
    running: Mutex<Running>,
    /// Looked at without waiting for whoever changes what runs.
    reports: RwLock<Reports>,
}

impl Forwarding {
    /// Starts what the settings name.
    pub(super) fn start(
        config: &Config,
        spool: SpoolSource,
        desk: Arc<Desk>,
    ) -> Result<Self, UpstreamError> {
        // Before they are read: a change meanwhile is one that the next reload finds.
        let files = Files::of_all(config);
        let upstreams = start(config, &spool, &desk)?;
        let reports = RwLock::new(upstreams.reports());
        let settings = config.upstreams.clone();
        let running = Running { upstreams: Some(upstreams), settings, files, ended: false };
        Ok(Self { spool, desk, running: Mutex::new(running), reports })
    }

    /// How each upstream is at this moment.
    pub(super) fn look(&self) -> Vec<Report> {
        self.reports.read().unwrap_or_else(PoisonError::into_inner).look()
    }

    /// Takes other settings, if they or the files that they name are others: whatever runs ends and begins again from its cursors, so readings on
    /// their way may arrive twice. Says which upstreams are new, changed or gone.
    ///
    /// # Errors
    /// [`UpstreamError`]; then those of before go on, or, where that fails too, with the next change.
    pub(super) fn change(&self, config: &Config) -> Result<Vec<String>, UpstreamError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let told = differences(&running, config);
        if told.is_empty() && running.upstreams.is_some() || running.ended {
            return Ok(told);
        }
        refuse_vanished(config, &self.spool)?;
        let former = Config { upstreams: running.settings.clone(), ..config.clone() };
        // Two of one name at once would share a cursor.
        if let Some(upstreams) = running.upstreams.take() {
            upstreams.shutdown();
        }
        if let Err(error) = self.begin(&mut running, config) {
            if let Err(again) = self.begin(&mut running, &former) {
                tracing::error!(
                    "no upstream runs: those of before could not be started again either: {again}; the next reload tries anew"
                );
            }
            return Err(error);
        }
        let stays = |name| config.upstreams.iter().any(|upstream| upstream.name() == name);
        let names = former.upstreams.iter().map(Upstream::name);
        names.filter(|name| !stays(*name)).for_each(duet_upstream::forget_metrics);
        Ok(told)
    }

    fn begin(&self, running: &mut Running, config: &Config) -> Result<(), UpstreamError> {
        let files = Files::of_all(config);
        let upstreams = start(config, &self.spool, &self.desk)?;
        *self.reports.write().unwrap_or_else(PoisonError::into_inner) = upstreams.reports();
        (running.upstreams, running.settings) = (Some(upstreams), config.upstreams.clone());
        running.files = files;
        Ok(())
    }

    /// What is durable may still arrive; then nothing runs any more.
    pub(super) fn shutdown(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.ended = true;
        if let Some(upstreams) = running.upstreams.take() {
            upstreams.shutdown();
        }
    }
}

/// Which upstreams do not run as these settings, and the files that they name, have them.
fn differences(running: &Running, config: &Config) -> Vec<String> {
    let (before, now) = (&running.settings, &config.upstreams);
    let same_name = |list: &[Upstream], name: &str| list.iter().any(|one| one.name() == name);
    let mut told = Vec::new();
    for upstream in now {
        let how = match before.iter().zip(&running.files).find(|(one, _)| *one == upstream) {
            Some((_, files)) if *files == Files::of(upstream) => continue,
            Some(_) => "its files changed",
            None if same_name(before, upstream.name()) => "changed",
            None => "new",
        };
        told.push(format!("upstream {} ({how})", upstream.name()));
    }
    for upstream in before.iter().filter(|upstream| !same_name(now, upstream.name())) {
        told.push(format!("upstream {} (gone)", upstream.name()));
    }
    told
}

/// An upstream that readings wait for must not go unnoticed.
fn refuse_vanished(config: &Config, spool: &SpoolSource) -> Result<(), UpstreamError> {
    let look = Tail { source: spool.another(), carried: None, cursor: None };
    let vanished =
        duet_upstream::vanished(&config.state.join(DIR), &config.upstreams, &look)?.pop();
    let left = left(config, spool.spool_id())?;
    // Where its own cursor is gone, the spool's says how far it was.
    let unknown = held_for_others(config)?
        .into_iter()
        .filter(|(name, position)| {
            position.hold == Hold::Required && left.iter().all(|left| left.name != *name)
        })
        .map(|(name, position)| {
            let backlog = spool.durable().saturating_sub(position.index.max(spool.first()));
            Vanished { name, backlog }
        })
        .find(|vanished| vanished.backlog > 0);
    vanished.or(unknown).map_or(Ok(()), |vanished| Err(vanished.into()))
}

/// What the spool holds for upstreams that the settings no longer have. One whose cursor cannot be read holds everything until
/// somebody has looked, which the spool tells.
fn held_for_others(config: &Config) -> Result<Vec<(String, Position)>, SpoolError> {
    let mut found = Vec::new();
    for position in readable_cursors(&config.spool.dir)? {
        if let Some(name) = position.name.strip_prefix(PREFIX)
            && config.upstreams.iter().all(|upstream| upstream.name() != name)
        {
            found.push((name.to_owned(), position));
        }
    }
    Ok(found)
}

/// Starts what the settings name.
fn start(
    config: &Config,
    spool: &SpoolSource,
    desk: &Arc<Desk>,
) -> Result<Upstreams, UpstreamError> {
    refuse_vanished(config, spool)?;
    let dir = config.state.join(DIR);
    // Others that the settings no longer have are done with, and must not keep what lies behind them.
    let mut others: BTreeSet<_> =
        left(config, spool.spool_id())?.into_iter().map(|left| left.name).collect();
    others.extend(held_for_others(config)?.into_iter().map(|(name, _)| name));
    others.iter().try_for_each(|name| forget(config, name).map(drop))?;
    let options = Options {
        dir,
        upstreams: config.upstreams.clone(),
        tell: Arc::new(|text| tracing::warn!("{text}")),
        taker: Arc::<Desk>::clone(desk),
    };
    let mut open = |upstream: &Upstream| {
        let hold = if upstream.required() { Hold::Required } else { Hold::Nothing };
        let cursor = spool
            .cursor(&cursor_name(upstream.name()), hold)
            .map_err(|error| SourceError(Box::new(error)))?;
        let tail = Tail { source: spool.another(), carried: None, cursor: Some(cursor) };
        Ok(Box::new(tail) as Box<dyn Source>)
    };
    Ok(duet_upstream::start(options, &mut open)?)
}

/// A reading that was shown and not taken: it comes first the next time.
struct Carried {
    index: u64,
    device: String,
    id: ReadingId,
    again: bool,
    channel: u16,
    received_ms: u64,
    measured_ms: u64,
    notice: Option<Notice>,
    payload: Vec<u8>,
}

impl Carried {
    fn new(index: u64, reading: &ReadingRef<'_>) -> Self {
        Self {
            index,
            device: reading.device.to_owned(),
            id: reading.id,
            again: reading.again,
            channel: reading.channel,
            received_ms: reading.received_ms,
            measured_ms: reading.measured_ms,
            notice: reading.notice,
            payload: reading.payload.to_owned(),
        }
    }

    fn reading(&self) -> ReadingRef<'_> {
        ReadingRef {
            device: &self.device,
            id: self.id,
            again: self.again,
            channel: self.channel,
            received_ms: self.received_ms,
            measured_ms: self.measured_ms,
            commit: None,
            notice: self.notice,
            payload: &self.payload,
        }
    }
}

/// One upstream's way through the spool.
///
/// The spool's reader only goes on. The reading at which a batch ended is kept, so that the next batch, which may
/// begin with it, needs no search for its place.
struct Tail {
    source: SpoolSource,
    carried: Option<Carried>,
    /// Tells the spool what is no longer needed.
    cursor: Option<Cursor>,
}

/// Shows a reading as upstreams know it.
fn show(
    index: u64,
    reading: &ReadingRef<'_>,
    visit: &mut dyn FnMut(u64, &Reading<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let said = reading.notice.map(|notice| notice.said(reading.payload)).unwrap_or_default();
    fn fact<'a>(said: &(&'static str, Said<'a>)) -> (&'static str, Fact<'a>) {
        match said.1 {
            Said::Text(text) => (said.0, Fact::Text(text)),
            Said::Number(number) => (said.0, Fact::Number(number)),
            Said::True => (said.0, Fact::True),
        }
    }
    // Neither allocates for a reading.
    let facts: Vec<_> = said.iter().map(fact).collect();
    let notice = reading.notice.map(|notice| duet_upstream::Notice {
        kind: notice.kind(),
        facts: &facts,
        payload: notice.has_payload(),
    });
    let shown = Reading {
        device: reading.device,
        id: reading.id.encode(),
        again: reading.again,
        notice,
        channel: reading.channel,
        received_ms: reading.received_ms,
        measured_ms: reading.measured_ms,
        payload: reading.payload,
    };
    visit(index, &shown)
}

impl Source for Tail {
    fn spool_id(&self) -> duet_upstream::SpoolId {
        duet_upstream::SpoolId(self.source.spool_id().0)
    }

    fn first(&self) -> u64 {
        self.source.first()
    }

    fn durable(&self) -> u64 {
        self.source.durable()
    }

    fn read(
        &mut self,
        index: u64,
        visit: &mut dyn FnMut(u64, &Reading<'_>) -> ControlFlow<()>,
    ) -> Result<u64, SourceError> {
        let mut next = index;
        if let Some(carried) = self.carried.take_if(|carried| carried.index == index) {
            let taken = show(index, &carried.reading(), visit);
            next = index + 1;
            if taken.is_break() {
                self.carried = Some(carried);
                return Ok(next);
            }
        }
        let carried = &mut self.carried;
        let mut visit = |index: u64, reading: &ReadingRef<'_>| {
            let taken = show(index, reading, visit);
            if taken.is_break() {
                *carried = Some(Carried::new(index, reading));
            }
            taken
        };
        let read = match self.source.read(next, &mut visit) {
            Err(SpoolError::Trimmed { .. }) => {
                let first = self.source.first();
                self.source.read(first.max(next), &mut visit)
            }
            read => read,
        };
        read.map_err(|error| SourceError(Box::new(error)))
    }

    fn released(&self) -> u64 {
        self.cursor.as_ref().map_or_else(|| self.source.first(), Cursor::index)
    }

    fn release(&mut self, index: u64) {
        if let Some(cursor) = &mut self.cursor {
            // Where it cannot be written, the spool keeps more than it must, and the next one tries again.
            let _ = cursor.set(index);
        }
    }
}
