//! A session: its keys, its sequences, what the gateway owes an answer to.

use duet_protocol::{
    message::Up,
    profile::Transport,
    reading::{READING_ID, ReadingId},
    record,
    replay::ReplayWindow,
    wire::{DOWN_HEADER, DownHeader, SessionId, TAG, UP_HEADER, UpHeader},
};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroize as _;

use crate::{
    crypto::{Crypto, CryptoError},
    machine::pause,
    schedule::{self, KeyIv, SessionKeys},
};

/// From this sequence number on a device makes a new session, in good time before the last one (R68).
const SEQUENCE_RENEW: u32 = u32::MAX - (1 << 20);
/// How many records back a RESET may refer to (R63).
const RECENT: usize = 8;
/// How often a device answers whether it receives at its address: in a second, and in a minute (R112).
const HERE_IN_A_SECOND: usize = 4;
const HERE_IN_A_MINUTE: usize = 16;
/// The least time that a device waits for the answer to a doubt, µs (R106).
const DOUBT_MIN_US: u64 = 250_000;
/// How long a device that asked whether it may sleep waits for the answer at least, µs
/// (R114).
const PATIENCE_US: u64 = 2_000_000;

/// A transmission that is repeated until it is answered.
#[derive(Clone, Copy)]
pub(crate) struct Retransmit {
    pub(crate) due: u64,
    pub(crate) attempts: u8,
}

impl Retransmit {
    /// It is sent now, and due again after a pause.
    #[inline(never)]
    pub(crate) fn sent(&mut self, now_us: u64, transport: Transport) {
        self.due = now_us.saturating_add(pause(transport, self.attempts));
        self.attempts += 1;
    }
}

/// A ping that is to be answered.
pub(crate) struct Ping {
    pub(crate) resend: Retransmit,
    /// The newest one's sequence, once one was sent.
    pub(crate) sequence: Option<u32>,
    /// When that was, µs.
    pub(crate) sent: u64,
    /// Whether a reading does as well: it only confirms a session.
    pub(crate) replaceable: bool,
}

impl Ping {
    pub(crate) const fn due(now_us: u64, replaceable: bool) -> Self {
        let resend = Retransmit { due: now_us, attempts: 0 };
        Self { resend, sequence: None, sent: 0, replaceable }
    }
}

/// Microseconds in milliseconds, by four divisions of 32 bits: on a small processor one of 64 costs a kilobyte.
pub(crate) fn milliseconds(us: u64) -> u64 {
    let (mut rest, mut out) = (0, 0);
    for chunk in us.to_be_bytes().chunks_exact(2) {
        let digit = chunk.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let part = rest << 16 | digit;
        (rest, out) = (part % 1_000, out << 16 | u64::from(part / 1_000));
    }
    out
}

/// The answers that show that the device receives at its address: how many were given lately.
pub(crate) struct Answers {
    /// When the last ones were given, ms: a ring, in which the oldest is overwritten.
    at: [u32; HERE_IN_A_MINUTE],
    next: usize,
    given: usize,
}

impl Answers {
    const fn new() -> Self {
        Self { at: [0; HERE_IN_A_MINUTE], next: 0, given: 0 }
    }

    /// Whether one more may be given now; if so it is counted.
    pub(crate) fn take(&mut self, now_us: u64) -> bool {
        // The difference of two times is right as long as it is below 49 days; older ones are long over.
        let now = u32::try_from(milliseconds(now_us) & 0xffff_ffff).unwrap_or(u32::MAX);
        let within = |count: usize, span: u32| {
            let at = (self.next + HERE_IN_A_MINUTE - count) % HERE_IN_A_MINUTE;
            self.given >= count && now.wrapping_sub(self.at[at]) < span
        };
        if within(HERE_IN_A_SECOND, 1_000) || within(HERE_IN_A_MINUTE, 60_000) {
            return false;
        }
        self.at[self.next] = now;
        self.next = (self.next + 1) % HERE_IN_A_MINUTE;
        self.given = (self.given + 1).min(HERE_IN_A_MINUTE);
        true
    }
}

/// Questions whether the device receives where it is, the oldest first: each is answered once, also when several came
/// before anything was sent. An attacker who relays another address's question must not take the place of the own one.
pub(crate) struct Questions {
    /// A ring.
    open: [[u8; 4]; HERE_IN_A_SECOND],
    first: usize,
    count: usize,
}

impl Questions {
    const fn new() -> Self {
        Self { open: [[0; 4]; HERE_IN_A_SECOND], first: 0, count: 0 }
    }

    /// One more, in place of the oldest where there is no room.
    pub(crate) fn push(&mut self, challenge: [u8; 4]) {
        if self.count == HERE_IN_A_SECOND {
            let _ = self.take();
        }
        self.open[(self.first + self.count) % HERE_IN_A_SECOND] = challenge;
        self.count += 1;
    }

    pub(crate) fn take(&mut self) -> Option<[u8; 4]> {
        self.count = self.count.checked_sub(1)?;
        let first = self.open[self.first];
        self.first = (self.first + 1) % HERE_IN_A_SECOND;
        Some(first)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// No text of this kind is longer.
const fn text_max(up: &Up<'_>) -> usize {
    match up {
        Up::Reading { payload, .. } => 3 + 4 + READING_ID + payload.len(),
        Up::Result { payload, .. } => 6 + payload.len(),
        Up::Ping | Up::Close | Up::Here { .. } => 5,
    }
}

/// A session that stands.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    /// SHA-256 of the HELLO that opened it: it names the readings first sent here.
    pub(crate) hello: [u8; 32],
    /// The counter in that HELLO.
    pub(crate) fresh: u64,
    token: [u8; 12],
    up: KeyIv,
    down: KeyIv,
    pub(crate) next: u32,
    pub(crate) window: ReplayWindow,
    /// When the session is renewed, before its lifetime ends (R86).
    pub(crate) renew: u64,
    /// The MACs by which a RESET would name the last records: a ring.
    recent: [Option<[u8; 16]>; RECENT],
    oldest: usize,
    pub(crate) ping: Option<Ping>,
    pub(crate) here: Questions,
    pub(crate) answers: Answers,
    /// When the last authentic record came, µs.
    pub(crate) heard: u64,
    /// The longest time to an answer so far, µs.
    longest: u64,
    /// When a doubt whether the gateway still has this session ends in a handshake, µs.
    pub(crate) doubt: Option<u64>,
    /// The sequence of the newest record that is to be answered.
    pub(crate) wanted: Option<u32>,
    /// The gateway has said that nothing waits, since then.
    pub(crate) nothing_waits: bool,
    /// Commands in DOWN records below this sequence are answered or over.
    pub(crate) void: u32,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl Session {
    pub(crate) fn new(
        id: SessionId,
        hello: ([u8; 32], u64),
        token: [u8; 12],
        keys: SessionKeys,
        renew: u64,
        now_us: u64,
    ) -> Self {
        let SessionKeys { up, down } = keys;
        Self {
            id,
            hello: hello.0,
            fresh: hello.1,
            token,
            up,
            down,
            next: 0,
            window: ReplayWindow::new(),
            renew,
            recent: [None; RECENT],
            oldest: 0,
            ping: Some(Ping::due(now_us, true)),
            here: Questions::new(),
            answers: Answers::new(),
            heard: now_us,
            longest: 0,
            doubt: None,
            wanted: None,
            nothing_waits: false,
            void: 0,
        }
    }

    /// Whether a new session is due: by time, or because the sequence numbers come to their end.
    pub(crate) const fn is_worn(&self, now_us: u64) -> bool {
        self.renew <= now_us || self.next >= SEQUENCE_RENEW
    }

    #[cfg(feature = "hazmat")]
    pub(crate) const fn keys(&self) -> [([u8; 16], [u8; 12]); 2] {
        [(self.up.key, self.up.iv), (self.down.key, self.down.iv)]
    }

    /// The name of the reading with this sequence, first sent here.
    pub(crate) fn name(&self, sequence: u32) -> ReadingId {
        ReadingId::new(&self.hello, sequence)
    }

    /// Numbers start at 0 and rise by one (R66); the last is never used (R68).
    pub(crate) fn take_sequence(&mut self) -> Option<u32> {
        let sequence = self.next;
        self.next = sequence.checked_add(1)?;
        Some(sequence)
    }

    /// Notes that an answer took this long.
    pub(crate) fn note_answer(&mut self, took_us: u64) {
        self.longest = self.longest.max(took_us);
    }

    /// How long a doubt waits before chance is added.
    pub(crate) fn doubt_us(&self) -> u64 {
        DOUBT_MIN_US.max(self.longest.saturating_mul(3) / 2)
    }

    /// How long a device that would sleep waits for word that it may.
    pub(crate) fn patience_us(&self) -> u64 {
        PATIENCE_US.max(self.longest.saturating_mul(2))
    }

    /// Whether the MAC in a RESET is that of a record sent lately (R63); all are compared, whichever
    /// fits (R2).
    pub(crate) fn believes(&self, mac: &[u8; 16]) -> bool {
        self.recent.iter().flatten().fold(false, |found, kept| found | bool::from(kept.ct_eq(mac)))
    }

    /// Writes the record with this text under this sequence: the same text makes the same bytes (R67).
    pub(crate) fn seal(
        &mut self,
        c: &mut impl Crypto,
        sequence: u32,
        up: &Up<'_>,
        out: &mut [u8],
    ) -> Result<usize, CryptoError> {
        let header = UpHeader { session: self.id, sequence }.encode();
        let (clear, rest) =
            out.split_first_chunk_mut::<UP_HEADER>().ok_or(CryptoError::Unsupported)?;
        *clear = header;
        if rest.len() < text_max(up) + TAG {
            return Err(CryptoError::Unsupported);
        }
        let len = up.encode(rest);
        let (text, rest) = rest.split_at_mut_checked(len).ok_or(CryptoError::Unsupported)?;
        let tag = rest.first_chunk_mut::<TAG>().ok_or(CryptoError::Unsupported)?;
        let nonce = record::nonce(&self.up.iv, sequence);
        *tag = c.seal(&self.up.key, &nonce, clear, text)?;
        let len = UP_HEADER + len + TAG;
        let message = out.get(..len).ok_or(CryptoError::Unsupported)?;
        let mac = schedule::reset_mac(c, &self.token, message)?;
        self.recent[self.oldest] = Some(mac);
        self.oldest = (self.oldest + 1) % RECENT;
        Ok(len)
    }

    /// Opens a record in place; its text, or `None` when it is not authentic.
    pub(crate) fn open<'m>(
        &self,
        c: &mut impl Crypto,
        header: DownHeader,
        message: &'m mut [u8],
    ) -> Result<Option<&'m mut [u8]>, CryptoError> {
        if header.sequence == u32::MAX {
            return Ok(None);
        }
        let Some((text, tag)) =
            message.get_mut(DOWN_HEADER..).and_then(<[u8]>::split_last_chunk_mut::<TAG>)
        else {
            return Ok(None);
        };
        let nonce = record::nonce(&self.down.iv, header.sequence);
        let aad = header.associated_data(self.id);
        Ok(c.open(&self.down.key, &nonce, &aad, text, tag)?.then_some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_question_is_answered_once_and_the_newest_ones_stand() {
        let mut questions = Questions::new();
        (0..6).for_each(|number| questions.push([number; 4]));
        for number in 2..6 {
            assert_eq!(questions.take(), Some([number; 4]));
        }
        assert!(questions.is_empty() && questions.take().is_none());
    }

    #[test]
    fn milliseconds_are_what_a_division_gives() {
        for us in
            [0, 1, 999, 1_000, 65_536_000, 4_294_967_295, 4_294_967_296_123, u64::MAX - 1, u64::MAX]
        {
            assert_eq!(milliseconds(us), us / 1_000);
        }
    }

    #[test]
    fn an_address_is_shown_four_times_a_second_and_sixteen_times_a_minute() {
        let mut answers = Answers::new();
        let mut given = std::vec::Vec::new();
        for now_ms in (0..180_000).step_by(10) {
            if answers.take(now_ms * 1_000) {
                given.push(now_ms);
            }
        }
        let most = |span: u64| {
            let within =
                |from: u64| given.iter().filter(|at| (from..from + span).contains(at)).count();
            given.iter().map(|from| within(*from)).max().unwrap()
        };
        assert_eq!((most(1_000), most(60_000)), (4, 16));
        assert_eq!(given.len(), 48);
    }
}
