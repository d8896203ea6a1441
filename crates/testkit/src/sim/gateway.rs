//! A simulated gateway: claims, draining and parking, with every request accounted for.
//!
//! A request is lost when it was sent to what no longer answers, or cut off before its end.
//! It knows nothing of Fleets or Rollouts; the world hands in time and messages.

use std::collections::BTreeMap;

use stead_core::ids::ContainerId;
use stead_core::time::Time;

/// A request that has arrived and not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RequestId(pub(super) u64);

/// What became of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Arrived.
    pub received: u64,
    /// Answered to the end.
    pub completed: u64,
    /// Of those received, how many waited for a Backend.
    pub parked: u64,
    /// Waited longer than they may.
    pub timed_out: u64,
    /// Refused because the App was stopped or gone.
    pub refused: u64,
    /// Failed with a Container that ended by itself.
    pub crashed: u64,
}

impl Counts {
    /// Requests that have ended in some way.
    pub fn ended(&self) -> u64 {
        self.completed + self.timed_out + self.refused + self.crashed
    }
}

/// What waits for a Container to be empty.
#[derive(Debug)]
struct Drain {
    flight: u64,
    until: Time,
}

#[derive(Debug, Default)]
struct Backend {
    open: Vec<RequestId>,
    /// New requests are sent to it.
    takes: bool,
    drain: Option<Drain>,
}

/// The gateway.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    backends: BTreeMap<ContainerId, Backend>,
    waiting: BTreeMap<RequestId, Time>,
    pub(super) counts: Counts,
    /// Claims given out: request by Container, to be carried by the world.
    claims: Vec<(RequestId, ContainerId)>,
    /// Requests lost through our own doing. Must stay empty.
    pub(super) lost: Vec<String>,
}

impl Gateway {
    /// A request arrives. It may wait until `patience`.
    pub(super) fn arrive(&mut self, id: RequestId, open: bool, patience: Time) {
        self.counts.received += 1;
        if !open {
            self.counts.refused += 1;
        } else if !self.claim(id) {
            self.counts.parked += 1;
            self.waiting.insert(id, patience);
        }
    }

    /// Requests that found a Backend since the last call.
    pub(super) fn take_claims(&mut self) -> Vec<(RequestId, ContainerId)> {
        std::mem::take(&mut self.claims)
    }

    fn claim(&mut self, id: RequestId) -> bool {
        let taking = self.backends.iter_mut().filter(|(_, backend)| backend.takes);
        let Some((container, backend)) = taking.min_by_key(|(_, backend)| backend.open.len())
        else {
            return false;
        };
        backend.open.push(id);
        self.claims.push((id, container.clone()));
        true
    }

    /// A Backend may get requests.
    pub(super) fn attach(&mut self, container: ContainerId) {
        let backend = self.backends.entry(container).or_default();
        (backend.takes, backend.drain) = (true, None);
        let waiting: Vec<RequestId> = self.waiting.keys().copied().collect();
        for id in waiting {
            if self.claim(id) {
                self.waiting.remove(&id);
            }
        }
    }

    /// A Backend gets no new requests.
    pub(super) fn detach(&mut self, container: &ContainerId, flight: u64, until: Time) {
        let backend = self.backends.entry(container.clone()).or_default();
        (backend.takes, backend.drain) = (false, Some(Drain { flight, until }));
    }

    /// Drains that are through, by their flight.
    pub(super) fn drained(&mut self, now: Time) -> Vec<u64> {
        let through = |backend: &Backend| match &backend.drain {
            Some(drain) if backend.open.is_empty() || drain.until <= now => Some(drain.flight),
            _ => None,
        };
        let done: Vec<u64> = self.backends.values().filter_map(through).collect();
        self.backends.retain(|_, backend| through(backend).is_none());
        done
    }

    /// When time alone ends a drain or a wait.
    pub(super) fn next_due(&self) -> Option<Time> {
        let drains = self.backends.values().filter_map(|b| Some(b.drain.as_ref()?.until));
        drains.chain(self.waiting.values().copied()).min()
    }

    /// Ends waits that took too long.
    pub(super) fn give_up(&mut self, now: Time) {
        let before = self.waiting.len();
        self.waiting.retain(|_, patience| *patience > now);
        self.counts.timed_out += (before - self.waiting.len()) as u64;
    }

    /// Refuses everything that waits: the App was stopped or is gone.
    pub(super) fn refuse_waiting(&mut self) {
        self.counts.refused += self.waiting.len() as u64;
        self.waiting.clear();
    }

    /// A request is answered. Nothing happens if it failed before.
    pub(super) fn complete(&mut self, id: RequestId) {
        for backend in self.backends.values_mut() {
            if let Some(at) = backend.open.iter().position(|open| *open == id) {
                backend.open.swap_remove(at);
                self.counts.completed += 1;
            }
        }
    }

    /// Containers with open requests.
    pub(super) fn busy(&self) -> Vec<ContainerId> {
        let busy = self.backends.iter().filter(|(_, backend)| !backend.open.is_empty());
        busy.map(|(id, _)| id.clone()).collect()
    }

    /// Its connections broke: it ended by itself.
    pub(super) fn crashed(&mut self, container: &ContainerId) {
        let Some(backend) = self.backends.get_mut(container) else { return };
        self.counts.crashed += backend.open.len() as u64;
        backend.open.clear();
    }

    /// Its connections broke because of us.
    pub(super) fn lose(&mut self, container: &ContainerId, why: &str) {
        let Some(backend) = self.backends.get_mut(container) else { return };
        let requests = backend.open.len();
        self.lost.push(format!("{requests} requests on {container}: {why}"));
        backend.open.clear();
    }

    /// Requests that are neither answered nor failed.
    pub(super) fn under_way(&self) -> u64 {
        let open: usize = self.backends.values().map(|backend| backend.open.len()).sum();
        (open + self.waiting.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        ContainerId(text.into())
    }

    #[test]
    fn a_drain_waits_for_claims_and_parked_requests_go_to_the_next_backend() {
        let mut gateway = Gateway::default();
        gateway.attach(id("a"));
        gateway.arrive(RequestId(1), true, Time(100));
        gateway.detach(&id("a"), 7, Time(50));
        assert!(gateway.drained(Time(1)).is_empty(), "a request is open");
        gateway.arrive(RequestId(2), true, Time(100));
        assert_eq!(gateway.counts.parked, 1);
        gateway.complete(RequestId(1));
        assert_eq!(gateway.drained(Time(2)), [7]);
        gateway.attach(id("b"));
        assert_eq!(gateway.take_claims().last(), Some(&(RequestId(2), id("b"))));
        gateway.complete(RequestId(2));
        assert_eq!((gateway.counts.completed, gateway.under_way()), (2, 0));
    }

    #[test]
    fn a_deadline_ends_a_drain_and_what_is_open_is_lost() {
        let mut gateway = Gateway::default();
        gateway.attach(id("a"));
        gateway.arrive(RequestId(1), true, Time(100));
        gateway.lose(&id("a"), "it was stopped");
        assert_eq!(gateway.lost.len(), 1);
        gateway.arrive(RequestId(2), true, Time(100));
        gateway.detach(&id("a"), 1, Time(5));
        assert_eq!(gateway.next_due(), Some(Time(5)));
        assert_eq!(gateway.drained(Time(5)), [1]);
    }
}
