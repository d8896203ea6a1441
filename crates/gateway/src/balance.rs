//! Which of some Backends takes a request: the less loaded of two taken by chance
//! (Mitzenmacher, "The Power of Two Choices", 2001), by claims.
//!
//! A Backend that has just opened starts slowly: chance takes it more seldom, from a tenth as
//! often as the others at first to as often once its time is over. A share of nothing else to
//! take is everything, so that one that is alone gets all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::{Backend, Claim};
use crate::random;

/// Share of a Backend that is warm.
const FULL: u32 = 1_000;
/// Share of one that has opened this moment.
const COLD: u32 = 100;

/// Backends that may take the same requests.
#[derive(Default)]
pub(crate) struct Group {
    backends: Vec<Arc<Backend>>,
    slow_start: Duration,
    /// When the last of them is warm; `None`: all are.
    warm_at: Option<Instant>,
}

impl Group {
    /// A group of `backends`, each of which is warm `slow_start` after it has opened.
    pub(crate) fn new(backends: Vec<Arc<Backend>>, slow_start: Duration) -> Self {
        let opened = backends.iter().filter_map(|backend| backend.opened).max();
        let warm_at = opened.filter(|_| !slow_start.is_zero()).map(|opened| opened + slow_start);
        Self { backends, slow_start, warm_at }
    }

    /// A claim on one of them, `None` when all are closed or suspect.
    pub(crate) fn claim(&self) -> Option<Claim> {
        let chosen = match self.backends.as_slice() {
            [] => return None,
            [only] => only,
            _ => self.choose(),
        };
        let take = |backend: &Arc<Backend>| if backend.usable() { backend.claim() } else { None };
        take(chosen).or_else(|| self.backends.iter().find_map(take))
    }

    /// Whether one would take a claim now.
    pub(crate) fn any_usable(&self) -> bool {
        self.backends.iter().any(|backend| backend.usable())
    }

    /// The less loaded of two.
    fn choose(&self) -> &Arc<Backend> {
        if let Some(warm_at) = self.warm_at {
            let now = Instant::now();
            if now < warm_at {
                return self.choose_by_share(now);
            }
        }
        let count = u32::try_from(self.backends.len()).unwrap_or(u32::MAX);
        let first = random::below(count);
        let second = (first + 1 + random::below(count - 1)) % count;
        less_loaded(&self.backends[first as usize], &self.backends[second as usize])
    }

    /// The same where some are not warm yet. Two of different shares are not compared by load:
    /// the first keeps its share to the letter.
    fn choose_by_share(&self, now: Instant) -> &Arc<Backend> {
        let total = self.usable_shares(now).map(|(_, share)| share).sum();
        if total == 0 {
            return &self.backends[0]; // none is usable
        }
        let draw = || {
            let mut ticket = random::below(total);
            let drawn = self.usable_shares(now).find(|(_, share)| {
                let found = ticket < *share;
                ticket = ticket.saturating_sub(*share);
                found
            });
            drawn.unwrap_or((&self.backends[0], FULL)) // some were closed between the two looks
        };
        let ((one, share), (other, others)) = (draw(), draw());
        if share == others { less_loaded(one, other) } else { one }
    }

    fn usable_shares(&self, now: Instant) -> impl Iterator<Item = (&Arc<Backend>, u32)> {
        let usable = self.backends.iter().filter(|backend| backend.usable());
        usable.map(move |backend| (backend, self.share(backend, now)))
    }

    fn share(&self, backend: &Backend, now: Instant) -> u32 {
        let Some(opened) = backend.opened else { return FULL };
        let age = now.saturating_duration_since(opened).as_millis();
        let grown = u128::from(FULL - COLD) * age / self.slow_start.as_millis().max(1);
        COLD + u32::try_from(grown).map_or(FULL - COLD, |grown| grown.min(FULL - COLD))
    }
}

fn less_loaded<'a>(one: &'a Arc<Backend>, other: &'a Arc<Backend>) -> &'a Arc<Backend> {
    match (one.usable(), other.usable()) {
        (true, false) => one,
        (false, true) => other,
        _ if other.claims() < one.claims() => other,
        _ => one,
    }
}
