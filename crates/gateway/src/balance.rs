//! Which Backend of a Release takes a request: the less loaded of two taken by chance
//! (Mitzenmacher, "The Power of Two Choices", 2001), by claims.

use std::sync::Arc;

use crate::backend::{Backend, Claim};
use crate::random;

/// A claim on one of `backends`, `None` when all are closed or suspect.
pub(crate) fn claim(backends: &[Arc<Backend>]) -> Option<Claim> {
    let chosen = match backends {
        [] => return None,
        [only] => only,
        _ => {
            let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
            let first = random::below(count);
            let second = (first + 1 + random::below(count - 1)) % count;
            less_loaded(&backends[first as usize], &backends[second as usize])
        }
    };
    let take = |backend: &Arc<Backend>| if backend.usable() { backend.claim() } else { None };
    take(chosen).or_else(|| backends.iter().find_map(take))
}

fn less_loaded<'a>(one: &'a Arc<Backend>, other: &'a Arc<Backend>) -> &'a Arc<Backend> {
    match (one.usable(), other.usable()) {
        (true, false) => one,
        (false, true) => other,
        _ if other.claims() < one.claims() => other,
        _ => one,
    }
}
