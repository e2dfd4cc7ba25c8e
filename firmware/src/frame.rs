//! Messages on a serial line: each stands behind its length, two bytes (R14). One buffer serves both directions, since
//! memory is short: nothing is sent while a message is coming.

/// A message that stops coming for this long is given up, µs: the other end was connected anew in its midst.
const GIVE_UP_US: u64 = 500_000;

/// Room for one message of at most `SIZE` − 2 bytes; longer ones are passed over.
pub(crate) struct Frame<const SIZE: usize> {
    bytes: [u8; SIZE],
    /// How many bytes have come, the length included.
    have: usize,
    last_us: u64,
}

impl<const SIZE: usize> Frame<SIZE> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; SIZE], have: 0, last_us: 0 }
    }

    /// Takes a byte; how long the message is, if that was its last.
    pub(crate) fn take(&mut self, now_us: u64, byte: u8) -> Option<usize> {
        if !self.is_amid(now_us) {
            self.have = 0;
        }
        self.last_us = now_us;
        if let Some(place) = self.bytes.get_mut(self.have) {
            *place = byte;
        }
        self.have += 1;
        let len = usize::from(u16::from_be_bytes([self.bytes[0], self.bytes[1]]));
        if self.have < 2 || self.have < 2 + len {
            return None;
        }
        self.have = 0;
        (len > 0 && 2 + len <= SIZE).then_some(len)
    }

    /// Whether a message is coming.
    pub(crate) const fn is_amid(&self, now_us: u64) -> bool {
        self.have > 0 && now_us.saturating_sub(self.last_us) <= GIVE_UP_US
    }

    /// The message that has come.
    pub(crate) fn message(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[2..SIZE.min(2 + len)]
    }

    /// Room for a message to be sent.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.have = 0;
        &mut self.bytes[2..]
    }

    /// The message that was written there, behind its length.
    pub(crate) fn framed(&mut self, len: usize) -> &[u8] {
        let [high, low] = u16::try_from(len).unwrap_or(0).to_be_bytes();
        (self.bytes[0], self.bytes[1]) = (high, low);
        &self.bytes[..SIZE.min(2 + len)]
    }
}
