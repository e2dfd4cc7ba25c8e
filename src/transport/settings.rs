//! What the transport can be told. Validated whole, before anything binds.

use std::net::{Ipv6Addr, SocketAddr};

use super::MESSAGE_MAX;
use crate::driver::{Choice, DATAGRAM_HEADER_LEN, SEND_CAPACITY, Sizes};

/// Bytes of a receive buffer. A datagram of [`MESSAGE_MAX`] bytes fits with its header, and one byte more shows.
pub(super) const RECEIVE_BUFFER_LEN: usize = 2_048;

const _: () = assert!(DATAGRAM_HEADER_LEN + MESSAGE_MAX < RECEIVE_BUFFER_LEN);
const _: () = assert!(MESSAGE_MAX <= SEND_CAPACITY);
const _: () = assert!(MESSAGE_MAX <= u16::MAX as usize);

/// Settings of the transport. `Default` suits a gateway of a few thousand streams a shard.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen, UDP and TCP alike. Port 0 takes a free one. `[::]` serves IPv4 too.
    pub listen: SocketAddr,
    /// Shards, one thread and its own sockets for each.
    pub shards: usize,
    /// Which driver the shards use.
    pub io: Choice,
    /// Cores to pin the shards to, by shard; empty pins none.
    pub cores: Vec<usize>,
    /// First byte of the datagrams that anybody can make. Each shard has a second UDP socket for them, so that a flood of
    /// them cannot push what belongs to somebody out of the kernel's buffer.
    pub hello: u8,
    /// `SO_RCVBUF` of each UDP socket, bytes. The kernel caps it at `net.core.rmem_max`. A storm's hellos wait there until
    /// the shard takes them: what finds no room comes again a second later.
    pub receive_buffer: usize,
    /// Submission queue entries.
    pub submissions: u32,
    /// Completion queue entries.
    pub completions: u32,
    /// Receive buffers for datagrams, a power of two. One burst can drain all that fit in the socket.
    pub datagram_buffers: u16,
    /// Receive buffers for streams, a power of two.
    pub stream_buffers: u16,
    /// Datagrams that can be on their way out at once.
    pub send_slots: u32,
    /// Streams a shard serves at once; further ones are closed on arrival.
    pub streams_max: usize,
    /// Bytes queued towards one stream before it is closed as too slow.
    pub stream_queue_max: usize,
    /// How long to stop accepting when descriptors run out, µs.
    pub accept_pause_us: u64,
    /// Items in a shard's mailbox.
    pub mailbox: usize,
    /// Under load, gather completions for this long before a turn, µs; 0 never waits.
    pub min_wait_us: u32,
    /// How often counters are exported, µs.
    pub export_us: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
            shards: 1,
            io: Choice::Auto,
            cores: Vec::new(),
            hello: u8::MAX,
            receive_buffer: 16 << 20,
            submissions: 1_024,
            completions: 8_192,
            datagram_buffers: 1_024,
            stream_buffers: 512,
            send_slots: 1_024,
            streams_max: 10_000,
            stream_queue_max: 64 << 10,
            accept_pause_us: 100_000,
            mailbox: 4_096,
            min_wait_us: 0,
            export_us: 1_000_000,
        }
    }
}

impl Settings {
    /// What is wrong with these settings, if anything.
    pub fn fault(&self) -> Option<&'static str> {
        let buffers = [self.datagram_buffers, self.stream_buffers];
        let rules = [
            ((1..=256).contains(&self.shards), "shards must be 1 to 256"),
            (
                buffers.iter().all(|count| count.is_power_of_two() && *count <= 1 << 15),
                "numbers of buffers must be powers of two up to 32768",
            ),
            (
                (1..=1 << 15).contains(&self.submissions),
                "submission queue entries must be 1 to 32768",
            ),
            (
                (1..=1 << 16).contains(&self.completions),
                "completion queue entries must be 1 to 65536",
            ),
            ((1..=1 << 20).contains(&self.send_slots), "send slots must be 1 to 1048576"),
            ((1..1 << 20).contains(&self.streams_max), "streams must be 1 to 1048575"),
            (
                self.stream_queue_max >= MESSAGE_MAX + 2,
                "a stream's queue must hold at least one message",
            ),
            (self.mailbox > 0, "a mailbox must hold at least one item"),
            (self.export_us > 0, "counters must be exported at some interval"),
        ];
        rules.iter().find(|(holds, _)| !holds).map(|(_, fault)| *fault)
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            submissions: self.submissions,
            completions: self.completions,
            datagram_buffers: self.datagram_buffers,
            datagram_buffer_len: RECEIVE_BUFFER_LEN,
            stream_buffers: self.stream_buffers,
            stream_buffer_len: RECEIVE_BUFFER_LEN,
            send_slots: self.send_slots,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_faults_are_named() {
        assert_eq!(Settings::default().fault(), None);
        let none = Settings { shards: 0, ..Settings::default() };
        assert_eq!(none.fault(), Some("shards must be 1 to 256"));
        let odd = Settings { stream_buffers: 3, ..Settings::default() };
        assert!(odd.fault().is_some_and(|fault| fault.contains("powers of two")));
    }
}
