//! Commands on their way to devices: each goes out when its device has a session, and again until its result comes or its
//! time is over.
//!
//! Whoever queues commands lies outside and gives a shard at most one for each device (R80), whether the device is connected
//! or asleep. What becomes of it comes back as an [`Event`]. Nothing here outlives the process.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use duet_protocol::identity::DeviceId;
use duet_protocol::message::{Down, PAYLOAD_MAX};
use duet_protocol::wire::{DOWN_HEADER, SessionId, TAG};
use rustc_hash::FxHashMap;
use thiserror::Error;

use super::{Event, Shard, Sink};
use crate::Now;
use crate::engine::Engine;
use crate::rules::{Rule, in_force};

/// The most commands that a shard holds.
const COMMANDS_MAX: usize = 1 << 20;
/// After how long a command goes out again, µs (R79).
const RESEND_US: u64 = 1_000_000;
/// What a command's record costs beside the payload: header, type, number, tag.
const OVERHEAD: usize = DOWN_HEADER + 1 + 4 + TAG;

/// A command for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Chosen by whoever gives the command, to know its [result](Event::CommandResult) by. A command with the token of
    /// one that is open takes its place.
    pub token: u64,
    /// To whom.
    pub device: DeviceId,
    /// To which registration of the device: it goes out in no session of another one.
    pub registration: u64,
    /// Its number, given once, when it was queued: higher than that of any command before for this device (R116).
    pub number: u32,
    /// What to do, at most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
    /// How long to wait for the result.
    pub timeout: Duration,
    /// Whether it waits for a device that has no session now.
    pub patient: bool,
}

/// Why a command has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandFailure {
    /// The device has no session.
    #[error("the device is not connected")]
    NotConnected,
    /// No result within the time given; the command may have been carried out.
    #[error("no result in time; the device may have carried the command out")]
    TimedOut,
    /// Longer than a record carries.
    #[error("the payload is longer than a command can be")]
    TooLong,
    /// Too many commands wait, or one for this device.
    #[error("too many commands are waiting for the device")]
    Busy,
}

/// What a device says of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandAnswer {
    /// Zero for success; other values are the device's own.
    pub status: u8,
    /// What it answered.
    pub output: Vec<u8>,
}

/// A command that its device has not answered.
struct OpenCommand {
    command: Command,
    until_us: u64,
    /// When it goes out next; `None` while it waits for a record of its device.
    send_us: Option<u64>,
    times: u32,
}

impl OpenCommand {
    fn due_us(&self) -> u64 {
        self.send_us.map_or(self.until_us, |send_us| send_us.min(self.until_us))
    }
}

/// The open commands of a shard, by the devices that they are for.
#[derive(Default)]
pub(super) struct Commands {
    open: HashMap<DeviceId, OpenCommand>,
    /// When each is to be looked at, the earliest first.
    due: BTreeSet<(u64, DeviceId)>,
    /// Whose result came in which record and is not recorded yet. Only then does whoever queues commands know that the next
    /// one may follow.
    unrecorded: HashMap<DeviceId, (SessionId, u32)>,
    /// The same, by the record.
    records: FxHashMap<(SessionId, u32), DeviceId>,
    /// Whether commands may be queued outside that this shard has not been told of.
    behind: bool,
}

impl Commands {
    /// When to look at them next, µs.
    pub(super) fn next_us(&self) -> Option<u64> {
        self.due.first().map(|(due_us, _)| *due_us)
    }

    /// Whether a device may be told that no command waits for it (R113).
    #[inline]
    pub(super) fn nothing_waits(&self, device: &DeviceId) -> bool {
        let open = self.open.get(device);
        let waits = open.is_some_and(|open| in_force(Rule::SentStillWaits) || open.times == 0);
        !self.behind && !waits && !self.unrecorded.contains_key(device)
    }

    /// A result came that is not recorded yet.
    fn await_recorded(&mut self, device: DeviceId, record: (SessionId, u32)) {
        if let Some(before) = self.unrecorded.insert(device, record) {
            self.records.remove(&before);
        }
        self.records.insert(record, device);
    }

    /// What came in this record is durable.
    pub(super) fn recorded(&mut self, record: (SessionId, u32)) {
        if !self.records.is_empty()
            && let Some(device) = self.records.remove(&record)
        {
            self.unrecorded.remove(&device);
        }
    }

    /// Forgets a device that may not connect any more.
    pub(super) fn forget(&mut self, device: &DeviceId) {
        if let Some(record) = self.unrecorded.remove(device) {
            self.records.remove(&record);
        }
    }

    pub(super) fn set_behind(&mut self, behind: bool) {
        self.behind = behind;
    }

    /// How long the record of the device's open command is, if there is one.
    #[inline]
    pub(super) fn record_len(&self, device: &DeviceId) -> Option<usize> {
        self.open.get(device).map(|open| OVERHEAD + open.command.payload.len())
    }

    /// The device was heard: its command goes out in this turn. One that has gone out already waits for its time, unless
    /// it is to go `anew`, over a session or a path that it has not gone over.
    #[inline]
    pub(super) fn wake(&mut self, now: Now, device: &DeviceId, anew: bool) {
        self.change(device, |open| {
            if anew || open.send_us.is_none() {
                open.send_us = Some(now.mono_us);
            }
        });
    }

    fn change(&mut self, device: &DeviceId, change: impl FnOnce(&mut OpenCommand)) {
        if let Some(open) = self.open.get_mut(device) {
            self.due.remove(&(open.due_us(), *device));
            change(open);
            self.due.insert((open.due_us(), *device));
        }
    }

    fn insert(&mut self, open: OpenCommand) {
        let device = open.command.device;
        self.remove(&device);
        self.due.insert((open.due_us(), device));
        self.open.insert(device, open);
    }

    fn remove(&mut self, device: &DeviceId) -> Option<OpenCommand> {
        let open = self.open.remove(device)?;
        self.due.remove(&(open.due_us(), *device));
        Some(open)
    }
}

impl<E: Engine, S: Sink> Shard<E, S> {
    pub(super) fn handle_command(&mut self, now: Now, command: Command) {
        let open = self.commands.open.get(&command.device);
        let failure = if command.payload.len() > PAYLOAD_MAX {
            Some(CommandFailure::TooLong)
        } else if !command.patient && !self.is_there(&command) {
            // R48: nothing is sent in a session that no record has confirmed.
            Some(CommandFailure::NotConnected)
        } else if open.is_some_and(|open| open.command.token != command.token)
            || self.commands.open.len() >= COMMANDS_MAX
        {
            Some(CommandFailure::Busy)
        } else {
            None
        };
        if let Some(failure) = failure {
            return self.end_command(command.token, Err(failure), None);
        }
        let timeout = u64::try_from(command.timeout.as_micros()).unwrap_or(u64::MAX);
        let until_us = now.mono_us.saturating_add(timeout);
        let times = open.map_or(0, |open| open.times);
        let send_us = Some(now.mono_us);
        self.commands.insert(OpenCommand { command, until_us, send_us, times });
    }

    /// Whether the registration that a command is for has a session that it can be sent in now.
    fn is_there(&self, command: &Command) -> bool {
        let live = self.sessions.live_of(&command.device).and_then(|id| self.sessions.find(id));
        live.is_some_and(|session| {
            session.device.registration() == command.registration
                && self.streams.may_answer(session.path)
        })
    }

    /// Gives the device another command in place of one that is over.
    pub(super) fn replace_command(&mut self, now: Now, over: u64, by: Command) {
        self.withdraw_command(&by.device, over);
        self.handle_command(now, by);
    }

    /// Nobody waits for this command any more.
    pub(super) fn withdraw_command(&mut self, device: &DeviceId, token: u64) {
        if self.commands.open.get(device).is_some_and(|open| open.command.token == token) {
            self.commands.remove(device);
        }
    }

    fn end_command(
        &mut self,
        token: u64,
        result: Result<CommandAnswer, CommandFailure>,
        record: Option<(SessionId, u32)>,
    ) {
        self.events.push_back(Event::CommandResult { token, result, record });
    }

    /// A device says what came of a command.
    pub(super) fn handle_result(
        &mut self,
        device: DeviceId,
        number: u32,
        status: u8,
        payload: &[u8],
        record: (SessionId, u32),
    ) {
        let open = self.commands.open.get(&device);
        let answer = CommandAnswer { status, output: payload.to_vec() };
        if open.is_some_and(|open| open.command.number == number)
            && let Some(open) = self.commands.remove(&device)
        {
            self.commands.await_recorded(device, record);
            self.end_command(open.command.token, Ok(answer), Some(record));
        } else {
            // The record in which the result came first may never have been answered.
            if self.commands.unrecorded.contains_key(&device) {
                self.commands.await_recorded(device, record);
            }
            self.events.push_back(Event::UnexpectedResult { device, number, answer, record });
        }
    }

    /// Sends what is due, and again each second until its result or its time is there (R79).
    pub(super) fn send_commands(&mut self, now: Now) {
        while let Some((due_us, device)) = self.commands.due.first().copied() {
            if due_us > now.mono_us {
                break;
            }
            let Some(mut open) = self.commands.remove(&device) else { break };
            let token = open.command.token;
            if open.until_us <= now.mono_us {
                self.end_command(token, Err(CommandFailure::TimedOut), None);
                continue;
            }
            // The session may be another one than when the command was given. Without one, or where the path may not
            // get it yet or is a stream that has ended, it waits for the device's next record. One of another
            // registration never gets it: the device was registered anew, and that this command is over is on its way
            // here.
            open.send_us = None;
            if let Some(id) = self.sessions.live_of(&device)
                && let Some(session) = self.sessions.find_mut(id)
                && session.device.registration() == open.command.registration
                && self.streams.may_answer(session.path)
                && !session.holds_back(OVERHEAD + open.command.payload.len())
            {
                let Command { number, payload, .. } = &open.command;
                let down = Down::Command { command: *number, payload };
                if session.prepare(id, down, &mut self.unsealed) {
                    open.send_us = Some(now.mono_us + RESEND_US);
                    open.times = open.times.saturating_add(1);
                    self.events.push_back(Event::CommandSent { token, times: open.times });
                }
            }
            self.commands.insert(open);
        }
    }
}
