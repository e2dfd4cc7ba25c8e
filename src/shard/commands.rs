//! Commands: to a connected device, again until its result comes or the time is over.

use std::time::Duration;

use duet_protocol::identity::DeviceId;
use duet_protocol::message::{Down, PAYLOAD_MAX};
use tokio::sync::oneshot;

use super::destinations::Destinations;
use super::engine::Engine;
use super::{Shard, Sink};
use crate::admin::CommandError;
use crate::transport::Now;

/// The most commands that wait for their results.
const COMMANDS_MAX: usize = 4_096;

/// A command on its way to a connected device.
pub struct Command {
    /// To whom.
    pub device: DeviceId,
    /// What to do, at most [`PAYLOAD_MAX`](duet_protocol::message::PAYLOAD_MAX) bytes.
    pub payload: Vec<u8>,
    /// How long to wait for the result.
    pub timeout: Duration,
    /// Who waits for the output.
    pub answer: oneshot::Sender<Result<Vec<u8>, CommandError>>,
}

impl Command {
    /// Tells whoever waits that nothing comes.
    pub fn refuse(self, error: CommandError) {
        // Nobody may be waiting any more, which is fine.
        let _ = self.answer.send(Err(error));
    }
}

/// A command that is out.
pub(super) struct Sent {
    pub(super) command: Command,
    pub(super) sent_to: Destinations,
    pub(super) until_us: u64,
    pub(super) resend_us: u64,
}

impl<E: Engine, S: Sink> Shard<E, S> {
    pub(super) fn handle_command(&mut self, now: Now, command: Command) {
        if command.payload.len() > PAYLOAD_MAX {
            return command.refuse(CommandError::TooLong);
        }
        // R48: nothing is sent in a session that no record has confirmed.
        let live = self.contacts.get(&command.device).and_then(|contact| contact.live);
        if live.is_none() {
            return command.refuse(CommandError::NotConnected);
        }
        // R80: the device remembers one command only.
        let open = self.commands.values().any(|sent| sent.command.device == command.device);
        if open || self.commands.len() >= COMMANDS_MAX {
            return command.refuse(CommandError::Busy);
        }
        let number = self.next_command;
        self.next_command = number.wrapping_add(1);
        let timeout = u64::try_from(command.timeout.as_micros()).unwrap_or(u64::MAX);
        let until_us = now.mono_us.saturating_add(timeout);
        let sent_to = Destinations::default();
        let sent = Sent { command, sent_to, until_us, resend_us: now.mono_us };
        self.commands.insert(number, sent);
    }

    /// Sends what is due, and again each second until its result or its time is there (R79).
    pub(super) fn send_commands(&mut self, now: Now) {
        let over: Vec<u32> = self
            .commands
            .iter()
            .filter(|(_, sent)| sent.until_us <= now.mono_us)
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            if let Some(sent) = self.commands.remove(&number) {
                sent.command.refuse(CommandError::TimedOut);
            }
        }
        for (number, sent) in &mut self.commands {
            if sent.resend_us > now.mono_us {
                continue;
            }
            sent.resend_us = now.mono_us + 1_000_000;
            // The session may be another one than when the command was given.
            let live = self.contacts.get(&sent.command.device).and_then(|contact| contact.live);
            if let Some(id) = live
                && let Some(session) = self.sessions.get_mut(&id)
            {
                let down = Down::Command { command: *number, payload: &sent.command.payload };
                if session.prepare(id, down, &mut self.unsealed) {
                    sent.sent_to.add(session.path);
                }
            }
        }
    }
}
