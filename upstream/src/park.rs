//! Readings that an upstream will not take, however often they come: put aside with its answer, one
//! line each in `<name>.parked.ndjson`, for a person to look at. The line is synced before the
//! cursor goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::batch::Range;
use crate::encode::{Encoder, Format, Payload};
use crate::named;
use crate::source::{Reading, SpoolId};

/// The file that an upstream's parked readings go to; made when the first one comes.
pub(crate) struct Parked {
    path: PathBuf,
    file: Option<File>,
}

impl Parked {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        Self { path: dir.join(format!("{name}.parked.ndjson")), file: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a reading and why it is here.
    pub(crate) fn add(
        &mut self,
        spool: SpoolId,
        index: u64,
        reading: &Reading<'_>,
        answer: &str,
    ) -> io::Result<()> {
        let mut encoder = Encoder::new(Format::Ndjson, Payload::Text, spool);
        encoder.push(index, reading);
        let mut line = encoder.finish(Range { first: index, last: index }, None);
        // Before the closing brace and the line's end.
        line.truncate(line.len().saturating_sub(2));
        line.extend_from_slice(b",\"answer\":");
        serde_json::to_writer(&mut line, answer)?;
        line.extend_from_slice(b"}\n");
        // A person may have taken it away to look at it.
        if !self.file.as_ref().is_some_and(|file| named::is_named(file, &self.path)) {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
            if let Some(dir) = self.path.parent() {
                File::open(dir)?.sync_all()?;
            }
            self.file = Some(file);
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(&line)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_reading_is_one_line_with_the_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mut parked = Parked::new(dir.path(), "cloud");
        let reading = Reading {
            device: "pump-7",
            id: [1; 16],
            again: false,
            notice: None,
            channel: 3,
            received_ms: 5,
            measured_ms: 5,
            payload: b"\xff",
        };
        for index in 0..2 {
            parked.add(SpoolId([2; 16]), index, &reading, "413: \"too\nlarge\"").unwrap();
        }
        let text = std::fs::read_to_string(parked.path()).unwrap();
        for (index, line) in text.lines().enumerate() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["index"], index);
            assert_eq!(
                (&line["answer"], &line["payload_base64"]),
                (&"413: \"too\nlarge\"".into(), &"/w==".into())
            );
        }
        assert_eq!(text.lines().count(), 2);
        // Somebody has taken it away while the gateway runs.
        std::fs::rename(parked.path(), dir.path().join("seen")).unwrap();
        parked.add(SpoolId([2; 16]), 2, &reading, "no").unwrap();
        assert_eq!(std::fs::read_to_string(parked.path()).unwrap().lines().count(), 1);
    }
}
