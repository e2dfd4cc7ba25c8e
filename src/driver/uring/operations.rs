//! The operations this program submits, one method each: the only place where submission entries are built.
//!
//! Callers keep a descriptor open until the operation's last completion.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{opcode, types};

use super::super::Inbox;
use super::super::address::Route;
use super::super::buffers::BufferSet;
use super::super::sends::SendSlot;
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
    /// Receives datagrams until a completion without `more`. Each buffer holds a header
    /// ([`received_datagram`](super::super::received_datagram)).
    pub fn receive_datagrams(&mut self, inbox: Inbox, tag: u64) {
        let shape: *const libc::msghdr = &raw const *self.memory.receive_shape;
        let socket = match inbox {
            Inbox::Datagrams => Registered::Datagrams,
            Inbox::Hellos => Registered::Hellos,
        };
        let socket = socket.fixed();
        let entry = opcode::RecvMsgMulti::new(socket, shape, BufferSet::Datagrams.id()).build();
        self.push(entry.user_data(LentMemory::ReceiveDatagrams.user_data(tag)));
    }

    /// Receives from a stream until a completion without `more`.
    pub fn receive_stream(&mut self, stream: BorrowedFd<'_>, tag: u64) {
        let fd = types::Fd(stream.as_raw_fd());
        let entry = opcode::RecvMulti::new(fd, BufferSet::Streams.id()).build();
        self.push(entry.user_data(LentMemory::ReceiveStreams.user_data(tag)));
    }

    /// Receives from a stream once.
    pub fn receive_stream_once(&mut self, stream: BorrowedFd<'_>, tag: u64) {
        let fd = types::Fd(stream.as_raw_fd());
        let entry = opcode::Recv::new(fd, std::ptr::null_mut(), 0)
            .buf_group(BufferSet::Streams.id())
            .build()
            .flags(io_uring::squeue::Flags::BUFFER_SELECT);
        self.push(entry.user_data(LentMemory::ReceiveStreams.user_data(tag)));
    }

    /// Accepts streams until a completion without `more`; each comes as
    /// [`Payload::Accepted`](super::super::Payload::Accepted), closed on exec.
    pub fn accept_streams(&mut self, tag: u64) {
        let listener = Registered::Listener.fixed();
        let entry = opcode::AcceptMulti::new(listener).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry.user_data(LentMemory::Accept.user_data(tag)));
    }

    /// Sends the first `len` bytes of `slot`. The slot comes back by itself.
    ///
    /// # Panics
    /// If `len` exceeds a slot.
    pub fn send_datagram(&mut self, slot: SendSlot, len: usize, route: &Route) {
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

    /// Sends `bytes[from..]` on a stream. The vector comes back with the completion.
    ///
    /// # Panics
    /// If `from` is not inside the vector.
    pub fn send_stream(&mut self, stream: BorrowedFd<'_>, bytes: Vec<u8>, from: usize, tag: u64) {
        assert!(from < bytes.len() && tag < 1 << super::ring::TAG_BITS, "something to send");
        let len = u32::try_from(bytes.len() - from).unwrap_or(u32::MAX);
        let address = self.memory.sends.lend(tag, bytes);
        let address = address.wrapping_add(from);
        let entry = opcode::Send::new(types::Fd(stream.as_raw_fd()), address, len)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(entry.user_data(LentMemory::SendStream.user_data(tag)));
    }

    /// Reports each wake by the eventfd, until a completion without `more`.
    pub fn watch_wake(&mut self, tag: u64) {
        let events = u32::from(libc::POLLIN.cast_unsigned());
        let entry = opcode::PollAdd::new(Registered::Wake.fixed(), events).multi(true).build();
        self.push(entry.user_data(LentMemory::Nothing.user_data(tag)));
    }

    /// Cancels the receive on a stream that was begun with this tag: the kernel finds it without a search.
    pub fn cancel_receive(&mut self, receive_tag: u64, tag: u64) {
        let entry =
            opcode::AsyncCancel::new(LentMemory::ReceiveStreams.user_data(receive_tag)).build();
        self.push(entry.user_data(LentMemory::Nothing.user_data(tag)));
    }

    /// Cancels the send on a stream that was begun with this tag. To cancel by descriptor would be one operation for both,
    /// and the kernel would look through every stream's for it.
    pub fn cancel_send(&mut self, send_tag: u64, tag: u64) {
        let entry = opcode::AsyncCancel::new(LentMemory::SendStream.user_data(send_tag)).build();
        self.push(entry.user_data(LentMemory::Nothing.user_data(tag)));
    }
}
