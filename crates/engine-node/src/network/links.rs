//! Links, addresses and routes of Sandboxes, in rtnetlink's messages.
//!
//! Every slot of a Sandbox has a veth of its own whose host end is routed, not bridged: a route
//! to each address on the host, next hop 169.254.1.1 or fe80::1 inside, and permanent neighbours
//! on both sides, so that nobody ever asks for one. The routes to slot A are in the host's main
//! table. Those to slot B are in a table of the platform's own, which only packets with the mark
//! of slot B look at; what they do not find there they find in the main table.
//!
//! The inner end is born in the Sandbox's netns: moving it there later costs forty times as much.
//! Links are never deleted one by one (23 ms each): they are put into a group and the group is
//! deleted at once.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use stead_core::fleet::Slot;

use super::address::{Ips, octets};
use super::netlink::{self, NEW, REPLACE, Socket, attribute, attributes, nest, number, text};

/// The next hops inside every Sandbox. Link-local, so they can collide with nothing.
const NEXT_HOPS: Ips =
    Ips { v4: Ipv4Addr::new(169, 254, 1, 1), v6: Some(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)) };

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
const INNER_NAME: &str = "eth0";

/// One veth: a host end and an inner end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Veth {
    /// Name of the host end.
    pub(crate) name: String,
    /// The Sandbox's addresses.
    pub(crate) ips: Ips,
    /// Which slot: decides the hardware addresses together with the address.
    pub(crate) slot: Slot,
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
        let [a, b, c, d] = self.ips.v4.octets();
        [side | (self.slot as u8) << 4, a, b, c, d, 1]
    }
}

/// What links are made into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings {
    /// The host as Sandboxes see it.
    pub(crate) gateway: Ips,
    /// The group of all links.
    pub(crate) group: u32,
    /// The routing table of slots B.
    pub(crate) table: u32,
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
    around: &Surroundings,
) -> io::Result<i32> {
    queue_pair(host, veth, netns, around.group);
    host.commit()?;
    let index = index_of(host, &veth.name)?;
    let (inside, table) = match veth.slot {
        Slot::A => (INNER, u32::from(libc::RT_TABLE_MAIN)),
        // An attempt that failed may have had a link in this netns.
        Slot::B => (index_of(inner, INNER_NAME)?, around.table),
    };
    silence_v6(host, index)?;
    silence_v6(inner, inside)?;

    queue_up(host, index);
    for (ip, gateway) in veth.ips.all().zip(around.gateway.all()) {
        queue_route(host, ip, index, Some(gateway), table);
        queue_neighbour(host, ip, veth.inner_mac(), index);
    }
    host.commit()?;

    queue_up(inner, LOOPBACK);
    queue_up(inner, inside);
    for (ip, next_hop) in veth.ips.all().zip(NEXT_HOPS.all()) {
        queue_address(inner, inside, ip);
        if ip.is_ipv4() {
            queue_route(inner, next_hop, inside, None, libc::RT_TABLE_MAIN.into());
        }
        queue_neighbour(inner, next_hop, veth.host_mac(), inside);
        queue_default_route(inner, inside, next_hop);
    }
    inner.commit()?;

    let begun = Instant::now();
    while !(passes(host, index)? && passes(inner, inside)?) {
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the veth does not come up"));
        }
        std::thread::yield_now();
    }
    Ok(index)
}

/// Lets packets of one source come in by several links (`rp_filter` 2): the host's routes know
/// one of them only. Who may use which address is decided by nftables. On a link without any
/// address the kernel would all the same take the one way only.
pub(crate) fn accept_other_routes(host: &mut Socket, index: i32) -> io::Result<()> {
    const CONF: u16 = 1; // IFLA_INET_CONF
    const RP_FILTER: u16 = 8; // IPV4_DEVCONF_RP_FILTER
    const LOOSE: u32 = 2;
    host.queue(libc::RTM_NEWLINK, 0, &link_header(index, 0), |to| {
        nest(to, IFLA_AF_SPEC, |to| {
            nest(to, libc::AF_INET as u16, |to| {
                nest(to, CONF, |to| attribute(to, RP_FILTER, &LOOSE.to_ne_bytes()));
            });
        });
    });
    queue_address(host, index, NEXT_HOPS.v4.into());
    match host.commit() {
        Err(error) if netlink::errno(&error) == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Has packets with a mark look at a routing table of their own first.
pub(crate) fn add_rule(host: &mut Socket, family: i32, mark: u32, table: u32) -> io::Result<()> {
    queue_rule(host, libc::RTM_NEWRULE, NEW, family, mark, table);
    match host.commit() {
        Err(error) if netlink::errno(&error) == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Undoes [`add_rule`].
pub(crate) fn remove_rule(host: &mut Socket, family: i32, mark: u32, table: u32) -> io::Result<()> {
    queue_rule(host, libc::RTM_DELRULE, 0, family, mark, table);
    match host.commit() {
        Err(error) if matches!(netlink::errno(&error), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => {
            Ok(())
        }
        other => other,
    }
}

fn queue_rule(host: &mut Socket, kind: u16, flags: u16, family: i32, mark: u32, table: u32) {
    /// Before the rules of VPNs that send everything elsewhere.
    const PRIORITY: u32 = 3_100;
    const TO_TABLE: u8 = 1; // FR_ACT_TO_TBL
    // `struct fib_rule_hdr`; table 0 says that an attribute names it.
    let header = [family as u8, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    host.queue(kind, flags, &header, |to| {
        attribute(to, 6, &PRIORITY.to_ne_bytes()); // FRA_PRIORITY
        attribute(to, 10, &mark.to_ne_bytes()); // FRA_FWMARK
        attribute(to, 15, &table.to_ne_bytes()); // FRA_TABLE
        attribute(to, 16, &mark.to_ne_bytes()); // FRA_FWMASK
    });
}

/// Adds the host's own address in the Sandboxes' network to the loopback interface.
pub(crate) fn add_gateway(host: &mut Socket, gateway: IpAddr) -> io::Result<()> {
    queue_address(host, LOOPBACK, gateway);
    match host.commit() {
        Err(error) if netlink::errno(&error) == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Takes it away again.
pub(crate) fn remove_gateway(host: &mut Socket, gateway: IpAddr) -> io::Result<()> {
    host.queue(libc::RTM_DELADDR, 0, &address_header(LOOPBACK, gateway), |to| {
        attribute(to, libc::IFA_LOCAL, &octets(gateway));
    });
    match host.commit() {
        Err(error) if netlink::errno(&error) == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

/// Does any address or route of the host, the default route apart, overlap this /16?
pub(crate) fn is_taken(host: &mut Socket, network: Ipv4Addr) -> io::Result<bool> {
    host.queue(libc::RTM_GETROUTE, netlink::DUMP, &route_header(libc::AF_INET as u8, 0, 0), |_| {});
    let routes = host.ask()?;
    Ok(routes.iter().filter(|route| route.len() > 12).any(|route| {
        let (family, prefix) = (route[0], route[1]);
        let to = attributes(&route[12..]).find(|(kind, _)| *kind == libc::RTA_DST);
        let Some(to) = to.and_then(|(_, to)| to.first_chunk::<4>()) else { return false };
        i32::from(family) == libc::AF_INET && overlaps(network, Ipv4Addr::from(*to), prefix)
    }))
}

/// Every single address of IPv6 that the host has a route to.
pub(crate) fn known_v6(host: &mut Socket) -> io::Result<HashSet<Ipv6Addr>> {
    let header = route_header(libc::AF_INET6 as u8, 0, 0);
    host.queue(libc::RTM_GETROUTE, netlink::DUMP, &header, |_| {});
    let routes = host.ask()?;
    let address = |route: &Vec<u8>| {
        let to = attributes(route.get(12..)?).find(|(kind, _)| *kind == libc::RTA_DST)?.1;
        (route[1] == 128).then_some(())?;
        Some(Ipv6Addr::from_octets(*to.first_chunk()?))
    };
    Ok(routes.iter().filter_map(address).collect())
}

/// Does a network with this prefix length share an address with the /16?
fn overlaps(network: Ipv4Addr, other: Ipv4Addr, prefix: u8) -> bool {
    let common = prefix.min(16);
    common > 0 && (network.to_bits() ^ other.to_bits()) >> (32 - common) == 0
}

/// A link of a group, as the host sees it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) index: i32,
    /// Both of its ends are up.
    pub(crate) is_up: bool,
}

/// The links in a group.
pub(crate) fn in_group(host: &mut Socket, group: u32) -> io::Result<Vec<Listed>> {
    host.queue(libc::RTM_GETLINK, netlink::DUMP, &link_header(0, 0), |_| {});
    let links = host.ask()?;
    let named = |link: &Vec<u8>| {
        let all: Vec<_> = attributes(link.get(16..)?).collect();
        let find = |wanted| all.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
        let name = String::from_utf8_lossy(find(IFLA_IFNAME)?).trim_end_matches('\0').to_owned();
        let is_up = find(IFLA_OPERSTATE).is_some_and(|state| state == [OPERSTATE_UP]);
        let index = number(&link[4..8]) as i32;
        (number(find(IFLA_GROUP)?) == group).then_some(Listed { name, index, is_up })
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
                    text(to, IFLA_IFNAME, INNER_NAME);
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

fn queue_address(socket: &mut Socket, index: i32, ip: IpAddr) {
    socket.queue(libc::RTM_NEWADDR, NEW, &address_header(index, ip), |to| {
        attribute(to, libc::IFA_LOCAL, &octets(ip));
        attribute(to, libc::IFA_ADDRESS, &octets(ip));
    });
}

/// A route to one address through a link. Replaces what a dying link of the same address left.
fn queue_route(socket: &mut Socket, ip: IpAddr, index: i32, source: Option<IpAddr>, table: u32) {
    let header = route_header(family(ip), width(ip), libc::RT_SCOPE_LINK);
    socket.queue(libc::RTM_NEWROUTE, REPLACE, &header, |to| {
        attribute(to, libc::RTA_DST, &octets(ip));
        attribute(to, libc::RTA_OIF, &index.to_ne_bytes());
        attribute(to, libc::RTA_TABLE, &table.to_ne_bytes());
        if let Some(source) = source {
            attribute(to, libc::RTA_PREFSRC, &octets(source));
        }
    });
}

fn queue_default_route(socket: &mut Socket, index: i32, next_hop: IpAddr) {
    let header = route_header(family(next_hop), 0, libc::RT_SCOPE_UNIVERSE);
    socket.queue(libc::RTM_NEWROUTE, NEW, &header, |to| {
        attribute(to, libc::RTA_GATEWAY, &octets(next_hop));
        attribute(to, libc::RTA_OIF, &index.to_ne_bytes());
        attribute(to, libc::RTA_TABLE, &u32::from(libc::RT_TABLE_MAIN).to_ne_bytes());
    });
}

/// A neighbour that is never asked for (`NUD_PERMANENT`).
fn queue_neighbour(socket: &mut Socket, ip: IpAddr, mac: [u8; 6], index: i32) {
    let mut header = [0; 12];
    header[0] = family(ip);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&0x80u16.to_ne_bytes());
    socket.queue(libc::RTM_NEWNEIGH, REPLACE, &header, |to| {
        attribute(to, 1, &octets(ip));
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

/// `struct ifaddrmsg` of a single address, which nobody else can have (`IFA_F_NODAD`).
fn address_header(index: i32, ip: IpAddr) -> [u8; 8] {
    let mut header = [0; 8];
    header[0] = family(ip);
    header[1] = width(ip);
    header[2] = if ip.is_ipv6() { 2 } else { 0 };
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// `struct rtmsg` of a unicast route made by an administrator; an attribute names its table.
fn route_header(family: u8, prefix: u8, scope: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[1] = prefix;
    header[5] = 3; // RTPROT_BOOT
    header[6] = scope;
    header[7] = 1; // RTN_UNICAST
    header
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// Bits of an address.
fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
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
        let ips = Ips { v4: Ipv4Addr::new(10, 88, 0, 2), v6: None };
        let veth = |slot| Veth { name: String::new(), ips, slot };
        let (a, b) = (veth(Slot::A), veth(Slot::B));
        let mut all = vec![a.host_mac(), a.inner_mac(), b.host_mac(), b.inner_mac()];
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|mac| mac[0] & 3 == 2), "locally administered, unicast");
    }
}
