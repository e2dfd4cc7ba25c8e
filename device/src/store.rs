//! What a device must not forget: its counter, the last command, the reading whose fate it does not
//! know. The caller says where that is kept; this module says when it is written and what it means.
//!
//! A counter is written in blocks, before the first one of a block is used: flash is spared, and a
//! power cut at any moment leaves a number that is too high at worst, never one that was used.

use duet_protocol::reading::ReadingId;
use zeroize::Zeroize as _;

/// What survives a power cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Every counter below this one may have been used.
    pub fresh: u64,
    /// The number of the last command that was taken; 0 before the first.
    pub command: u32,
    /// What came of it: [`INTERRUPTED`] until its result is known.
    pub status: u8,
    /// The reading that was sent inside a HELLO and is not confirmed, by its first name.
    pub doubt: Option<ReadingId>,
}

/// The status of a command that was begun, and of whose end nothing is known: power went away.
pub const INTERRUPTED: u8 = 0xff;

/// The store failed: nothing is known to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the device must not forget could not be read or written")]
pub struct StoreError;

/// Where [`Kept`] lives.
pub trait Store {
    /// What was kept last; `None` on the very first start.
    ///
    /// # Errors
    /// When it cannot be read: the device does not start, since it might use a counter twice.
    fn load(&mut self) -> Result<Option<Kept>, StoreError>;

    /// Keeps all of it or nothing: after a power cut [`load`](Self::load) gives this or what was
    /// there before. It has returned only when a power cut can no longer undo it.
    ///
    /// # Errors
    /// When it cannot be written: the step that needed it is not taken.
    fn save(&mut self, kept: &Kept) -> Result<(), StoreError>;

    /// Whether [`Kept::doubt`] is worth a write before each reading inside a HELLO and another after it.
    /// It is for those who keep their readings over a power cut, too, and can send the same one again.
    fn keeps_doubt(&self) -> bool {
        false
    }
}

impl<S: Store + ?Sized> Store for &mut S {
    fn load(&mut self) -> Result<Option<Kept>, StoreError> {
        (**self).load()
    }

    fn save(&mut self, kept: &Kept) -> Result<(), StoreError> {
        (**self).save(kept)
    }

    fn keeps_doubt(&self) -> bool {
        (**self).keeps_doubt()
    }
}

/// Keeps nothing: for devices without a place for it, which start again at their configured counter and
/// are challenged each time, and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Volatile;

impl Store for Volatile {
    fn load(&mut self) -> Result<Option<Kept>, StoreError> {
        Ok(None)
    }

    fn save(&mut self, _: &Kept) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Two pages of flash, or two files, or two anything: small, and written whole.
pub trait Pages {
    /// Reads page `page` (0 or 1) into `out`; `false` where nothing was written yet.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&mut self, page: u8, out: &mut [u8; PAGE_LEN]) -> Result<bool, StoreError>;

    /// Writes page `page`; may leave it in any state when power goes away meanwhile.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(&mut self, page: u8, bytes: &[u8; PAGE_LEN]) -> Result<(), StoreError>;
}

/// Length of a page's content.
pub const PAGE_LEN: usize = 48;

/// A [`Store`] over [`Pages`] that may be torn: each write goes to the page that does not hold the
/// newest state, so that one whole state is always left.
pub struct TwoPages<P> {
    pages: P,
    generation: u32,
    newest: u8,
}

const MAGIC: [u8; 3] = *b"dk1";
const HAS_DOUBT: u8 = 1;

/// CRC-32 (IEEE), bit by bit: a page is short and written seldom.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ 0xedb8_8320 & 0u32.wrapping_sub(crc & 1)
        })
    })
}

impl Kept {
    /// As bytes, with a generation and a check sum.
    #[must_use]
    pub fn encode(&self, generation: u32) -> [u8; PAGE_LEN] {
        let mut out = [0; PAGE_LEN];
        out[..3].copy_from_slice(&MAGIC);
        out[3] = if self.doubt.is_some() { HAS_DOUBT } else { 0 };
        out[4..8].copy_from_slice(&generation.to_be_bytes());
        out[8..16].copy_from_slice(&self.fresh.to_be_bytes());
        out[16..20].copy_from_slice(&self.command.to_be_bytes());
        out[20] = self.status;
        if let Some(id) = self.doubt {
            out[24..40].copy_from_slice(&id.encode());
        }
        let crc = crc(&out[..PAGE_LEN - 4]);
        out[PAGE_LEN - 4..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads [`encode`](Self::encode)'s bytes; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8; PAGE_LEN]) -> Option<(u32, Self)> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        if body[..3] != MAGIC || body[3] > HAS_DOUBT || crc(body) != u32::from_be_bytes(*sum) {
            return None;
        }
        let doubt = if body[3] == HAS_DOUBT {
            Some(ReadingId::decode(body.get(24..)?.first_chunk()?))
        } else {
            None
        };
        let kept = Self {
            fresh: u64::from_be_bytes(*body.get(8..)?.first_chunk()?),
            command: u32::from_be_bytes(*body.get(16..)?.first_chunk()?),
            status: body[20],
            doubt,
        };
        Some((u32::from_be_bytes(*body.get(4..)?.first_chunk()?), kept))
    }
}

impl<P: Pages> TwoPages<P> {
    /// Over these pages.
    #[must_use]
    pub const fn new(pages: P) -> Self {
        Self { pages, generation: 0, newest: 1 }
    }

    /// The pages.
    pub fn into_inner(self) -> P {
        self.pages
    }
}

impl<P: Pages> Store for TwoPages<P> {
    fn load(&mut self) -> Result<Option<Kept>, StoreError> {
        let mut newest: Option<(u32, u8, Kept)> = None;
        let mut damaged = 0;
        for page in 0..2 {
            let mut bytes = [0; PAGE_LEN];
            if !self.pages.read(page, &mut bytes)? {
                continue;
            }
            match Kept::decode(&bytes) {
                Some((generation, kept)) => {
                    if newest.is_none_or(|(other, ..)| generation > other) {
                        newest = Some((generation, page, kept));
                    }
                }
                // Flash that was erased is no damage.
                None => damaged += u8::from(bytes.iter().any(|byte| *byte != 0xff)),
            }
            bytes.zeroize();
        }
        let Some((generation, page, kept)) = newest else {
            // A power cut tears one page, at worst in the very first write. Where both say nothing, a counter that was
            // used is lost.
            return if damaged == 2 { Err(StoreError) } else { Ok(None) };
        };
        (self.generation, self.newest) = (generation, page);
        Ok(Some(kept))
    }

    fn save(&mut self, kept: &Kept) -> Result<(), StoreError> {
        let generation = self.generation.checked_add(1).ok_or(StoreError)?;
        let page = self.newest ^ 1;
        self.pages.write(page, &kept.encode(generation))?;
        (self.generation, self.newest) = (generation, page);
        Ok(())
    }
}

/// How many counters are reserved with one write.
pub(crate) const BLOCK: u64 = 256;

/// [`Kept`], and the counter that runs below what it has reserved.
pub(crate) struct Memory<S> {
    store: S,
    kept: Kept,
    next: u64,
}

impl<S: Store> Memory<S> {
    /// `first` is the counter that the credential begins with.
    pub(crate) fn load(mut store: S, first: u64) -> Result<Self, StoreError> {
        let kept = store.load()?.unwrap_or_default();
        Ok(Self { next: kept.fresh.max(first), kept, store })
    }

    /// The counter that the next HELLO would take.
    pub(crate) const fn next_fresh(&self) -> u64 {
        self.next
    }

    pub(crate) const fn kept(&self) -> &Kept {
        &self.kept
    }

    fn change(&mut self, change: impl FnOnce(&mut Kept)) -> Result<(), StoreError> {
        let mut kept = self.kept;
        change(&mut kept);
        if kept != self.kept {
            self.store.save(&kept)?;
            self.kept = kept;
        }
        Ok(())
    }

    /// A counter that was never given before (R22).
    pub(crate) fn take_fresh(&mut self) -> Result<u64, StoreError> {
        let fresh = self.next;
        let next = fresh.checked_add(1).ok_or(StoreError)?;
        if fresh >= self.kept.fresh {
            let reserved = fresh.saturating_add(BLOCK);
            self.change(|kept| kept.fresh = reserved)?;
        }
        self.next = next;
        Ok(fresh)
    }

    /// Goes above a gateway's mark (R60).
    pub(crate) fn raise(&mut self, mark: u64) {
        self.next = self.next.max(mark.saturating_add(1));
    }

    /// A command is about to be carried out.
    pub(crate) fn begin_command(&mut self, command: u32) -> Result<(), StoreError> {
        self.change(|kept| (kept.command, kept.status) = (command, INTERRUPTED))
    }

    /// Its result is known.
    pub(crate) fn end_command(&mut self, status: u8) -> Result<(), StoreError> {
        self.change(|kept| kept.status = status)
    }

    /// A reading is about to go out inside a HELLO, or its fate is known.
    pub(crate) fn set_doubt(&mut self, doubt: Option<ReadingId>) -> Result<(), StoreError> {
        if self.store.keeps_doubt() { self.change(|kept| kept.doubt = doubt) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;

    /// Flash whose power goes away at write number `cut`, which it leaves half done.
    struct Flash {
        pages: [Option<[u8; PAGE_LEN]>; 2],
        writes: usize,
        cut: Option<(usize, usize)>,
    }

    impl Pages for &mut Flash {
        fn read(&mut self, page: u8, out: &mut [u8; PAGE_LEN]) -> Result<bool, StoreError> {
            let Some(bytes) = self.pages[usize::from(page)] else { return Ok(false) };
            *out = bytes;
            Ok(true)
        }

        fn write(&mut self, page: u8, bytes: &[u8; PAGE_LEN]) -> Result<(), StoreError> {
            let kept = self.pages[usize::from(page)].get_or_insert([0xff; PAGE_LEN]);
            self.writes += 1;
            if let Some((at, torn)) = self.cut
                && self.writes > at
            {
                // The page was erased, and part of the new content written.
                *kept = [0xff; PAGE_LEN];
                kept[..torn].copy_from_slice(&bytes[..torn]);
                return Err(StoreError);
            }
            *kept = *bytes;
            Ok(())
        }
    }

    /// Lives one life after the other, each cut off at another write; `used` must only rise.
    #[test]
    fn no_power_cut_takes_the_counter_back() {
        for torn in [0, 1, 8, 17, PAGE_LEN - 1] {
            let mut flash = Flash { pages: [None; 2], writes: 0, cut: None };
            let mut used = Vec::new();
            let mut commands = vec![0u32];
            for life in 0..60 {
                flash.cut = Some((flash.writes + life % 7, torn));
                let Ok(mut memory) = Memory::load(TwoPages::new(&mut flash), 1) else {
                    panic!("a torn page made both unreadable")
                };
                assert_eq!(memory.kept().command, *commands.last().unwrap(), "life {life}");
                for step in 0..700u32 {
                    if step % 300 == 299 {
                        let command = memory.kept().command + 1;
                        if memory.begin_command(command).is_err() {
                            break;
                        }
                        commands.push(command);
                        if memory.end_command(0).is_err() {
                            break;
                        }
                    }
                    let Ok(fresh) = memory.take_fresh() else { break };
                    assert!(used.last().is_none_or(|last| fresh > *last), "{fresh} in life {life}");
                    used.push(fresh);
                    if step == 150 {
                        memory.raise(fresh + 1_000);
                    }
                }
            }
            assert!(used.len() > 10_000);
        }
    }

    /// Lives that end between two writes, as most do.
    #[test]
    fn each_life_finds_what_the_last_one_kept() {
        let mut flash = Flash { pages: [None; 2], writes: 0, cut: None };
        let mut fresh = 0;
        for life in 0..40 {
            let mut store = TwoPages::new(&mut flash);
            assert_eq!(store.load().unwrap().map_or(0, |kept| kept.fresh), fresh, "life {life}");
            for _ in 0..life % 4 {
                fresh += 1;
                store.save(&Kept { fresh, ..Kept::default() }).unwrap();
            }
        }
    }

    /// A generation that began again would make the older page the newer one.
    #[test]
    fn after_the_last_generation_nothing_is_written() {
        let last = Kept { fresh: 900, ..Kept::default() };
        let pages = [None, Some(last.encode(u32::MAX))];
        let mut flash = Flash { pages, writes: 0, cut: None };
        let mut store = TwoPages::new(&mut flash);
        assert_eq!(store.load(), Ok(Some(last)));
        assert_eq!(store.save(&Kept { fresh: 901, ..last }), Err(StoreError));
        assert_eq!(flash.writes, 0);
    }

    /// Flash that answers neither reads nor writes while it is broken.
    struct Broken<'f>(&'f mut Flash, bool);

    impl Pages for Broken<'_> {
        fn read(&mut self, page: u8, out: &mut [u8; PAGE_LEN]) -> Result<bool, StoreError> {
            if self.1 { Err(StoreError) } else { (&mut *self.0).read(page, out) }
        }

        fn write(&mut self, page: u8, bytes: &[u8; PAGE_LEN]) -> Result<(), StoreError> {
            if self.1 { Err(StoreError) } else { (&mut *self.0).write(page, bytes) }
        }
    }

    #[test]
    fn nothing_counts_that_was_not_written() {
        let mut flash = Flash { pages: [None; 2], writes: 0, cut: None };
        assert!(Memory::load(TwoPages::new(Broken(&mut flash, true)), 1).is_err());
        let mut memory = Memory::load(TwoPages::new(Broken(&mut flash, false)), 1).unwrap();
        memory.store.pages.1 = true;
        let before = *memory.kept();
        for _ in 0..2 {
            assert_eq!(memory.take_fresh(), Err(StoreError));
            assert_eq!(memory.begin_command(7), Err(StoreError));
            assert_eq!((memory.next_fresh(), *memory.kept()), (1, before));
        }
        memory.store.pages.1 = false;
        assert_eq!(memory.take_fresh(), Ok(1));
        memory.begin_command(7).unwrap();
        assert_eq!((memory.kept().command, memory.kept().status), (7, INTERRUPTED));
        memory.end_command(3).unwrap();
        assert_eq!(memory.kept().status, 3);
        // What is as it was is not written, nor a doubt that nobody keeps.
        memory.end_command(3).unwrap();
        memory.set_doubt(Some(ReadingId { hello: [7; 12], sequence: 9 })).unwrap();
        assert_eq!(memory.kept().doubt, None);
        assert_eq!(flash.writes, 3);
    }

    #[test]
    fn the_counter_rises_only_and_ends_at_its_end() {
        let mut memory = Memory::load(Volatile, 5).unwrap();
        memory.raise(3);
        assert_eq!(memory.take_fresh(), Ok(5));
        memory.raise(9);
        assert_eq!(memory.take_fresh(), Ok(10));
        memory.raise(u64::MAX - 1);
        assert_eq!(memory.take_fresh(), Err(StoreError));
    }

    /// Pages of another form, whose check sum is right.
    #[test]
    fn a_page_of_another_form_is_none() {
        for at in 0..4 {
            let mut other = Kept::default().encode(1);
            other[at] += 2;
            let sum = crc(&other[..PAGE_LEN - 4]).to_be_bytes();
            other[PAGE_LEN - 4..].copy_from_slice(&sum);
            assert_eq!(Kept::decode(&other), None, "byte {at}");
        }
    }

    #[test]
    fn a_page_comes_back_as_it_was_and_not_when_touched() {
        let doubt = Some(ReadingId { hello: [7; 12], sequence: 9 });
        for kept in [Kept::default(), Kept { fresh: 1 << 60, command: 3, status: 9, doubt }] {
            let bytes = kept.encode(77);
            assert_eq!(Kept::decode(&bytes), Some((77, kept)));
            for bit in 0..PAGE_LEN * 8 {
                let mut touched = bytes;
                touched[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Kept::decode(&touched), None, "bit {bit}");
            }
        }
        assert_eq!(crc(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn two_damaged_pages_are_not_taken_for_a_first_start() {
        let whole = Kept { fresh: 900, ..Kept::default() }.encode(7);
        let mut broken = whole;
        broken[9] ^= 1;
        let blank = [0xff; PAGE_LEN];
        let load = |pages| {
            let mut flash = Flash { pages, writes: 0, cut: None };
            TwoPages::new(&mut flash).load().map(|kept| kept.map(|kept| kept.fresh))
        };
        assert_eq!(load([Some(broken), Some(broken)]), Err(StoreError));
        assert_eq!(load([Some(broken), Some(whole)]), Ok(Some(900)));
        assert_eq!(load([Some(whole), Some(broken)]), Ok(Some(900)));
        // The very first write was torn.
        assert_eq!(load([Some(broken), None]), Ok(None));
        assert_eq!(load([Some(broken), Some(blank)]), Ok(None));
        assert_eq!(load([Some(blank), Some(blank)]), Ok(None));
    }

    #[test]
    fn one_write_reserves_a_block() {
        let mut flash = Flash { pages: [None; 2], writes: 0, cut: None };
        let mut memory = Memory::load(TwoPages::new(&mut flash), 5).unwrap();
        assert_eq!(memory.take_fresh(), Ok(5));
        for _ in 1..BLOCK {
            memory.take_fresh().unwrap();
        }
        let pages = memory.store.into_inner();
        assert_eq!(pages.writes, 1);
        let mut memory = Memory::load(TwoPages::new(pages), 5).unwrap();
        assert_eq!(memory.take_fresh(), Ok(5 + BLOCK), "the rest of a block is skipped");
    }
}
