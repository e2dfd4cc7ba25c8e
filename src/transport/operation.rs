//! What an operation of the driver was for: a tag goes with it and comes back with its completion.

use super::StreamId;

/// What an operation was for, in its tag beside the stream's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Accept,
    Datagrams,
    Hellos,
    Wake,
    Receive,
    Send,
    Cancel,
    Stop,
}

impl Operation {
    const ALL: [Self; 8] = [
        Self::Accept,
        Self::Datagrams,
        Self::Hellos,
        Self::Wake,
        Self::Receive,
        Self::Send,
        Self::Cancel,
        Self::Stop,
    ];
    const SHIFT: u32 = 52;

    pub(super) fn tag(self, stream: u64) -> u64 {
        debug_assert!(stream < 1 << Self::SHIFT);
        (self as u64) << Self::SHIFT | stream
    }

    pub(super) fn of(tag: u64) -> (Option<Self>, StreamId) {
        let stream = StreamId(tag & ((1 << Self::SHIFT) - 1));
        let operation = usize::try_from(tag >> Self::SHIFT).ok();
        (operation.and_then(|index| Self::ALL.get(index).copied()), stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_back_whole() {
        let tag = Operation::Cancel.tag(0x000f_edcb_a987_6543);
        assert_eq!(Operation::of(tag), (Some(Operation::Cancel), StreamId(0x000f_edcb_a987_6543)));
        assert_eq!(Operation::of(15 << Operation::SHIFT).0, None);
    }
}
