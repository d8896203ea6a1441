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
//!
//! Who belongs where is data, not rules: the map `source` says (link, address) → Namespace, the
//! set `member` holds (Namespace, address). A decision costs two look-ups, however many
//! Sandboxes there are, and a change costs microseconds. Between the two the Namespace stands in
//! the packet's mark; routing has been decided by then, and the mark is cleared before a packet
//! leaves the host. (A register would do, but the `nft` program cannot print such a rule and
//! aborts.)
//!
//! Layout of the messages: linux/netfilter/nf_tables.h. Numbers in attributes are big-endian.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{APPEND, CREATE, Socket, attribute, nest, text};

const FAMILY_INET: u8 = 1;
const NESTED: u16 = 0x8000;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;

const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const GOTO: i32 = -4;

// Registers of 32 bits; 8 is NFT_REG32_00. Register 1 is the first four of them.
const R0: u32 = 8;
const R1: u32 = 9;

// Keys of the meta expression.
const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const META_IIF_GROUP: u32 = 21;
const META_OIF_GROUP: u32 = 22;

/// One Sandbox's slot as the rules know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// Index of the host end of its link.
    pub(crate) link: i32,
    /// Its address.
    pub(crate) ip: Ipv4Addr,
    /// The number of its Namespace.
    pub(crate) namespace: u32,
}

/// What the rules need to know.
#[derive(Debug, Clone)]
pub(crate) struct Rules<'a> {
    pub(crate) table: &'a str,
    pub(crate) network: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    /// The group every link of ours is in.
    pub(crate) group: u32,
    /// TCP and UDP ports of the gateway address that Sandboxes may reach.
    pub(crate) host_ports: &'a [u16],
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
    // Types only matter to those who list them; a concatenation packs six bits each.
    const ADDRESS: u32 = 7;
    const SERVICE: u32 = 13;
    const MARK: u32 = 19;
    const INTERFACE: u32 = 20;
    batch.set("source", 1, (INTERFACE << 6) | ADDRESS, 8, Some((MARK, 4)));
    batch.set("member", 2, (MARK << 6) | ADDRESS, 8, None);
    batch.set("host_port", 3, SERVICE, 2, None);
    let ports: Vec<_> = rules.host_ports.iter().map(|port| port.to_be_bytes().to_vec()).collect();
    batch.elements(NEW_ELEMENT, "host_port", ports.iter().map(|port| (port.clone(), None)));
    batch.members(NEW_ELEMENT, members);

    batch.chain("post", Some(("nat", HOOK_POSTROUTING, 100)));
    batch.chain("forward", Some(("filter", HOOK_FORWARD, 0)));
    batch.chain("input", Some(("filter", HOOK_INPUT, 0)));
    for chain in ["outbound", "known", "to_host", "known_to_host"] {
        batch.chain(chain, None);
    }

    let ours = |offset: u32, equal| {
        let prefix = rules.network.octets()[..2].to_vec();
        [load(Base::Network, offset, 2, R0), compare(R0, equal, prefix)]
    };
    let [a, b] = ours(12, true);
    let [c, d] = ours(16, false);
    batch.rule(
        "post",
        [meta(META_NFPROTO, R0), compare(R0, true, vec![2]), a, b, c, d, masquerade()],
    );

    batch.rule("forward", established_accept());
    batch.rule("forward", [in_group(META_IIF_GROUP, rules.group), vec![jump("outbound")]].concat());
    // Not from a Sandbox, not an answer: nobody outside has business with a Sandbox's address.
    batch.rule(
        "forward",
        [in_group(META_OIF_GROUP, rules.group), vec![verdict(DROP, None)]].concat(),
    );

    batch.rule("outbound", [mark_namespace(), vec![jump("known")]].concat());
    batch.rule("outbound", [verdict(DROP, None)]);
    batch.rule(
        "known",
        [
            meta(META_MARK, R0),
            load(Base::Network, 16, 4, R1),
            look_up("member", R0, None),
            verdict(ACCEPT, None),
        ],
    );
    let [a, b] = ours(16, true);
    batch.rule("known", [a, b, verdict(DROP, None)]);
    let link_local = compare(R0, true, vec![169, 254]);
    batch.rule("known", [load(Base::Network, 16, 2, R0), link_local, verdict(DROP, None)]);
    batch.rule("known", [immediate(R0, &[0; 4]), set_meta(META_MARK, R0), verdict(ACCEPT, None)]);

    batch.rule("input", [in_group(META_IIF_GROUP, rules.group), vec![jump("to_host")]].concat());
    batch.rule("to_host", established_accept());
    batch.rule("to_host", [mark_namespace(), vec![jump("known_to_host")]].concat());
    for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
        batch.rule(
            "known_to_host",
            [
                load(Base::Network, 16, 4, R0),
                compare(R0, true, rules.gateway.octets().to_vec()),
                meta(META_L4PROTO, R0),
                compare(R0, true, vec![protocol as u8]),
                load(Base::Transport, 2, 2, R0),
                look_up("host_port", R0, None),
                verdict(ACCEPT, None),
            ],
        );
    }
    batch.rule("known_to_host", [verdict(DROP, None)]);
    batch.rule("to_host", [verdict(DROP, None)]);
    batch.commit()
}

/// Lets a Sandbox in.
pub(crate) fn admit(socket: &mut Socket, table: &str, member: Member) -> io::Result<()> {
    let mut batch = Batch::begin(socket, table);
    batch.members(NEW_ELEMENT, &[member]);
    batch.commit()
}

/// Shuts a Sandbox out again.
pub(crate) fn expel(socket: &mut Socket, table: &str, member: Member) -> io::Result<()> {
    let mut batch = Batch::begin(socket, table);
    batch.members(DELETE_ELEMENT, &[member]);
    batch.commit()
}

/// Removes the table with everything in it. It is no error if there is none.
pub(crate) fn remove(socket: &mut Socket, table: &str) -> io::Result<()> {
    let mut batch = Batch::begin(socket, table);
    batch.table(NEW_TABLE);
    batch.table(DELETE_TABLE);
    batch.commit()
}

/// One transaction.
struct Batch<'a> {
    socket: &'a mut Socket,
    table: &'a str,
}

impl<'a> Batch<'a> {
    fn begin(socket: &'a mut Socket, table: &'a str) -> Self {
        // NFNL_MSG_BATCH_BEGIN for subsystem 10, nf_tables.
        socket.queue_bracket(16, &[0, 0, 0, 10]);
        Self { socket, table }
    }

    fn commit(self) -> io::Result<()> {
        self.socket.queue_bracket(17, &[0, 0, 0, 10]);
        self.socket.commit()
    }

    fn message(&mut self, kind: u16, flags: u16, attributes: impl FnOnce(&mut Vec<u8>)) {
        let table = self.table;
        self.socket.queue((10 << 8) | kind, flags, &[FAMILY_INET, 0, 0, 0], |to| {
            text(to, 1, table);
            attributes(to);
        });
    }

    fn table(&mut self, kind: u16) {
        self.message(kind, if kind == NEW_TABLE { CREATE } else { 0 }, |_| {});
    }

    fn chain(&mut self, name: &str, hook: Option<(&str, u32, i32)>) {
        self.message(NEW_CHAIN, CREATE, |to| {
            text(to, 3, name);
            if let Some((kind, hook, priority)) = hook {
                nest(to, 4 | NESTED, |to| {
                    attribute(to, 1, &hook.to_be_bytes());
                    attribute(to, 2, &priority.to_be_bytes());
                });
                text(to, 7, kind);
            }
        });
    }

    fn set(&mut self, name: &str, id: u32, key: u32, key_bytes: u32, data: Option<(u32, u32)>) {
        const MAP: u32 = 8;
        self.message(NEW_SET, CREATE, |to| {
            text(to, 2, name);
            attribute(to, 3, &if data.is_some() { MAP } else { 0 }.to_be_bytes());
            attribute(to, 4, &key.to_be_bytes());
            attribute(to, 5, &key_bytes.to_be_bytes());
            if let Some((kind, bytes)) = data {
                attribute(to, 6, &kind.to_be_bytes());
                attribute(to, 7, &bytes.to_be_bytes());
            }
            attribute(to, 10, &id.to_be_bytes());
        });
    }

    fn elements(
        &mut self,
        kind: u16,
        set: &str,
        elements: impl ExactSizeIterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    ) {
        if elements.len() == 0 {
            return;
        }
        self.message(kind, if kind == NEW_ELEMENT { CREATE } else { 0 }, |to| {
            text(to, 2, set);
            nest(to, 3 | NESTED, |to| {
                for (key, data) in elements {
                    nest(to, 1 | NESTED, |to| {
                        nest(to, 1 | NESTED, |to| attribute(to, 1, &key));
                        if let Some(data) = data {
                            nest(to, 2 | NESTED, |to| attribute(to, 1, &data));
                        }
                    });
                }
            });
        });
    }

    /// Both places that know a member. An attribute holds 64 KiB, so many go in pieces.
    fn members(&mut self, kind: u16, members: &[Member]) {
        for members in members.chunks(500) {
            let sources = members.iter().map(|member| {
                let key = [&member.link.to_ne_bytes()[..], &member.ip.octets()].concat();
                let namespace = member.namespace.to_ne_bytes().to_vec();
                (key, (kind == NEW_ELEMENT).then_some(namespace))
            });
            self.elements(kind, "source", sources);
            let belongings = members.iter().map(|member| {
                ([&member.namespace.to_ne_bytes()[..], &member.ip.octets()].concat(), None)
            });
            self.elements(kind, "member", belongings);
        }
    }

    fn rule(&mut self, chain: &str, expressions: impl AsRef<[Expression]>) {
        self.message(NEW_RULE, APPEND, |to| {
            text(to, 2, chain);
            nest(to, 4 | NESTED, |to| {
                for expression in expressions.as_ref() {
                    nest(to, 1 | NESTED, |to| {
                        text(to, 1, expression.name);
                        nest(to, 2 | NESTED, |to| to.extend_from_slice(&expression.attributes));
                    });
                }
            });
        });
    }
}

/// One step of a rule: its name and its attributes, ready made.
#[derive(Debug, Clone)]
struct Expression {
    name: &'static str,
    attributes: Vec<u8>,
}

fn expression(name: &'static str, fill: impl FnOnce(&mut Vec<u8>)) -> Expression {
    let mut attributes = Vec::new();
    fill(&mut attributes);
    Expression { name, attributes }
}

#[derive(Debug, Clone, Copy)]
enum Base {
    Network = 1,
    Transport = 2,
}

fn load(base: Base, offset: u32, bytes: u32, register: u32) -> Expression {
    expression("payload", |to| {
        attribute(to, 1, &register.to_be_bytes());
        attribute(to, 2, &(base as u32).to_be_bytes());
        attribute(to, 3, &offset.to_be_bytes());
        attribute(to, 4, &bytes.to_be_bytes());
    })
}

fn compare(register: u32, equal: bool, value: Vec<u8>) -> Expression {
    expression("cmp", |to| {
        attribute(to, 1, &register.to_be_bytes());
        attribute(to, 2, &u32::from(!equal).to_be_bytes());
        nest(to, 3 | NESTED, |to| attribute(to, 1, &value));
    })
}

fn meta(key: u32, register: u32) -> Expression {
    expression("meta", |to| {
        attribute(to, 1, &register.to_be_bytes());
        attribute(to, 2, &key.to_be_bytes());
    })
}

fn in_group(key: u32, group: u32) -> Vec<Expression> {
    vec![meta(key, R0), compare(R0, true, group.to_ne_bytes().to_vec())]
}

/// Goes on only if the packet's source is the address of the link it came by; then the mark is
/// the number of the Namespace.
fn mark_namespace() -> Vec<Expression> {
    vec![
        meta(META_NFPROTO, R0),
        compare(R0, true, vec![2]),
        meta(META_IIF, R0),
        load(Base::Network, 12, 4, R1),
        look_up("source", R0, Some(R0)),
        set_meta(META_MARK, R0),
    ]
}

fn set_meta(key: u32, register: u32) -> Expression {
    expression("meta", |to| {
        attribute(to, 2, &key.to_be_bytes());
        attribute(to, 3, &register.to_be_bytes());
    })
}

fn immediate(register: u32, value: &[u8]) -> Expression {
    expression("immediate", |to| {
        attribute(to, 1, &register.to_be_bytes());
        nest(to, 2 | NESTED, |to| attribute(to, 1, value));
    })
}

fn look_up(set: &str, key: u32, data: Option<u32>) -> Expression {
    expression("lookup", |to| {
        text(to, 1, set);
        attribute(to, 2, &key.to_be_bytes());
        if let Some(data) = data {
            attribute(to, 3, &data.to_be_bytes());
        }
    })
}

/// Accepts what belongs to a connection that was accepted before, or is about one.
fn established_accept() -> Vec<Expression> {
    const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
    vec![
        expression("ct", |to| {
            attribute(to, 1, &R0.to_be_bytes());
            attribute(to, 2, &0u32.to_be_bytes());
        }),
        expression("bitwise", |to| {
            attribute(to, 1, &R0.to_be_bytes());
            attribute(to, 2, &R0.to_be_bytes());
            attribute(to, 3, &4u32.to_be_bytes());
            nest(to, 4 | NESTED, |to| attribute(to, 1, &ESTABLISHED_OR_RELATED.to_ne_bytes()));
            nest(to, 5 | NESTED, |to| attribute(to, 1, &[0; 4]));
        }),
        compare(R0, false, vec![0; 4]),
        verdict(ACCEPT, None),
    ]
}

fn jump(chain: &str) -> Expression {
    verdict(GOTO, Some(chain))
}

fn verdict(code: i32, chain: Option<&str>) -> Expression {
    expression("immediate", |to| {
        attribute(to, 1, &0u32.to_be_bytes());
        nest(to, 2 | NESTED, |to| {
            nest(to, 2 | NESTED, |to| {
                attribute(to, 1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    text(to, 2, chain);
                }
            });
        });
    })
}

fn masquerade() -> Expression {
    expression("masq", |_| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root.
    #[test]
    fn a_refused_batch_is_told_and_the_next_one_is_not_confused() {
        let table = format!("n{:x}", std::process::id());
        let mut socket = Socket::open(libc::NETLINK_NETFILTER).unwrap();
        let member = Member { link: 1, ip: Ipv4Addr::new(10, 88, 0, 2), namespace: 1 };
        assert!(expel(&mut socket, &table, member).is_err(), "there is no such table");
        let rules = Rules {
            table: &table,
            network: Ipv4Addr::new(10, 88, 0, 0),
            gateway: Ipv4Addr::new(10, 88, 0, 1),
            group: 77,
            host_ports: &[53],
        };
        let many = |n: u32| Member { ip: Ipv4Addr::from_bits(0x0a58_0002 + n), ..member };
        install(&mut socket, &rules, &(0..1200).map(many).collect::<Vec<_>>()).unwrap();
        expel(&mut socket, &table, many(1199)).unwrap();
        assert!(expel(&mut socket, &table, many(1199)).is_err(), "it is gone already");
        admit(&mut socket, &table, many(1199)).unwrap();
        remove(&mut socket, &table).unwrap();
        remove(&mut socket, &table).unwrap();
    }
}
