//! A network namespace of one's own, with a TUN device in it; gone when the last thread, process and
//! [`Namespace`] that hold it are.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use super::tun;

/// The device's name in every namespace.
pub(super) const DEVICE: &str = "duet0";

/// What a lack of privileges is answered with.
const NEEDED: &str = "the link emulator makes network namespaces and TUN devices, for which it must be root: \
    run this with sudo, or under `unshare --user --map-root-user --net` where the system allows that, or \
    give --link socket, which delays at the sockets and cannot see packets";

/// A namespace that threads can enter.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// Makes a namespace with loopback and a TUN device that has all these addresses.
    pub(super) fn new(addresses: &[Ipv4Addr], mask: Ipv4Addr) -> Result<(Self, File)> {
        let addresses = addresses.to_vec();
        // Only the thread that unshares is moved; it ends at once.
        let made = std::thread::spawn(move || make(&addresses, mask)).join();
        made.map_err(|_| anyhow!("the thread that makes a namespace panicked"))?
    }

    /// Moves the calling thread into it for good: the sockets that it opens and the programs that it starts
    /// from now on are there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        setns(&self.handle, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// Runs something in it, on a thread of its own.
    ///
    /// # Errors
    /// What the closure returns, or that the namespace cannot be entered.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                act()
            });
            thread.join().map_err(|_| anyhow!("a thread in a namespace panicked"))?
        })
    }
}

fn make(addresses: &[Ipv4Addr], mask: Ipv4Addr) -> Result<(Namespace, File)> {
    unshare(CloneFlags::CLONE_NEWNET).context(NEEDED)?;
    let handle = File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")?;
    tun::bring_up("lo").context("cannot bring up loopback in a new network namespace")?;
    // The emulator carries IPv4 alone; without this the kernel greets IPv6 routers that are not there.
    set("net/ipv6/conf/all/disable_ipv6", "1");
    set("net/ipv6/conf/default/disable_ipv6", "1");
    // Every job is a first contact: no round-trip time, window or cookie is remembered.
    set("net/ipv4/tcp_no_metrics_save", "1");
    let device = tun::open(DEVICE).map_err(|error| explain(&error))?;
    for (place, address) in addresses.iter().enumerate() {
        let name = if place == 0 { DEVICE.to_owned() } else { format!("{DEVICE}:{place}") };
        tun::set_address(&name, *address, mask)
            .with_context(|| format!("cannot give {name} the address {address}"))?;
    }
    tun::bring_up(DEVICE).with_context(|| format!("cannot bring up {DEVICE}"))?;
    Ok((Namespace { handle }, device))
}

fn explain(error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "/dev/net/tun: no such device: `modprobe tun`, or in a container \
            `--device /dev/net/tun`; or give --link socket"
        ),
        io::ErrorKind::PermissionDenied => anyhow!("/dev/net/tun: {error}: {NEEDED}"),
        _ => anyhow!("/dev/net/tun: {error}"),
    }
}

/// Sets a kernel parameter of the calling thread's namespace, where the system lets it be set: packets of
/// IPv6 are ignored all the same, and a remembered round-trip time changes retransmissions only.
fn set(name: &str, value: &str) {
    let _ = fs::write(Path::new("/proc/sys").join(name), value);
}
