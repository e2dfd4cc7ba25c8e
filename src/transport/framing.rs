//! Messages in a stream: each behind its length, two bytes, big-endian. Bytes in, messages out; no sockets.
//!
//! Owns the bytes of a message that has not arrived whole. Must not hold more than one message, nor allocate while none
//! is partial.

use super::{MESSAGE_MAX, shard_of};

/// Bytes of the length in front of a message.
pub(super) const LENGTH_LEN: usize = 2;

/// Why a stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A length of zero, or a first message too short for a slot.
    Short,
    /// A length above [`MESSAGE_MAX`].
    Long,
}

/// Whose a stream is, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Shard(usize),
    Unknown,
}

/// Puts messages together.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// The start of one message with its length; empty between messages.
    partial: Vec<u8>,
}

fn message_len(length: [u8; LENGTH_LEN]) -> Result<usize, Fault> {
    match usize::from(u16::from_be_bytes(length)) {
        0 => Err(Fault::Short),
        len if len > MESSAGE_MAX => Err(Fault::Long),
        len => Ok(len),
    }
}

impl Framer {
    /// Which shard owns the stream, if its first bytes (kept ones, then `input`) already tell.
    pub(super) fn owner(&self, input: &[u8], shards: usize) -> Result<Owner, Fault> {
        let mut first = [0; LENGTH_LEN + 2];
        let mut count = 0;
        for (place, byte) in first.iter_mut().zip(self.partial.iter().chain(input)) {
            *place = *byte;
            count += 1;
        }
        let [high, low, message @ ..] = first;
        if count >= LENGTH_LEN && message_len([high, low])? < message.len() {
            return Err(Fault::Short);
        }
        if count < first.len() {
            return Ok(Owner::Unknown);
        }
        Ok(shard_of(&message, shards).map_or(Owner::Unknown, Owner::Shard))
    }

    /// Keeps `input` for later without looking for messages.
    pub(super) fn keep(&mut self, input: &[u8]) {
        self.partial.extend_from_slice(input);
    }

    /// Everything kept, and `input` after it.
    pub(super) fn into_bytes(mut self, input: &[u8]) -> Vec<u8> {
        self.keep(input);
        self.partial
    }

    /// Delivers every message that `input` completes and keeps the rest.
    pub(super) fn feed(
        &mut self,
        mut input: &[u8],
        mut deliver: impl FnMut(&[u8]),
    ) -> Result<(), Fault> {
        while !input.is_empty() {
            if self.partial.is_empty() {
                let Some((length, rest)) = input.split_first_chunk() else {
                    self.keep(input);
                    break;
                };
                let len = message_len(*length)?;
                let Some((message, rest)) = rest.split_at_checked(len) else {
                    self.partial.reserve_exact(LENGTH_LEN + len);
                    self.keep(input);
                    break;
                };
                deliver(message);
                input = rest;
                continue;
            }
            let wanted = match self.partial.first_chunk() {
                None => LENGTH_LEN,
                Some(length) => LENGTH_LEN + message_len(*length)?,
            };
            let (taken, rest) = input.split_at((wanted - self.partial.len()).min(input.len()));
            self.keep(taken);
            input = rest;
            if let Some((length, message)) = self.partial.split_first_chunk()
                && message.len() == message_len(*length)?
            {
                deliver(message);
                self.partial = Vec::new();
            }
        }
        Ok(())
    }

    /// Whether a message is partial.
    #[cfg(test)]
    fn is_partial(&self) -> bool {
        !self.partial.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(message);
        bytes
    }

    #[test]
    fn any_split_gives_the_same_messages() {
        let messages: Vec<Vec<u8>> =
            [1, 2, 3, 700, MESSAGE_MAX, 5].iter().map(|len| vec![5; *len]).collect();
        let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
        for piece in (1..40).chain([699, 1_502, stream.len()]) {
            let mut framer = Framer::default();
            let mut seen = Vec::new();
            for input in stream.chunks(piece) {
                framer.feed(input, |message| seen.push(message.to_vec())).unwrap();
            }
            assert_eq!(seen, messages, "pieces of {piece}");
            assert!(!framer.is_partial());
            assert_eq!(framer.partial.capacity(), 0, "nothing is kept between messages");
        }
    }

    #[test]
    fn bad_lengths_end_the_stream_as_soon_as_they_are_known() {
        let mut framer = Framer::default();
        let mut seen = 0;
        let bad = [&frame(&[1, 2])[..], &[0, 0]].concat();
        assert_eq!(framer.feed(&bad, |_| seen += 1), Err(Fault::Short));
        assert_eq!(seen, 1);
        let long = u16::try_from(MESSAGE_MAX + 1).unwrap().to_be_bytes();
        assert_eq!(Framer::default().feed(&long, |_| ()), Err(Fault::Long));
        let mut split = Framer::default();
        assert_eq!(split.feed(&long[..1], |_| ()), Ok(()));
        assert_eq!(split.feed(&long[1..], |_| ()), Err(Fault::Long));
    }

    #[test]
    fn the_owner_is_known_after_four_bytes() {
        let bytes = frame(&[7, 5, 0]);
        for kept in 0..4 {
            let mut framer = Framer::default();
            framer.keep(&bytes[..kept]);
            assert_eq!(framer.owner(&[], 4), Ok(Owner::Unknown));
            assert_eq!(framer.owner(&bytes[kept..], 4), Ok(Owner::Shard(1)));
            assert_eq!(framer.into_bytes(&bytes[kept..]), bytes);
        }
        assert_eq!(Framer::default().owner(&[0, 1], 4), Err(Fault::Short));
        assert_eq!(Framer::default().owner(&[255, 255], 4), Err(Fault::Long));
    }
}
