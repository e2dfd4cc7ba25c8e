//! What the queue's thread is told and asked.

use duet_core::{CommandAnswer, CommandFailure};
use duet_protocol::identity::DeviceId;
use duet_protocol::wire::SessionId;
use tokio::sync::oneshot;

use super::{CommandInfo, Order, QueueError, Queued, Wanted};

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, QueueError>>;

/// Something to do for somebody who waits, or a question.
pub(super) enum Request {
    Queue(Order, Reply<Queued>),
    Cancel(u64, Reply<CommandInfo>),
    Ask(Question),
}

/// What is answered whether or not the file can be written.
pub(super) enum Question {
    Show(u64, Reply<CommandInfo>),
    List(Wanted, Reply<Vec<CommandInfo>>),
}

impl Request {
    /// Answers with a refusal. Whoever asked may be gone, which is fine.
    pub(super) fn refuse(self, error: &QueueError) {
        match self {
            Self::Queue(_, reply) => drop(reply.send(Err(error.clone()))),
            Self::Cancel(_, reply) | Self::Ask(Question::Show(_, reply)) => {
                drop(reply.send(Err(error.clone())));
            }
            Self::Ask(Question::List(_, reply)) => drop(reply.send(Err(error.clone()))),
        }
    }
}

/// Something that happened.
pub(super) enum Input {
    Request(Request),
    /// A command went out once more.
    Sent(u64),
    Ended {
        shard: usize,
        id: u64,
        result: Result<CommandAnswer, CommandFailure>,
        record: Option<(SessionId, u32)>,
    },
    Unexpected {
        shard: usize,
        device: DeviceId,
        number: u32,
        answer: CommandAnswer,
        record: (SessionId, u32),
    },
    /// Something was said beside the inbox.
    SaidOnce,
    Told {
        ends: Vec<(u64, bool)>,
        stored: bool,
    },
    Revoked(DeviceId),
    Stop,
}
