//! A bounded queue from any thread to one, which can sleep in its ring while the queue is empty.
//!
//! Owns the queue, the eventfd and the promise that no item waits for a sleeping receiver. Must not block a sender:
//! a full queue returns the item, and the sender decides.
//!
//! # Why no wake-up is lost
//!
//! A sender stores an item (S1), then looks whether the receiver sleeps (S2). The receiver says that it sleeps (R1), then
//! looks whether the queue is empty (R2), and sleeps only if so. Each side writes one place and then reads the other's,
//! so acquire and release are not enough: both reads could see the old values, the item would stay and the receiver
//! would sleep. A sequentially consistent fence stands between S1 and S2 and between R1 and R2. The fences have one
//! total order: if the sender's comes first, R2 sees the item; if the receiver's comes first, S2 sees the sleeper and
//! writes the eventfd. The eventfd is polled with a level check when armed and then on each write, so a write before the
//! receiver enters the kernel is seen as well.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_queue::ArrayQueue;

use crate::driver::EventFd;

#[derive(Debug)]
struct Shared<T> {
    queue: ArrayQueue<T>,
    asleep: AtomicBool,
    event: Arc<EventFd>,
}

/// The sending end. Clones send to the same receiver.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

/// Makes a mailbox for `capacity` items.
///
/// # Errors
/// When no eventfd can be made.
///
/// # Panics
/// If `capacity` is zero.
pub fn mailbox<T: Send>(capacity: usize) -> io::Result<(Sender<T>, Receiver<T>)> {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        asleep: AtomicBool::new(false),
        event: Arc::new(EventFd::new()?),
    });
    Ok((Sender(Arc::clone(&shared)), Receiver(shared)))
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Sender<T> {
    /// Enqueues `item` and wakes the receiver if it sleeps.
    ///
    /// # Errors
    /// Returns the item if the queue is full.
    pub fn try_send(&self, item: T) -> Result<(), T> {
        self.0.queue.push(item)?;
        fence(Ordering::SeqCst);
        // The swap lets one of several senders pay for the system call.
        if self.0.asleep.load(Ordering::Relaxed) && self.0.asleep.swap(false, Ordering::Relaxed) {
            self.0.event.wake();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest item.
    pub fn try_recv(&mut self) -> Option<T> {
        self.0.queue.pop()
    }

    /// The eventfd to poll while asleep; also a way to wake the receiver without an item.
    pub fn event(&self) -> &Arc<EventFd> {
        &self.0.event
    }

    /// Announces sleep. False if something is queued: then do not sleep.
    #[must_use]
    pub fn begin_sleep(&mut self) -> bool {
        self.0.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.0.queue.is_empty() {
            return true;
        }
        self.woke();
        false
    }

    /// Ends sleep: senders need not wake this receiver any more.
    pub fn woke(&mut self) {
        self.0.asleep.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    /// Reads the eventfd's counter: the number of wakes, or 0.
    fn wakes(receiver: &Receiver<u32>) -> u64 {
        let mut file = File::from(receiver.event().as_fd().try_clone_to_owned().unwrap());
        let mut count = [0; 8];
        file.read(&mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    #[test]
    fn a_full_mailbox_returns_the_item() {
        let (sender, mut receiver) = mailbox(2).unwrap();
        assert_eq!(sender.try_send(1), Ok(()));
        assert_eq!(sender.try_send(2), Ok(()));
        assert_eq!(sender.try_send(3), Err(3));
        assert_eq!(receiver.try_recv(), Some(1));
        assert_eq!(sender.try_send(4), Ok(()));
    }

    #[test]
    fn only_a_sleeper_is_woken_and_only_once() {
        let (sender, mut receiver) = mailbox(8).unwrap();
        sender.try_send(1).unwrap();
        assert_eq!(wakes(&receiver), 0);
        assert!(!receiver.begin_sleep());
        receiver.try_recv();
        assert!(receiver.begin_sleep());
        sender.try_send(2).unwrap();
        sender.try_send(3).unwrap();
        assert_eq!(wakes(&receiver), 1);
        receiver.woke();
        sender.try_send(4).unwrap();
        assert_eq!(wakes(&receiver), 0);
    }

    /// Senders race with a receiver that sleeps whenever it may; a lost wake-up would stop it for good.
    #[test]
    fn no_wake_up_is_lost() {
        const SENDERS: u32 = 3;
        const ITEMS: u32 = 60_000;
        let (sender, mut receiver) = mailbox(64).unwrap();
        let threads: Vec<_> = (0..SENDERS)
            .map(|_| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for mut item in 0..ITEMS {
                        while let Err(back) = sender.try_send(item) {
                            item = back;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut seen = 0;
        let mut sleeps = 0;
        while seen < SENDERS * ITEMS {
            if receiver.try_recv().is_some() {
                seen += 1;
            } else if receiver.begin_sleep() {
                sleeps += 1;
                let start = Instant::now();
                while wakes(&receiver) == 0 {
                    assert!(
                        start.elapsed() < Duration::from_secs(10),
                        "asleep beside a full queue"
                    );
                    std::hint::spin_loop();
                }
                receiver.woke();
            }
        }
        assert!(sleeps > 0);
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
