//! Which addresses of the Sandboxes' network are free.
//!
//! Promises: the lowest address that was never used comes first; a released one comes last, so
//! that stale connections to it die out. Pure.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Sandboxes per host. Each has its own 65 536 user ids, and those run out before addresses do.
pub(crate) const CAPACITY: u16 = 16_384;

/// The first index given out; .0 is the network and .1 the host.
const FIRST: u16 = 2;

/// The addresses of one Sandbox, or of the host as Sandboxes see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ips {
    pub(crate) v4: Ipv4Addr,
    /// None where the host has no IPv6, or had none when the Sandbox was made.
    pub(crate) v6: Option<Ipv6Addr>,
}

impl Ips {
    /// One after the other.
    pub(crate) fn all(self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::V4(self.v4)), self.v6.map(IpAddr::V6)].into_iter().flatten()
    }
}

/// The /64 that belongs to a /16 of a platform of this name: a unique local one ([RFC 4193])
/// whose global id is taken from the name, so that two machines seldom share one.
///
/// [RFC 4193]: https://www.rfc-editor.org/rfc/rfc4193
pub(crate) fn network6(name: &str, network: Ipv4Addr) -> Ipv6Addr {
    // FNV-1a
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let global = (hash ^ hash >> 40) & 0xff_ffff_ffff;
    let subnet = u64::from(network.to_bits() >> 16);
    Ipv6Addr::from_bits(u128::from(0xfd << 56 | global << 16 | subnet) << 64)
}

/// The address of an index in a /64.
pub(crate) fn ip6(network: Ipv6Addr, index: u16) -> Ipv6Addr {
    Ipv6Addr::from_bits(network.to_bits() | u128::from(index))
}

/// The bytes of an address, as they stand in packets.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

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
    fn a_network_of_ipv6_is_unique_local_and_a_platforms_own() {
        let of = |name| network6(name, Ipv4Addr::new(10, 88, 0, 0));
        assert_eq!(of("stead").octets()[0], 0xfd);
        assert_eq!(&of("stead").octets()[6..9], &[10, 88, 0]);
        assert_ne!(of("stead"), of("other"));
        assert_eq!(ip6(of("stead"), 258).octets()[14..], [1, 2]);
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
