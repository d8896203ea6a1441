//! The platform's own nftables table, written as nf_tables netlink batches.
//!
//! What it does, in an `inet` table of its own; no other table is touched or looked at:
//!
//! - *post* (nat, postrouting): traffic from Sandboxes to the outside is masqueraded.
//! - *forward*: a Sandbox reaches the Sandboxes of its own Namespace and the outside; not other
//!   Namespaces, not link-local addresses (a cloud's metadata service). Nothing new comes in from
//!   the outside. A source address that is not the link's own is dropped.
//! - *input*: a Sandbox reaches the host at its gateway address on the ports allowed, nothing
//!   else of it.
//! - *pre* and *out*: which slot a packet belongs to. A connection is marked when it is
//!   opened, and only if a second slot has to do with it: [`TO_B`] if it goes to an address
//!   whose current slot is B, [`FROM_B`] if it comes from a slot B. From then on each of its
//!   packets gets the mark [`SLOT_B`] on its way to slot B, and routing does the rest. A
//!   program of the host that sets the mark [`SLOT_A`] or [`SLOT_B`] on its socket chooses
//!   itself. All other bits of either mark are left as they are.
//!
//! Who belongs where is data, not rules: the map `source` says (link, address) → Namespace, the
//! set `member` holds (Namespace, address), `link_b` the links of slots B and `slot_b` the
//! addresses whose current slot is B; those for IPv6 have a 6 behind their names. A decision
//! costs two look-ups, however many Sandboxes there are, and a change costs microseconds. In
//! *forward* and *input* the Namespace stands in the packet's mark; routing has been decided by
//! then, and the mark is cleared before a packet leaves the host. (A register would do, but the
//! `nft` program cannot print such a rule and aborts.)
//!
//! The kernel is the only one to remember which slots are current: what [`installed`] reads is
//! put into the next table.

mod batch;
mod expression;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use batch::{Batch, DELETE_ELEMENT, DELETE_TABLE, Element, FAMILY_INET, NEW_ELEMENT, NEW_TABLE};
use expression::{
    Base, Direction, META_IIF, META_IIF_GROUP, META_L4PROTO, META_MARK, META_OIF_GROUP, R0, R1,
    accept, back, call, compare, connection_marked, drop_it, go, goes, immediate, in_group, is,
    is_established, is_new, load, look_up, mark, mark_connection, marked, masquerade, meta,
    set_meta,
};
use stead_core::fleet::Slot;

use super::address::{Ips, octets};
use super::netlink::{self, DUMP, Socket, attributes, number, text};

/// Mark of a packet that goes to slot B; on a socket of the host: of one that wants to.
///
/// Two bits that neither Kubernetes (0x4000, 0x8000), Tailscale (0xff0000), Calico (0xffff0000),
/// Cilium (0x0f00) nor wg-quick (0xca6c) use.
pub(crate) const SLOT_B: u32 = 0x2000;
/// On a socket of the host: its connections go to slot A.
pub(crate) const SLOT_A: u32 = 0x1000;
/// In a connection's mark: it was opened towards a slot B. The same bit as in a packet's mark,
/// because some VPNs copy the one to the other.
const TO_B: u32 = SLOT_B;
/// In a connection's mark: it was opened by a slot B.
const FROM_B: u32 = 0x1000;

const HOOK_PREROUTING: u32 = 0;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
/// After connections are known and translated, before routing.
const TRANSLATED: i32 = -90;

/// `NFT_MSG_GETSETELEM`.
const GET_ELEMENTS: u16 = 13;

// Kinds of what is in sets, for those who list them; a concatenation packs six bits each.
const SERVICE: u32 = 13;
const MARK: u32 = 19;
const INTERFACE: u32 = 20;

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    fn number(self) -> u8 {
        if self == Self::V4 { 2 } else { 10 }
    }

    /// Kind and length of an address in a set.
    fn address(self) -> (u32, u32) {
        if self == Self::V4 { (7, 4) } else { (8, 16) }
    }

    /// How many bytes of an address name the platform's network.
    fn prefix(self) -> u32 {
        if self == Self::V4 { 2 } else { 8 }
    }

    /// Where a packet says whom it comes from.
    fn source(self) -> u32 {
        if self == Self::V4 { 12 } else { 8 }
    }

    /// Where a packet says whom it is for.
    fn target(self) -> u32 {
        if self == Self::V4 { 16 } else { 24 }
    }

    fn set(self, name: &str) -> String {
        format!("{name}{}", if self == Self::V4 { "" } else { "6" })
    }
}

/// One Sandbox as the rules know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// Index of the host end of its link.
    pub(crate) link: i32,
    /// The same of slot B, if it has one.
    pub(crate) second: Option<i32>,
    /// Where new connections go.
    pub(crate) current: Slot,
    /// Its address, and perhaps one of IPv6.
    pub(crate) ips: Ips,
    /// The number of its Namespace.
    pub(crate) namespace: u32,
}

/// What the rules need to know.
#[derive(Debug, Clone)]
pub(crate) struct Rules<'a> {
    pub(crate) table: &'a str,
    /// The host as Sandboxes see it. It has the prefix of the network.
    pub(crate) gateway: Ips,
    /// The group every link of ours is in.
    pub(crate) group: u32,
    /// TCP and UDP ports of the gateway address that Sandboxes may reach.
    pub(crate) host_ports: &'a [u16],
}

/// What the table in force says of second slots.
#[derive(Debug, Default)]
pub(crate) struct Installed {
    /// Links of slots B that are complete.
    pub(crate) links: HashSet<i32>,
    /// Addresses whose current slot is B.
    pub(crate) addresses: HashSet<Ipv4Addr>,
}

/// Reads what the table in force says; nothing if there is none.
pub(crate) fn installed(socket: &mut Socket, table: &str) -> io::Result<Installed> {
    let links = keys(socket, table, "link_b")?;
    let addresses = keys(socket, table, "slot_b")?;
    Ok(Installed {
        links: links.iter().map(|key| number(key) as i32).collect(),
        addresses: addresses
            .iter()
            .filter_map(|key| Some((*key.first_chunk::<4>()?).into()))
            .collect(),
    })
}

/// Makes the table anew, with these members. One transaction: there is no moment without rules.
///
/// # Errors
/// What the kernel refuses; then everything is as it was.
pub(crate) fn install(
    socket: &mut Socket,
    rules: &Rules<'_>,
    members: &[Member],
) -> io::Result<()> {
    let mut batch = Batch::begin(socket, rules.table);
    // Deleting needs the table to be there.
    batch.table(NEW_TABLE);
    batch.table(DELETE_TABLE);
    batch.table(NEW_TABLE);
    batch.set("host_port", (SERVICE, 2), None);
    batch.set("link_b", (INTERFACE, 4), None);
    for gateway in rules.gateway.all() {
        let family = Family::of(gateway);
        let (kind, bytes) = family.address();
        batch.set(&family.set("source"), (INTERFACE << 6 | kind, 4 + bytes), Some((MARK, 4)));
        batch.set(&family.set("member"), (MARK << 6 | kind, 4 + bytes), None);
        batch.set(&family.set("slot_b"), (kind, bytes), None);
    }
    let ports: Vec<_> =
        rules.host_ports.iter().map(|port| (port.to_be_bytes().to_vec(), None)).collect();
    batch.elements(NEW_ELEMENT, "host_port", &ports);
    put(&mut batch, NEW_ELEMENT, &elements(members));
    isolate(&mut batch, rules);
    steer(&mut batch, rules);
    batch.commit()
}

fn isolate(batch: &mut Batch<'_>, rules: &Rules<'_>) {
    batch.chain("post", Some(("nat", HOOK_POSTROUTING, 100)));
    batch.chain("forward", Some(("filter", HOOK_FORWARD, 0)));
    batch.chain("input", Some(("filter", HOOK_INPUT, 0)));
    for chain in ["outbound", "known", "to_host", "known_to_host"] {
        batch.chain(chain, None);
    }
    let (from_us, to_us) =
        (in_group(META_IIF_GROUP, rules.group), in_group(META_OIF_GROUP, rules.group));
    batch.rule("forward", [&is_established(), &[accept()]]);
    batch.rule("forward", [&from_us, &[go("outbound")]]);
    // Not from a Sandbox, not an answer: nobody outside has business with a Sandbox's address.
    batch.rule("forward", [&to_us, &[drop_it()]]);
    batch.rule("input", [&from_us, &[go("to_host")]]);
    batch.rule("to_host", [&is_established(), &[accept()]]);

    for gateway in rules.gateway.all() {
        let family = Family::of(gateway);
        let (_, bytes) = family.address();
        let octets = octets(gateway);
        let ours = |at, equal| {
            let prefix = &octets[..family.prefix() as usize];
            [load(Base::Network, at, family.prefix(), R0), compare(R0, equal, prefix)]
        };
        batch.rule(
            "post",
            [
                &is(family),
                &ours(family.source(), true),
                &ours(family.target(), false),
                &[masquerade()],
            ],
        );
        // Goes on only if the packet's source is the address of the link it came by; then the
        // mark is the number of the Namespace.
        let identified = [
            meta(META_IIF, R0),
            load(Base::Network, family.source(), bytes, R1),
            look_up(&family.set("source"), R0, Some(R0)),
            set_meta(META_MARK, R0),
        ];
        batch.rule("outbound", [&is(family), &identified, &[go("known")]]);
        batch.rule("to_host", [&is(family), &identified, &[go("known_to_host")]]);
        batch.rule(
            "known",
            [
                &is(family),
                &[
                    meta(META_MARK, R0),
                    load(Base::Network, family.target(), bytes, R1),
                    look_up(&family.set("member"), R0, None),
                    accept(),
                ],
            ],
        );
        batch.rule("known", [&is(family), &ours(family.target(), true), &[drop_it()]]);
        for place in link_local(family) {
            let there = [load(Base::Network, family.target(), place.len() as u32, R0)];
            batch.rule("known", [&is(family), &there, &[compare(R0, true, place), drop_it()]]);
        }
        for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            batch.rule(
                "known_to_host",
                [
                    &is(family),
                    &[
                        load(Base::Network, family.target(), bytes, R0),
                        compare(R0, true, &octets),
                        meta(META_L4PROTO, R0),
                        compare(R0, true, &[protocol as u8]),
                        load(Base::Transport, 2, 2, R0),
                        look_up("host_port", R0, None),
                        accept(),
                    ],
                ],
            );
        }
    }
    batch.rule("outbound", [&[drop_it()]]);
    batch.rule("known", [&[immediate(R0, &[0; 4]), set_meta(META_MARK, R0), accept()]]);
    batch.rule("to_host", [&[drop_it()]]);
    batch.rule("known_to_host", [&[drop_it()]]);
}

/// Where a machine is told about itself, its secrets included: link-local addresses, and those
/// that Amazon and Google use with IPv6.
fn link_local(family: Family) -> &'static [&'static [u8]] {
    match family {
        Family::V4 => &[&[169, 254]],
        Family::V6 => &[
            &[0xfe, 0x80],
            &[0xfd, 0x00, 0x0e, 0xc2, 0, 0, 0, 0],
            &[0xfd, 0x20, 0x00, 0xce, 0, 0, 0, 0],
        ],
    }
}

fn steer(batch: &mut Batch<'_>, rules: &Rules<'_>) {
    batch.chain("pre", Some(("filter", HOOK_PREROUTING, TRANSLATED)));
    // This kind of chain decides the route anew when the mark has changed.
    batch.chain("out", Some(("route", HOOK_OUTPUT, TRANSLATED)));
    for chain in ["opened", "opened_here", "mark_slot"] {
        batch.chain(chain, None);
    }
    for (chain, opened) in [("pre", "opened"), ("out", "opened_here")] {
        batch.rule(chain, [&is_new(), &[call(opened)]]);
        batch.rule(chain, [&connection_marked(TO_B | FROM_B, true), &[call("mark_slot")]]);
    }
    let from_b = [meta(META_IIF, R0), look_up("link_b", R0, None)];
    batch.rule("opened", [&from_b, &mark_connection(FROM_B)]);
    batch.rule("opened_here", [&marked(SLOT_A, true), &[back()]]);
    for gateway in rules.gateway.all() {
        let family = Family::of(gateway);
        let target = |bytes| load(Base::Network, family.target(), bytes, R0);
        let prefix = &octets(gateway)[..family.prefix() as usize];
        let ours = [target(family.prefix()), compare(R0, true, prefix)];
        batch.rule(
            "opened_here",
            [&is(family), &marked(SLOT_B, true), &ours, &mark_connection(TO_B)],
        );
        let to_b = [target(family.address().1), look_up(&family.set("slot_b"), R0, None)];
        for chain in ["opened", "opened_here"] {
            batch.rule(chain, [&is(family), &to_b, &mark_connection(TO_B)]);
        }
        // Another platform on this host uses the same bits for its own Sandboxes.
        for (bit, direction) in [(TO_B, Direction::There), (FROM_B, Direction::Back)] {
            batch.rule(
                "mark_slot",
                [
                    &is(family),
                    &ours,
                    &goes(direction),
                    &connection_marked(bit, true),
                    &mark(SLOT_B),
                ],
            );
        }
    }
}

/// Lets a Sandbox in.
pub(crate) fn admit(socket: &mut Socket, table: &str, member: Member) -> io::Result<()> {
    let mut batch = Batch::begin(socket, table);
    put(&mut batch, NEW_ELEMENT, &elements(&[member]));
    batch.commit()
}

/// Lets the second slot of a Sandbox in that has been let in. Slot A is current.
pub(crate) fn admit_second(socket: &mut Socket, table: &str, member: Member) -> io::Result<()> {
    let mut batch = Batch::begin(socket, table);
    // One who had the address before may have left its last flip behind.
    forget(&mut batch, &flipped(member.ips));
    put(&mut batch, NEW_ELEMENT, &second(member));
    batch.commit()
}

/// Shuts a Sandbox out again. What is not there need not go.
pub(crate) fn expel(socket: &mut Socket, table: &str, member: Member) -> io::Result<()> {
    let mut batch = Batch::begin(socket, table);
    forget(&mut batch, &elements(&[member]));
    batch.commit()
}

/// Has new connections to these addresses go to a slot.
pub(crate) fn flip(socket: &mut Socket, table: &str, ips: Ips, to: Slot) -> io::Result<()> {
    let mut batch = Batch::begin(socket, table);
    match to {
        Slot::A => forget(&mut batch, &flipped(ips)),
        Slot::B => put(&mut batch, NEW_ELEMENT, &flipped(ips)),
    }
    batch.commit()
}

/// Removes the table with everything in it. It is no error if there is none.
pub(crate) fn remove(socket: &mut Socket, table: &str) -> io::Result<()> {
    let mut batch = Batch::begin(socket, table);
    batch.table(NEW_TABLE);
    batch.table(DELETE_TABLE);
    batch.commit()
}

type Elements = Vec<(String, Vec<Element>)>;

/// All that the sets say of members, by set.
fn elements(members: &[Member]) -> Elements {
    let mut all = Elements::new();
    for member in members {
        let parts =
            [belonging(*member), source(*member, member.link), second(*member), current(*member)];
        for (set, elements) in parts.into_iter().flatten() {
            match all.iter_mut().find(|(name, _)| *name == set) {
                Some((_, known)) => known.extend(elements),
                None => all.push((set, elements)),
            }
        }
    }
    all
}

fn of_each_address(ips: Ips, set: &str, element: impl Fn(Vec<u8>) -> Element) -> Elements {
    let one = |ip| (Family::of(ip).set(set), vec![element(octets(ip))]);
    ips.all().map(one).collect()
}

fn belonging(member: Member) -> Elements {
    let namespace = member.namespace.to_ne_bytes();
    of_each_address(member.ips, "member", |ip| ([&namespace[..], &ip].concat(), None))
}

fn source(member: Member, link: i32) -> Elements {
    let namespace = member.namespace.to_ne_bytes().to_vec();
    of_each_address(member.ips, "source", |ip| {
        ([&link.to_ne_bytes()[..], &ip].concat(), Some(namespace.clone()))
    })
}

fn second(member: Member) -> Elements {
    let Some(link) = member.second else { return Elements::new() };
    let mut all = source(member, link);
    // In the same transaction: whoever finds it there knows that the slot is complete.
    all.push(("link_b".to_owned(), vec![(link.to_ne_bytes().to_vec(), None)]));
    all
}

fn current(member: Member) -> Elements {
    match member.current {
        Slot::A => Elements::new(),
        Slot::B => flipped(member.ips),
    }
}

fn flipped(ips: Ips) -> Elements {
    of_each_address(ips, "slot_b", |ip| (ip, None))
}

fn put(batch: &mut Batch<'_>, kind: u16, elements: &Elements) {
    for (set, elements) in elements {
        batch.elements(kind, set, elements);
    }
}

/// Deletes elements that may be missing. They are added first: to be refused costs a grace
/// period of the kernel.
fn forget(batch: &mut Batch<'_>, elements: &Elements) {
    put(batch, NEW_ELEMENT, elements);
    put(batch, DELETE_ELEMENT, elements);
}

/// The keys of a set; none if there is no such set.
fn keys(socket: &mut Socket, table: &str, set: &str) -> io::Result<Vec<Vec<u8>>> {
    let kind = batch::SUBSYSTEM | GET_ELEMENTS;
    socket.queue(kind, DUMP, &[FAMILY_INET, 0, 0, 0], |to| {
        text(to, 1, table);
        text(to, 2, set);
    });
    let answers = match socket.ask() {
        Err(error) if netlink::errno(&error) == Some(libc::ENOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let inner = |bytes, wanted| {
        let found = attributes(bytes).filter(move |(kind, _)| *kind == wanted);
        found.map(|(_, value)| value)
    };
    let elements =
        answers.iter().filter_map(|answer| answer.get(4..)).flat_map(|all| inner(all, 3));
    let keys = elements.flat_map(|list| inner(list, 1)).flat_map(|element| inner(element, 1));
    Ok(keys.flat_map(|key| inner(key, 1)).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn ips(host: u32) -> Ips {
        let v6 = Ipv6Addr::from_bits(0xfd12_3456_789a_0a58 << 64 | u128::from(host));
        Ips { v4: Ipv4Addr::from_bits(0x0a58_0000 + host), v6: Some(v6) }
    }

    /// Needs root.
    #[test]
    fn a_refused_batch_is_told_and_the_next_one_is_not_confused() {
        let table = format!("n{:x}", std::process::id());
        let mut socket = Socket::open(libc::NETLINK_NETFILTER).unwrap();
        let many = |n: u32| Member {
            link: 1,
            second: None,
            current: Slot::A,
            ips: ips(n + 2),
            namespace: 1,
        };
        assert!(admit(&mut socket, &table, many(0)).is_err(), "there is no such table");
        assert!(installed(&mut socket, &table).unwrap().addresses.is_empty());
        let rules = Rules { table: &table, gateway: ips(1), group: 77, host_ports: &[53] };
        install(&mut socket, &rules, &(0..1200).map(many).collect::<Vec<_>>()).unwrap();
        expel(&mut socket, &table, many(1199)).unwrap();
        expel(&mut socket, &table, many(1199)).unwrap();
        admit(&mut socket, &table, many(1199)).unwrap();
        let other = Member { namespace: 2, ..many(1199) };
        assert!(admit(&mut socket, &table, other).is_err(), "its place is taken");

        let two = Member { second: Some(9), ..many(7) };
        admit_second(&mut socket, &table, two).unwrap();
        for slot in [Slot::B, Slot::B, Slot::A, Slot::A, Slot::B] {
            flip(&mut socket, &table, two.ips, slot).unwrap();
        }
        let now = installed(&mut socket, &table).unwrap();
        assert_eq!(
            (now.links.into_iter().collect(), now.addresses.into_iter().collect()),
            (vec![9], vec![two.ips.v4])
        );
        expel(&mut socket, &table, Member { current: Slot::B, ..two }).unwrap();
        assert!(installed(&mut socket, &table).unwrap().addresses.is_empty());
        remove(&mut socket, &table).unwrap();
        remove(&mut socket, &table).unwrap();
    }
}
