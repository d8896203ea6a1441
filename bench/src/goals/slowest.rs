//! Goal 5: under a thousand requests per second, the slowest request while a release is under
//! way beside the slowest before it.

use std::time::Duration;

use stead_testkit::load::Window;

use crate::answer::wait_for;
use crate::contest::{Better, Outcome};
use crate::goals::stall::Front;
use crate::goals::under_load::{Loaded, Way, releases};
use crate::platform::{App, Platform};
use crate::workshop::Workshop;

/// Load before a release, to have something to compare with, and after it is through.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_millis(500);
/// Of the service that starts slowly, in milliseconds.
const START_DELAY: u64 = 5000;

const APPS: [(&str, App); 4] = [
    ("stead, handover, nginx", App { image: "nginx", ..App::new("slowest-nginx", "handover") }),
    (
        "stead, handover, starts in 5 s",
        App { start_delay: START_DELAY, ..App::new("slowest-late", "handover") },
    ),
    (
        "stead, in-place, nginx",
        App { image: "nginx", ..App::new("slowest-nginx-in-place", "in-place") },
    ),
    (
        "stead, in-place, starts in 5 s",
        App { start_delay: START_DELAY, ..App::new("slowest-late-in-place", "in-place") },
    ),
];

/// What came of one release. Times are in milliseconds.
struct Noted {
    /// The slowest request before it.
    before: f64,
    /// The slowest during it, beyond that.
    beyond: f64,
    failed: f64,
}

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut ways = Vec::new();
    for (name, app) in APPS {
        if workshop.wants(name) {
            let platform = workshop.platform()?;
            platform.deploy(app, "1")?;
            platform.settled(app.name, 1)?;
            let host = Platform::host(app.name);
            ways.push(Way::new(name, Platform::gateway(), host.clone(), move |version| {
                platform.deploy(app, version)?;
                wait_for(Platform::gateway(), &host, version)?;
                // Over when the old one is gone, too.
                platform.settled(app.name, 1)
            }));
        }
    }
    if workshop.wants("docker") {
        workshop.docker()?;
        let folder = workshop.folder().join("slowest");
        let front = Front::start(&folder, "slowest", 24_200, START_DELAY)?;
        let name = "docker, new one first, starts in 5 s";
        ways.push(Way::new(name, front.listen(), "bench".to_owned(), move |version| {
            front.start_beside(version)
        }));
    }

    releases(&mut ways, rounds, (BEFORE, AFTER), |Loaded { report, begun, through }| {
        // The first second warms connections and caches.
        let before = report.slowest_between(1000.0, begun - Window::MS);
        let beyond = report.slowest_between(*begun, *through) - before;
        Noted { before, beyond, failed: report.failed.len() as f64 }
    })?;
    let mut notes = vec![
        "Slowest request during the release minus the slowest of the three seconds before it. \
         From the call to when the old Container is gone."
            .to_owned(),
    ];
    for way in &ways {
        notes.push(format!(
            "{}: slowest before, p50: {:.2} ms; failed requests: {:.0}",
            way.name,
            way.row(|noted| noted.before).percentile(0.5).unwrap_or_default(),
            way.noted.iter().map(|noted| noted.failed).sum::<f64>(),
        ));
    }
    for (name, app) in APPS {
        if workshop.wants(name) {
            let platform = workshop.platform()?;
            if app.strategy == "handover" {
                notes.push(format!("{name}: {} requests were parked", platform.parked(app.name)?));
            }
            platform.delete(app.name)?;
        }
    }
    Ok(vec![Outcome {
        title: "Goal 5: slowest request during a release beyond the slowest before it".to_owned(),
        goal: "handover: at most 5 ms, at the median of ten releases; nothing fails or is parked",
        unit: "ms",
        better: Better::Less,
        rows: ways.iter().map(|way| way.row(|noted| noted.beyond)).collect(),
        notes,
    }])
}
