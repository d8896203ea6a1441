//! One transaction of nf_tables: all of it or nothing.

use std::io;

use super::super::netlink::{APPEND, CREATE, Socket, attribute, nest, text};
use super::INTERFACE;
use super::expression::{Expression, NESTED};

/// `NFPROTO_INET`: a table for IPv4 and IPv6.
pub(super) const FAMILY_INET: u8 = 1;
/// The subsystem in a message's type.
pub(super) const SUBSYSTEM: u16 = 10 << 8;

pub(super) const NEW_TABLE: u16 = 0;
pub(super) const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
pub(super) const NEW_ELEMENT: u16 = 12;
pub(super) const DELETE_ELEMENT: u16 = 14;

/// Where a chain is called from: its kind, hook and priority.
pub(super) type Hook = (&'static str, u32, i32);

/// One transaction.
pub(super) struct Batch<'a> {
    socket: &'a mut Socket,
    table: &'a str,
    sets: u32,
}

impl<'a> Batch<'a> {
    pub(super) fn begin(socket: &'a mut Socket, table: &'a str) -> Self {
        // NFNL_MSG_BATCH_BEGIN for subsystem 10, nf_tables.
        socket.queue_bracket(16, &[0, 0, 0, 10]);
        Self { socket, table, sets: 0 }
    }

    pub(super) fn commit(self) -> io::Result<()> {
        self.socket.queue_bracket(17, &[0, 0, 0, 10]);
        self.socket.commit()
    }

    fn message(&mut self, kind: u16, flags: u16, attributes: impl FnOnce(&mut Vec<u8>)) {
        let table = self.table;
        self.socket.queue(SUBSYSTEM | kind, flags, &[FAMILY_INET, 0, 0, 0], |to| {
            text(to, 1, table);
            attributes(to);
        });
    }

    pub(super) fn table(&mut self, kind: u16) {
        self.message(kind, if kind == NEW_TABLE { CREATE } else { 0 }, |_| {});
    }

    pub(super) fn chain(&mut self, name: &str, hook: Option<Hook>) {
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

    /// A set of keys, or with `data` a map. Kinds only matter to those who list them.
    pub(super) fn set(&mut self, name: &str, key: (u32, u32), data: Option<(u32, u32)>) {
        const MAP: u32 = 8;
        self.sets += 1;
        let id = self.sets;
        self.message(NEW_SET, CREATE, |to| {
            text(to, 2, name);
            attribute(to, 3, &if data.is_some() { MAP } else { 0 }.to_be_bytes());
            attribute(to, 4, &key.0.to_be_bytes());
            attribute(to, 5, &key.1.to_be_bytes());
            if let Some((kind, bytes)) = data {
                attribute(to, 6, &kind.to_be_bytes());
                attribute(to, 7, &bytes.to_be_bytes());
            }
            attribute(to, 10, &id.to_be_bytes());
            if key.0 == INTERFACE {
                // NFTNL_UDATA_SET_KEYBYTEORDER: the machine's own, so that `nft list` names it.
                attribute(to, 13, &[&[0, 4][..], &1u32.to_ne_bytes()].concat());
            }
        });
    }

    /// Adds or deletes elements, each a key and perhaps its data. An attribute holds 64 KiB, so
    /// many go in pieces.
    pub(super) fn elements(&mut self, kind: u16, set: &str, elements: &[Element]) {
        for elements in elements.chunks(500) {
            self.message(kind, if kind == NEW_ELEMENT { CREATE } else { 0 }, |to| {
                text(to, 2, set);
                nest(to, 3 | NESTED, |to| {
                    for (key, data) in elements {
                        nest(to, 1 | NESTED, |to| {
                            nest(to, 1 | NESTED, |to| attribute(to, 1, key));
                            if let Some(data) = data.as_ref().filter(|_| kind == NEW_ELEMENT) {
                                nest(to, 2 | NESTED, |to| attribute(to, 1, data));
                            }
                        });
                    }
                });
            });
        }
    }

    pub(super) fn rule<const N: usize>(&mut self, chain: &str, steps: [&[Expression]; N]) {
        self.message(NEW_RULE, APPEND, |to| {
            text(to, 2, chain);
            nest(to, 4 | NESTED, |to| {
                for expression in steps.into_iter().flatten() {
                    nest(to, 1 | NESTED, |to| {
                        text(to, 1, expression.name);
                        nest(to, 2 | NESTED, |to| to.extend_from_slice(&expression.attributes));
                    });
                }
            });
        });
    }
}

/// An element of a set: its key, and in a map what it stands for.
pub(super) type Element = (Vec<u8>, Option<Vec<u8>>);
