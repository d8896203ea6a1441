//! Differences of cumulative counters. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stead_core::api::Ledger;
use stead_core::ids::ReleaseNo;
use stead_core::routes::{AppReport, Outcomes, ReleaseReport};

/// The counters of one App in one gateway that are booked.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct AppCounters {
    unsent: Ended,
    pub(super) releases: BTreeMap<ReleaseNo, ReleaseCounters>,
}

/// The counters of one Release in one gateway that are booked.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct ReleaseCounters {
    /// Requests given to a Backend, those that moved on included.
    received: u64,
    #[serde(default)]
    moved: u64,
    #[serde(default)]
    parked: u64,
    pub(super) in_flight: u64,
    ended: Ended,
}

/// Counters of requests that ended.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Ended {
    completed: u64,
    client_aborted: u64,
    failed: BTreeMap<String, u64>,
}

/// Adds to `totals` what came since `last`, and makes `report` the last. Gives the Releases
/// whose total or gauge changed. `shown` takes what never reached a Backend.
pub(super) fn book(
    last: &mut AppCounters,
    report: &AppReport,
    shown: ReleaseNo,
    totals: &mut BTreeMap<ReleaseNo, Ledger>,
) -> Vec<ReleaseNo> {
    let mut changed = Vec::new();
    // What the gateway does not count any more begins at zero when it comes again.
    last.releases.retain(|number, _| report.releases.iter().any(|one| one.release == *number));
    for release in &report.releases {
        let last = last.releases.entry(release.release).or_default();
        let new = ReleaseCounters::of(release);
        if *last == new {
            continue;
        }
        if new.received < last.received {
            *last = ReleaseCounters::default();
        }
        let total = totals.entry(release.release).or_default();
        // One that moved on is counted by the Backend that took it in the end. It may have been
        // booked here before it moved, so what is booked may also become less.
        let received = total.received + (new.received - last.received);
        total.received = received.saturating_sub(since(last.moved, new.moved));
        total.parked += since(last.parked, new.parked);
        last.ended.difference(&new.ended, total);
        *last = new;
        changed.push(release.release);
    }
    let unsent = Ended::of(&report.unsent);
    if last.unsent != unsent {
        if unsent.total() < last.unsent.total() {
            last.unsent = Ended::default();
        }
        let total = totals.entry(shown).or_default();
        total.received += last.unsent.difference(&unsent, total);
        last.unsent = unsent;
        changed.push(shown);
    }
    changed
}

impl ReleaseCounters {
    fn of(report: &ReleaseReport) -> Self {
        Self {
            received: report.received,
            moved: report.moved,
            parked: report.parked,
            in_flight: report.in_flight,
            ended: Ended::of(&report.outcomes),
        }
    }
}

impl Ended {
    fn of(outcomes: &Outcomes) -> Self {
        Self {
            completed: outcomes.completed,
            client_aborted: outcomes.client_aborted,
            failed: outcomes.failed.iter().map(|(r, n)| (r.as_str().to_owned(), *n)).collect(),
        }
    }

    fn total(&self) -> u64 {
        self.completed + self.client_aborted + self.failed.values().sum::<u64>()
    }

    /// Adds to `total` what `new` has more than this. Gives how many requests that are.
    fn difference(&self, new: &Ended, total: &mut Ledger) -> u64 {
        let completed = since(self.completed, new.completed);
        let aborted = since(self.client_aborted, new.client_aborted);
        total.completed += completed;
        total.client_aborted += aborted;
        let mut all = completed + aborted;
        for (reason, count) in &new.failed {
            let more = since(self.failed.get(reason).copied().unwrap_or(0), *count);
            if more > 0 {
                *total.failed.entry(reason.clone()).or_default() += more;
                all += more;
            }
        }
        all
    }
}

/// What a counter grew by. It never becomes smaller while a gateway counts.
fn since(last: u64, now: u64) -> u64 {
    now.saturating_sub(last)
}
