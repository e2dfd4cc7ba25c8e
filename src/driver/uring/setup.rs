//! Making a ring: disabled first, probed, restricted to the operations this program uses, then enabled by its thread.
//!
//! Owns the order of those steps. Must not submit anything.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use io_uring::register::{Probe, Restriction};
use io_uring::{IoUring, opcode, squeue};

use super::super::buffers::BufferSet;
use super::super::sends::SendSlots;
use super::super::{DriverError, Sizes, Sockets};
use super::error::RingError;
use super::provided::BufferRing;
use super::ring::{Memory, Ring};

/// Every operation this program submits: the probe demands them and the restrictions allow no other.
const OPERATIONS: [(u8, &str); 7] = [
    (opcode::RecvMsgMulti::CODE, "IORING_OP_RECVMSG"),
    (opcode::Recv::CODE, "IORING_OP_RECV"),
    (opcode::Send::CODE, "IORING_OP_SEND"),
    (opcode::SendMsg::CODE, "IORING_OP_SENDMSG"),
    (opcode::Accept::CODE, "IORING_OP_ACCEPT"),
    (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD"),
    (opcode::AsyncCancel::CODE, "IORING_OP_ASYNC_CANCEL"),
];

/// What is still allowed after enabling: `IORING_UNREGISTER_FILES`, the last thing a ring does.
const UNREGISTER_FILES: u8 = 3;

impl Ring {
    /// Makes a disabled ring with `sockets` registered. Any thread may do this; the thread that then calls
    /// [enables](super::super::Driver::enable) it owns the ring.
    ///
    /// # Errors
    /// When the kernel refuses; the error says why.
    pub fn new(sizes: &Sizes, sockets: &Sockets<'_>) -> Result<Self, DriverError> {
        let inner = IoUring::builder()
            .dontfork()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag() // tells an enter that does not wait whether completions are to be fetched
            .setup_submit_all()
            .setup_cqsize(sizes.completions.max(sizes.submissions))
            .build(sizes.submissions)
            .map_err(RingError::of_setup)?;
        for (present, missing) in [
            (inner.params().is_feature_nodrop(), "IORING_FEAT_NODROP"),
            (inner.params().is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
            (inner.params().is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
        ] {
            if !present {
                return Err(RingError::TooOld { missing }.into());
            }
        }
        probe(&inner)?;

        let memory = Memory::new(
            BufferRing::new(
                BufferSet::Datagrams,
                sizes.datagram_buffers,
                sizes.datagram_buffer_len,
            )
            .map_err(DriverError::Buffers)?,
            BufferRing::new(BufferSet::Streams, sizes.stream_buffers, sizes.stream_buffer_len)
                .map_err(DriverError::Buffers)?,
            SendSlots::new(sizes.send_slots).map_err(DriverError::Buffers)?,
        );
        for set in BufferSet::ALL {
            let buffers = memory.buffers(set);
            // SAFETY: address and count describe a mapping owned by `memory`, which the ring keeps until the kernel's
            // ring is gone.
            unsafe {
                inner.submitter().register_buf_ring_with_flags(
                    buffers.address(),
                    buffers.count(),
                    set.id(),
                    0,
                )
            }
            .map_err(RingError::failed("register a buffer ring"))?;
        }
        // In the order of `Registered`.
        let Sockets { datagrams, listener, wake, hellos } = sockets;
        let files = [datagrams, listener, wake, hellos].map(AsRawFd::as_raw_fd);
        inner.submitter().register_files(&files).map_err(RingError::failed("register files"))?;
        let restricted = restrict(&inner);
        Ok(Self::assemble(inner, memory, restricted))
    }
}

fn probe(inner: &IoUring) -> Result<(), RingError> {
    let mut probe = Probe::new();
    inner
        .submitter()
        .register_probe(&mut probe)
        .map_err(|_| RingError::TooOld { missing: "IORING_REGISTER_PROBE" })?;
    match OPERATIONS.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, missing)) => Err(RingError::TooOld { missing }),
        None => Ok(()),
    }
}

/// Narrows the ring to [`OPERATIONS`]. A kernel or a policy may refuse that; the ring works without, and says so.
fn restrict(inner: &IoUring) -> bool {
    let mut allowed: Vec<_> =
        OPERATIONS.iter().map(|(code, _)| Restriction::sqe_op(*code)).collect();
    allowed.push(Restriction::register_op(UNREGISTER_FILES));
    let flags = squeue::Flags::FIXED_FILE | squeue::Flags::BUFFER_SELECT;
    allowed.push(Restriction::sqe_flags_allowed(flags.bits()));
    inner.submitter().register_restrictions(&mut allowed).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::super::super::{Driver as _, EventFd};
    use super::super::ring::LentMemory;
    use super::*;

    fn ring() -> Ring {
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wake = EventFd::new().unwrap();
        let sockets = Sockets {
            datagrams: datagrams.as_fd(),
            hellos: datagrams.as_fd(),
            listener: listener.as_fd(),
            wake: wake.as_fd(),
        };
        let sizes = Sizes {
            submissions: 8,
            completions: 16,
            datagram_buffers: 4,
            datagram_buffer_len: 2_048,
            stream_buffers: 4,
            stream_buffer_len: 2_048,
            send_slots: 4,
        };
        let mut ring = Ring::new(&sizes, &sockets).unwrap();
        ring.enable().unwrap();
        ring
    }

    #[test]
    fn an_operation_that_is_not_on_the_list_is_refused() {
        let mut ring = ring();
        if !ring.is_restricted() {
            eprintln!("SKIPPED: this kernel refuses io_uring restrictions");
            return;
        }
        let forbidden = [
            opcode::Nop::new().build(),
            opcode::Close::new(io_uring::types::Fd(-1)).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        ];
        for (tag, entry) in (0..).zip(forbidden) {
            ring.push(entry.user_data(LentMemory::Nothing.user_data(tag)));
        }
        ring.watch_wake(7);
        let mut completions = Vec::new();
        ring.enter(3, Some(Duration::from_secs(1)), 0).unwrap();
        ring.reap(&mut completions);
        let results: Vec<_> = completions.iter().map(|it| (it.tag, it.result)).collect();
        assert_eq!(results, [(0, -libc::EACCES), (1, -libc::EACCES), (2, -libc::EACCES)]);
        assert_eq!(ring.in_flight(), 1, "what is on the list is taken");
    }

    #[test]
    fn nothing_more_can_be_registered() {
        let ring = ring();
        if !ring.is_restricted() {
            eprintln!("SKIPPED: this kernel refuses io_uring restrictions");
            return;
        }
        let error = ring.submitter().register_files(&[0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
