//! `[queues]`: how much each data-plane thread shares with the kernel.

use serde::Deserialize;

use super::Check;

/// `[queues]`, for each data-plane thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Operations that are handed over at once.
    pub submissions: u32,
    /// Completions that wait to be taken; more are kept, at a cost.
    pub completions: u32,
    /// Receive buffers of 2 KiB for datagrams.
    pub datagram_buffers: u16,
    /// Receive buffers of 2 KiB for streams.
    pub stream_buffers: u16,
    /// Datagrams that are on their way out at once.
    pub send_slots: u32,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileQueues {
    submissions: Option<u32>,
    completions: Option<u32>,
    datagram_buffers: Option<u16>,
    stream_buffers: Option<u16>,
    send_slots: Option<u32>,
}

impl FileQueues {
    pub(super) fn resolve(self) -> Queues {
        Queues {
            submissions: self.submissions.unwrap_or(1_024),
            completions: self.completions.unwrap_or(8_192),
            datagram_buffers: self.datagram_buffers.unwrap_or(1_024),
            stream_buffers: self.stream_buffers.unwrap_or(512),
            send_slots: self.send_slots.unwrap_or(1_024),
        }
    }
}

impl Queues {
    pub(super) fn check(&self, check: &mut Check) {
        let within = |count: u32, max: u32| (1..=max).contains(&count);
        let power = |count: u16| count.is_power_of_two() && count <= 1 << 15;
        let buffers = "must be a power of two up to 32768";
        check.that(within(self.submissions, 1 << 15), "queues.submissions", "must be 1 to 32768");
        check.that(within(self.completions, 1 << 16), "queues.completions", "must be 1 to 65536");
        check.that(power(self.datagram_buffers), "queues.datagram_buffers", buffers);
        check.that(power(self.stream_buffers), "queues.stream_buffers", buffers);
        check.that(within(self.send_slots, 1 << 20), "queues.send_slots", "must be 1 to 1048576");
    }
}
