//! The network of Sandboxes: an address and a routed link each, isolation between Namespaces.
//!
//! Promises: when [`Network::connect`] returns, the first packet passes; a link that is let go
//! disappears in the background, and its address is not given out again before; nothing of the
//! host's own rules, links and routes is touched. Does not know processes or Containers. All
//! calls here block for up to a few milliseconds: they belong on a blocking thread.

mod address;
mod links;
mod netlink;
mod nftables;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use address::Addresses;
use links::Veth;
use netlink::Socket;
use nftables::{Member, Rules};

/// One of the two places a Sandbox has for a Container: each has a netns and a link of its own,
/// with the same address, so that old and new can run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The first, which every Sandbox has.
    A = 0,
    /// The second, for a handover.
    #[cfg_attr(not(test), expect(dead_code, reason = "the handover strategy is the next step"))]
    B = 1,
}

impl Slot {
    fn letter(self) -> char {
        match self {
            Slot::A => 'a',
            Slot::B => 'b',
        }
    }
}

/// An address that is taken, by its place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Index(pub(crate) u16);

/// A Sandbox's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    pub(crate) index: Index,
    pub(crate) ip: Ipv4Addr,
    /// Index of the host end of the link.
    pub(crate) link: i32,
}

/// The network of one platform on this host.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    network: Ipv4Addr,
    gateway: Ipv4Addr,
    host_ports: Vec<u16>,
    group: u32,
    addresses: Mutex<Addresses>,
    namespaces: Mutex<HashMap<String, u32>>,
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
        let gateway = addresses.gateway();
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        links::add_gateway(&mut host, gateway)?;
        // An earlier `serve` may have ended before it deleted what it had marked.
        links::delete_group(&mut host, group(name) + 1)?;
        enable_forwarding()?;
        Ok(Self {
            name: name.to_owned(),
            network,
            gateway,
            host_ports: host_ports.to_vec(),
            group: group(name),
            addresses: Mutex::new(addresses),
            namespaces: Mutex::default(),
        })
    }

    /// The host as Sandboxes see it.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// Writes the rules anew, with the Sandboxes that exist already and their Namespaces.
    pub(crate) fn install_rules(&self, existing: &[(Connection, String)]) -> io::Result<()> {
        let members: Vec<_> = existing
            .iter()
            .map(|(connection, namespace)| self.member(*connection, namespace))
            .collect();
        let rules = Rules {
            table: &self.name,
            network: self.network,
            gateway: self.gateway,
            group: self.group,
            host_ports: &self.host_ports,
        };
        nftables::install(&mut Socket::open(libc::NETLINK_NETFILTER)?, &rules, &members)
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
    pub(crate) fn ip(&self, index: Index) -> Ipv4Addr {
        self.lock_addresses().ip(index.0)
    }

    /// Connects a netns, given with a routing socket opened in it.
    pub(crate) fn connect(
        &self,
        index: Index,
        slot: Slot,
        netns: BorrowedFd<'_>,
        routing: OwnedFd,
    ) -> io::Result<Connection> {
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        let ip = self.ip(index);
        let veth = Veth { name: self.link_name(index, slot), ip, slot };
        let mut inner = Socket::adopt(routing);
        let link = links::connect(&mut host, &mut inner, &veth, netns, self.gateway, self.group)?;
        Ok(Connection { index, ip, link })
    }

    /// Lets a Sandbox talk to its Namespace and to the outside.
    pub(crate) fn admit(&self, connection: Connection, namespace: &str) -> io::Result<()> {
        let member = self.member(connection, namespace);
        nftables::admit(&mut Socket::open(libc::NETLINK_NETFILTER)?, &self.name, member)
    }

    /// Undoes [`admit`](Self::admit).
    pub(crate) fn expel(&self, connection: Connection, namespace: &str) -> io::Result<()> {
        let member = self.member(connection, namespace);
        nftables::expel(&mut Socket::open(libc::NETLINK_NETFILTER)?, &self.name, member)
    }

    /// Our links on the host: address and index of the host end.
    pub(crate) fn links(&self) -> io::Result<Vec<(Index, i32)>> {
        let mut host = Socket::open(libc::NETLINK_ROUTE)?;
        let links = links::in_group(&mut host, self.group)?;
        let parse = |(name, link): (String, i32)| {
            let rest = name.strip_prefix(&self.name)?.strip_prefix('-')?;
            let index = rest.trim_end_matches(['a', 'b']).parse().ok()?;
            Some((Index(index), link))
        };
        Ok(links.into_iter().filter_map(parse).collect())
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
        links::remove_gateway(&mut host, self.gateway)?;
        nftables::remove(&mut Socket::open(libc::NETLINK_NETFILTER)?, &self.name)
    }

    fn member(&self, connection: Connection, namespace: &str) -> Member {
        let mut numbers = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        let next = numbers.len() as u32 + 1;
        let namespace = *numbers.entry(namespace.to_owned()).or_insert(next);
        Member { link: connection.link, ip: connection.ip, namespace }
    }

    fn link_name(&self, index: Index, slot: Slot) -> String {
        format!("{}-{}{}", self.name, index.0, slot.letter())
    }

    fn lock_addresses(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
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
