//! Messages on a serial line: each stands behind its length, two bytes (R14).

/// A message that stops coming for this long is given up, µs: the other end was connected anew in its midst.
const GIVE_UP_US: u64 = 500_000;

/// Collects the bytes of one message of at most `MAX` bytes; longer ones are passed over.
pub(crate) struct Receiver<const MAX: usize> {
    bytes: [u8; MAX],
    length: [u8; 2],
    /// How many bytes have come, the length included.
    have: usize,
    last_us: u64,
}

impl<const MAX: usize> Receiver<MAX> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; MAX], length: [0; 2], have: 0, last_us: 0 }
    }

    /// Takes a byte; how long the message is, if that was its last.
    pub(crate) fn take(&mut self, now_us: u64, byte: u8) -> Option<usize> {
        if now_us.saturating_sub(self.last_us) > GIVE_UP_US {
            self.have = 0;
        }
        self.last_us = now_us;
        match self.have.checked_sub(2) {
            None => self.length[self.have] = byte,
            Some(at) => {
                if let Some(place) = self.bytes.get_mut(at) {
                    *place = byte;
                }
            }
        }
        self.have += 1;
        let len = usize::from(u16::from_be_bytes(self.length));
        if self.have < 2 + len || self.have < 2 {
            return None;
        }
        self.have = 0;
        (1..=MAX).contains(&len).then_some(len)
    }

    /// The message that has come.
    pub(crate) fn message(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[..len.min(MAX)]
    }
}
