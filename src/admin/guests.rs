//! The connections that a door serves at once. When all places are taken, a new connection gets the place of the one
//! that has waited longest without a request being served: half a request, or silence, keeps nobody out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The places of a door.
pub(super) struct Guests {
    limit: usize,
    /// In the order in which they came.
    seats: Mutex<Vec<Arc<Seat>>>,
}

/// A connection's place.
#[derive(Default)]
pub(super) struct Seat {
    /// Whether an answer is being made or sent.
    serving: AtomicBool,
    /// Told when somebody else needs the place.
    leave: Notify,
}

/// A place that is taken; it is given back when this is dropped.
pub(super) struct Guest {
    guests: Arc<Guests>,
    seat: Arc<Seat>,
}

impl Guests {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, seats: Mutex::default() })
    }

    /// A place; `None` when every one of them is being served.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Guest> {
        let mut seats = self.seats();
        if seats.len() >= self.limit {
            let idle = seats.iter().position(|seat| !seat.serving.load(Ordering::Relaxed))?;
            seats.remove(idle).leave.notify_one();
        }
        let seat = Arc::new(Seat::default());
        seats.push(Arc::clone(&seat));
        Some(Guest { guests: Arc::clone(self), seat })
    }

    /// Whether anybody has a place.
    pub(super) fn are_there(&self) -> bool {
        !self.seats().is_empty()
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        // A list is whole between any two of its operations.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.seats().retain(|seat| !Arc::ptr_eq(seat, &self.seat));
    }
}

impl Seat {
    /// Whether an answer is being made or sent: then nobody takes the place.
    pub(super) fn serve(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    /// Completes when somebody else needs the place.
    pub(super) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_idle_gives_way_and_the_served_do_not() {
        let guests = Guests::new(2);
        let first = guests.enter().unwrap();
        let second = guests.enter().unwrap();
        first.seat().serve(true);
        let third = guests.enter().unwrap();
        second.seat().asked_to_leave().await;
        third.seat().serve(true);
        assert!(guests.enter().is_none());
        drop(second);
        assert!(guests.enter().is_none(), "its place was taken before");
        drop(first);
        assert!(guests.enter().is_some());
    }
}
