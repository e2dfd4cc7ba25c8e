//! A batch's messages: one, or where addresses differ one for each.

use std::collections::HashMap;

use bytes::Bytes;

use crate::batch::{BatchId, Range};
use crate::encode::Encoder;
use crate::link::Message;
use crate::settings::{Compression, Upstream};
use crate::source::{Reading, SpoolId};
use crate::template::Template;

/// Collects the readings of one batch after the other.
pub(crate) struct Letters {
    upstream: Upstream,
    spool: SpoolId,
    template: Option<Template>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    /// The only one, or the one for each address in the order in which they came.
    encoders: Vec<(String, Encoder, usize)>,
    places: HashMap<(Box<str>, u16), usize>,
}

impl Letters {
    pub(crate) fn new(upstream: &Upstream, spool: SpoolId) -> Self {
        let compressor = match upstream.compression {
            Compression::None => None,
            // Fails only where memory does; then batches go as they are, and say so by their header's absence.
            Compression::Zstd => zstd::bulk::Compressor::new(1).ok(),
        };
        let template = upstream.template().cloned();
        let mut letters = Self {
            upstream: upstream.clone(),
            spool,
            template,
            compressor,
            encoders: Vec::new(),
            places: HashMap::new(),
        };
        if !letters.varies() {
            let address =
                letters.template.as_ref().map_or_else(String::new, |one| one.text().to_owned());
            letters.encoders.push((address, letters.encoder(), 0));
        }
        letters
    }

    fn varies(&self) -> bool {
        self.template.as_ref().is_some_and(Template::varies)
    }

    fn encoder(&self) -> Encoder {
        Encoder::new(self.upstream.format, self.upstream.payload, self.spool)
    }

    pub(crate) fn push(&mut self, index: u64, reading: &Reading<'_>) {
        let place = match &self.template {
            Some(template) if template.varies() => {
                let key = (Box::from(reading.device), reading.channel);
                match self.places.get(&key) {
                    Some(place) => *place,
                    None => {
                        let address = template.fill(reading.device, reading.channel);
                        let known = self.encoders.iter().position(|(other, ..)| *other == address);
                        let place = known.unwrap_or_else(|| {
                            self.encoders.push((address, self.encoder(), 0));
                            self.encoders.len() - 1
                        });
                        self.places.insert(key, place);
                        place
                    }
                }
            }
            _ => 0,
        };
        let (_, encoder, count) = &mut self.encoders[place];
        encoder.push(index, reading);
        *count += 1;
    }

    /// The messages of what was collected since the last time.
    pub(crate) fn finish(&mut self, range: Range, previous_last: Option<u64>) -> Vec<Message> {
        let (varies, id) = (self.varies(), BatchId { spool: self.spool, range });
        let part = self.encoders.len() > 1;
        let mut messages = Vec::with_capacity(self.encoders.len());
        for (address, encoder, count) in &mut self.encoders {
            let body = encoder.finish(range, previous_last);
            let compressed = self.compressor.as_mut().and_then(|one| one.compress(&body).ok());
            let zstd = compressed.is_some();
            messages.push(Message {
                id,
                count: std::mem::take(count),
                previous_last,
                address: address.clone(),
                part,
                zstd,
                body: Bytes::from(compressed.unwrap_or(body)),
            });
        }
        if varies {
            self.forget();
        }
        messages
    }

    /// Throws away what was collected.
    pub(crate) fn clear(&mut self) {
        if self.varies() {
            self.forget();
        } else {
            let nothing = Range { first: 0, last: 0 };
            for (_, encoder, count) in &mut self.encoders {
                *count = 0;
                drop(encoder.finish(nothing, None));
            }
        }
    }

    fn forget(&mut self) {
        self.encoders.clear();
        self.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::Settings;

    /// Where memory is short a batch goes as it is, and must not say otherwise.
    #[test]
    fn a_batch_says_that_it_is_compressed_only_where_it_is() {
        let settings =
            "name = \"a\"\nkind = \"webhook\"\nurl = \"http://h/\"\ncompression = \"zstd\"";
        let settings = toml::from_str::<Settings>(settings).unwrap();
        let upstream = settings.check(Path::new("/state")).unwrap();
        let mut letters = Letters::new(&upstream, SpoolId([1; 16]));
        let reading = Reading {
            device: "pump-7",
            id: [7; 16],
            again: false,
            notice: None,
            channel: 1,
            received_ms: 5,
            measured_ms: 5,
            payload: b"21.5",
        };
        for is_compressed in [true, false] {
            letters.push(3, &reading);
            let message = letters.finish(Range { first: 3, last: 3 }, None).remove(0);
            let said = message.headers().any(|(name, _)| name == "Content-Encoding");
            let is_text = message.body.starts_with(b"{");
            assert_eq!((said, is_text), (is_compressed, !is_compressed));
            letters.compressor = None;
        }
    }
}
