//! One upstream at work: reads, sends, waits for answers, moves the cursor.
//!
//! Owns one link at a time. Whatever goes wrong ends the link; the window then says what is sent
//! over the next one, which is made after a pause that doubles, with chance in it, up to half a
//! minute. The cursor on disk follows each second.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use duet_telemetry::catalogue::FILES_RENEWED;
use futures_util::future::{FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::batch::{self, Range};
use crate::cursor::{self, CursorFile, Kept};
use crate::letters::Letters;
use crate::link::{self, Answer, Cause, Failure, Known, Link, Local, Message};
use crate::park::Parked;
use crate::report::{Board, Place, Waits, now_ms};
use crate::settings::Upstream;
use crate::source::{Source, SourceError, SpoolId};
use crate::window::{Cursor, Refused, Window};

/// How long readings wait for others to fill their batch.
const FILL: Duration = Duration::from_millis(50);
/// How often new readings are looked for while nothing happens.
const TICK: Duration = Duration::from_millis(20);
/// How often the cursor goes to disk.
const SAVE: Duration = Duration::from_secs(1);
/// How long a stop waits for answers.
const GRACE: Duration = Duration::from_secs(1);
/// The longest that making a connection may take.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(100);
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(30);
/// So many readings in a row may be put aside at once; each further one waits out a pause first.
/// An upstream that takes nothing at all is more likely told the wrong thing than sent poison.
const PARKED_IN_ROW: u32 = 8;

/// Says something to people.
pub(crate) type Tell = Arc<dyn Fn(&str) + Send + Sync>;

type Answers = FuturesUnordered<Local<'static, (u64, Answer)>>;

/// An upstream, its way into the spool and everything between.
pub(crate) struct Worker {
    upstream: Upstream,
    source: Box<dyn Source>,
    spool: SpoolId,
    dir: PathBuf,
    board: Board,
    tell: Tell,
    stop: watch::Receiver<bool>,
}

/// What lasts from link to link.
struct Progress {
    file: CursorFile,
    saved: Option<Cursor>,
    saved_at: Instant,
    window: Window,
    letters: Letters,
    parked: Parked,
    /// When readings were received, by the first index of their batch.
    received: BTreeMap<u64, u64>,
    /// Since when a batch that is not full waits for more.
    filling: Option<Instant>,
    /// When the cursor last moved, or readings began to wait.
    moved: (u64, Instant),
    accepted: bool,
    parked_in_row: u32,
    /// The reading for which a pause was waited out before it is put aside.
    paused_for: Option<u64>,
    pause: Duration,
}

impl Worker {
    pub(crate) fn new(
        upstream: Upstream,
        source: Box<dyn Source>,
        dir: &Path,
        board: Board,
        tell: Tell,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let spool = source.spool_id();
        Self { upstream, source, spool, dir: dir.to_owned(), board, tell, stop }
    }

    /// Works until it is told to stop.
    pub(crate) async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut progress = loop {
            match self.begin() {
                Ok(progress) => break progress,
                Err(failure) => self.fail(&failure),
            }
            if self.rest(jitter(pause), None).await {
                return;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        };
        loop {
            let ended = link::guarded(self.session(&mut progress)).await;
            // Whatever ended the session may have cut the making of a batch short.
            progress.letters.clear();
            let place = progress.window.cursor();
            progress.window.go_back();
            let failure = match ended {
                Ok(()) => break,
                Err(failure) => failure,
            };
            debug_assert!(progress.window.cursor() == place, "to go back moves no cursor");
            self.fail(&failure);
            self.save(&mut progress);
            let wait = wait_after(&failure, progress.pause);
            progress.pause = (progress.pause * 2).min(PAUSE_MAX);
            if self.rest(wait, Some(&mut progress)).await {
                break;
            }
        }
        self.save(&mut progress);
        self.look(&mut progress);
    }

    /// Reads the cursor and compares it with the spool.
    fn begin(&mut self) -> Result<Progress, Failure> {
        let path = cursor::path(&self.dir, &self.upstream.name);
        let failed = |error: std::io::Error| {
            Failure::new(Cause::File, format!("{}: {error}", path.display()))
        };
        let (file, kept) = CursorFile::open(&path).map_err(failed)?;
        let (first, durable) = (self.source.first(), self.source.durable());
        let cursor = match kept {
            Some(kept) if kept.spool == self.spool => {
                if kept.cursor.next > durable {
                    let text = format!(
                        "{}: this upstream has everything before reading {}, but the spool ends at {durable}: an older copy of it was \
                         put back. Remove the cursor to begin at the oldest reading again",
                        path.display(),
                        kept.cursor.next,
                    );
                    return Err(Failure::new(Cause::File, text));
                }
                let (next, had) = (kept.cursor.next, self.source.released());
                if next < had {
                    self.renewed(&format!(
                        "is an older copy: by it this upstream has what is before reading {next}, and it had everything before {had}; \
                         what the spool still keeps from there on is sent again"
                    ));
                }
                kept.cursor
            }
            Some(kept) => {
                (self.tell)(&format!(
                    "upstream {}: this is another spool than before ({} instead of {}); delivery begins at its oldest reading",
                    self.upstream.name, self.spool, kept.spool,
                ));
                Cursor { next: first, previous_last: None }
            }
            None => {
                let had = self.source.released();
                if had > first {
                    self.renewed(&format!(
                        "was gone or empty, though this upstream had everything before reading {had}: all that the spool still keeps is \
                         sent again, from reading {first} on"
                    ));
                }
                Cursor { next: first, previous_last: None }
            }
        };
        let now = Instant::now();
        let mut progress = Progress {
            file,
            saved: None,
            saved_at: now,
            window: Window::new(cursor),
            letters: Letters::new(&self.upstream, self.spool),
            parked: Parked::new(&self.dir, &self.upstream.name),
            received: BTreeMap::new(),
            filling: None,
            moved: (cursor.next, now),
            accepted: false,
            parked_in_row: 0,
            paused_for: None,
            pause: PAUSE_MIN,
        };
        // Written at once, so that the upstream is known by its file from now on.
        self.save(&mut progress);
        self.look(&mut progress);
        Ok(progress)
    }

    /// The cursor's file was not what it should have been.
    fn renewed(&self, how: &str) {
        let (name, path) = (&self.upstream.name, cursor::path(&self.dir, &self.upstream.name));
        FILES_RENEWED.with(["upstream"]).add(1);
        (self.tell)(&format!("upstream {name}: {} {how}", path.display()));
    }

    fn fail(&self, failure: &Failure) {
        if self.board.failed(failure) {
            (self.tell)(&format!("upstream {}: {}", self.upstream.name, failure.text));
        }
    }

    /// Waits; true when it is time to stop.
    async fn rest(&mut self, wait: Duration, mut progress: Option<&mut Progress>) -> bool {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if *self.stop.borrow() {
                return true;
            }
            if left.is_zero() {
                return false;
            }
            if let Some(progress) = progress.as_deref_mut() {
                self.save_in_time(progress);
                self.look(progress);
            }
            let _ = timeout(left.min(Duration::from_millis(500)), self.stop.changed()).await;
        }
    }

    /// Makes a link and works with it until it fails or everything is to stop.
    async fn session(&mut self, progress: &mut Progress) -> Result<(), Failure> {
        let mut stop = self.stop.clone();
        let connected = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            connected = timeout(CONNECT, link::connect(&self.upstream, self.spool)) => connected,
        };
        let mut link = connected.unwrap_or_else(|_| Err(unconnected()))?;
        self.board.connected(&link.worth());
        self.resume(progress, link.resume())?;
        let mut answers = Answers::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stopping: Option<Instant> = None;
        loop {
            self.fill(progress, &mut *link, &mut answers, stopping.is_some()).await?;
            let at_rest = answers.is_empty() && progress.window.head() >= self.source.durable();
            if stopping.is_some_and(|since| at_rest || since.elapsed() > GRACE) {
                return Ok(());
            }
            tokio::select! {
                Some((token, answer)) = answers.next() => {
                    self.answered(progress, &mut *link, token, answer)?;
                    while let Some(Some((token, answer))) = answers.next().now_or_never() {
                        self.answered(progress, &mut *link, token, answer)?;
                    }
                }
                _ = tick.tick() => {}
                _ = stop.wait_for(|stop| *stop), if stopping.is_none() => {
                    stopping = Some(Instant::now());
                }
            }
            self.save_in_time(progress);
            self.look(progress);
        }
    }

    /// The upstream knows better than the cursor what it has.
    fn resume(&mut self, progress: &mut Progress, known: Option<Known>) -> Result<(), Failure> {
        let Some(Known { last, decides }) = known else { return Ok(()) };
        let (next, kept) =
            (last.map_or(0, |last| last.saturating_add(1)), progress.window.cursor());
        if next > self.source.durable() {
            let text = format!(
                "this upstream holds readings up to {next}, beyond the spool's end: an older copy of the spool was put back; \
                 move what it holds of this spool away to go on"
            );
            return Err(Failure::new(Cause::File, text));
        }
        let behind = decides && last < kept.previous_last;
        if behind {
            (self.tell)(&format!(
                "upstream {}: it had everything before reading {}, and now ends before {next}: an older copy of it was put back, it was cut, or \
                 it is another one; delivery goes on from there, as far as the spool still keeps it",
                self.upstream.name, kept.next,
            ));
        }
        if next > kept.next || behind {
            progress.window = Window::new(Cursor { next, previous_last: last });
        }
        Ok(())
    }

    /// Sends as long as the window has room and there is something to send.
    async fn fill(
        &mut self,
        progress: &mut Progress,
        link: &mut dyn Link,
        answers: &mut Answers,
        hurry: bool,
    ) -> Result<(), Failure> {
        while let Some((range, messages)) = self.next(progress, hurry)? {
            let token = progress.window.sent(range);
            if let Some(large) =
                messages.iter().find(|message| message.body.len() > link.message_max())
            {
                let (length, max) = (large.body.len(), link.message_max());
                let answer = format!("a message of {length} bytes, and the upstream takes {max}");
                self.answered(progress, link, token, Answer::Refused(answer))?;
                continue;
            }
            let wait = self.upstream.answer_timeout;
            let submitted = timeout(wait, submit(link, messages)).await;
            let waiting = submitted.unwrap_or_else(|_| Err(late(wait)))?;
            answers.push(Box::pin(async move {
                let answer = timeout(wait, async { all(join_all(waiting).await) }).await;
                (token, answer.unwrap_or_else(|_| Answer::Failed(late(wait))))
            }));
        }
        Ok(())
    }

    /// The next batch to send, encoded: one that was cut before, or a new one.
    fn next(
        &mut self,
        progress: &mut Progress,
        hurry: bool,
    ) -> Result<Option<(Range, Vec<Message>)>, Failure> {
        let failed = |error: SourceError| Failure::new(Cause::File, error.to_string());
        while let Some((range, previous)) = progress.window.unsent() {
            if progress.window.in_flight() >= self.upstream.in_flight {
                return Ok(None);
            }
            let letters = &mut progress.letters;
            let whole = batch::again(&mut *self.source, range, &mut |index, reading| {
                letters.push(index, reading);
            });
            if whole.map_err(failed)? {
                return Ok(Some((range, letters.finish(range, previous))));
            }
            letters.clear();
            progress.window.give_up(range);
            self.board.lost(range.count());
        }
        let (head, durable) = (progress.window.head(), self.source.durable());
        if durable <= head {
            progress.filling = None;
            return Ok(None);
        }
        let since = *progress.filling.get_or_insert_with(Instant::now);
        let full = durable >= batch::boundary(head) || hurry || since.elapsed() >= FILL;
        if !full || progress.window.len() >= self.upstream.in_flight {
            return Ok(None);
        }
        let previous = progress.window.head_previous();
        let (letters, mut received_ms) = (&mut progress.letters, None);
        let cut = batch::cut(&mut *self.source, head, &mut |index, reading| {
            received_ms.get_or_insert(reading.received_ms);
            letters.push(index, reading);
        });
        let (range, end) = cut.map_err(failed)?;
        let (lost, first) = match range {
            Some(range) => (progress.window.push(range), range.first),
            None => (progress.window.pass(end), end),
        };
        if lost > 0 {
            self.board.lost(lost);
            (self.tell)(&format!(
                "upstream {}: {lost} readings before {first} left the spool before this upstream had them",
                self.upstream.name,
            ));
        }
        let Some(range) = range else { return Ok(None) };
        progress.filling = None;
        progress.received.insert(range.first, received_ms.unwrap_or_default());
        Ok(Some((range, progress.letters.finish(range, previous))))
    }

    fn answered(
        &mut self,
        progress: &mut Progress,
        link: &mut dyn Link,
        token: u64,
        answer: Answer,
    ) -> Result<(), Failure> {
        match answer {
            Answer::Void => Ok(()),
            Answer::Delivered | Answer::Duplicate => {
                let count = progress.window.done(token);
                if matches!(answer, Answer::Duplicate) {
                    self.board.duplicate();
                }
                self.board.delivered(count);
                progress.accepted = true;
                progress.parked_in_row = 0;
                progress.pause = PAUSE_MIN;
                if self.board.works() {
                    (self.tell)(&format!("upstream {}: readings leave again", self.upstream.name));
                }
                Ok(())
            }
            Answer::Failed(failure) => Err(failure),
            Answer::Refused(said) => {
                if link.refusal_heard() {
                    progress.window.void_behind(token);
                }
                match progress.window.refused(token) {
                    Refused::Halved | Refused::Stale => Ok(()),
                    Refused::Alone(index) => self.park(progress, index, &said),
                }
            }
        }
    }

    /// Puts a reading aside that the upstream will not take.
    fn park(&mut self, progress: &mut Progress, index: u64, said: &str) -> Result<(), Failure> {
        let in_row = if progress.accepted { PARKED_IN_ROW } else { 0 };
        if progress.parked_in_row >= in_row && progress.paused_for != Some(index) {
            progress.paused_for = Some(index);
            let text = format!(
                "one reading after the other is refused, so something is set wrong: {said}"
            );
            let failure = Failure::new(Cause::Setting, text);
            return Err(Failure { retry_after: Some(PAUSE_MAX), ..failure });
        }
        let range = Range { first: index, last: index };
        let (parked, spool) = (&mut progress.parked, self.spool);
        let mut added = Ok(());
        let read = batch::again(&mut *self.source, range, &mut |index, reading| {
            added = parked.add(spool, index, reading, said);
        });
        let failed = |error: &dyn std::fmt::Display| Failure::new(Cause::File, error.to_string());
        let found = read.map_err(|error| failed(&error))?;
        added.map_err(|error| {
            failed(&format_args!("{}: {error}", progress.parked.path().display()))
        })?;
        progress.window.give_up(range);
        if !found {
            self.board.lost(1);
            return Ok(());
        }
        progress.parked_in_row += 1;
        self.board.parked();
        (self.tell)(&format!(
            "upstream {}: reading {index} is refused and was put aside in {}: {said}",
            self.upstream.name,
            progress.parked.path().display(),
        ));
        Ok(())
    }

    /// Saves each second, also what has not moved: its file may be gone.
    fn save_in_time(&mut self, progress: &mut Progress) {
        if progress.saved_at.elapsed() >= SAVE {
            self.save(progress);
        }
    }

    /// Writes the cursor, and lets the spool know once that is on disk.
    fn save(&mut self, progress: &mut Progress) {
        progress.saved_at = Instant::now();
        let cursor = progress.window.cursor();
        let kept = Kept { spool: self.spool, cursor, required: self.upstream.required };
        match progress.file.save(&kept) {
            Ok(renewed) => {
                if renewed {
                    self.renewed("was removed, replaced or damaged under the gateway, and says again where it stands");
                }
                if progress.saved != Some(cursor) {
                    progress.saved = Some(cursor);
                    self.source.release(cursor.next);
                }
            }
            Err(error) => {
                let path = cursor::path(&self.dir, &self.upstream.name);
                self.fail(&Failure::new(Cause::File, format!("{}: {error}", path.display())));
            }
        }
    }

    /// Brings the report in step.
    fn look(&mut self, progress: &mut Progress) {
        let (next, durable) = (progress.window.cursor().next, self.source.durable());
        if progress.moved.0 != next || next >= durable {
            progress.moved = (next, Instant::now());
        }
        let waits = (next < durable).then(|| {
            let keep = progress.received.range(..=next).next_back().map(|(first, _)| *first);
            if let Some(keep) = keep {
                progress.received = progress.received.split_off(&keep);
            }
            let received_ms = keep.and_then(|first| progress.received.get(&first).copied());
            let received_ms = received_ms.unwrap_or_else(|| {
                let received_ms = self.peek(next);
                progress.received.insert(next, received_ms);
                received_ms
            });
            Waits { received_ms, since: progress.moved.1 }
        });
        let in_flight = progress.window.in_flight();
        self.board.place(Place { next, durable, in_flight, waits });
    }

    /// When a reading was received; now, where that cannot be read.
    fn peek(&mut self, index: u64) -> u64 {
        let mut received_ms = now_ms();
        // Whatever is wrong with the spool shows when the batch is cut.
        let _ = self.source.read(index, &mut |_, reading| {
            received_ms = reading.received_ms;
            std::ops::ControlFlow::Break(())
        });
        received_ms
    }
}

/// [`CONNECT`] is over.
pub(crate) fn unconnected() -> Failure {
    Failure::new(Cause::Timeout, "no connection within five seconds")
}

fn late(wait: Duration) -> Failure {
    Failure::new(Cause::Timeout, format!("no answer within {} ms", wait.as_millis()))
}

async fn submit(
    link: &mut dyn Link,
    messages: Vec<Message>,
) -> Result<Vec<Local<'static, Answer>>, Failure> {
    let mut waiting = Vec::with_capacity(messages.len());
    for message in messages {
        waiting.push(link.submit(message).await?);
    }
    Ok(waiting)
}

/// What the answers to a batch's messages come to.
fn all(answers: Vec<Answer>) -> Answer {
    let mut whole = Answer::Duplicate;
    for answer in answers {
        whole = match (whole, answer) {
            (Answer::Failed(failure), _) | (_, Answer::Failed(failure)) => {
                return Answer::Failed(failure);
            }
            (Answer::Refused(said), _) | (_, Answer::Refused(said)) => Answer::Refused(said),
            (Answer::Void, _) | (_, Answer::Void) => Answer::Void,
            (Answer::Delivered, _) | (_, Answer::Delivered) => Answer::Delivered,
            (Answer::Duplicate, Answer::Duplicate) => Answer::Duplicate,
        };
    }
    whole
}

/// How long to wait after a failure: as long as the upstream asks, and never less than the pause. An upstream that says
/// "at once" each time would be asked without end.
fn wait_after(failure: &Failure, pause: Duration) -> Duration {
    jitter(pause).max(failure.retry_after.unwrap_or_default())
}

/// Between half of it and all of it, so that gateways that failed together do not return together.
pub(crate) fn jitter(pause: Duration) -> Duration {
    let mut chance = [0; 2];
    // Without randomness there is only no chance in it.
    let _ = getrandom::fill(&mut chance);
    pause / 2 + pause / 2 * u32::from(u16::from_be_bytes(chance)) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_may_ask_for_more_patience_and_not_for_none() {
        let asks = |retry_after| Failure { retry_after, ..Failure::new(Cause::Busy, "busy") };
        for retry_after in [None, Some(Duration::ZERO), Some(Duration::from_millis(1))] {
            let wait = wait_after(&asks(retry_after), PAUSE_MAX);
            assert!((PAUSE_MAX / 2..=PAUSE_MAX).contains(&wait), "{retry_after:?}: {wait:?}");
        }
        let long = Duration::from_secs(3_600);
        assert_eq!(wait_after(&asks(Some(long)), PAUSE_MAX), long);
    }
}
