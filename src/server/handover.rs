//! Sessions from one process to the next (R72): in memory that has no name, which a service manager holds meanwhile.
//!
//! It is written once, when the shards have ended, and is as long as it will ever be. Whoever takes it overwrites it with
//! zeros before he believes it, so that no other process, nor the same one after a crash, takes it again. It is authentic
//! under the node key: a gateway with another one, or what somebody else put there, is refused.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use duet_core::HANDED_LEN;
use duet_protocol::identity::Fingerprint;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use sha2::Sha256;
use zeroize::Zeroizing;

/// The name under which the manager keeps it.
pub(super) const NAME: &str = "sessions";
/// The first bytes, with the version of what follows.
const MAGIC: &[u8; 12] = b"duet-sess\0\0\x02";
const HEAD: usize = 12 + 4 + 8 + 32;
const TAG: usize = 32;
/// It keeps its length. It can be written to, since it must be wiped.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// What a shard leaves when it ends.
pub(super) struct HandedOver {
    /// The gateway's certificate at that time.
    pub(super) gateway: Fingerprint,
    /// Its sessions.
    pub(super) sessions: Zeroizing<Vec<u8>>,
}

/// Why sessions that were handed over are not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// Not memory of the kind that a gateway hands over.
    #[error("they are in no form that this version knows")]
    Form,
    /// Others wrote it, or the node key is another one.
    #[error("they were not written by a gateway with this node key")]
    Forged,
    /// The key that the sessions were opened with is gone.
    #[error("the gateway has another certificate")]
    Certificate,
    /// Written before this machine started.
    #[error("they are from before this machine started")]
    Older,
    /// More than are allowed.
    #[error("there are more than limits.max_sessions")]
    TooMany,
    /// The memory cannot be read, or not be wiped.
    #[error("the memory that holds them cannot be used: {0}")]
    Memory(#[from] io::Error),
}

/// The whole handed-over memory is authentic under this.
fn tag(node_key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(node_key) else {
        unreachable!("HMAC takes keys of any length")
    };
    mac.update(b"duet1 handover");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// Puts sessions into memory that can be handed over; `None` if there are none.
pub(super) fn pack(
    left: &[HandedOver],
    node_key: &[u8; 32],
    now_us: u64,
) -> io::Result<Option<OwnedFd>> {
    let count: usize = left.iter().map(|one| one.sessions.len() / HANDED_LEN).sum();
    let Some(HandedOver { gateway, .. }) = left.first().filter(|_| count > 0) else {
        return Ok(None);
    };
    let mut head = [0; HEAD];
    head[..12].copy_from_slice(MAGIC);
    head[12..16].copy_from_slice(&u32::try_from(count).map_err(io::Error::other)?.to_be_bytes());
    head[16..24].copy_from_slice(&now_us.to_be_bytes());
    head[24..].copy_from_slice(&gateway.0);
    let mut parts = vec![head.as_slice()];
    parts.extend(left.iter().map(|one| one.sessions.as_slice()));
    let tag = tag(node_key, &parts).finalize().into_bytes();
    parts.push(&tag);

    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know that memory can be without a right to be run.
    let memory = memfd_create(c"duet-sessions", flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(c"duet-sessions", flags))?;
    let memory = File::from(memory);
    let mut at = 0;
    for part in parts {
        memory.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    fcntl_add_seals(&memory, SEALS)?;
    Ok(Some(memory.into()))
}

/// Takes sessions that the process before has handed over; nobody can take them again.
pub(super) fn unpack(
    memory: OwnedFd,
    node_key: &[u8; 32],
    gateways: &[Fingerprint],
    sessions_max: usize,
    now_us: u64,
) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let memory = File::from(memory);
    // What is no such memory knows no seals.
    let seals = fcntl_get_seals(&memory).map_err(|_| Refused::Form)?;
    if !seals.contains(SEALS) {
        return Err(Refused::Form);
    }
    let whole = memory.metadata()?.len();
    let most = (HEAD + TAG) as u64 + sessions_max as u64 * HANDED_LEN as u64;
    if whole > most {
        wipe(&memory, whole)?;
        return Err(Refused::TooMany);
    }
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(whole).map_err(|_| Refused::TooMany)?]);
    let read = memory.read_exact_at(&mut bytes, 0);
    wipe(&memory, whole)?;
    read?;
    let Some((content, found)) = bytes.split_last_chunk::<TAG>() else { return Err(Refused::Form) };
    let Some((head, sessions)) = content.split_first_chunk::<HEAD>() else {
        return Err(Refused::Form);
    };
    if head[..12] != *MAGIC {
        return Err(Refused::Form);
    }
    if tag(node_key, &[content]).verify_slice(found).is_err() {
        return Err(Refused::Forged);
    }
    let count = head[12..16].try_into().map_or(0, u32::from_be_bytes);
    if usize::try_from(count).ok().and_then(|count| count.checked_mul(HANDED_LEN))
        != Some(sessions.len())
    {
        return Err(Refused::Form);
    }
    if head[16..24].try_into().map_or(u64::MAX, u64::from_be_bytes) > now_us {
        return Err(Refused::Older);
    }
    if !gateways.iter().any(|known| head[24..] == known.0) {
        return Err(Refused::Certificate);
    }
    let len = sessions.len();
    bytes.copy_within(HEAD..HEAD + len, 0);
    bytes.truncate(len);
    Ok(bytes)
}

fn wipe(memory: &File, whole: u64) -> io::Result<()> {
    static ZEROS: [u8; 65_536] = [0; 65_536];
    let mut at = 0;
    while at < whole {
        let len = usize::try_from(whole - at).map_or(ZEROS.len(), |rest| rest.min(ZEROS.len()));
        memory.write_all_at(&ZEROS[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const OWN: Fingerprint = Fingerprint([3; 32]);

    fn left(counts: &[usize]) -> Vec<HandedOver> {
        let one = |(byte, count): (u8, &usize)| HandedOver {
            gateway: OWN,
            sessions: Zeroizing::new(vec![byte; count * HANDED_LEN]),
        };
        (1..).zip(counts).map(one).collect()
    }

    fn packed(counts: &[usize]) -> OwnedFd {
        pack(&left(counts), &KEY, 1_000).unwrap().unwrap()
    }

    fn content(memory: &OwnedFd) -> Vec<u8> {
        let memory = File::from(memory.try_clone().unwrap());
        let mut bytes = vec![0; usize::try_from(memory.metadata().unwrap().len()).unwrap()];
        memory.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn sessions_are_taken_whole_and_once() {
        let memory = packed(&[2, 0, 1]);
        let again = memory.try_clone().unwrap();
        let file = File::from(memory.try_clone().unwrap());
        assert!(file.set_len(1).is_err() && file.set_len(1 << 20).is_err(), "it keeps its length");
        let taken = unpack(memory, &KEY, &[Fingerprint([9; 32]), OWN], 3, 1_000).unwrap();
        let expected = [vec![1; 2 * HANDED_LEN], vec![3; HANDED_LEN]].concat();
        assert_eq!(*taken, expected);
        assert!(content(&again).iter().all(|byte| *byte == 0), "nothing is left of it");
        assert!(matches!(unpack(again, &KEY, &[OWN], 3, 1_000), Err(Refused::Form)));
        assert!(pack(&left(&[0, 0]), &KEY, 0).unwrap().is_none());
        assert!(pack(&[], &KEY, 0).unwrap().is_none());
    }

    #[test]
    fn what_is_refused_is_wiped_all_the_same() {
        let refused = |key: [u8; 32], known: Fingerprint, most, now_us| {
            let memory = packed(&[2]);
            let kept = memory.try_clone().unwrap();
            let refused = unpack(memory, &key, &[known], most, now_us).unwrap_err();
            assert!(content(&kept).iter().all(|byte| *byte == 0), "{refused}");
            refused
        };
        assert!(matches!(refused([8; 32], OWN, 9, 1_000), Refused::Forged));
        assert!(matches!(refused(KEY, Fingerprint([4; 32]), 9, 1_000), Refused::Certificate));
        assert!(matches!(refused(KEY, OWN, 1, 1_000), Refused::TooMany));
        assert!(matches!(refused(KEY, OWN, 9, 999), Refused::Older));
    }

    #[test]
    fn whatever_else_is_passed_is_refused() {
        for place in [0, 11, 13, 20, 40, HEAD, HEAD + HANDED_LEN] {
            let memory = packed(&[1]);
            let file = File::from(memory.try_clone().unwrap());
            let [byte] = [content(&memory)[place] ^ 1];
            file.write_all_at(&[byte], place as u64).unwrap();
            assert!(unpack(memory, &KEY, &[OWN], 9, 1_000).is_err(), "{place}");
        }
        for len in [0, 1, HEAD, HEAD + TAG - 1] {
            let file = File::from(memfd_create(c"x", MemfdFlags::ALLOW_SEALING).unwrap());
            file.write_all_at(&vec![1; len], 0).unwrap();
            fcntl_add_seals(&file, SEALS).unwrap();
            assert!(matches!(unpack(file.into(), &KEY, &[OWN], 9, 0), Err(Refused::Form)));
        }
        // Memory that can grow while it is read, a file, a directory, a pipe.
        let loose = memfd_create(c"x", MemfdFlags::ALLOW_SEALING).unwrap();
        let others = [File::open("/dev/zero"), File::open("/"), File::open("/proc/self/exe")];
        let (pipe, _writer) = std::io::pipe().unwrap();
        let others = others.into_iter().map(|one| one.unwrap().into()).chain([loose, pipe.into()]);
        for other in others {
            assert!(matches!(unpack(other, &KEY, &[OWN], 9, 0), Err(Refused::Form)));
        }
    }
}
