//! A TUN device: made, addressed and brought up by `ioctl`, for which no crate of ours has a safe call.
//!
//! Invariants: every `ioctl` here reads, and may write, one `ifreq`, which lives through the call and is
//! initialised as a whole; the union's field that is written is the one that the request reads.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;

/// A new, empty request for the interface of this name.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = &mut request.ifr_name[..libc::IFNAMSIZ - 1];
    if name.len() > room.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in room.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    Ok(request)
}

fn call(fd: RawFd, operation: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all operations of this file take a pointer to an `ifreq`; see above.
    match unsafe { libc::ioctl(fd, operation, &raw mut *request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A new device of the calling thread's network namespace: one read or write, one IP packet. Not blocking.
pub(super) fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = request(name)?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    call(file.as_raw_fd(), libc::TUNSETIFF, &mut request)?;
    Ok(file)
}

/// Gives an interface (or `name:1`, an alias of it) an address in a network of this mask.
pub(super) fn set_address(name: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for (operation, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        let mut request = request(name)?;
        let mut data = [0; 14];
        for (place, byte) in data[2..6].iter_mut().zip(value.octets()) {
            *place = byte.cast_signed();
        }
        let sa_family = libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?;
        request.ifr_ifru.ifru_addr = libc::sockaddr { sa_family, sa_data: data };
        call(socket.as_raw_fd(), operation, &mut request)?;
    }
    Ok(())
}

/// Brings an interface up.
pub(super) fn bring_up(name: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut request = request(name)?;
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    call(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request)
}
