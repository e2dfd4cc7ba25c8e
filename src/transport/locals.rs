//! The addresses of this machine that datagrams were sent to, each with a small number: a session keeps the number of the
//! one that its device speaks with.

use std::collections::HashMap;

use super::Via;
use crate::driver::LocalAddress;

/// How many are told apart.
const LOCALS_MAX: usize = u16::MAX as usize;
/// So many addresses, those that were sent to first, keep their numbers for ever. Where a machine takes whole networks for its
/// own, a stranger may send to more addresses than there are numbers: the other numbers then go round among the addresses
/// that came last, and what a session with one of them is sent unasked may leave from another address, until its device speaks
/// again. Who is answered at once is always answered from the address that he asked.
const KEPT: usize = LOCALS_MAX / 2;

#[derive(Debug, Default)]
pub(super) struct Locals {
    /// The address of number 1, and so on.
    seen: Vec<LocalAddress>,
    numbers: HashMap<LocalAddress, Via>,
    /// The place in `seen` that is taken next once all are; never one of the kept.
    next: usize,
    /// The last one: nearly always the next.
    last: Option<(LocalAddress, Via)>,
}

impl Locals {
    /// The number of an address, a new one if it has none.
    pub(super) fn via(&mut self, local: Option<LocalAddress>) -> Via {
        let Some(local) = local else { return Via::default() };
        match self.last {
            Some((last, via)) if last == local => via,
            _ => {
                let via = self.numbers.get(&local).copied().unwrap_or_else(|| self.number(local));
                self.last = Some((local, via));
                via
            }
        }
    }

    /// Gives a number to an address that has none.
    fn number(&mut self, local: LocalAddress) -> Via {
        let place = if self.seen.len() < LOCALS_MAX {
            self.seen.push(local);
            self.seen.len() - 1
        } else {
            let place = self.next.max(KEPT);
            self.next = (place + 1) % LOCALS_MAX;
            let before = std::mem::replace(&mut self.seen[place], local);
            self.numbers.remove(&before);
            place
        };
        let via = u16::try_from(place + 1).map(Via).unwrap_or_default();
        self.numbers.insert(local, via);
        via
    }

    /// The address of a number.
    pub(super) fn address(&self, via: Via) -> Option<LocalAddress> {
        self.seen.get(usize::from(via.0).checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> Option<LocalAddress> {
        let [.., a, b, c] = number.to_be_bytes();
        LocalAddress::from_ip([10, a, b, c].into())
    }

    #[test]
    fn each_address_keeps_its_number() {
        let mut locals = Locals::default();
        assert_eq!(locals.via(None), Via(0));
        assert_eq!(locals.address(Via(0)), None);
        for _ in 0..2 {
            for number in 1..=LOCALS_MAX {
                let via = locals.via(address(number));
                assert_eq!(usize::from(via.0), number);
                assert_eq!(locals.address(via), address(number));
            }
        }
    }

    #[test]
    fn however_many_come_the_one_that_was_asked_answers_and_the_first_keep_their_numbers() {
        let mut locals = Locals::default();
        for number in 1..3 * LOCALS_MAX {
            let via = locals.via(address(number));
            assert_eq!(locals.address(via), address(number));
            assert!(via != Via(0) && locals.numbers.len() == locals.seen.len());
        }
        assert_eq!(locals.seen.len(), LOCALS_MAX);
        for number in 1..=KEPT {
            assert_eq!(usize::from(locals.via(address(number)).0), number, "displaced");
        }
    }
}
