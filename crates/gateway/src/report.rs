//! What the gateway has seen, in numbers.

use std::sync::atomic::Ordering::Relaxed;

use stead_core::routes::{AppReport, Report};

use crate::app::App;
use crate::gateway::Shared;

/// The report of this moment. Apps that never had a request are left out.
pub(crate) fn report(shared: &Shared) -> Report {
    about(shared, |_| true)
}

/// The report of those Apps that are to be reported more often than all.
pub(crate) fn watched(shared: &Shared) -> Report {
    Report { partial: true, ..about(shared, App::is_watched) }
}

fn about(shared: &Shared, wanted: impl Fn(&App) -> bool) -> Report {
    let apps = shared.routes.apps().into_iter().filter(|app| wanted(app)).filter_map(|app| {
        let received = app.counters.received.load(Relaxed);
        (received > 0).then(|| AppReport {
            app: app.key.clone(),
            received,
            in_flight: app.in_flight(),
            parked: app.parked() as u64,
            unsent: app.counters.unsent.read(),
            releases: app.counters.read_releases(),
        })
    });
    Report {
        started: shared.started,
        generation: shared.routes.generation(),
        draining: shared.is_draining(),
        partial: false,
        apps: apps.collect(),
    }
}
