//! Which addresses of the Sandboxes' network are free.
//!
//! Promises: the lowest address that was never used comes first; a released one comes last, so
//! that stale connections to it die out. Pure.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

/// Sandboxes per host. Each has its own 65 536 user ids, and those run out before addresses do.
pub(crate) const CAPACITY: u16 = 16_384;

/// The first index given out; .0 is the network and .1 the host.
const FIRST: u16 = 2;

/// A /16 whose lowest addresses are given out.
#[derive(Debug)]
pub(crate) struct Addresses {
    network: Ipv4Addr,
    free: VecDeque<u16>,
}

impl Addresses {
    /// All free. Only the first two octets of `network` count.
    pub(crate) fn new(network: Ipv4Addr) -> Self {
        Self { network, free: (FIRST..CAPACITY).collect() }
    }

    /// The next free index.
    pub(crate) fn take(&mut self) -> Option<u16> {
        self.free.pop_front()
    }

    /// Takes a certain index. `false` if it is not free.
    pub(crate) fn claim(&mut self, index: u16) -> bool {
        let place = self.free.iter().position(|free| *free == index);
        place.is_some_and(|at| self.free.remove(at).is_some())
    }

    /// Gives an index back.
    pub(crate) fn release(&mut self, index: u16) {
        if !self.free.contains(&index) {
            self.free.push_back(index);
        }
    }

    /// The host's own address, which Sandboxes see it under.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.ip(1)
    }

    /// The address of an index.
    pub(crate) fn ip(&self, index: u16) -> Ipv4Addr {
        let [a, b, ..] = self.network.octets();
        let [c, d] = index.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    }

    /// The index of an address, if it can be given out at all.
    pub(crate) fn index(&self, ip: Ipv4Addr) -> Option<u16> {
        let [a, b, c, d] = ip.octets();
        let index = u16::from_be_bytes([c, d]);
        (self.ip(0).octets()[..2] == [a, b] && (FIRST..CAPACITY).contains(&index)).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_addresses_come_last() {
        let mut all = Addresses::new(Ipv4Addr::new(10, 88, 0, 0));
        let first = all.take().unwrap();
        assert_eq!(all.ip(first), Ipv4Addr::new(10, 88, 0, 2));
        all.release(first);
        assert_eq!(all.take(), Some(3));
        for _ in 4..CAPACITY {
            all.take().unwrap();
        }
        assert_eq!(all.take(), Some(first));
        assert_eq!(all.take(), None);
    }

    #[test]
    fn an_address_can_be_claimed_once() {
        let mut all = Addresses::new(Ipv4Addr::new(10, 88, 0, 0));
        let index = all.index(Ipv4Addr::new(10, 88, 1, 0)).unwrap();
        assert!(all.claim(index));
        assert!(!all.claim(index));
        assert_eq!(all.index(Ipv4Addr::new(10, 89, 1, 0)), None);
        assert_eq!(all.index(all.gateway()), None);
    }
}
