//! Commands as people and programs see them.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::entry::{Entry, How};
use crate::hex::Hex;

/// Where in its life a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CommandState {
    /// It waits for its device, or for those before it.
    Queued,
    /// It was sent at least once, and no result has come.
    Sent,
    /// The device answered.
    Done,
    /// No result came in its time; the device may have carried it out.
    Expired,
    /// Somebody cancelled it, or its device was removed; if it was sent, the device may have carried it out.
    Cancelled,
    /// A newer one with the same collapse key took its place.
    Superseded,
}

impl CommandState {
    /// Its name, as in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Done => "done",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }
}

impl fmt::Display for CommandState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A result that came after its command was over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LateResult {
    /// Zero for success; other values are the device's own.
    pub status: u8,
    /// What the device answered, hexadecimal.
    pub output: String,
    /// When it came, milliseconds since 1970.
    pub at_ms: u64,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommandInfo {
    /// Its name for people and programs; rises with every command of this gateway.
    pub id: u64,
    /// The device's name.
    pub device: String,
    /// The number that the device knows it by.
    pub number: u32,
    /// Where in its life it is.
    pub state: CommandState,
    /// How often it was sent.
    pub sent: u32,
    /// What to do, hexadecimal.
    pub payload: String,
    /// When it was queued, milliseconds since 1970.
    pub queued_ms: u64,
    /// Until when it waits for its result, milliseconds since 1970.
    pub expires_ms: u64,
    /// When it was over, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// What the device said: zero for success, other values are the device's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u8>,
    /// What the device answered, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// A result that came when it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<LateResult>,
    /// Its idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its collapse key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse: Option<String>,
}

impl From<&Entry> for CommandInfo {
    fn from(entry: &Entry) -> Self {
        let answer = match &entry.end {
            Some((_, How::Done(answer))) => Some(answer),
            _ => None,
        };
        let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
        Self {
            id: entry.id,
            device: entry.name.to_string(),
            number: entry.number,
            state: entry.state(),
            sent: entry.sent,
            payload: Hex(&entry.payload).to_string(),
            queued_ms: entry.queued_ms,
            expires_ms: entry.expires_ms,
            ended_ms: entry.end.as_ref().map(|(at_ms, _)| *at_ms),
            status: answer.map(|answer| answer.status),
            output: answer.map(|answer| Hex(&answer.output).to_string()),
            late: entry.late.as_ref().map(|(at_ms, answer)| LateResult {
                status: answer.status,
                output: Hex(&answer.output).to_string(),
                at_ms: *at_ms,
            }),
            key: text(&entry.key),
            collapse: text(&entry.collapse),
        }
    }
}
