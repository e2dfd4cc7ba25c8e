//! The addresses of this machine that datagrams were sent to, each with a small number: a session keeps the number of the
//! one that its device speaks with.

use super::Via;
use crate::driver::LocalAddress;

/// The most that are told apart. Datagrams come only to addresses that this machine has, so that it is for those who run
/// it to make more; from then on answers leave from the address that the kernel prefers.
const LOCALS_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Locals {
    /// In the order in which they were first seen; the first one's number is 1.
    seen: Vec<LocalAddress>,
    /// The place of the last one: nearly always that of the next.
    last: usize,
}

impl Locals {
    /// The number of an address, a new one if it was never seen.
    pub(super) fn via(&mut self, local: Option<LocalAddress>) -> Via {
        let Some(local) = local else { return Via::default() };
        if self.seen.get(self.last) != Some(&local) {
            self.last = match self.seen.iter().position(|seen| *seen == local) {
                Some(place) => place,
                None if self.seen.len() >= LOCALS_MAX => return Via::default(),
                None => {
                    self.seen.push(local);
                    self.seen.len() - 1
                }
            };
        }
        u16::try_from(self.last + 1).map(Via).unwrap_or_default()
    }

    /// The address of a number.
    pub(super) fn address(&self, via: Via) -> Option<LocalAddress> {
        self.seen.get(usize::from(via.0).checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_keeps_its_number_and_too_many_have_none() {
        let address = |number: usize| {
            let [.., high, low] = number.to_be_bytes();
            LocalAddress::from_ip([10, 7, high, low].into())
        };
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
        assert_eq!(locals.via(address(LOCALS_MAX + 1)), Via(0));
        assert_eq!(locals.address(Via(u16::MAX)), None);
    }
}
