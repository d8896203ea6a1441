//! What is compared: figures of one Release over some time.
//!
//! Promises: figures that add up over gateways, subtract over time, and travel as JSON.
//! Knows nothing of what they are compared with.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::routes::{LATENCY_BOUNDS_MICROS, Latency, ReleaseReport};

/// One Release's requests over some time: the sum over all gateways of differences of two of
/// their cumulative reports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Sample {
    /// Requests that the App answered, or failed to.
    pub requests: u64,
    /// Of these, the ones answered with 5xx and the failed ones for which the App is to blame.
    /// What a client or stead itself failed is in neither number.
    pub errors: u64,
    /// How long the App took to answer, from its first request on.
    pub latency: Latency,
}

impl Sample {
    /// What a gateway has counted for a Release since it started.
    pub fn of(report: &ReleaseReport) -> Self {
        Self { requests: report.judged(), errors: report.errors(), latency: report.latency.clone() }
    }

    /// What came since `earlier`, an older Sample of the same counters.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            errors: self.errors.saturating_sub(earlier.errors),
            latency: each(&self.latency, &earlier.latency, u64::saturating_sub),
        }
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            errors: self.errors + other.errors,
            latency: each(&self.latency, &other.latency, u64::saturating_add),
        }
    }
}

/// Sets aside how fast fresh Instances were: until its caches are full and its code is compiled,
/// a Release is slower than it will be. What fails is never set aside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Warmup {
    seen: Latency,
    cold: Latency,
}

impl Warmup {
    /// `new` without the times that were taken while an Instance was warming up. To be called
    /// with each report, `new` being cumulative since the Release began to take traffic, and
    /// `warming` whether an Instance of it began to take traffic within the last
    /// [`WARMUP`](super::WARMUP).
    pub fn pass(&mut self, new: &Sample, warming: bool) -> Sample {
        if warming {
            let came = each(&new.latency, &self.seen, u64::saturating_sub);
            self.cold = each(&self.cold, &came, u64::saturating_add);
        }
        self.seen = new.latency.clone();
        Sample { latency: each(&new.latency, &self.cold, u64::saturating_sub), ..new.clone() }
    }
}

/// A histogram as numbers per bucket of [`LATENCY_BOUNDS_MICROS`]. One of another shape comes
/// from a gateway of another version, which counts other buckets: it is as if empty.
pub(super) fn buckets(latency: &Latency) -> [u64; LATENCY_BOUNDS_MICROS.len() + 1] {
    latency.buckets.as_slice().try_into().unwrap_or([0; _])
}

fn each(one: &Latency, other: &Latency, join: impl Fn(u64, u64) -> u64) -> Latency {
    let pairs = buckets(one).into_iter().zip(buckets(other));
    Latency {
        buckets: pairs.map(|(one, other)| join(one, other)).collect(),
        sum_micros: join(one.sum_micros, other.sum_micros),
    }
}

/// The time below which `share` of the requests stayed, in microseconds, as if the times were
/// spread evenly within their bucket. `None` of no requests.
pub(super) fn quantile(latency: &Latency, share: f64) -> Option<u64> {
    let buckets = buckets(latency);
    let wanted = buckets.iter().sum::<u64>() as f64 * share;
    let mut below = 0.0;
    for (index, count) in buckets.into_iter().enumerate().filter(|(_, count)| *count > 0) {
        let floor = index.checked_sub(1).map_or(0, |before| LATENCY_BOUNDS_MICROS[before]);
        let Some(bound) = LATENCY_BOUNDS_MICROS.get(index) else { return Some(floor) };
        if below + count as f64 >= wanted {
            let part = (wanted - below) / count as f64;
            return Some(floor + ((bound - floor) as f64 * part) as u64);
        }
        below += count as f64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ReleaseNo;
    use crate::routes::{FailReason, Outcomes};

    fn at(index: usize, count: u64) -> Latency {
        let mut buckets = vec![0; LATENCY_BOUNDS_MICROS.len() + 1];
        buckets[index] = count;
        Latency { buckets, sum_micros: count * 100 }
    }

    #[test]
    fn only_the_app_is_held_to_account() {
        let failed = FailReason::ALL.iter().map(|reason| (*reason, 1)).collect();
        let report = ReleaseReport {
            release: ReleaseNo(2),
            received: 0,
            parked: 0,
            moved: 0,
            in_flight: 0,
            outcomes: Outcomes { completed: 106, client_aborted: 9, failed },
            answered: [1, 90, 2, 7, 6],
            latency: at(3, 106),
        };
        let sample = Sample::of(&report);
        assert_eq!((sample.requests, sample.errors), (109, 10));
    }

    #[test]
    fn samples_subtract_and_add_up() {
        let early = Sample { requests: 3, errors: 1, latency: at(2, 3) };
        let late = Sample { requests: 9, errors: 2, latency: at(2, 9) };
        let came = late.since(&early);
        assert_eq!(came, Sample { requests: 6, errors: 1, latency: at(2, 6) });
        assert_eq!(early.plus(&came), late);
        assert_eq!(Sample::default().plus(&late), late);
        // A gateway that began anew is no negative traffic.
        assert_eq!(early.since(&late).requests, 0);
        // Buckets of another version's gateway are not mistaken for ours.
        let other = Latency { buckets: vec![7; 3], sum_micros: 1 };
        assert_eq!(quantile(&other, 0.5), None);
    }

    #[test]
    fn what_is_slow_while_an_instance_warms_up_is_set_aside_and_its_errors_are_not() {
        let mut warmup = Warmup::default();
        let cold = Sample { requests: 5, errors: 2, latency: at(9, 5) };
        let passed = warmup.pass(&cold, true);
        assert_eq!((passed.errors, passed.latency.buckets[9]), (2, 0));
        let warm = cold.plus(&Sample { requests: 4, errors: 0, latency: at(1, 4) });
        let passed = warmup.pass(&warm, false);
        assert_eq!((passed.requests, passed.errors), (9, 2));
        assert_eq!((passed.latency.buckets[9], passed.latency.buckets[1]), (0, 4));
        // Another Instance begins.
        let again = warm.plus(&cold);
        assert_eq!(warmup.pass(&again, true).latency.buckets[9], 0);
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        assert_eq!(quantile(&Latency::default(), 0.5), None);
        let spread = Sample { latency: at(0, 90), ..Sample::default() }
            .plus(&Sample { latency: at(LATENCY_BOUNDS_MICROS.len(), 10), ..Sample::default() });
        assert_eq!(quantile(&spread.latency, 0.45), Some(LATENCY_BOUNDS_MICROS[0] / 2));
        assert_eq!(quantile(&spread.latency, 0.99), LATENCY_BOUNDS_MICROS.last().copied());
    }
}
