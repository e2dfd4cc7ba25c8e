//! A list whose memory forgets: what leaves it leaves no copy behind.
//!
//! A value that moves leaves its bytes where it was, and neither `Vec` nor `Box` wipes them when it gives memory back. The
//! states of a handshake hold secrets and move from step to step, so each step takes them out of a list of this kind and
//! puts what becomes of them into another. What passes over the stack on the way is overwritten at the end of the turn.
//!
//! # The fence
//!
//! `unsafe` is allowed here for three things, which rest on one invariant: exactly the places `taken..len` hold values.
//! A place is read out once, wiped at once, and never read again.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

/// Values that are wiped from their places when they are taken out or dropped.
pub struct Wiped<T> {
    places: Box<[MaybeUninit<T>]>,
    /// The first place that holds a value.
    taken: usize,
    /// One past the last.
    len: usize,
}

/// Overwrites a place that holds no value any more, in a way that is not optimised away.
fn wipe<T>(place: &mut MaybeUninit<T>) {
    // SAFETY: writes the bytes of one place, which is borrowed for this; any bytes are allowed in a place without a value.
    unsafe { std::ptr::write_bytes(std::ptr::from_mut(place), 0, 1) };
    // It may look at what was written, so that had to be written.
    std::hint::black_box(place);
}

impl<T> Wiped<T> {
    /// An empty list with room for so many values.
    #[must_use]
    pub fn with_capacity(most: usize) -> Self {
        Self { places: Box::new_uninit_slice(most), taken: 0, len: 0 }
    }

    /// Adds a value at the end.
    pub fn push(&mut self, value: T) {
        if self.len == self.places.len() {
            self.grow();
        }
        self.places[self.len].write(value);
        self.len += 1;
    }

    /// Takes the first value out.
    pub fn take_first(&mut self) -> Option<T> {
        if self.taken == self.len {
            return None;
        }
        let place = &mut self.places[self.taken];
        self.taken += 1;
        // SAFETY: the place held a value, and from the line above on it counts as empty.
        let value = unsafe { place.assume_init_read() };
        wipe(place);
        Some(value)
    }

    /// Moves everything to twice as much memory, and leaves nothing in the old one.
    fn grow(&mut self) {
        let mut larger = Self::with_capacity((2 * self.places.len()).max(4));
        while let Some(value) = self.take_first() {
            larger.push(value);
        }
        *self = larger;
    }
}

impl<T> Deref for Wiped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: these places hold values.
        unsafe { self.places[self.taken..self.len].assume_init_ref() }
    }
}

impl<T> DerefMut for Wiped<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: these places hold values.
        unsafe { self.places[self.taken..self.len].assume_init_mut() }
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        while self.take_first().is_some() {}
    }
}

impl<T> FromIterator<T> for Wiped<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let values = values.into_iter();
        let mut list = Self::with_capacity(values.size_hint().0);
        values.for_each(|value| list.push(value));
        list
    }
}

/// Takes the values out, one after the other.
pub struct IntoIter<T>(Wiped<T>);

impl<T> IntoIterator for Wiped<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.take_first()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn values_come_out_as_they_went_in_and_their_places_are_wiped() {
        let mut list = Wiped::with_capacity(2);
        for value in 1..=5u64 {
            list.push([value; 9]);
        }
        assert_eq!(list.take_first(), Some([1; 9]));
        list[0][0] = 7;
        assert_eq!(list.len(), 4);
        assert_eq!(list.iter().map(|value| value[1]).collect::<Vec<_>>(), [2, 3, 4, 5]);
        let emptied = list.places[0];
        // SAFETY: whatever bytes a place has are an array of numbers; this one was written when it was wiped.
        assert_eq!(unsafe { emptied.assume_init() }, [0; 9]);
        assert_eq!(list.into_iter().map(|value| value[0]).collect::<Vec<_>>(), [7, 3, 4, 5]);
    }

    #[test]
    fn each_value_is_dropped_once() {
        let counted = Rc::new(());
        let mut list: Wiped<_> = (0..10).map(|_| Rc::clone(&counted)).collect();
        assert_eq!(Rc::strong_count(&counted), 11);
        drop(list.take_first());
        assert_eq!(Rc::strong_count(&counted), 10);
        list.push(Rc::clone(&counted));
        let mut rest = list.into_iter();
        drop(rest.next());
        drop(rest);
        assert_eq!(Rc::strong_count(&counted), 1);
    }
}
