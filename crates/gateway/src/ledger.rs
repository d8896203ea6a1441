//! The zero-drop ledger: counts every request of an App from its arrival to its end.
//!
//! Promises: each request that arrived is counted once as ended, and until then as in flight;
//! the same per Release, from the moment it is given to a Backend. Arrivals and ends are
//! counted apart, so that a request lost by mistake shows as a sum that does not add up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stead_core::ids::ReleaseNo;
use stead_core::routes::{FailReason, LATENCY_BOUNDS_MICROS, Latency, Outcomes, ReleaseReport};

/// Releases whose counters are kept; older ones without requests are forgotten.
const RELEASES_KEPT: usize = 32;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    ClientAborted,
    Failed(FailReason),
}

/// How requests ended, counted.
#[derive(Debug, Default)]
pub(crate) struct OutcomeCounters {
    completed: AtomicU64,
    client_aborted: AtomicU64,
    failed: [AtomicU64; FailReason::ALL.len()],
}

impl OutcomeCounters {
    pub(crate) fn count(&self, outcome: Outcome) {
        match outcome {
            Outcome::Completed => &self.completed,
            Outcome::ClientAborted => &self.client_aborted,
            Outcome::Failed(reason) => &self.failed[reason as usize],
        }
        .fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Outcomes {
        let failed = FailReason::ALL
            .iter()
            .map(|reason| (*reason, self.failed[*reason as usize].load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Outcomes {
            completed: self.completed.load(Relaxed),
            client_aborted: self.client_aborted.load(Relaxed),
            failed,
        }
    }
}

/// Counters of one Release.
#[derive(Debug, Default)]
pub(crate) struct ReleaseCounters {
    received: AtomicU64,
    parked: AtomicU64,
    moved: AtomicU64,
    in_flight: AtomicU64,
    outcomes: OutcomeCounters,
    answered: [AtomicU64; 5],
    latency: Histogram,
}

#[derive(Debug)]
struct Histogram {
    buckets: [AtomicU64; LATENCY_BOUNDS_MICROS.len() + 1],
    sum_micros: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_micros: AtomicU64::new(0) }
    }
}

impl Histogram {
    fn count(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(micros, Relaxed);
    }

    fn read(&self) -> Latency {
        Latency {
            buckets: self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect(),
            sum_micros: self.sum_micros.load(Relaxed),
        }
    }
}

impl ReleaseCounters {
    /// A request is given to a Backend, after it had waited for one or not.
    pub(crate) fn sent(&self, parked: bool) {
        self.received.fetch_add(1, Relaxed);
        if parked {
            self.parked.fetch_add(1, Relaxed);
        }
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// It came back unsent, and goes elsewhere.
    pub(crate) fn moved(&self) {
        self.moved.fetch_add(1, Relaxed);
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// The App answered with `status` after `time`.
    pub(crate) fn answered(&self, status: http::StatusCode, time: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.answered[class].fetch_add(1, Relaxed);
        self.latency.count(time);
    }

    /// It ended.
    pub(crate) fn ended(&self, outcome: Outcome) {
        self.outcomes.count(outcome);
        self.in_flight.fetch_sub(1, Relaxed);
    }

    fn read(&self, release: ReleaseNo) -> ReleaseReport {
        // Before what was received: none moves that was not received.
        let moved = self.moved.load(Relaxed);
        ReleaseReport {
            release,
            received: self.received.load(Relaxed),
            parked: self.parked.load(Relaxed),
            moved,
            in_flight: self.in_flight.load(Relaxed),
            outcomes: self.outcomes.read(),
            answered: std::array::from_fn(|class| self.answered[class].load(Relaxed)),
            latency: self.latency.read(),
        }
    }
}

/// Counters of one App.
#[derive(Debug, Default)]
pub(crate) struct AppCounters {
    pub(crate) received: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    /// Requests that ended without having been given to a Backend.
    pub(crate) unsent: OutcomeCounters,
    releases: Mutex<BTreeMap<ReleaseNo, Arc<ReleaseCounters>>>,
}

impl AppCounters {
    /// A request arrived.
    pub(crate) fn arrived(&self) {
        self.received.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// A request ended; `release` is where it had been sent.
    pub(crate) fn ended(&self, release: Option<&ReleaseCounters>, outcome: Outcome) {
        match release {
            Some(release) => release.ended(outcome),
            None => self.unsent.count(outcome),
        }
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// The counters of `release`, made when they are new.
    pub(crate) fn release(&self, release: ReleaseNo) -> Arc<ReleaseCounters> {
        let mut releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = releases.entry(release).or_default().clone();
        if releases.len() > RELEASES_KEPT {
            // Held by the map alone: no Backend and no request of the Release is left.
            let forgotten = releases
                .iter()
                .find(|(_, counters)| Arc::strong_count(counters) == 1)
                .map(|(release, _)| *release);
            if let Some(forgotten) = forgotten {
                releases.remove(&forgotten);
            }
        }
        counters
    }

    pub(crate) fn read_releases(&self) -> Vec<ReleaseReport> {
        let releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
        releases.iter().map(|(release, counters)| counters.read(*release)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_adds_up() {
        let app = AppCounters::default();
        let release = app.release(ReleaseNo(1));
        for outcome in
            [Outcome::Completed, Outcome::ClientAborted, Outcome::Failed(FailReason::ClosedEarly)]
        {
            app.arrived();
            release.sent(false);
            release.moved();
            release.sent(false);
            app.ended(Some(&release), outcome);
        }
        app.arrived();
        release.sent(true);
        let report = &app.read_releases()[0];
        assert_eq!((report.received, report.moved, report.in_flight), (7, 3, 1));
        assert_eq!(report.parked, 1);
        assert_eq!(report.received, report.in_flight + report.moved + report.outcomes.total());
    }

    #[test]
    fn times_fall_into_their_bucket() {
        let release = ReleaseCounters::default();
        for micros in [1, 100, 101, 40_000_000] {
            release.answered(http::StatusCode::OK, Duration::from_micros(micros));
        }
        let latency = release.read(ReleaseNo(1)).latency;
        assert_eq!((latency.buckets[0], latency.buckets[1]), (2, 1));
        assert_eq!(latency.buckets.last(), Some(&1));
    }

    #[test]
    fn only_releases_nobody_holds_are_forgotten() {
        let app = AppCounters::default();
        let held = app.release(ReleaseNo(1));
        for release in 2..=40 {
            drop(app.release(ReleaseNo(release)));
        }
        assert!(app.releases.lock().unwrap().len() <= RELEASES_KEPT + 1);
        assert!(Arc::ptr_eq(&held, &app.release(ReleaseNo(1))));
    }
}
