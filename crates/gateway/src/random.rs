//! Cheap chance for spreading load. Not for secrets.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish() | 1);
}

/// A number below `bound`, which is above zero. Xorshift64 (Marsaglia, 2003); the bias of the
/// multiplication is far below what balancing could notice.
pub(crate) fn below(bound: u32) -> u32 {
    let mut x = STATE.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    STATE.set(x);
    ((x >> 32).wrapping_mul(u64::from(bound)) >> 32) as u32
}
