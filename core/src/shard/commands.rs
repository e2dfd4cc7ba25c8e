//! Commands: to a connected device, again until its result comes or the time is over.

use std::collections::HashMap;
use std::time::Duration;

use duet_protocol::identity::DeviceId;
use duet_protocol::message::{Down, PAYLOAD_MAX};
use thiserror::Error;

use super::{Event, Shard, Sink};
use crate::Now;
use crate::destinations::Destinations;
use crate::engine::Engine;

/// The most commands that wait for their results.
const COMMANDS_MAX: usize = 4_096;

/// A command on its way to a connected device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Chosen by whoever gives the command, to know its [result](Event::CommandResult) by.
    pub token: u64,
    /// To whom.
    pub device: DeviceId,
    /// What to do, at most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
    /// How long to wait for the result.
    pub timeout: Duration,
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
    /// The device carried it out, or tried to, and reports a failure of its own.
    #[error("the device reports failure (status {0})")]
    Reported(u8),
}

/// A command that its device has not answered. A device has at most one (R80).
pub(super) struct OpenCommand {
    pub(super) command: Command,
    pub(super) sent_to: Destinations,
    until_us: u64,
    resend_us: u64,
}

/// The open commands of a shard, by the numbers that devices know them by.
pub(super) struct Commands {
    open: HashMap<u32, OpenCommand>,
    next: u32,
}

impl Commands {
    /// None yet; the first number is to be random, since devices remember numbers across restarts of the gateway.
    pub(super) fn new(first: u32) -> Self {
        Self { open: HashMap::new(), next: first }
    }

    /// When to look at them next, µs.
    pub(super) fn next_us(&self) -> Option<u64> {
        self.open.values().map(|open| open.resend_us.min(open.until_us)).min()
    }

    /// Takes out the command that this device was given under this number.
    pub(super) fn take(&mut self, number: u32, device: DeviceId) -> Option<OpenCommand> {
        self.open.get(&number).filter(|open| open.command.device == device)?;
        self.open.remove(&number)
    }
}

impl<E: Engine, S: Sink> Shard<E, S> {
    pub(super) fn handle_command(&mut self, now: Now, command: Command) {
        let Commands { open, next } = &mut self.commands;
        let failure = if command.payload.len() > PAYLOAD_MAX {
            Some(CommandFailure::TooLong)
        } else if self.sessions.live_of(&command.device).is_none() {
            // R48: nothing is sent in a session that no record has confirmed.
            Some(CommandFailure::NotConnected)
        } else if open.len() >= COMMANDS_MAX
            // R80: the device remembers one command only.
            || open.values().any(|open| open.command.device == command.device)
        {
            Some(CommandFailure::Busy)
        } else {
            None
        };
        if let Some(failure) = failure {
            return self.end_command(command.token, Err(failure));
        }
        let timeout = u64::try_from(command.timeout.as_micros()).unwrap_or(u64::MAX);
        let until_us = now.mono_us.saturating_add(timeout);
        let sent_to = Destinations::default();
        open.insert(*next, OpenCommand { command, sent_to, until_us, resend_us: now.mono_us });
        *next = next.wrapping_add(1);
    }

    pub(super) fn end_command(&mut self, token: u64, result: Result<Vec<u8>, CommandFailure>) {
        self.events.push_back(Event::CommandResult { token, result });
    }

    /// Sends what is due, and again each second until its result or its time is there (R79).
    pub(super) fn send_commands(&mut self, now: Now) {
        let over = self.commands.open.extract_if(|_, open| open.until_us <= now.mono_us);
        self.events.extend(over.map(|(_, open)| Event::CommandResult {
            token: open.command.token,
            result: Err(CommandFailure::TimedOut),
        }));
        for (number, open) in &mut self.commands.open {
            if open.resend_us > now.mono_us {
                continue;
            }
            open.resend_us = now.mono_us + 1_000_000;
            // The session may be another one than when the command was given.
            if let Some(id) = self.sessions.live_of(&open.command.device)
                && let Some(session) = self.sessions.find_mut(id)
            {
                let down = Down::Command { command: *number, payload: &open.command.payload };
                if session.prepare(id, down, &mut self.unsealed) {
                    open.sent_to.add(session.path);
                }
            }
        }
    }
}
