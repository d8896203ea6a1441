//! Load that notices every failure, on the Apps of a platform, and what their ledgers say of it.

use std::time::Duration;

use stead_testkit::load::{Mix, Plan, Report, Running};

use crate::platform::{Platform, eventually};

/// A load under way.
pub(crate) struct Load {
    runtime: tokio::runtime::Runtime,
    running: Running,
}

impl Load {
    /// Load on the App `web`.
    pub(crate) fn start(platform: &Platform, mix: Mix) -> Self {
        Self::on(platform, "web", mix)
    }

    /// Load on an App.
    pub(crate) fn on(platform: &Platform, app: &str, mix: Mix) -> Self {
        Self::with(Plan::new(platform.http, format!("{app}.default.localhost")).mix(mix))
    }

    /// Load as planned, for as long as it takes.
    pub(crate) fn with(plan: Plan) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let plan = plan.duration(Duration::from_secs(600));
        let running = runtime.block_on(async { plan.start() });
        Self { runtime, running }
    }

    /// Lets the load see the present state for a while.
    #[track_caller]
    pub(crate) fn more(&self, count: u64) {
        let more = async {
            tokio::time::timeout(Duration::from_secs(60), self.running.more_ok(count)).await
        };
        let came = self.runtime.block_on(more);
        assert_eq!(came, Ok(true), "{} of {} failed", self.running.failed(), self.running.sent());
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Report {
        self.runtime.block_on(self.running.stop())
    }
}

/// At least this many requests are in the App's ledgers, none is open and none failed. The load
/// counts each echo on a WebSocket, the gateway each connection. Returns how many were parked.
#[track_caller]
pub(crate) fn ledgers_are_clean(platform: &Platform, app: &str, least: u64) -> u64 {
    // Gateways report once a second.
    let ledgers = eventually("every request is in a ledger", || {
        let ledgers = platform.json(&["ledger", app]);
        let sum = |field: &str| -> u64 {
            ledgers.as_array().into_iter().flatten().filter_map(|l| l[field].as_u64()).sum()
        };
        (sum("received") >= least && sum("in_flight") == 0).then_some(ledgers)
    });
    let ledgers = ledgers.as_array().expect("a list");
    for ledger in ledgers {
        let failed = ledger["failed"].as_object().expect("by reason");
        assert!(failed.values().all(|n| n == 0), "{ledger}");
    }
    ledgers.iter().map(|ledger| ledger["parked"].as_u64().expect("a number")).sum()
}
