//! Links, addresses and routes of Sandboxes, in rtnetlink's messages.
//!
//! Every slot of a Sandbox has a veth of its own whose host end is routed, not bridged: a /32
//! route on the host, next hop 169.254.1.1 inside, and permanent neighbours on both sides, so
//! that no ARP is ever sent. The inner end is born in the Sandbox's netns: moving it there later
//! costs forty times as much. Links are never deleted one by one (23 ms each): they are put into
//! a group and the group is deleted at once.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::netlink::{self, NEW, REPLACE, Socket, attribute, attributes, nest, number, text};

/// The next hop inside every Sandbox. Link-local, so it can collide with nothing.
const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// How long a new link may take to come up. It takes microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

const IFLA_IFNAME: u16 = 3;
const IFLA_ADDRESS: u16 = 1;
const IFLA_QDISC: u16 = 6;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const OPERSTATE_UP: u8 = 6;
/// The first interface of a fresh netns is its loopback; the second is ours.
const LOOPBACK: i32 = 1;
const INNER: i32 = 2;

/// One veth: a host end and an inner end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Veth {
    /// Name of the host end.
    pub(crate) name: String,
    /// The Sandbox's address.
    pub(crate) ip: Ipv4Addr,
    /// Which slot: decides the hardware addresses together with the address.
    pub(crate) slot: super::Slot,
}

impl Veth {
    fn host_mac(&self) -> [u8; 6] {
        self.mac(2)
    }

    fn inner_mac(&self) -> [u8; 6] {
        self.mac(6)
    }

    /// A locally administered address, unique on this host per side, slot and address.
    fn mac(&self, side: u8) -> [u8; 6] {
        let [a, b, c, d] = self.ip.octets();
        [side | (self.slot as u8) << 4, a, b, c, d, 1]
    }
}

/// Makes the pair, sets both ends up and waits until packets pass. Returns the host end's index.
///
/// # Errors
/// What the kernel refuses, or `TimedOut` if a link does not come up.
pub(crate) fn connect(
    host: &mut Socket,
    inner: &mut Socket,
    veth: &Veth,
    netns: BorrowedFd<'_>,
    gateway: Ipv4Addr,
    group: u32,
) -> io::Result<i32> {
    queue_pair(host, veth, netns, group);
    host.commit()?;
    let index = index_of(host, &veth.name)?;
    silence_v6(host, index)?;
    silence_v6(inner, INNER)?;

    queue_up(host, index);
    queue_route(host, veth.ip, index, Some(gateway));
    queue_neighbour(host, veth.ip, veth.inner_mac(), index);
    host.commit()?;

    queue_up(inner, LOOPBACK);
    queue_up(inner, INNER);
    queue_address(inner, INNER, veth.ip);
    queue_route(inner, NEXT_HOP, INNER, None);
    queue_neighbour(inner, NEXT_HOP, veth.host_mac(), INNER);
    queue_default_route(inner, INNER);
    inner.commit()?;

    let begun = Instant::now();
    while !(passes(host, index)? && passes(inner, INNER)?) {
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the veth does not come up"));
        }
        std::thread::yield_now();
    }
    Ok(index)
}

/// Adds the host's own address in the Sandboxes' network to the loopback interface.
pub(crate) fn add_gateway(host: &mut Socket, gateway: Ipv4Addr) -> io::Result<()> {
    queue_address(host, LOOPBACK, gateway);
    match host.commit() {
        Err(error) if netlink::errno(&error) == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Takes it away again.
pub(crate) fn remove_gateway(host: &mut Socket, gateway: Ipv4Addr) -> io::Result<()> {
    host.queue(libc::RTM_DELADDR, 0, &address_header(LOOPBACK), |to| {
        attribute(to, libc::IFA_LOCAL, &gateway.octets());
    });
    match host.commit() {
        Err(error) if netlink::errno(&error) == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

/// Does any address or route of the host, the default route apart, overlap this /16?
pub(crate) fn is_taken(host: &mut Socket, network: Ipv4Addr) -> io::Result<bool> {
    host.queue(libc::RTM_GETROUTE, netlink::DUMP, &route_header(0, 0), |_| {});
    let routes = host.ask()?;
    Ok(routes.iter().filter(|route| route.len() > 12).any(|route| {
        let (family, prefix) = (route[0], route[1]);
        let to = attributes(&route[12..]).find(|(kind, _)| *kind == libc::RTA_DST);
        let Some(to) = to.and_then(|(_, to)| to.first_chunk::<4>()) else { return false };
        i32::from(family) == libc::AF_INET && overlaps(network, Ipv4Addr::from(*to), prefix)
    }))
}

/// Does a network with this prefix length share an address with the /16?
fn overlaps(network: Ipv4Addr, other: Ipv4Addr, prefix: u8) -> bool {
    let common = prefix.min(16);
    common > 0 && (network.to_bits() ^ other.to_bits()) >> (32 - common) == 0
}

/// Names and indices of the links in a group.
pub(crate) fn in_group(host: &mut Socket, group: u32) -> io::Result<Vec<(String, i32)>> {
    host.queue(libc::RTM_GETLINK, netlink::DUMP, &link_header(0, 0), |_| {});
    let links = host.ask()?;
    let named = |link: &Vec<u8>| {
        let all: Vec<_> = attributes(link.get(16..)?).collect();
        let find = |wanted| all.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
        let name = String::from_utf8_lossy(find(IFLA_IFNAME)?).trim_end_matches('\0').to_owned();
        (number(find(IFLA_GROUP)?) == group).then(|| (name, number(&link[4..8]) as i32))
    };
    Ok(links.iter().filter_map(named).collect())
}

/// Moves links into a group. Links that are gone already are skipped.
pub(crate) fn regroup(host: &mut Socket, indices: &[i32], group: u32) -> io::Result<()> {
    for index in indices {
        host.queue(libc::RTM_NEWLINK, 0, &link_header(*index, 0), |to| {
            attribute(to, IFLA_GROUP, &group.to_ne_bytes());
        });
        match host.commit() {
            Err(error) if netlink::errno(&error) == Some(libc::ENODEV) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Deletes every link of a group in one request.
pub(crate) fn delete_group(host: &mut Socket, group: u32) -> io::Result<()> {
    host.queue(libc::RTM_DELLINK, 0, &link_header(0, 0), |to| {
        attribute(to, IFLA_GROUP, &group.to_ne_bytes());
    });
    match host.commit() {
        Err(error) if netlink::errno(&error) == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

fn queue_pair(host: &mut Socket, veth: &Veth, netns: BorrowedFd<'_>, group: u32) {
    host.queue(libc::RTM_NEWLINK, NEW, &link_header(0, 0), |to| {
        text(to, IFLA_IFNAME, &veth.name);
        attribute(to, IFLA_ADDRESS, &veth.host_mac());
        attribute(to, IFLA_GROUP, &group.to_ne_bytes());
        nest(to, IFLA_LINKINFO, |to| {
            text(to, 1, "veth");
            // IFLA_INFO_DATA, VETH_INFO_PEER
            nest(to, 2, |to| {
                nest(to, 1, |to| {
                    to.extend_from_slice(&link_header(0, 0));
                    text(to, IFLA_IFNAME, "eth0");
                    attribute(to, IFLA_ADDRESS, &veth.inner_mac());
                    attribute(to, IFLA_NET_NS_FD, &(netns.as_raw_fd() as u32).to_ne_bytes());
                });
            });
        });
    });
}

/// No link-local address and no router solicitations on a link that is still down. A kernel
/// without IPv6 has none anyway.
fn silence_v6(socket: &mut Socket, index: i32) -> io::Result<()> {
    const ADDRESS_MODE: u16 = 8; // IFLA_INET6_ADDR_GEN_MODE
    const NONE: u8 = 1; // IN6_ADDR_GEN_MODE_NONE
    socket.queue(libc::RTM_NEWLINK, 0, &link_header(index, 0), |to| {
        nest(to, IFLA_AF_SPEC, |to| {
            nest(to, libc::AF_INET6 as u16, |to| attribute(to, ADDRESS_MODE, &[NONE]));
        });
    });
    match socket.commit() {
        Err(error) if netlink::errno(&error) == Some(libc::EAFNOSUPPORT) => Ok(()),
        other => other,
    }
}

fn queue_up(socket: &mut Socket, index: i32) {
    socket.queue(libc::RTM_NEWLINK, 0, &link_header(index, libc::IFF_UP as u32), |_| {});
}

fn queue_address(socket: &mut Socket, index: i32, ip: Ipv4Addr) {
    socket.queue(libc::RTM_NEWADDR, NEW, &address_header(index), |to| {
        attribute(to, libc::IFA_LOCAL, &ip.octets());
        attribute(to, libc::IFA_ADDRESS, &ip.octets());
    });
}

/// A route to one address through a link. Replaces what a dying link of the same address left.
fn queue_route(socket: &mut Socket, ip: Ipv4Addr, index: i32, source: Option<Ipv4Addr>) {
    socket.queue(libc::RTM_NEWROUTE, REPLACE, &route_header(32, libc::RT_SCOPE_LINK), |to| {
        attribute(to, libc::RTA_DST, &ip.octets());
        attribute(to, libc::RTA_OIF, &index.to_ne_bytes());
        if let Some(source) = source {
            attribute(to, libc::RTA_PREFSRC, &source.octets());
        }
    });
}

fn queue_default_route(socket: &mut Socket, index: i32) {
    socket.queue(libc::RTM_NEWROUTE, NEW, &route_header(0, libc::RT_SCOPE_UNIVERSE), |to| {
        attribute(to, libc::RTA_GATEWAY, &NEXT_HOP.octets());
        attribute(to, libc::RTA_OIF, &index.to_ne_bytes());
    });
}

/// A neighbour that is never asked for (`NUD_PERMANENT`).
fn queue_neighbour(socket: &mut Socket, ip: Ipv4Addr, mac: [u8; 6], index: i32) {
    let mut header = [0; 12];
    header[0] = libc::AF_INET as u8;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&0x80u16.to_ne_bytes());
    socket.queue(libc::RTM_NEWNEIGH, REPLACE, &header, |to| {
        attribute(to, 1, &ip.octets());
        attribute(to, 2, &mac);
    });
}

fn index_of(host: &mut Socket, name: &str) -> io::Result<i32> {
    host.queue(libc::RTM_GETLINK, 0, &link_header(0, 0), |to| text(to, IFLA_IFNAME, name));
    let links = host.ask()?;
    let link = links.first().filter(|link| link.len() >= 8);
    link.map(|link| number(&link[4..8]) as i32).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Is the link up and its queue active? Before that the kernel drops packets without a word, and
/// a connection made then takes a second.
fn passes(socket: &mut Socket, index: i32) -> io::Result<bool> {
    socket.queue(libc::RTM_GETLINK, 0, &link_header(index, 0), |_| {});
    let links = socket.ask()?;
    let Some(link) = links.first().and_then(|link| link.get(16..)) else { return Ok(false) };
    let (mut up, mut active) = (false, false);
    for (kind, value) in attributes(link) {
        match kind {
            IFLA_OPERSTATE => up = value.first() == Some(&OPERSTATE_UP),
            IFLA_QDISC => active = value != b"noop\0",
            _ => {}
        }
    }
    Ok(up && active)
}

/// `struct ifinfomsg`, with `flags` both set and marked as to be changed.
fn link_header(index: i32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// `struct ifaddrmsg` of a single address.
fn address_header(index: i32) -> [u8; 8] {
    let mut header = [0; 8];
    header[0] = libc::AF_INET as u8;
    header[1] = 32;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// `struct rtmsg` of a unicast route in the main table, made by an administrator.
fn route_header(prefix: u8, scope: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = libc::AF_INET as u8;
    header[1] = prefix;
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = 3; // RTPROT_BOOT
    header[6] = scope;
    header[7] = 1; // RTN_UNICAST
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_networks_are_seen_whichever_is_larger() {
        let ours = Ipv4Addr::new(10, 88, 0, 0);
        assert!(overlaps(ours, Ipv4Addr::new(10, 0, 0, 0), 8));
        assert!(overlaps(ours, Ipv4Addr::new(10, 88, 7, 0), 24));
        assert!(!overlaps(ours, Ipv4Addr::new(10, 89, 0, 0), 16));
        assert!(!overlaps(ours, Ipv4Addr::new(0, 0, 0, 0), 0));
    }

    #[test]
    fn the_two_sides_and_slots_of_an_address_have_different_macs() {
        let veth = |slot| Veth { name: String::new(), ip: Ipv4Addr::new(10, 88, 0, 2), slot };
        let (a, b) = (veth(super::super::Slot::A), veth(super::super::Slot::B));
        let mut all = vec![a.host_mac(), a.inner_mac(), b.host_mac(), b.inner_mac()];
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|mac| mac[0] & 3 == 2), "locally administered, unicast");
    }
}
