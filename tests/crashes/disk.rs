//! A disk whose power can be cut: ext4 on a loop device, in a mount namespace of the test's thread. What was written and
//! not synced is gone afterwards, as far as the kernel had not written it by itself.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

const BYTES: u64 = 96 << 20;
/// `_IOR('X', 125, u32)`, and the flag for a stop that writes nothing more, not even the journal.
const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d;
const WITHOUT_LOG: u32 = 2;

pub(crate) struct Disk {
    image: PathBuf,
    root: PathBuf,
}

/// Runs `test` with a directory for what is not on the disk, and the disk; nothing of either is left behind.
pub(crate) fn on_a_disk(test: impl FnOnce(&Path, &Disk) + Send) {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
                eprintln!("SKIPPED: no power cuts, a mount namespace is refused: {error}");
                return;
            }
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let disk = Disk { image: dir.path().join("image"), root: dir.path().join("disk") };
            std::fs::create_dir(&disk.root).unwrap();
            File::create(&disk.image).unwrap().set_len(BYTES).unwrap();
            match Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image).output() {
                Ok(made) => assert!(made.status.success(), "{made:?}"),
                Err(error) => {
                    eprintln!("SKIPPED: no power cuts without mkfs.ext4: {error}");
                    return;
                }
            }
            if let Err(said) = disk.mount() {
                eprintln!("SKIPPED: no power cuts, this kernel mounts no loop device: {said}");
                return;
            }
            test(dir.path(), &disk);
            disk.unmount();
        });
    });
}

impl Disk {
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn mount(&self) -> Result<(), String> {
        let mut command = Command::new("mount");
        let done = command.args(["-o", "loop"]).arg(&self.image).arg(&self.root).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        if done.status.success() { Ok(()) } else { Err(said) }
    }

    /// The kernel lets go of a killed process's files only when its ring has come to rest, which nothing tells.
    fn unmount(&self) {
        let began = Instant::now();
        while let Err(error) = umount(&self.root) {
            assert!(began.elapsed() < Duration::from_secs(20), "{}: {error}", self.root.display());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// From now on nothing reaches the disk, and every write and sync fails.
    #[allow(unsafe_code)]
    pub(crate) fn cut_the_power(&self) {
        let (root, how) = (File::open(&self.root).unwrap(), WITHOUT_LOG);
        // SAFETY: reads one integer that lives through the call.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const how) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// Power comes back: what the journal says is done.
    pub(crate) fn mount_again(&self) {
        self.unmount();
        self.mount().unwrap();
    }
}
