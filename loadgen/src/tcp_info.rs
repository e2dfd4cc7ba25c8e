//! `getsockopt(TCP_INFO)`: the one system call that no crate of ours wraps.
//!
//! Invariant: the kernel writes at most as many bytes as the buffer has and says how many; only
//! those are looked at.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::exchange::Both;

/// Offsets in `struct tcp_info` (include/uapi/linux/tcp.h).
const SEGS_OUT: usize = 136;
const SEGS_IN: usize = 140;

pub(crate) fn segments(socket: BorrowedFd<'_>) -> Option<Both> {
    let mut info = [0u8; 256];
    let mut len = 256;
    // SAFETY: the descriptor is open for the borrow's life; the buffer has `len` bytes and lives
    // through the call, which writes no more than that and stores the number in `len`.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if failed != 0 || usize::try_from(len).ok()? < SEGS_IN + 4 {
        return None;
    }
    let at = |offset: usize| {
        let bytes = info.get(offset..offset + 4)?.try_into().ok()?;
        Some(u64::from(u32::from_ne_bytes(bytes)))
    };
    Some(Both { up: at(SEGS_OUT)?, down: at(SEGS_IN)? })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn segments_are_counted_both_ways() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut b, _) = listener.accept().unwrap();
        let before = segments(a.as_fd()).unwrap();
        a.write_all(b"hello").unwrap();
        b.read_exact(&mut [0; 5]).unwrap();
        let after = segments(a.as_fd()).unwrap();
        assert!(before.up >= 2, "SYN and ACK");
        assert_eq!(after.up, before.up + 1);
    }
}
