//! A backup's file: a tar archive of plain files whose last member holds the SHA-256 of all others, so that one that
//! is damaged or cut short is told from a whole one before anything is done with it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail};
use duet::hex::Hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The first member: what the backup is of.
const MANIFEST: &str = "manifest.json";
/// The last one.
const SUMS: &str = "SHA256SUMS";
/// The form of what is written here.
const VERSION: u32 = 1;
/// The most members, and the longest of those that are read into memory.
const MOST: usize = 1_024;
const SMALL: u64 = 256 * 1024;

/// What a backup is of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    version: u32,
    /// The program that made it.
    pub(super) program: String,
    /// When, Unix seconds.
    pub(super) made_s: i64,
    /// How many devices its registry has.
    pub(super) devices: u64,
}

/// A backup that is being written.
pub(super) struct Writer {
    tar: tar::Builder<File>,
    members: usize,
    sums: String,
    made_s: u64,
}

impl Writer {
    /// Makes the file, for its owner alone.
    pub(super) fn create(path: &Path, made_s: i64, devices: u64) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let made = u64::try_from(made_s).unwrap_or(0);
        let mut writer =
            Self { tar: tar::Builder::new(file), members: 0, sums: String::new(), made_s: made };
        let program = format!("duet {}", env!("CARGO_PKG_VERSION"));
        let manifest = Manifest { version: VERSION, program, made_s, devices };
        let text = serde_json::to_vec_pretty(&manifest)?;
        writer.add(MANIFEST, &text[..], text.len() as u64)?;
        Ok(writer)
    }

    /// Adds a member of this size.
    pub(super) fn add(&mut self, name: &str, from: impl Read, size: u64) -> Result<()> {
        // Nobody could restore it.
        if self.members == MOST {
            bail!("a backup has at most {MOST} files");
        }
        self.members += 1;
        let mut header = tar::Header::new_ustar();
        header.set_path(name).with_context(|| format!("{name}: not a name for a backup"))?;
        header.set_size(size);
        header.set_mode(0o600);
        header.set_mtime(self.made_s);
        header.set_cksum();
        let mut from = Hashed { from: from.take(size), hash: Sha256::new() };
        self.tar.append(&header, &mut from)?;
        if from.from.limit() != 0 {
            bail!("{name}: it became shorter while it was copied; try again");
        }
        self.sums.push_str(&format!("{}  {name}\n", Hex(&from.hash.finalize())));
        Ok(())
    }

    /// Ends the archive, and syncs it.
    pub(super) fn finish(mut self) -> Result<()> {
        let sums = std::mem::take(&mut self.sums);
        self.add(SUMS, sums.as_bytes(), sums.len() as u64)?;
        self.tar.into_inner()?.sync_all()?;
        Ok(())
    }
}

/// Reads all of a backup, and changes nothing: what it is of, or why it is none.
pub(super) fn verify(path: &Path) -> Result<Manifest> {
    let (mut sums, mut said, mut manifest) = (String::new(), None, None);
    members(path, &mut |name, from| {
        if said.is_some() {
            bail!("{name} stands behind the checksums");
        }
        let mut from = Hashed { from, hash: Sha256::new() };
        match name {
            SUMS => said = Some(small(&mut from)?),
            MANIFEST => {
                let read: Manifest = serde_json::from_slice(&small(&mut from)?)?;
                if read.version != VERSION {
                    bail!("it is of version {}, which this program does not know", read.version);
                }
                manifest = Some(read);
            }
            _ => drop(io::copy(&mut from, &mut io::sink())?),
        }
        if name != SUMS {
            sums.push_str(&format!("{}  {name}\n", Hex(&from.hash.finalize())));
        }
        Ok(())
    })
    .with_context(|| format!("{}: not a whole backup", path.display()))?;
    match (manifest, said) {
        (Some(manifest), Some(said)) if said == sums.as_bytes() => Ok(manifest),
        (_, None) => bail!("{}: not a whole backup: its end is missing", path.display()),
        _ => bail!("{}: the backup is damaged: its checksums do not match", path.display()),
    }
}

/// Hands on the files of a backup that was verified, and their contents.
pub(super) fn files(
    path: &Path,
    each: &mut dyn FnMut(&str, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    members(path, &mut |name, from| match name {
        MANIFEST | SUMS => Ok(()),
        name => each(name, from),
    })
}

fn members(path: &Path, each: &mut dyn FnMut(&str, &mut dyn Read) -> Result<()>) -> Result<()> {
    let file = File::open(path)?;
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    let mut names: Vec<String> = Vec::new();
    // Raw: what lengthens names or makes links is a member like any, and refused.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry.map_err(strange)?;
        let name = String::from_utf8(entry.path_bytes().into_owned())?;
        let plain = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
        let regular = entry.header().entry_type() == tar::EntryType::Regular;
        if !plain || !regular || name.is_empty() || names.contains(&name) {
            bail!("{}: no member of a backup", name.escape_default());
        }
        if names.len() == MOST {
            bail!("more than {MOST} files are in it");
        }
        each(&name, &mut entry)?;
        names.push(name);
    }
    Ok(())
}

/// Why a member cannot be read. The archive's reader quotes the bytes that it did not understand, and those of another
/// file may be a key.
fn strange(error: io::Error) -> io::Error {
    match error.kind() {
        kind @ (io::ErrorKind::Other | io::ErrorKind::InvalidData) => {
            io::Error::new(kind, "it is no tar archive, or is damaged")
        }
        _ => error,
    }
}

fn small(from: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(SMALL + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SMALL {
        bail!("a member is too long");
    }
    Ok(bytes)
}

/// Reads, and hashes what was read.
struct Hashed<R> {
    from: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(into)?;
        self.hash.update(&into[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out_and_every_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup.tar");
        let mut writer = Writer::create(&path, 1_800_000_000, 3).unwrap();
        writer.add("a", &b"one"[..], 3).unwrap();
        writer.add("tls/b", &[7; 2000][..], 2000).unwrap();
        assert!(writer.add("c", &b"short"[..], 6).is_err());
        drop(writer);
        std::fs::remove_file(&path).unwrap();
        let mut writer = Writer::create(&path, 1_800_000_000, 3).unwrap();
        writer.add("a", &b"one"[..], 3).unwrap();
        writer.add("tls/b", &[7; 2000][..], 2000).unwrap();
        writer.finish().unwrap();
        let manifest = verify(&path).unwrap();
        assert_eq!((manifest.made_s, manifest.devices), (1_800_000_000, 3));
        let mut found = Vec::new();
        files(&path, &mut |name, from| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes)?;
            found.push((name.to_owned(), bytes.len()));
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [("a".to_owned(), 3), ("tls/b".to_owned(), 2000)]);

        let whole = std::fs::read(&path).unwrap();
        let sums = whole.windows(SUMS.len()).position(|window| window == SUMS.as_bytes()).unwrap();
        for cut in [0, 100, 512, 1024, sums, sums + 512] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(verify(&path).is_err(), "cut at {cut}");
        }
        // Every byte of a member's name, type, size and content.
        let content = whole.windows(3).position(|window| window == b"one").unwrap();
        for at in [0, 130, 156, 530, content, content + 1500] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert!(verify(&path).is_err(), "damaged at {at}");
        }
    }

    #[test]
    fn another_file_is_refused_without_a_word_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boiler-1.json");
        std::fs::write(&path, format!("{{\"registration_key\":\"{}\"}}", "5ec2e7".repeat(200)))
            .unwrap();
        let said = format!("{:#}", verify(&path).unwrap_err());
        assert!(said.contains("no tar archive") && !said.contains("5ec2e7"), "{said}");
    }

    #[test]
    fn members_that_would_lead_out_of_the_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup.tar");
        for (name, kind) in [
            ("../a", tar::EntryType::Regular),
            ("/a", tar::EntryType::Regular),
            ("a", tar::EntryType::Symlink),
            ("a", tar::EntryType::GNULongName),
        ] {
            let mut header = tar::Header::new_ustar();
            header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_cksum();
            let mut tar = tar::Builder::new(File::create(&path).unwrap());
            tar.append(&header, io::empty()).unwrap();
            tar.into_inner().unwrap();
            let said = format!("{:#}", verify(&path).unwrap_err());
            assert!(said.contains("no member of a backup"), "{name} {kind:?}: {said}");
        }
    }
}
