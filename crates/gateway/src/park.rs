//! Requests that wait for a Backend of their App, in the order they came.
//!
//! Promises: whoever is first in the queue is woken when a Backend may be there, and passes
//! the baton on when it leaves the queue for any reason, so that requests go on one after
//! the other and none is forgotten. A wake-up says "look again", never "there is one".
//!
//! Knows nothing of Backends and clocks: the caller looks, and keeps the deadline. The body of
//! a parked request is not read; `bytes` counts what may be buffered for it all the same.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stead_core::routes::{FailReason, ParkPolicy};
use tokio::sync::Notify;

/// The queue of one App.
#[derive(Debug, Default)]
pub(crate) struct Park {
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next_id: u64,
    waiters: VecDeque<Waiter>,
    bytes: u64,
    /// When the first request found no Backend, while none has been there since.
    gap_began: Option<Instant>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    bytes: u64,
    notify: Arc<Notify>,
}

/// What came of asking for a place.
pub(crate) struct Entry {
    /// The place, or why there is none.
    pub(crate) place: Result<Place, FailReason>,
    /// This is the first request of a gap: somebody should be told.
    pub(crate) first: bool,
}

/// A place in the queue. Dropped, it is given up and the next request takes its turn.
#[derive(Debug)]
pub(crate) struct Place {
    park: Arc<Park>,
    id: u64,
    notify: Arc<Notify>,
}

impl Park {
    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Whether requests have been without a Backend, and none has been there since.
    pub(crate) fn in_gap(&self) -> bool {
        self.lock().gap_began.is_some()
    }

    /// Asks for a place at the end of the queue for a request that `bytes` are held for. `gap`:
    /// there is no Backend, it does not only wait its turn.
    pub(crate) fn enter(
        self: &Arc<Self>,
        policy: &ParkPolicy,
        bytes: u64,
        gap: bool,
        now: Instant,
    ) -> Entry {
        let mut queue = self.lock();
        let first = gap && queue.gap_began.is_none();
        if first {
            queue.gap_began = Some(now);
        }
        let expected = queue.expected_wait(policy, now);
        let place = if queue.waiters.len() >= policy.max_requests as usize
            || queue.bytes.saturating_add(bytes) > policy.max_bytes
        {
            Err(FailReason::ParkFull)
        } else if expected.is_some_and(|wait| wait > Duration::from_millis(policy.max_wait_ms)) {
            Err(FailReason::WaitTooLong)
        } else {
            let id = queue.next_id;
            queue.next_id += 1;
            let notify = Arc::new(Notify::new());
            if queue.waiters.is_empty() {
                // A Backend may have come between the look that failed and now.
                notify.notify_one();
            }
            queue.waiters.push_back(Waiter { id, bytes, notify: notify.clone() });
            queue.bytes += bytes;
            self.waiting.store(queue.waiters.len(), Ordering::Release);
            Ok(Place { park: self.clone(), id, notify })
        };
        Entry { place, first }
    }

    /// A Backend may be there: the first one looks. Ends the gap.
    pub(crate) fn backend_came(&self) {
        let mut queue = self.lock();
        queue.gap_began = None;
        if let Some(first) = queue.waiters.front() {
            first.notify.notify_one();
        }
    }

    /// Somebody found a Backend.
    pub(crate) fn gap_ended(&self) {
        self.lock().gap_began = None;
    }

    /// Everybody looks: the App is stopped or gone.
    pub(crate) fn all_look(&self) {
        for waiter in &self.lock().waiters {
            waiter.notify.notify_one();
        }
    }

    /// What remains of the wait that is expected now.
    pub(crate) fn expected_wait(&self, policy: &ParkPolicy, now: Instant) -> Option<Duration> {
        self.lock().expected_wait(policy, now)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// What remains of a gap of the usual length; `None` without a gap or a usual length.
    fn expected_wait(&self, policy: &ParkPolicy, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(self.gap_began?);
        Some(Duration::from_millis(policy.expected_wait_ms?).saturating_sub(waited))
    }
}

impl Place {
    /// Waits until it is worth looking for a Backend.
    pub(crate) async fn turn(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.park.lock();
        let Ok(at) = queue.waiters.binary_search_by_key(&self.id, |waiter| waiter.id) else {
            return;
        };
        if let Some(gone) = queue.waiters.remove(at) {
            queue.bytes -= gone.bytes;
        }
        self.park.waiting.store(queue.waiters.len(), Ordering::Release);
        if at == 0
            && let Some(next) = queue.waiters.front()
        {
            next.notify.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn enter(park: &Arc<Park>, policy: &ParkPolicy) -> Result<Place, FailReason> {
        park.enter(policy, 100, true, Instant::now()).place
    }

    fn woken(place: &Place) -> bool {
        place.turn().now_or_never().is_some()
    }

    #[test]
    fn the_baton_passes_in_order() {
        let park = Arc::new(Park::default());
        let policy = ParkPolicy::default();
        let places: Vec<_> = (0..3).map(|_| enter(&park, &policy).unwrap()).collect();
        assert!(woken(&places[0]), "the first looks once more at once");
        assert!(!woken(&places[0]) && !woken(&places[1]));
        park.backend_came();
        assert!(woken(&places[0]) && !woken(&places[1]));
        let mut places = places.into_iter();
        drop(places.next());
        let (second, third) = (places.next().unwrap(), places.next().unwrap());
        assert!(woken(&second) && !woken(&third));
        drop(third); // gave up in the middle: nobody's turn
        assert!(!woken(&second));
        assert_eq!(park.waiting(), 1);
    }

    #[test]
    fn caps_refuse_at_once() {
        let park = Arc::new(Park::default());
        let two = ParkPolicy { max_requests: 2, ..Default::default() };
        let held = [enter(&park, &two).unwrap(), enter(&park, &two).unwrap()];
        assert_eq!(enter(&park, &two).unwrap_err(), FailReason::ParkFull);
        drop(held);
        let small = ParkPolicy { max_bytes: 150, ..Default::default() };
        let _one = enter(&park, &small).unwrap();
        assert_eq!(enter(&park, &small).unwrap_err(), FailReason::ParkFull);
    }

    #[test]
    fn a_wait_that_does_not_fit_is_refused_but_begins_the_gap() {
        let park = Arc::new(Park::default());
        let policy =
            ParkPolicy { max_wait_ms: 1_000, expected_wait_ms: Some(5_000), ..Default::default() };
        let start = Instant::now();
        let entry = park.enter(&policy, 1, true, start);
        assert_eq!(entry.place.unwrap_err(), FailReason::WaitTooLong);
        assert!(entry.first);
        let later = park.enter(&policy, 1, true, start + Duration::from_millis(4_500));
        assert!(later.place.is_ok() && !later.first);
        park.backend_came();
        assert!(!park.in_gap());
        let behind = park.enter(&policy, 1, false, start);
        assert!(behind.place.is_ok() && !behind.first && !park.in_gap(), "it waits its turn only");
    }
}
