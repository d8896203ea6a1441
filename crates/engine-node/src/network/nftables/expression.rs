//! The steps rules are made of, as nf_tables wants them.
//!
//! Layout of the attributes: linux/netfilter/nf_tables.h. Numbers in attributes are big-endian;
//! what stands in a register (marks, interfaces, states) is in the machine's own order.

use super::super::netlink::{attribute, nest, text};
use super::Family;

pub(super) const NESTED: u16 = 0x8000;

// Registers of 32 bits; 8 is NFT_REG32_00. Register 1 is the first four of them. What is longer
// goes on in the next ones.
pub(super) const R0: u32 = 8;
pub(super) const R1: u32 = 9;

// Keys of the meta expression.
pub(super) const META_MARK: u32 = 3;
pub(super) const META_IIF: u32 = 4;
pub(super) const META_NFPROTO: u32 = 15;
pub(super) const META_L4PROTO: u32 = 16;
pub(super) const META_IIF_GROUP: u32 = 21;
pub(super) const META_OIF_GROUP: u32 = 22;

// Keys of the ct expression, and bits of a connection's state.
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_MARK: u32 = 3;
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const NEW: u32 = 8;

const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// One step of a rule: its name and its attributes, ready made.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    pub(super) name: &'static str,
    pub(super) attributes: Vec<u8>,
}

fn expression(name: &'static str, fill: impl FnOnce(&mut Vec<u8>)) -> Expression {
    let mut attributes = Vec::new();
    fill(&mut attributes);
    Expression { name, attributes }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Base {
    Network = 1,
    Transport = 2,
}

/// Which way a packet goes, seen from where its connection was opened.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    There = 0,
    Back = 1,
}

pub(super) fn load(base: Base, offset: u32, bytes: u32, register: u32) -> Expression {
    expression("payload", |to| {
        attribute(to, 1, &register.to_be_bytes());
        attribute(to, 2, &(base as u32).to_be_bytes());
        attribute(to, 3, &offset.to_be_bytes());
        attribute(to, 4, &bytes.to_be_bytes());
    })
}

pub(super) fn compare(register: u32, equal: bool, value: &[u8]) -> Expression {
    expression("cmp", |to| {
        attribute(to, 1, &register.to_be_bytes());
        attribute(to, 2, &u32::from(!equal).to_be_bytes());
        nest(to, 3 | NESTED, |to| attribute(to, 1, value));
    })
}

/// `register = (register & mask) ^ flip`.
fn bits(register: u32, mask: u32, flip: u32) -> Expression {
    expression("bitwise", |to| {
        attribute(to, 1, &register.to_be_bytes());
        attribute(to, 2, &register.to_be_bytes());
        attribute(to, 3, &4u32.to_be_bytes());
        nest(to, 4 | NESTED, |to| attribute(to, 1, &mask.to_ne_bytes()));
        nest(to, 5 | NESTED, |to| attribute(to, 1, &flip.to_ne_bytes()));
    })
}

pub(super) fn meta(key: u32, register: u32) -> Expression {
    expression("meta", |to| {
        attribute(to, 1, &register.to_be_bytes());
        attribute(to, 2, &key.to_be_bytes());
    })
}

pub(super) fn set_meta(key: u32, register: u32) -> Expression {
    expression("meta", |to| {
        attribute(to, 2, &key.to_be_bytes());
        attribute(to, 3, &register.to_be_bytes());
    })
}

fn ct(key: u32, register: u32) -> Expression {
    expression("ct", |to| {
        attribute(to, 1, &register.to_be_bytes());
        attribute(to, 2, &key.to_be_bytes());
    })
}

fn set_ct(key: u32, register: u32) -> Expression {
    expression("ct", |to| {
        attribute(to, 2, &key.to_be_bytes());
        attribute(to, 4, &register.to_be_bytes());
    })
}

pub(super) fn immediate(register: u32, value: &[u8]) -> Expression {
    expression("immediate", |to| {
        attribute(to, 1, &register.to_be_bytes());
        nest(to, 2 | NESTED, |to| attribute(to, 1, value));
    })
}

pub(super) fn look_up(set: &str, key: u32, data: Option<u32>) -> Expression {
    expression("lookup", |to| {
        text(to, 1, set);
        attribute(to, 2, &key.to_be_bytes());
        if let Some(data) = data {
            attribute(to, 3, &data.to_be_bytes());
        }
    })
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

pub(super) fn accept() -> Expression {
    verdict(ACCEPT, None)
}

pub(super) fn drop_it() -> Expression {
    verdict(DROP, None)
}

/// Back to the chain that called this one.
pub(super) fn back() -> Expression {
    verdict(RETURN, None)
}

/// Goes on in another chain and comes back.
pub(super) fn call(chain: &str) -> Expression {
    verdict(JUMP, Some(chain))
}

/// Goes on in another chain for good.
pub(super) fn go(chain: &str) -> Expression {
    verdict(GOTO, Some(chain))
}

pub(super) fn masquerade() -> Expression {
    expression("masq", |_| {})
}

/// Only packets that came in, or go out, by a link of a group.
pub(super) fn in_group(key: u32, group: u32) -> [Expression; 2] {
    [meta(key, R0), compare(R0, true, &group.to_ne_bytes())]
}

/// Only packets of this version of IP.
pub(super) fn is(family: Family) -> [Expression; 2] {
    [meta(META_NFPROTO, R0), compare(R0, true, &[family.number()])]
}

/// Only packets of a connection that was accepted before, or about one.
pub(super) fn is_established() -> [Expression; 3] {
    [ct(CT_STATE, R0), bits(R0, ESTABLISHED_OR_RELATED, 0), compare(R0, false, &[0; 4])]
}

/// Only packets of a connection that no answer has been seen of.
pub(super) fn is_new() -> [Expression; 3] {
    [ct(CT_STATE, R0), bits(R0, NEW, 0), compare(R0, false, &[0; 4])]
}

pub(super) fn goes(direction: Direction) -> [Expression; 2] {
    [ct(CT_DIRECTION, R0), compare(R0, true, &[direction as u8])]
}

/// Only packets whose mark has, or has none of, these bits.
pub(super) fn marked(bits_of: u32, has: bool) -> [Expression; 3] {
    [meta(META_MARK, R0), bits(R0, bits_of, 0), compare(R0, !has, &[0; 4])]
}

/// Only packets whose connection's mark has, or has none of, these bits.
pub(super) fn connection_marked(bits_of: u32, has: bool) -> [Expression; 3] {
    [ct(CT_MARK, R0), bits(R0, bits_of, 0), compare(R0, !has, &[0; 4])]
}

/// Sets one bit of the packet's mark and leaves the others alone.
pub(super) fn mark(bit: u32) -> [Expression; 3] {
    [meta(META_MARK, R0), bits(R0, !bit, bit), set_meta(META_MARK, R0)]
}

/// Sets one bit of the connection's mark and leaves the others alone.
pub(super) fn mark_connection(bit: u32) -> [Expression; 3] {
    [ct(CT_MARK, R0), bits(R0, !bit, bit), set_ct(CT_MARK, R0)]
}
