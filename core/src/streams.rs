//! Which streams are to be closed, and when. One entry a stream: whatever it sends costs no more.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::StreamId;

/// How long after a discarded message its stream is closed, µs (R89).
const CLOSE_AFTER_US: u64 = 1_000_000;
/// How long a stream may go without an authentic record after its first message, µs (R90), and how often it is asked
/// afterwards whether any session still speaks over it.
const PROOF_WITHIN_US: u64 = 30_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing authentic came yet: whoever sent this may have only listened before.
    Unproven,
    /// As many sessions speak over it.
    Proven(u32),
    /// The last session has left it; at the next look it is silent.
    Left,
    /// No session has spoken over it since the last look.
    Silent,
    /// To be closed.
    Failed,
}

/// The streams that brought messages.
#[derive(Default)]
pub(crate) struct Streams {
    states: FxHashMap<StreamId, State>,
    /// In the order of time, as each waits equally long.
    failed: VecDeque<(u64, StreamId)>,
    /// The next look at each.
    looks: VecDeque<(u64, StreamId)>,
}

impl Streams {
    /// A message came.
    pub(crate) fn arrived(&mut self, now_us: u64, stream: StreamId) {
        self.states.entry(stream).or_insert_with(|| {
            self.looks.push_back((now_us + PROOF_WITHIN_US, stream));
            State::Unproven
        });
    }

    /// A session's newest record came over it: from now on the session speaks there.
    pub(crate) fn join(&mut self, stream: StreamId) {
        if let Some(state) = self.states.get_mut(&stream) {
            *state = match *state {
                State::Unproven | State::Left | State::Silent => State::Proven(1),
                State::Proven(sessions) => State::Proven(sessions.saturating_add(1)),
                State::Failed => State::Failed,
            };
        }
    }

    /// A session that spoke over it has ended, or speaks elsewhere.
    pub(crate) fn leave(&mut self, stream: StreamId) {
        if let Some(state) = self.states.get_mut(&stream)
            && let State::Proven(sessions) = *state
        {
            *state = if sessions > 1 { State::Proven(sessions - 1) } else { State::Left };
        }
    }

    /// One of its messages was discarded.
    pub(crate) fn fail(&mut self, now_us: u64, stream: StreamId) {
        if let Some(state) = self.states.get_mut(&stream)
            && *state != State::Failed
        {
            *state = State::Failed;
            self.failed.push_back((now_us + CLOSE_AFTER_US, stream));
        }
    }

    /// It is gone.
    pub(crate) fn closed(&mut self, stream: StreamId) {
        self.states.remove(&stream);
    }

    /// The next stream to close.
    pub(crate) fn poll(&mut self, now_us: u64) -> Option<StreamId> {
        let due = |(due_us, _): &mut (u64, StreamId)| *due_us <= now_us;
        if let Some((_, stream)) = self.failed.pop_front_if(due) {
            return Some(stream);
        }
        while let Some((_, stream)) = self.looks.pop_front_if(due) {
            let Some(state) = self.states.get_mut(&stream) else { continue };
            match *state {
                State::Unproven | State::Silent => {
                    *state = State::Failed;
                    return Some(stream);
                }
                State::Failed => continue,
                State::Left => *state = State::Silent,
                State::Proven(_) => {}
            }
            self.looks.push_back((now_us + PROOF_WITHIN_US, stream));
        }
        None
    }

    /// When to [`poll`](Self::poll).
    pub(crate) fn next_us(&self) -> Option<u64> {
        let first = |queue: &VecDeque<(u64, StreamId)>| queue.front().map(|(due_us, _)| *due_us);
        first(&self.failed).into_iter().chain(first(&self.looks)).min()
    }
}
