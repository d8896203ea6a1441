//! The zero-drop ledger: what became of every request, per App and Release.
//!
//! Gateways report cumulative counters per process; the differences are added up here, so a
//! lost report loses nothing, and neither does a `serve` that is started again: the totals
//! and the counters they were reckoned from are stored in one transaction.
//!
//! # Caveats
//! - What a gateway counted after its last report is lost when it is killed. What it had
//!   under way then is booked as failed, reason `cut`.
//! - Requests that never reached a Backend belong to the Release that was shown at the time.

mod count;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stead_core::api::{Ledger, LedgerView};
use stead_core::ids::ReleaseNo;
use stead_core::name::AppKey;
use stead_core::routes::Report;
use stead_core::time::Time;
use tokio::sync::Notify;

use crate::store::{Document, Kind, Store, StoreError, Write, release_key};
use crate::traffic::process_lives;
use count::{AppCounters, book};

/// How often ledgers are stored.
const STORED: Duration = Duration::from_secs(5);

impl Document for Ledger {
    const KIND: Kind = Kind::Ledger;
}

/// One gateway's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct GatewayId {
    pid: u32,
    started: Time,
}

impl GatewayId {
    fn key(self) -> String {
        format!("{}-{}", self.pid, self.started.0)
    }
}

/// What a gateway last reported, as far as it is booked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Counters {
    gateway: GatewayId,
    apps: BTreeMap<AppKey, AppCounters>,
}

impl Document for Counters {
    const KIND: Kind = Kind::Counters;
}

#[derive(Default)]
struct Books {
    totals: BTreeMap<AppKey, BTreeMap<ReleaseNo, Ledger>>,
    gateways: BTreeMap<GatewayId, Counters>,
    shown: BTreeMap<AppKey, ReleaseNo>,
    /// What differs from the store.
    changed: BTreeSet<(AppKey, ReleaseNo)>,
    changed_gateways: BTreeSet<GatewayId>,
}

/// The ledger of all Apps.
pub(crate) struct Ledgers {
    books: Mutex<Books>,
    hurried: Notify,
}

impl Ledgers {
    /// Loads what was stored.
    pub(crate) fn load(store: &Store) -> Result<Self, StoreError> {
        let mut books = Books::default();
        for document in store.list::<Ledger>("")?.found {
            let Some((app, number)) = document.key.rsplit_once('/') else { continue };
            let (Ok(app), Ok(number)) = (app.parse(), number.parse()) else { continue };
            books.totals.entry(app).or_default().insert(number, document.value);
        }
        for document in store.list::<Counters>("")?.found {
            books.gateways.insert(document.value.gateway, document.value);
        }
        Ok(Self { books: Mutex::new(books), hurried: Notify::new() })
    }

    /// The pids of the gateways that have reported requests and were not seen to end.
    pub(crate) fn gateways(&self) -> Vec<u32> {
        self.lock().gateways.keys().map(|id| id.pid).collect()
    }

    /// Books a report.
    pub(crate) fn report(&self, pid: u32, report: Report) {
        let mut books = self.lock();
        let gateway = GatewayId { pid, started: report.started };
        // Another process has the pid now: the one that had it is gone.
        let dead = |id: &GatewayId| id.pid == pid && *id != gateway;
        books.settle(dead);
        let Books { totals, gateways, shown, changed, changed_gateways } = &mut *books;
        let counters =
            gateways.entry(gateway).or_insert_with(|| Counters { gateway, apps: BTreeMap::new() });
        // What the gateway does not count any more begins at zero when it comes again.
        let counted: BTreeSet<&AppKey> = report.apps.iter().map(|app| &app.app).collect();
        let before = counters.apps.len();
        counters.apps.retain(|app, _| report.partial || counted.contains(app));
        if counters.apps.len() < before {
            changed_gateways.insert(gateway);
        }
        for app in report.apps {
            // Gone, or not known yet: what is not booked now is in the next difference.
            let Some(shown) = shown.get(&app.app).copied() else { continue };
            let last = counters.apps.entry(app.app.clone()).or_default();
            let of_app = totals.entry(app.app.clone()).or_default();
            for number in book(last, &app, shown, of_app) {
                changed.insert((app.app.clone(), number));
                changed_gateways.insert(gateway);
            }
        }
    }

    /// The Release that requests of `app` are for, from now on.
    pub(crate) fn show(&self, app: &AppKey, release: ReleaseNo) {
        self.lock().shown.insert(app.clone(), release);
    }

    /// The ledgers of an App, by Release.
    pub(crate) fn of(&self, app: &AppKey) -> Vec<LedgerView> {
        let books = self.lock();
        let view = |(number, total): (&ReleaseNo, &Ledger)| {
            let in_flight = books
                .gateways
                .values()
                .filter_map(|counters| counters.apps.get(app)?.releases.get(number))
                .map(|release| release.in_flight)
                .sum();
            LedgerView { release: *number, ledger: Ledger { in_flight, ..total.clone() } }
        };
        books.totals.get(app).into_iter().flatten().map(view).collect()
    }

    /// Forgets a deleted App. What gateways still count of it is not booked.
    pub(crate) fn forget(&self, app: &AppKey) {
        let mut books = self.lock();
        books.totals.remove(app);
        books.shown.remove(app);
        books.changed.retain(|(changed, _)| changed != app);
    }

    /// Stores what has changed from time to time, and whenever it is [asked](Self::hurry) to.
    pub(crate) async fn keep(self: Arc<Self>, store: Arc<Store>) {
        loop {
            let _ = tokio::time::timeout(STORED, self.hurried.notified()).await;
            if let Err(error) = self.persist(&store).await {
                tracing::error!(error = ?error, "ledgers cannot be stored");
            }
        }
    }

    /// Asks for what has changed to be stored now: nobody can be asked again for what a gateway
    /// that has left reported last.
    pub(crate) fn hurry(&self) {
        self.hurried.notify_one();
    }

    /// Stores what has changed, and settles the accounts of gateways that have ended.
    pub(crate) async fn persist(&self, store: &Store) -> Result<(), StoreError> {
        let (writes, releases, gateways) = {
            let mut books = self.lock();
            books.settle(|id| !process_lives(id.pid));
            let writes = books.writes()?;
            let releases = std::mem::take(&mut books.changed);
            (writes, releases, std::mem::take(&mut books.changed_gateways))
        };
        if writes.is_empty() {
            return Ok(());
        }
        let done = store.commit(writes).await;
        if done.is_err() {
            // Totals and what they were reckoned from must not be stored one without the other.
            let mut books = self.lock();
            books.changed.extend(releases);
            books.changed_gateways.extend(gateways);
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // A report that was booked half leaves counters that the next one completes.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Closes the accounts of gateways that are gone: what was under way was cut.
    fn settle(&mut self, gone: impl Fn(&GatewayId) -> bool) {
        let ended: Vec<GatewayId> = self.gateways.keys().copied().filter(&gone).collect();
        for id in ended {
            let Some(counters) = self.gateways.remove(&id) else { continue };
            self.changed_gateways.insert(id);
            for (app, last) in counters.apps {
                for (number, release) in last.releases {
                    let total = self.totals.get_mut(&app).and_then(|of| of.get_mut(&number));
                    if let Some(total) = total.filter(|_| release.in_flight > 0) {
                        *total.failed.entry("cut".to_owned()).or_default() += release.in_flight;
                        self.changed.insert((app.clone(), number));
                    }
                }
            }
        }
    }

    /// What brings the store up to date.
    fn writes(&self) -> Result<Vec<Write>, StoreError> {
        let mut writes = Vec::new();
        for (app, number) in &self.changed {
            if let Some(total) = self.totals.get(app).and_then(|of| of.get(number)) {
                writes.push(Write::set(release_key(app, *number), total)?);
            }
        }
        for id in &self.changed_gateways {
            writes.push(match self.gateways.get(id) {
                Some(counters) => Write::set(id.key(), counters)?,
                None => Write::clear(Kind::Counters, id.key()),
            });
        }
        Ok(writes)
    }
}

#[cfg(test)]
mod tests;
