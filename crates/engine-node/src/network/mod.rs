//! The network of Sandboxes: an address and a routed link each, isolation between Namespaces,
//! and a second link with the same address for a handover.
//!
//! Promises: when [`Network::connect`] returns, the first packet passes; a link that is let go
//! disappears in the background, and its address is not given out again before; a connection
//! stays with the slot it was opened to, whatever [flips](Network::flip) follow; nothing of the
//! host's own rules, links and routes is touched. Does not know processes or Containers. All
//! calls here block for up to a few milliseconds: they belong on a blocking thread.
//!
//! How one address has two places: see `links` (routes) and `nftables` (marks), and decision
//! 0010 for why.

mod address;
mod links;
mod netlink;
mod nftables;
mod sockets;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stead_core::fleet::Slot;

use address::Addresses;
pub(crate) use address::Ips;
use links::{Surroundings, Veth};
use netlink::Socket;
use nftables::{Installed, Member, Rules};
pub(crate) use nftables::{SLOT_A, SLOT_B};
pub(crate) use sockets::Sockets;

/// An address that is taken, by its place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Index(pub(crate) u16);

/// A Sandbox's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    pub(crate) index: Index,
    pub(crate) ips: Ips,
    /// Index of the host end of slot A's link.
    pub(crate) link: i32,
}

/// What of a connection changes during the life of its Sandbox.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Second {
    /// Index of the host end of slot B's link, once there is one.
    pub(crate) link: Option<i32>,
    /// Where new connections go.
    pub(crate) current: Slot,
}

/// A Sandbox's links on the host.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Links {
    pub(crate) first: Option<i32>,
    pub(crate) second: Option<i32>,
    /// Packets pass on the first one.
    is_up: bool,
}

/// What an earlier `serve` left in the host's network.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) links: HashMap<Index, Links>,
    installed: Installed,
    /// Addresses of IPv6 that Sandboxes have.
    known_v6: HashSet<Ipv6Addr>,
}

impl Left {
    /// Was the Sandbox's first link completed?
    pub(crate) fn is_up(&self, index: Index) -> bool {
        self.links.get(&index).is_some_and(|links| links.is_up)
    }
}

/// The network of one platform on this host.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    gateway: Ips,
    host_ports: Vec<u16>,
    group: u32,
    addresses: Mutex<Addresses>,
    namespaces: Mutex<HashMap<String, u32>>,
    /// Kept open: the kernel makes whoever closes such a socket wait for a grace period if
    /// anything was deleted shortly before, and all others with it.
    rules: Mutex<Socket>,
    /// Do packets with the mark of slot B look at its table?
    has_table: Mutex<bool>,
}

impl Network {
    /// Finds a network that is free on this host, beginning with `wanted` and going up to
    /// 10.127.0.0.
    ///
    /// # Errors
    /// `AddrInUse` if all are taken.
    pub(crate) fn choose(wanted: Ipv4Addr) -> io::Result<Ipv4Addr> {
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        let [a, b, ..] = wanted.octets();
        for candidate in [wanted]
            .into_iter()
            .chain((b.saturating_add(1)..=127).map(|second| Ipv4Addr::new(a, second, 0, 0)))
        {
            if !links::is_taken(&mut host, candidate)? {
                return Ok(candidate);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no private /16 is free on this host"))
    }

    /// Prepares the host. `name` is at most eight letters and digits, and belongs to nobody else.
    pub(crate) fn open(name: &str, network: Ipv4Addr, host_ports: &[u16]) -> io::Result<Self> {
        let addresses = Addresses::new(network);
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        let v4 = addresses.gateway();
        links::add_gateway(&mut host, v4.into())?;
        // An earlier `serve` may have ended before it deleted what it had marked.
        links::delete_group(&mut host, group(name) + 1)?;
        enable_forwarding()?;
        let v6 = has_v6().then(|| address::ip6(address::network6(name, network), 1));
        let v6 = v6.filter(|gateway| {
            let ready = links::add_gateway(&mut host, IpAddr::V6(*gateway))
                .and_then(|()| enable_forwarding_v6());
            if let Err(error) = &ready {
                tracing::warn!(%error, "Sandboxes get no addresses of IPv6");
            }
            ready.is_ok()
        });
        Ok(Self {
            name: name.to_owned(),
            gateway: Ips { v4, v6 },
            host_ports: host_ports.to_vec(),
            group: group(name),
            addresses: Mutex::new(addresses),
            namespaces: Mutex::default(),
            rules: Mutex::new(Socket::open(libc::NETLINK_NETFILTER)?),
            has_table: Mutex::new(false),
        })
    }

    /// The host as Sandboxes see it.
    pub(crate) fn gateway(&self) -> Ips {
        self.gateway
    }

    /// What there is already of this platform. To be asked before
    /// [`install_rules`](Self::install_rules).
    pub(crate) fn left(&self) -> io::Result<Left> {
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        let known_v6 = match self.gateway.v6 {
            Some(_) => links::known_v6(&mut host)?,
            None => HashSet::new(),
        };
        Ok(Left {
            links: self.links(&mut host)?,
            installed: nftables::installed(&mut self.lock_rules(), &self.name)?,
            known_v6,
        })
    }

    /// The connection of a Sandbox that an earlier `serve` made; `None` if it has none any more.
    /// A second link that was not completed is deleted: the next one takes its place.
    pub(crate) fn found(&self, index: Index, left: &Left) -> Option<(Connection, Second)> {
        let Links { first, second, .. } = left.links.get(&index).copied().unwrap_or_default();
        let mut ips = self.ips(index);
        ips.v6 = ips.v6.filter(|ip| left.known_v6.contains(ip));
        let link = second.filter(|link| left.installed.links.contains(link));
        if let (None, Some(torso)) = (link, second)
            && let Err(error) = self.delete_links(&[torso])
        {
            tracing::warn!(ip = %ips.v4, %error, "an unfinished link is not deleted");
        }
        let is_second = link.is_some() && left.installed.addresses.contains(&ips.v4);
        let current = if is_second { Slot::B } else { Slot::A };
        Some((Connection { index, ips, link: first? }, Second { link, current }))
    }

    /// Writes the rules anew, with the Sandboxes that exist already and their Namespaces.
    pub(crate) fn install_rules(
        &self,
        existing: &[(Connection, Second, String)],
    ) -> io::Result<()> {
        let members: Vec<_> = existing
            .iter()
            .map(|(connection, second, namespace)| self.member(*connection, *second, namespace))
            .collect();
        let rules = Rules {
            table: &self.name,
            gateway: self.gateway,
            group: self.group,
            host_ports: &self.host_ports,
        };
        nftables::install(&mut self.lock_rules(), &rules, &members)
    }

    /// Takes a free address: the wanted one if it is free.
    pub(crate) fn take(&self, wanted: Option<Ipv4Addr>) -> Option<Index> {
        let mut addresses = self.lock_addresses();
        let wanted = wanted.and_then(|ip| addresses.index(ip)).filter(|at| addresses.claim(*at));
        wanted.or_else(|| addresses.take()).map(Index)
    }

    /// Takes exactly this address, which a Sandbox found again has had all along.
    pub(crate) fn claim(&self, index: Index) -> bool {
        self.lock_addresses().claim(index.0)
    }

    /// Gives an address back whose link is gone.
    pub(crate) fn release(&self, index: Index) {
        self.lock_addresses().release(index.0);
    }

    /// The address of an index.
    pub(crate) fn ips(&self, index: Index) -> Ips {
        let v6 = self.gateway.v6.map(|gateway| {
            let network = gateway.to_bits() & !u128::from(u64::MAX);
            address::ip6(network.into(), index.0)
        });
        Ips { v4: self.lock_addresses().ip(index.0), v6 }
    }

    /// Connects the netns of slot A, given with a routing socket opened in it.
    pub(crate) fn connect(
        &self,
        index: Index,
        netns: BorrowedFd<'_>,
        routing: OwnedFd,
    ) -> io::Result<Connection> {
        let ips = self.ips(index);
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        let link = self.make_link(&mut host, index, ips, Slot::A, netns, routing)?;
        Ok(Connection { index, ips, link })
    }

    /// Connects the netns of slot B, and lets it talk to whomever slot A may talk to. New
    /// connections go to slot A until [told otherwise](Self::flip).
    pub(crate) fn connect_second(
        &self,
        connection: Connection,
        namespace: &str,
        netns: BorrowedFd<'_>,
        routing: OwnedFd,
    ) -> io::Result<i32> {
        let Connection { index, ips, link: first } = connection;
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        self.make_table(&mut host)?;
        let link = self.make_link(&mut host, index, ips, Slot::B, netns, routing)?;
        let admitted = [first, link]
            .iter()
            .try_for_each(|link| links::accept_other_routes(&mut host, *link))
            .and_then(|()| {
                let second = Second { link: Some(link), current: Slot::A };
                let member = self.member(connection, second, namespace);
                nftables::admit_second(&mut self.lock_rules(), &self.name, member)
            });
        if let Err(error) = admitted {
            let _ = self.delete_links(&[link]);
            return Err(error);
        }
        Ok(link)
    }

    fn make_link(
        &self,
        host: &mut Socket,
        index: Index,
        ips: Ips,
        slot: Slot,
        netns: BorrowedFd<'_>,
        routing: OwnedFd,
    ) -> io::Result<i32> {
        let veth = Veth { name: self.link_name(index, slot), ips, slot };
        let around = Surroundings { gateway: self.gateway, group: self.group, table: self.table() };
        let mut inner = Socket::adopt(routing);
        let made = links::connect(host, &mut inner, &veth, netns, &around);
        if made.is_err() && slot == Slot::B {
            // Slot A's netns ends with its holder, and the link with it; this one may stay.
            let torso = self.links(host).ok().and_then(|links| links.get(&index)?.second);
            let _ = self.delete_links(torso.as_slice());
        }
        made
    }

    /// Makes packets with the mark of slot B look at its table, from the first use on.
    fn make_table(&self, host: &mut Socket) -> io::Result<()> {
        let mut has_table = self.has_table.lock().unwrap_or_else(PoisonError::into_inner);
        if !*has_table {
            links::add_rule(host, libc::AF_INET, SLOT_B, self.table())?;
            if self.gateway.v6.is_some() {
                links::add_rule(host, libc::AF_INET6, SLOT_B, self.table())?;
            }
            *has_table = true;
        }
        Ok(())
    }

    /// The number of the routing table is that of the group: both are the platform's own.
    fn table(&self) -> u32 {
        self.group
    }

    /// Lets a Sandbox talk to its Namespace and to the outside.
    pub(crate) fn admit(&self, connection: Connection, namespace: &str) -> io::Result<()> {
        let member = self.member(connection, Second::default(), namespace);
        nftables::admit(&mut self.lock_rules(), &self.name, member)
    }

    /// Shuts a Sandbox out, with all its slots.
    pub(crate) fn expel(
        &self,
        connection: Connection,
        second: Second,
        namespace: &str,
    ) -> io::Result<()> {
        let member = self.member(connection, second, namespace);
        nftables::expel(&mut self.lock_rules(), &self.name, member)
    }

    /// Has new connections to a Sandbox go to a slot. Takes microseconds, unless somebody else on
    /// this host has just changed nftables: then up to a grace period of the kernel.
    pub(crate) fn flip(&self, connection: Connection, to: Slot) -> io::Result<()> {
        nftables::flip(&mut self.lock_rules(), &self.name, connection.ips, to)
    }

    /// Our links on the host.
    fn links(&self, host: &mut Socket) -> io::Result<HashMap<Index, Links>> {
        let mut all = HashMap::<Index, Links>::new();
        for link in links::in_group(host, self.group)? {
            let Some(rest) =
                link.name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('-'))
            else {
                continue;
            };
            let (number, slot) = match rest.strip_suffix(letter(Slot::B)) {
                Some(number) => (number, Slot::B),
                None => (rest.trim_end_matches(letter(Slot::A)), Slot::A),
            };
            let Ok(index) = number.parse() else { continue };
            let links = all.entry(Index(index)).or_default();
            match slot {
                Slot::A => (links.first, links.is_up) = (Some(link.index), link.is_up),
                Slot::B => links.second = Some(link.index),
            }
        }
        Ok(all)
    }

    /// Deletes links, all in one request.
    pub(crate) fn delete_links(&self, links: &[i32]) -> io::Result<()> {
        if links.is_empty() {
            return Ok(());
        }
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        let dying = self.group + 1;
        links::regroup(&mut host, links, dying)?;
        links::delete_group(&mut host, dying)
    }

    /// Removes everything of this platform from the host's network.
    pub(crate) fn destroy(&self) -> io::Result<()> {
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        links::delete_group(&mut host, self.group)?;
        links::delete_group(&mut host, self.group + 1)?;
        for gateway in self.gateway.all() {
            links::remove_gateway(&mut host, gateway)?;
        }
        for family in [libc::AF_INET, libc::AF_INET6] {
            links::remove_rule(&mut host, family, SLOT_B, self.table())?;
        }
        nftables::remove(&mut self.lock_rules(), &self.name)
    }

    fn member(&self, connection: Connection, second: Second, namespace: &str) -> Member {
        let mut numbers = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        let next = numbers.len() as u32 + 1;
        let namespace = *numbers.entry(namespace.to_owned()).or_insert(next);
        let Connection { ips, link, .. } = connection;
        Member { link, second: second.link, current: second.current, ips, namespace }
    }

    fn link_name(&self, index: Index, slot: Slot) -> String {
        format!("{}-{}{}", self.name, index.0, letter(slot))
    }

    fn lock_rules(&self) -> MutexGuard<'_, Socket> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_addresses(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn letter(slot: Slot) -> char {
    match slot {
        Slot::A => 'a',
        Slot::B => 'b',
    }
}

/// The link group of a platform; the next number is for links about to be deleted. FNV-1a of the
/// name, so that two platforms do not share one.
fn group(name: &str) -> u32 {
    let hash = name
        .bytes()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash & 0x7fff_fffe | 2
}

/// Sandboxes reach the outside through this host. A host that forwards already is left alone.
fn enable_forwarding() -> io::Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(SWITCH)?.trim() != "1" {
        fs::write(SWITCH, "1")?;
    }
    Ok(())
}

/// Does this host use IPv6, for links to come too?
fn has_v6() -> bool {
    ["all", "default", "lo"].iter().all(|which| {
        let switch = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        fs::read_to_string(switch).is_ok_and(|off| off.trim() == "0")
    })
}

/// The same for IPv6. A host that forwards stops listening to routers unless told to go on, and
/// would lose its way out: every interface that listens is told.
fn enable_forwarding_v6() -> io::Result<()> {
    const PLACE: &str = "/proc/sys/net/ipv6/conf";
    let switch = format!("{PLACE}/all/forwarding");
    if fs::read_to_string(&switch)?.trim() == "1" {
        return Ok(());
    }
    for interface in fs::read_dir(PLACE)?.flatten() {
        let accept = interface.path().join("accept_ra");
        if interface.file_name() != "all"
            && fs::read_to_string(&accept).is_ok_and(|now| now.trim() == "1")
        {
            fs::write(accept, "2")?;
        }
    }
    fs::write(switch, "1")
}
