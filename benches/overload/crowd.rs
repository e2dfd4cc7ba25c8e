//! A crowd of devices, each with an address of its own, that does as the gateway tells it.

use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use duet_protocol::wire::{Kind, MESSAGE_MAX, Retry};
use loadgen::hosts::Hosts;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::LIMIT;

/// How long a device waits for an answer before it asks again, doubled each time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How it went for a crowd of devices.
pub(crate) struct Crowd {
    /// When each had its ACCEPT, after it first knocked.
    pub(crate) took: Vec<Duration>,
    /// From the first knock to the last ACCEPT.
    pub(crate) all: Duration,
    pub(crate) retries: usize,
    pub(crate) repeats: usize,
}

impl Crowd {
    pub(crate) fn quantile(&mut self, percent: usize) -> Duration {
        quantile(&mut self.took, percent)
    }
}

pub(crate) fn quantile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get(last * percent / 100).copied().unwrap_or_default()
}

/// When devices begin to knock.
#[derive(Clone, Copy)]
pub(crate) enum Begin {
    /// One after the other, so many a second.
    AtRate(u32),
    /// All in the same instant.
    Together,
    /// So many at first, and another one for each that is in.
    Window(usize),
}

impl Begin {
    fn time(self, number: usize) -> Duration {
        match self {
            Self::AtRate(rate) => Duration::from_secs(1) * u32::try_from(number).unwrap() / rate,
            Self::Together => Duration::ZERO,
            Self::Window(few) if number < few => Duration::ZERO,
            Self::Window(_) => Duration::MAX,
        }
    }
}

/// Every device knocks at its time from an address of its own and does as RETRY tells it.
pub(crate) fn knock(to: SocketAddr, hellos: &[Vec<u8>], begin: Begin) -> Crowd {
    let hosts = Hosts::bind().unwrap();
    let mut begins: Vec<_> = (0..hellos.len()).map(|number| begin.time(number)).collect();
    let mut due: BinaryHeap<_> =
        begins.iter().enumerate().map(|(number, at)| std::cmp::Reverse((*at, number))).collect();
    let mut unbegun = begins.iter().take_while(|at| **at < Duration::MAX).count();
    let mut cookies: HashMap<usize, [u8; 16]> = HashMap::new();
    let mut attempts = vec![0u32; hellos.len()];
    let mut next = begins.clone();
    let mut done = vec![false; hellos.len()];
    let mut crowd = Crowd { took: Vec::new(), all: Duration::ZERO, retries: 0, repeats: 0 };
    let began = Instant::now();
    let mut bytes = [0; MESSAGE_MAX];
    while crowd.took.len() < hellos.len() && began.elapsed() < LIMIT {
        let now = began.elapsed();
        // A few at a time: what comes back meanwhile must not overflow this side's buffer, which many
        // devices would not share.
        for _ in 0..32 {
            let Some(std::cmp::Reverse((at, number))) = due.peek().copied() else { break };
            if at > now {
                break;
            }
            due.pop();
            // What was put off since is in the heap at its new time.
            if done[number] || next[number] != at {
                continue;
            }
            let cookie = cookies.get(&number).map_or(&[][..], |cookie| &cookie[..]);
            // A full buffer is a lost datagram: the device asks again.
            let _ =
                hosts.send(u32::try_from(number).unwrap(), to, &[&hellos[number], cookie].concat());
            crowd.repeats += usize::from(attempts[number] > 0);
            next[number] = now + PATIENCE * (1 << attempts[number].min(5));
            attempts[number] += 1;
            due.push(std::cmp::Reverse((next[number], number)));
        }
        let due_in = due.peek().map_or(LIMIT, |next| next.0.0.saturating_sub(began.elapsed()));
        let patience = due_in.min(LIMIT.saturating_sub(began.elapsed()));
        let timeout = Timespec::try_from(patience).unwrap();
        poll(&mut [PollFd::new(&hosts, PollFlags::IN)], Some(&timeout)).unwrap();
        while let Ok((host, len)) = hosts.recv(&mut bytes) {
            let number = host as usize;
            let now = began.elapsed();
            match Kind::of(&bytes[..len]) {
                Ok(Kind::Accept) if !done[number] => {
                    done[number] = true;
                    crowd.took.push(now - begins[number]);
                    crowd.all = now;
                    if unbegun < begins.len() {
                        (begins[unbegun], next[unbegun]) = (now, now);
                        due.push(std::cmp::Reverse((now, unbegun)));
                        unbegun += 1;
                    }
                }
                Ok(Kind::Retry) if !done[number] => {
                    let retry = Retry::decode(&bytes[..len]).unwrap();
                    cookies.insert(number, retry.cookie);
                    crowd.retries += 1;
                    attempts[number] = 0;
                    next[number] = now + Duration::from_millis(u64::from(retry.wait_10ms) * 10);
                    due.push(std::cmp::Reverse((next[number], number)));
                }
                _ => {}
            }
        }
    }
    crowd
}
