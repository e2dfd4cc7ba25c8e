//! How many RESETs a shard still sends in this second (R62), and to whom. Whoever sends many records of no session must not
//! keep it from other devices that theirs are gone: when half are used up, no address, nor all of a site of IPv6, gets more
//! than a quarter of all.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::streams::site;

/// Those of one second.
pub(crate) struct Resets {
    most: usize,
    sent: usize,
    /// How many of them went to each site (see [`site`]).
    shares: HashMap<IpAddr, usize>,
}

impl Resets {
    /// So many for each second.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, sent: 0, shares: HashMap::new() }
    }

    /// Another second begins.
    pub(crate) fn renew(&mut self) {
        self.sent = 0;
        self.shares.clear();
    }

    /// Whether this sender gets one.
    pub(crate) fn take(&mut self, from: IpAddr) -> bool {
        if self.sent >= self.most {
            return false;
        }
        let from = site(from);
        let share = self.shares.get(&from).copied().unwrap_or(0);
        if self.sent >= self.most / 2 && share >= (self.most / 4).max(1) {
            return false;
        }
        self.shares.insert(from, share + 1);
        self.sent += 1;
        true
    }
}
