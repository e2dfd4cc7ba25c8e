//! A ring as a [`Driver`]. The operations this program submits, one method each: the only place where submission entries
//! are built.
//!
//! Callers keep a descriptor open until the operation's last completion.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::super::address::Route;
use super::super::buffers::{BufferSet, Lease};
use super::super::completion::Completion;
use super::super::sends::SendSlot;
use super::super::{Driver, DriverError, DriverKind, Inbox};
use super::ring::{LentMemory, Ring};

/// Sockets registered at creation, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Registered {
    Datagrams = 0,
    Listener = 1,
    Wake = 2,
    Hellos = 3,
}

impl Registered {
    const fn fixed(self) -> types::Fixed {
        types::Fixed(self as u32)
    }
}

impl Ring {
    /// Queues an operation that goes on until it is cancelled; there is one on each of these sockets.
    fn push_lasting(&mut self, on: Registered, entry: squeue::Entry, user_data: u64) {
        self.lasting[on as usize] = Some(user_data);
        self.push(entry.user_data(user_data));
    }

    /// Queues the end of the one on this socket, if there is one.
    fn push_end(&mut self, of: Registered, tag: u64) {
        if let Some(lasting) = self.lasting[of as usize].take() {
            let entry = opcode::AsyncCancel::new(lasting).build();
            self.push(entry.user_data(LentMemory::Nothing.user_data(tag)));
        }
    }
}

impl Driver for Ring {
    fn kind(&self) -> DriverKind {
        DriverKind::IoUring
    }

    fn enable(&mut self) -> Result<(), DriverError> {
        Ok(self.claim()?)
    }

    fn enter(
        &mut self,
        want: u32,
        timeout: Option<Duration>,
        min_wait_us: u32,
    ) -> Result<(), DriverError> {
        Ok(self.submit_and_wait(want, timeout, min_wait_us)?)
    }

    fn can_wait_for_a_batch(&self) -> bool {
        self.params().is_feature_min_timeout()
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        self.take_completions(into);
    }

    fn drain(&mut self, patience: Duration, each: &mut dyn FnMut(&Completion)) -> bool {
        // First of all: what comes from now on is for whoever has the sockets next.
        self.stop_receiving(0);
        self.push_end(Registered::Wake, 0);
        self.cancel_and_wait(patience, each)
    }

    // ---- memory

    fn read(&self, lease: &Lease) -> &[u8] {
        self.memory.buffers(lease.set).buffers.read(lease)
    }

    fn give_back(&mut self, lease: Lease) {
        self.memory.give_back(lease);
    }

    fn send_slot(&mut self) -> Option<SendSlot> {
        self.memory.slots.acquire()
    }

    fn slot_bytes(&mut self, slot: &mut SendSlot) -> &mut [u8] {
        self.memory.slots.bytes_mut(slot)
    }

    fn release_slot(&mut self, slot: SendSlot) {
        self.memory.slots.release(slot);
    }

    // ---- operations

    fn receive_datagrams(&mut self, inbox: Inbox, tag: u64) {
        let shape: *const libc::msghdr = &raw const *self.memory.receive_shape;
        let socket = match inbox {
            Inbox::Datagrams => Registered::Datagrams,
            Inbox::Hellos => Registered::Hellos,
        };
        let entry =
            opcode::RecvMsgMulti::new(socket.fixed(), shape, BufferSet::Datagrams.id()).build();
        self.push_lasting(socket, entry, LentMemory::ReceiveDatagrams.user_data(tag));
    }

    fn receive_stream(&mut self, stream: BorrowedFd<'_>, tag: u64) {
        let fd = types::Fd(stream.as_raw_fd());
        let entry = opcode::RecvMulti::new(fd, BufferSet::Streams.id()).build();
        self.push(entry.user_data(LentMemory::ReceiveStreams.user_data(tag)));
    }

    fn receive_stream_once(&mut self, stream: BorrowedFd<'_>, tag: u64) {
        let fd = types::Fd(stream.as_raw_fd());
        let entry = opcode::Recv::new(fd, std::ptr::null_mut(), 0)
            .buf_group(BufferSet::Streams.id())
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry.user_data(LentMemory::ReceiveStreams.user_data(tag)));
    }

    fn accept_streams(&mut self, tag: u64) {
        let listener = Registered::Listener;
        let entry = opcode::AcceptMulti::new(listener.fixed()).flags(libc::SOCK_CLOEXEC).build();
        self.push_lasting(listener, entry, LentMemory::Accept.user_data(tag));
    }

    fn stop_receiving(&mut self, tag: u64) {
        for on in [Registered::Datagrams, Registered::Hellos, Registered::Listener] {
            self.push_end(on, tag);
        }
    }

    fn send_datagram(&mut self, slot: SendSlot, len: usize, route: &Route) {
        let index = self.memory.slots.lend(slot, len, route);
        let socket = Registered::Datagrams.fixed();
        let entry = if route.control.len == 0 {
            // Costs the kernel less, and can name a destination but no source.
            let (bytes, name) = self.memory.slots.bytes_and_name(index);
            let [len, name_len] = [len, route.name.len].map(|len| u32::try_from(len).unwrap_or(0));
            opcode::Send::new(socket, bytes, len).dest_addr(name).dest_addr_len(name_len).build()
        } else {
            opcode::SendMsg::new(socket, self.memory.slots.message(index)).build()
        };
        self.push(entry.user_data(LentMemory::SendDatagram.user_data(u64::from(index))));
    }

    fn send_stream(&mut self, stream: BorrowedFd<'_>, bytes: Vec<u8>, from: usize, tag: u64) {
        assert!(from < bytes.len() && tag < 1 << super::ring::TAG_BITS, "something to send");
        let len = u32::try_from(bytes.len() - from).unwrap_or(u32::MAX);
        let address = self.memory.sends.lend(tag, bytes);
        let address = address.wrapping_add(from);
        let entry = opcode::Send::new(types::Fd(stream.as_raw_fd()), address, len)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(entry.user_data(LentMemory::SendStream.user_data(tag)));
    }

    fn watch_wake(&mut self, tag: u64) {
        let events = u32::from(libc::POLLIN.cast_unsigned());
        let entry = opcode::PollAdd::new(Registered::Wake.fixed(), events).multi(true).build();
        self.push_lasting(Registered::Wake, entry, LentMemory::Nothing.user_data(tag));
    }

    // The kernel finds an operation by its tag without a search. To cancel by descriptor would be one operation for both
    // directions, and the kernel would look through every stream's for it.
    fn cancel_receive(&mut self, _stream: BorrowedFd<'_>, receive_tag: u64, tag: u64) {
        let entry =
            opcode::AsyncCancel::new(LentMemory::ReceiveStreams.user_data(receive_tag)).build();
        self.push(entry.user_data(LentMemory::Nothing.user_data(tag)));
    }

    fn cancel_send(&mut self, _stream: BorrowedFd<'_>, send_tag: u64, tag: u64) {
        let entry = opcode::AsyncCancel::new(LentMemory::SendStream.user_data(send_tag)).build();
        self.push(entry.user_data(LentMemory::Nothing.user_data(tag)));
    }
    // It knows nothing of a descriptor but the operations in flight.
    fn forget_stream(&mut self, _stream: BorrowedFd<'_>) {}
}
