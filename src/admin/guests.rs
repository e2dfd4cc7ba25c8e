//! The connections that a door serves at once. When all places are taken, a new connection gets the place of the one
//! that has waited longest without a request being served, or else of one that takes nothing of its answer: half a
//! request, silence, or an answer that nobody reads keeps nobody out. Whoever has most places gives up his own first, so
//! that a flood of connections from one address costs no other its place.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duet_core::site;
use tokio::sync::Notify;

/// How long a connection may take nothing of its answer before others may have its place.
const PATIENCE: Duration = Duration::from_secs(30);
/// In place of a time: no request is served.
const IDLE: u64 = u64::MAX;
/// In place of a time: an answer is being made.
const WORKING: u64 = u64::MAX - 1;

/// What times of seats are counted from.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The places of a door.
pub(super) struct Guests {
    limit: usize,
    /// In the order in which they came.
    seats: Mutex<Vec<Arc<Seat>>>,
}

/// A connection's place.
pub(super) struct Seat {
    /// The address at the other end, or its site of IPv6; none on the control socket.
    from: Option<IpAddr>,
    /// [`IDLE`], [`WORKING`], or when a piece of the answer was last taken, milliseconds since [`BEGAN`].
    state: AtomicU64,
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

    /// A place for whoever comes from this address; `None` when every one of them is being served.
    pub(super) fn enter(self: &Arc<Self>, from: Option<IpAddr>) -> Option<Guest> {
        self.enter_at(from, now_ms())
    }

    fn enter_at(self: &Arc<Self>, from: Option<IpAddr>, now_ms: u64) -> Option<Guest> {
        let mut seats = self.seats();
        if seats.len() >= self.limit {
            let mut places: HashMap<Option<IpAddr>, usize> = HashMap::new();
            seats.iter().for_each(|seat| *places.entry(seat.from).or_default() += 1);
            let oldest_of_most = |gives_way: &dyn Fn(&Seat) -> bool| {
                let all = seats.iter().enumerate().rev().filter(|(_, seat)| gives_way(seat));
                all.max_by_key(|(_, seat)| places.get(&seat.from)).map(|(place, _)| place)
            };
            let place = oldest_of_most(&|seat| seat.state() == IDLE);
            let place = place.or_else(|| oldest_of_most(&|seat| seat.is_stuck(now_ms)))?;
            seats.remove(place).leave.notify_one();
        }
        let from = from.map(site);
        let seat = Arc::new(Seat { from, state: AtomicU64::new(IDLE), leave: Notify::new() });
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
        self.state.store(if serving { WORKING } else { IDLE }, Ordering::Relaxed);
    }

    /// A piece of the answer was taken, or its first one can be.
    pub(super) fn moves_on(&self) {
        self.state.store(now_ms(), Ordering::Relaxed);
    }

    fn state(&self) -> u64 {
        self.state.load(Ordering::Relaxed)
    }

    fn is_stuck(&self, now_ms: u64) -> bool {
        let patience = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
        // Both words for no time lie beyond any.
        now_ms.saturating_sub(self.state()) >= patience
    }

    /// Completes when somebody else needs the place.
    pub(super) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

fn now_ms() -> u64 {
    u64::try_from(BEGAN.elapsed().as_millis()).unwrap_or(WORKING - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_idle_gives_way_and_the_served_do_not() {
        let guests = Guests::new(2);
        let first = guests.enter(None).unwrap();
        let second = guests.enter(None).unwrap();
        first.seat().serve(true);
        let third = guests.enter(None).unwrap();
        second.seat().asked_to_leave().await;
        third.seat().serve(true);
        assert!(guests.enter(None).is_none());
        drop(second);
        assert!(guests.enter(None).is_none(), "its place was taken before");
        drop(first);
        assert!(guests.enter(None).is_some());
    }

    #[tokio::test]
    async fn who_does_not_take_his_answer_gives_way_after_a_while() {
        let guests = Guests::new(2);
        let (first, second) = (guests.enter(None).unwrap(), guests.enter(None).unwrap());
        first.seat().serve(true);
        second.seat().moves_on();
        let (now_ms, patience) = (now_ms(), 30_000);
        assert!(guests.enter_at(None, now_ms).is_none());
        let third = guests.enter_at(None, now_ms + patience).unwrap();
        second.seat().asked_to_leave().await;
        third.seat().serve(true);
        assert!(guests.enter_at(None, now_ms + 2 * patience).is_none(), "answers are still made");
    }

    #[tokio::test]
    async fn a_flood_from_one_address_takes_its_own_places() {
        let guests = Guests::new(4);
        let at = |text: &str| Some(text.parse().unwrap());
        let honest = guests.enter(at("192.0.2.1")).unwrap();
        let flood = (0..40).map(|network| guests.enter(at(&format!("2001:db8:0:{network}::1"))));
        let flood: Vec<_> = flood.map(Option::unwrap).collect();
        let other = guests.enter(at("2001:db8:1::7")).unwrap();
        for one in &flood[..38] {
            one.seat().asked_to_leave().await;
        }
        let now = Duration::ZERO;
        assert!(tokio::time::timeout(now, honest.seat().asked_to_leave()).await.is_err());
        assert!(tokio::time::timeout(now, other.seat().asked_to_leave()).await.is_err());
    }
}
