//! Files of NDJSON: written as `.part`, synced, then renamed, and their directory synced.
//!
//! An answer is given after the sync: what is acknowledged survives a power cut. A file is ended at
//! a size or an age, and only ended files have a name without `.part`: whoever takes those away
//! takes whole ones. A `.part` that a kill left is cut after its last whole line and gone on with.
//! Its last index says where to begin, so that nothing stands in the files twice after a kill either; if it ends before what
//! was acknowledged, somebody has cut it, and delivery goes on from its end. What went into a `.part` that somebody has
//! taken away meanwhile is not acknowledged: nobody would find it.
//!
//! The thread here may wait for the disk; the one that all upstreams share must not.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Answer, Cause, Failure, Known, Link, Local, Message};
use crate::named;
use crate::source::SpoolId;

/// How much is written before a sync.
const GROUP_MAX: usize = 8 << 20;
/// How much of a file's end is read to find its last line; a line is shorter.
const TAIL: u64 = 1 << 20;
const PART: &str = "part";

struct Job {
    first: u64,
    body: Bytes,
    answer: oneshot::Sender<Answer>,
}

/// The way to the thread that writes.
pub(crate) struct FileLink {
    jobs: mpsc::Sender<Job>,
    known: Option<Known>,
    dir: PathBuf,
    /// Why the thread has ended, set before its queue is gone.
    ended: Arc<OnceLock<Failure>>,
}

impl FileLink {
    /// Finds what is there and starts the thread, which ends with this.
    pub(crate) async fn open(
        name: &str,
        dir: &Path,
        bytes: u64,
        age: Duration,
        spool: SpoolId,
    ) -> Result<Self, Failure> {
        let files = Files {
            dir: dir.to_owned(),
            prefix: format!("{name}-{}-", &spool.to_string()[..8]),
            line: format!("{{\"v\":1,\"spool\":\"{spool}\",\"index\":"),
            bytes,
            age,
            part: None,
        };
        let opened = tokio::task::spawn_blocking(move || {
            let mut files = files;
            files.recover().map(|known| (files, known))
        });
        let none = |_| Failure::new(Cause::File, "the system gives no thread to write files");
        let (files, known) = opened.await.map_err(none)??;
        let (jobs, waiting) = mpsc::channel();
        let ended = Arc::<OnceLock<Failure>>::default();
        let why = Arc::clone(&ended);
        std::thread::Builder::new()
            .name(format!("file-{name}").chars().take(15).collect())
            .spawn(move || {
                if let Err(failure) = files.serve(&waiting) {
                    // Set by this thread alone.
                    let _ = why.set(failure);
                }
            })
            .map_err(|error| Failure::new(Cause::File, error.to_string()))?;
        Ok(Self { jobs, known, dir: dir.to_owned(), ended })
    }
}

impl Link for FileLink {
    fn submit(&mut self, message: Message) -> Local<'_, Result<Local<'static, Answer>, Failure>> {
        let (answer, answered) = oneshot::channel();
        let job = Job { first: message.id.range.first, body: message.body, answer };
        let sent = self.jobs.send(job);
        let (why, dir) = (Arc::clone(&self.ended), self.dir.display().to_string());
        Box::pin(async move {
            let ended = move || {
                why.get().cloned().unwrap_or_else(|| {
                    let text = format!("the thread that writes files in {dir} ended unexpectedly");
                    Failure::new(Cause::File, text)
                })
            };
            sent.map_err(|_| ended())?;
            let answer: Local<'static, Answer> =
                Box::pin(async move { answered.await.unwrap_or_else(|_| Answer::Failed(ended())) });
            Ok(answer)
        })
    }

    fn worth(&self) -> String {
        format!(
            "files in {}: synced before they count, what is acknowledged survives a power cut",
            self.dir.display()
        )
    }

    fn resume(&self) -> Option<Known> {
        self.known
    }
}

struct Part {
    file: File,
    path: PathBuf,
    /// Bytes that are on the disk.
    synced: u64,
    began: Instant,
}

struct Files {
    dir: PathBuf,
    prefix: String,
    /// What every line of this spool begins with.
    line: String,
    bytes: u64,
    age: Duration,
    part: Option<Part>,
}

fn failed(action: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(Cause::File, Cow::from(format!("{action} {}: {error}", path.display())))
}

impl Files {
    /// Works until nobody can send any more, or until something fails: the link is void then, and the next one finds what
    /// is there.
    fn serve(mut self, waiting: &mpsc::Receiver<Job>) -> Result<(), Failure> {
        loop {
            let until = self.part.as_ref().map(|part| part.began + self.age);
            let job = match until {
                None => waiting.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(until) => {
                    waiting.recv_timeout(until.saturating_duration_since(Instant::now()))
                }
            };
            match job {
                Ok(job) => self.group(job, waiting)?,
                Err(mpsc::RecvTimeoutError::Timeout) => self.rotate()?,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Writes what waits, syncs once, answers all.
    fn group(&mut self, first: Job, waiting: &mpsc::Receiver<Job>) -> Result<(), Failure> {
        let mut jobs = vec![first];
        let mut bytes = jobs[0].body.len();
        // A file ends with the group that fills it.
        let written = self.part.as_ref().map_or(0, |part| part.synced);
        let room = usize::try_from(self.bytes.saturating_sub(written)).unwrap_or(usize::MAX);
        while bytes < room.min(GROUP_MAX)
            && let Ok(job) = waiting.try_recv()
        {
            bytes += job.body.len();
            jobs.push(job);
        }
        let written = self.write(&jobs);
        for job in jobs {
            let answer = match &written {
                Ok(()) => Answer::Delivered,
                Err(failure) => Answer::Failed(failure.clone()),
            };
            // Nobody waits any more where the upstream was stopped meanwhile.
            let _ = job.answer.send(answer);
        }
        written
    }

    fn write(&mut self, jobs: &[Job]) -> Result<(), Failure> {
        let first = jobs.first().map_or(0, |job| job.first);
        let mut part = match self.part.take() {
            Some(part) => part,
            None => self.begin(first)?,
        };
        // Written behind a cut it would stand after zeros.
        if part.file.metadata().is_ok_and(|found| found.len() != part.synced) {
            let text = format!(
                "{} was cut or written to by somebody else; delivery goes on from its last whole line",
                part.path.display()
            );
            return Err(Failure::new(Cause::File, text));
        }
        let write = |part: &mut Part| -> io::Result<u64> {
            jobs.iter().try_for_each(|job| part.file.write_all(&job.body))?;
            part.file.sync_data()?;
            part.file.stream_position()
        };
        match write(&mut part) {
            Ok(synced) => part.synced = synced,
            Err(error) => {
                // What was not synced must not be taken for written by whoever looks next.
                let _ = part.file.set_len(part.synced);
                return Err(failed("writing", &part.path, &error));
            }
        }
        if !named::is_named(&part.file, &part.path) {
            let text = format!(
                "{} was removed or replaced while it was written to: what it held is gone from {}; readings that were not yet \
                 acknowledged go into a new file",
                part.path.display(),
                self.dir.display()
            );
            return Err(Failure::new(Cause::File, text));
        }
        let due = part.synced >= self.bytes;
        self.part = Some(part);
        if due { self.rotate() } else { Ok(()) }
    }

    fn begin(&self, first: u64) -> Result<Part, Failure> {
        let path = self.dir.join(format!("{}{first:016x}.ndjson.{PART}", self.prefix));
        let open = || {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path)?;
            File::open(&self.dir)?.sync_all()?;
            Ok(file)
        };
        let file = open().map_err(|error| failed("making", &path, &error))?;
        Ok(Part { file, path, synced: 0, began: Instant::now() })
    }

    /// Gives the file its name, if there is one.
    fn rotate(&mut self) -> Result<(), Failure> {
        let Some(part) = self.part.take() else { return Ok(()) };
        self.name(&part.path)
    }

    fn name(&self, path: &Path) -> Result<(), Failure> {
        fs::rename(path, path.with_extension(""))
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .map_err(|error| failed("renaming", path, &error))
    }

    /// Puts in order what a kill may have left, and says what is there. Ended files may have been taken away, and then the
    /// cursor knows more; a `.part` nobody takes away, so it decides.
    fn recover(&mut self) -> Result<Option<Known>, Failure> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("making", &self.dir, &error));
            }
            _ => {}
        }
        let mut files = Vec::new();
        let entries =
            fs::read_dir(&self.dir).map_err(|error| failed("listing", &self.dir, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed("listing", &self.dir, &error))?;
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(&self.prefix));
            let Some((index, kind)) = rest.and_then(|rest| rest.split_once('.')) else { continue };
            let index = u64::from_str_radix(index, 16);
            if let (Ok(index), true) = (index, matches!(kind, "ndjson" | "ndjson.part")) {
                files.push((index, kind != "ndjson", entry.path()));
            }
        }
        files.sort();
        let (mut resume, mut decides) = (0, false);
        let newest = files.len().saturating_sub(1);
        for (at, (first, part, path)) in files.into_iter().enumerate() {
            if !part {
                if at == newest {
                    resume = resume.max(self.ended(&path)?.unwrap_or(0));
                }
                continue;
            }
            let (next, whole) = self.mend(&path)?;
            // One without a line was begun when everything before its first index was in other files.
            (resume, decides) = (resume.max(next.unwrap_or(first)), at == newest);
            if whole.is_some() && at < newest {
                self.name(&path)?;
            } else {
                self.part = whole;
            }
        }
        let last = resume.checked_sub(1);
        Ok((decides || last.is_some()).then_some(Known { last, decides }))
    }

    /// The index after the last line of an ended file.
    fn ended(&self, path: &Path) -> Result<Option<u64>, Failure> {
        let read = || {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            tail(&mut file, length)
        };
        let (_, tail) = read().map_err(|error| failed("reading", path, &error))?;
        Ok(self.after_last(&tail))
    }

    /// Cuts a `.part` after its last whole line and opens it to go on; removes one without a line.
    fn mend(&self, path: &Path) -> Result<(Option<u64>, Option<Part>), Failure> {
        let cut = || -> io::Result<(File, u64, Vec<u8>)> {
            let mut file = OpenOptions::new().read(true).write(true).open(path)?;
            let length = file.metadata()?.len();
            let (at, mut tail) = tail(&mut file, length)?;
            let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            tail.truncate(whole);
            let end = at + tail.len() as u64;
            if end < length {
                file.set_len(end)?;
            }
            // It may so far live in memory only.
            file.sync_all()?;
            file.seek(SeekFrom::Start(end))?;
            Ok((file, end, tail))
        };
        let (file, synced, tail) = cut().map_err(|error| failed("mending", path, &error))?;
        let Some(resume) = self.after_last(&tail) else {
            fs::remove_file(path).map_err(|error| failed("removing", path, &error))?;
            return Ok((None, None));
        };
        let part = Part { file, path: path.to_owned(), synced, began: Instant::now() };
        Ok((Some(resume), Some(part)))
    }

    fn after_last(&self, tail: &[u8]) -> Option<u64> {
        let lines = tail.strip_suffix(b"\n")?;
        let line = lines.rsplit(|byte| *byte == b'\n').next()?;
        let rest = line.strip_prefix(self.line.as_bytes())?;
        let digits = rest.split(|byte| *byte == b',').next()?;
        std::str::from_utf8(digits).ok()?.parse::<u64>().ok()?.checked_add(1)
    }
}

/// The end of a file, and where it begins.
fn tail(file: &mut File, length: u64) -> io::Result<(u64, Vec<u8>)> {
    let at = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(at))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok((at, tail))
}
