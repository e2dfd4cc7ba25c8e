//! Overwrites what is left of removed registration keys in the registry's file.
//!
//! The engine never changes a page in place, so what was removed stays in pages that are free, until they are
//! used again, and behind the last entry of pages that are in use. Two things are looked for: the whole row of
//! the device, which nothing else can be, and pieces of the key, eight bytes each, where a row was cut. A piece
//! may belong to another device, for keys that were made elsewhere may resemble each other: it is left alone
//! where it lies in a key that is in use, and where it has too few different bytes to be told from other data.
//!
//! This must run while nobody writes to the file. A file system that writes elsewhere what is overwritten (a
//! copy-on-write one, or flash below it) may keep the old blocks: only the file can be promised to be clean.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zeroize::Zeroizing;

/// A row whose last 32 bytes are to be gone, as it was encoded.
pub(super) type OldRow = Zeroizing<Vec<u8>>;

const KEY: usize = 32;
const PIECE: usize = 8;
const CHUNK: usize = 1 << 20;
/// No row with a key, and no key around a piece, reaches further.
const OVERLAP: usize = 256;
/// Where the id lies in a row; ids are all different.
const ID: usize = 4;
/// Of eight random bytes fewer are different once in some ten thousand times.
const DIFFERENT: usize = 6;

/// Writes zeros over the keys of these rows, and syncs. `in_use` says whether 32 bytes are a device's key.
pub(super) fn overwrite(
    path: &Path,
    rows: &[OldRow],
    in_use: impl Fn(&[u8; KEY]) -> bool,
) -> io::Result<()> {
    let wanted = Wanted::of(rows);
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut chunk = Zeroizing::new(vec![0; CHUNK]);
    let (mut offset, mut found) = (0, false);
    loop {
        let filled = fill(&file, &mut chunk, offset)?;
        let last = filled < CHUNK;
        for (place, len) in wanted.places(&chunk[..filled], &in_use, offset == 0, last) {
            file.write_all_at(&[0; KEY][..len], offset + place as u64)?;
            found = true;
        }
        if last {
            break;
        }
        offset += (CHUNK - OVERLAP) as u64;
    }
    if found { file.sync_data() } else { Ok(()) }
}

/// Reads until the chunk is full or the file ends.
fn fill(file: &File, chunk: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match file.read_at(&mut chunk[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What is looked for, by the eight bytes at which it is noticed. Most places are ruled out by a bit for each pair
/// of first bytes.
struct Wanted<'a> {
    ids: HashMap<[u8; PIECE], &'a [u8]>,
    /// With its place in the key.
    pieces: HashMap<[u8; PIECE], usize>,
    begins: Box<[u64; 1024]>,
}

impl<'a> Wanted<'a> {
    fn of(rows: &'a [OldRow]) -> Self {
        let mut wanted =
            Self { ids: HashMap::new(), pieces: HashMap::new(), begins: Box::new([0; 1024]) };
        for row in rows {
            if let Some(id) = row[ID..].first_chunk() {
                wanted.note(id);
                wanted.ids.insert(*id, row);
            }
            if let Some(key) = row.last_chunk::<KEY>() {
                for (number, piece) in key.as_chunks::<PIECE>().0.iter().enumerate() {
                    if different(piece) >= DIFFERENT {
                        wanted.note(piece);
                        wanted.pieces.insert(*piece, number * PIECE);
                    }
                }
            }
        }
        wanted
    }

    fn note(&mut self, bytes: &[u8; PIECE]) {
        let (word, bit) = begin(bytes);
        self.begins[word] |= bit;
    }

    /// Where to write how many zeros. `first` and `last` say whether the file begins and ends with these bytes.
    fn places(
        &self,
        bytes: &[u8],
        in_use: &impl Fn(&[u8; KEY]) -> bool,
        first: bool,
        last: bool,
    ) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        for (at, window) in bytes.windows(PIECE).enumerate() {
            let Some(window) = window.first_chunk() else { continue };
            let (word, bit) = begin(window);
            if self.begins[word] & bit == 0 {
                continue;
            }
            if let Some(row) = self.ids.get(window)
                && let Some(start) = at.checked_sub(ID)
                && bytes[start..].starts_with(row)
            {
                places.push((start + row.len() - KEY, KEY));
            }
            if let Some(before) = self.pieces.get(window) {
                let key = at.checked_sub(*before);
                let key = key.and_then(|start| bytes[start..].first_chunk::<KEY>());
                let gone = match key {
                    Some(key) => !in_use(key),
                    // Cut off by the chunk, it is whole in the next or was in the last; by the file, it is no key.
                    None => (first && at < OVERLAP) || (last && at + OVERLAP > bytes.len()),
                };
                if gone {
                    places.push((at, PIECE));
                }
            }
        }
        places
    }
}

/// The bit of the first two bytes.
fn begin(bytes: &[u8; PIECE]) -> (usize, u64) {
    let begin = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    (begin / 64, 1 << (begin % 64))
}

fn different(piece: &[u8; PIECE]) -> usize {
    (0..PIECE).filter(|&at| !piece[..at].contains(&piece[at])).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row that ends with a key of different bytes.
    fn row(from: u8) -> (OldRow, [u8; KEY]) {
        let key = std::array::from_fn(|i| from + u8::try_from(i).unwrap());
        let mut row = Zeroizing::new(vec![from; 44]);
        row.extend(key);
        (row, key)
    }

    fn overwritten(bytes: &[u8], rows: &[OldRow], in_use: &[[u8; KEY]]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        overwrite(&path, rows, |key| in_use.contains(key)).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn whole_keys_and_pieces_go_wherever_they_lie() {
        let (row, key) = row(0x91);
        let mut bytes = vec![0x55; 2 * CHUNK + 100];
        let places = [0, 10_000, CHUNK - 20, CHUNK - 300, 2 * CHUNK - 520, bytes.len() - 32];
        places.iter().for_each(|at| bytes[*at..at + 32].copy_from_slice(&key));
        bytes[1000..1020].copy_from_slice(&key[6..26]);
        let after = overwritten(&bytes, &[row], &[]);
        places.iter().for_each(|at| bytes[*at..at + 32].fill(0));
        // Two whole pieces; the rest is too little to be told from anything else.
        bytes[1002..1018].fill(0);
        assert!(after == bytes);
    }

    #[test]
    fn what_looks_like_it_and_is_in_use_stays() {
        let (row, key) = row(0x91);
        // Another device's key, alike but for its last byte, and one that is the same eight bytes four times.
        let mut alike = key;
        alike[31] = 0;
        let mut dull = Zeroizing::new(vec![7; 44]);
        dull.extend([7; KEY]);
        let mut bytes = vec![0x55; 4096];
        bytes[100..132].copy_from_slice(&alike);
        bytes[200..232].copy_from_slice(&key);
        bytes[300..376].copy_from_slice(&dull);
        // Much like the dull row, but another's.
        bytes[400..476].copy_from_slice(&dull);
        bytes[401] = 8;
        let after = overwritten(&bytes, &[row, dull], &[alike]);
        bytes[200..232].fill(0);
        bytes[344..376].fill(0);
        assert!(after == bytes);
    }
}
