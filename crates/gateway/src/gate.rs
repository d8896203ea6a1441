//! Admission to one Backend: a closed bit and a count of claims in **one** atomic.
//!
//! Promises: once [`Gate::close`] has returned, no claim is granted until [`Gate::reopen`];
//! and per closing exactly one call, `close` itself or one `leave`, says that the gate is
//! closed and empty. With two variables either promise would have a gap between them.
//!
//! Knows nothing of what is claimed. `tests/gate_model.rs` checks it under every interleaving.

use crate::atomic::{AtomicU64, Ordering};

const CLOSED: u64 = 1 << 63;

/// A gate that can be closed while claims are out.
#[derive(Debug)]
pub(crate) struct Gate(AtomicU64);

impl Gate {
    /// An open gate without claims.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Takes a claim, unless the gate is closed. Each granted claim is given back by [`leave`].
    ///
    /// [`leave`]: Self::leave
    #[must_use]
    pub(crate) fn enter(&self) -> bool {
        let mut state = self.0.load(Ordering::Relaxed);
        while state & CLOSED == 0 {
            match self.0.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Gives a claim back. True: it was the last one of a closed gate.
    #[must_use]
    pub(crate) fn leave(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1
    }

    /// Grants no more claims. True: the gate was open and no claim is out.
    #[must_use]
    pub(crate) fn close(&self) -> bool {
        self.0.fetch_or(CLOSED, Ordering::AcqRel) == 0
    }

    /// Grants claims again.
    pub(crate) fn reopen(&self) {
        self.0.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// Claims that are out.
    pub(crate) fn claims(&self) -> u64 {
        self.0.load(Ordering::Acquire) & !CLOSED
    }

    /// Whether the gate is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Whether the gate is closed and no claim is out.
    pub(crate) fn is_drained(&self) -> bool {
        self.0.load(Ordering::Acquire) == CLOSED
    }
}
